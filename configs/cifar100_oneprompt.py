"""Split CIFAR-100, OnePrompt: DualPrompt's shape with one prompt for all tasks.

    python main.py cifar100_oneprompt --data-path DIR

Published with virtual outliers, which are not part of this, and with ViT-B/16 fine-tuned on ImageNet-1k (OVOR-Deep):
Acc@1 85.99. 107,520 values train beside the head; the ViT runs once, so a step costs two thirds of L2P's. Adam 1e-3 at
batch 128, cosine over 20 epochs. Initial values are from U(-1, 1), as in the PyTorch DualPrompt; OVOR's code has
U(0, 1).
"""

DEFAULTS = {
    "prompt_method": "oneprompt", "head_type": "token", "prompt_layers": [2, 3, 4], "length": 20,
    "batch_size": 128, "lr": 0.002, "sched": "cosine", "warmup_epochs": 0, "min_lr": 0.0, "epochs": 20,
    "clip_grad": None,
}
