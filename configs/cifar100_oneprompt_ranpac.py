"""Split CIFAR-100, OnePrompt at all layers on the first task, then RanPAC.

    python main.py cifar100_oneprompt_ranpac --data-path DIR

RanPAC with prompts in the place of its adapters: no result of it is published. Ten keys and ten values in each of
twelve layers; rate, batch and epochs are those with which docs/results.md has it. Afterwards nothing trains by
gradient, so each image is tested once.
"""

from configs.cifar100_oneprompt import DEFAULTS as ONEPROMPT

DEFAULTS = ONEPROMPT | {
    "prompt_layers": list(range(2, 12)), "g_prompt_length": 10, "length": 10,
    "adapt": "first", "head": "ridge", "lr": 0.08, "epochs": 3,
}
