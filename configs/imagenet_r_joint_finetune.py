"""Split ImageNet-R, bound: everything trains on all tasks at once.

    python main.py imagenet_r_joint_finetune --data-path DIR

Published with ViT-B/16 (ImageNet-21k): 84.6. A checkpoint holds the whole ViT. The split of the images is our own: see
imagenet_r_l2p.
"""

from configs.cifar100_joint_finetune import DEFAULTS as CIFAR100

DEFAULTS = CIFAR100 | {"dataset": "Split-ImageNet-R", "epochs": 50}
