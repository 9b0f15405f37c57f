"""Split ImageNet-R, bound: everything trains on all tasks at once.

    python main.py imagenet_r_joint_finetune --data-path DIR

Published with ViT-B/16 *fine-tuned on ImageNet-1k* and 30 epochs of SGD: 86.6. A checkpoint holds the whole ViT. The
split of the images is our own: see imagenet_r_l2p.
"""

from configs.cifar100_joint_finetune import DEFAULTS as CIFAR100

DEFAULTS = CIFAR100 | {"dataset": "Split-ImageNet-R", "epochs": 50}
