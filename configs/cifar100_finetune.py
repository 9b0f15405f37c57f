"""Split CIFAR-100, baseline: sequential fine-tuning, everything trains, no prompts.

    python main.py cifar100_finetune --data-path DIR

The lower bound of the field: what a network forgets when nothing is done about it. The learning rate is 1e-4 at batch
16: L2P's would wreck a pretrained ViT. The class mask is on, as for L2P (--no-train_mask turns it off).
"""

DEFAULTS = {"prompt_method": "none", "head_type": "token", "freeze": [], "lr": 0.0016}
