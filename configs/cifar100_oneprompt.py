"""Split CIFAR-100, OnePrompt: DualPrompt's shape with one prompt for all tasks.

    python main.py cifar100_oneprompt --data-path DIR

Published (OVOR-Deep) with ViT-B/16: Acc@1 85.99. 107,520 values train beside the head; the ViT runs once, so a step
costs two thirds of L2P's. Adam 1e-3, cosine over 20 epochs. Initial values and batch are not known to us: U(-1, 1) as
in the PyTorch DualPrompt, and CODA-Prompt's batch of 128. The virtual outliers of OVOR are not part of it.
"""

DEFAULTS = {
    "prompt_method": "oneprompt", "head_type": "token", "prompt_layers": [2, 3, 4], "length": 20,
    "batch_size": 128, "lr": 0.002, "sched": "cosine", "warmup_epochs": 0, "min_lr": 0.0, "epochs": 20,
    "clip_grad": None,
}
