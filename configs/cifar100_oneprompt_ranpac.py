"""Split CIFAR-100, OnePrompt at all layers on the first task, then RanPAC.

    python main.py cifar100_oneprompt_ranpac --data-path DIR

RanPAC with prompts in the place of its adapters: no result of it is published. Ten keys and ten values in each of
twelve layers; rate, batch and epochs are those with which docs/results.md has it. Afterwards nothing trains by
gradient, so each image is tested once.
"""

DEFAULTS = {
    "prompt_method": "oneprompt", "head_type": "token", "prompt_layers": list(range(2, 12)), "length": 10,
    "g_prompt_length": 10, "adapt": "first", "head": "ridge", "lr": 0.08, "sched": "cosine", "warmup_epochs": 0,
    "min_lr": 0.0, "epochs": 3, "clip_grad": None,
}
