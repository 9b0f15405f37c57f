"""Split CIFAR-100, bound: everything trains on all tasks at once.

    python main.py cifar100_joint_finetune --data-path DIR

Published with ViT-B/16 (ImageNet-21k): 90.85 (L2P paper), 93.8 (others, 30 epochs of SGD). The steps are as
many as those of cifar100_finetune, and so is the learning rate. A checkpoint holds the whole ViT.
"""

from configs.cifar100_finetune import DEFAULTS as FINETUNE

DEFAULTS = FINETUNE | {"joint": True}
