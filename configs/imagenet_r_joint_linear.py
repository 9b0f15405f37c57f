"""Split ImageNet-R, bound: a linear head on the frozen cls token, all tasks at once.

    python main.py imagenet_r_joint_linear --data-path DIR

Published with ViT-B/16 *fine-tuned on ImageNet-1k* and 30 epochs of SGD: 72.0. Learning rate and epochs are those
of imagenet_r_l2p. The split of the images is our own: see there.
"""

from configs.cifar100_joint_linear import DEFAULTS as CIFAR100

DEFAULTS = CIFAR100 | {"dataset": "Split-ImageNet-R", "lr": 0.005, "epochs": 50}
