"""Split ImageNet-R, baseline: nearest class mean of the frozen cls feature.

    python main.py imagenet_r_ncm --data-path DIR

Published for ViT-B/16 *fine-tuned on ImageNet-1k*: 61.2. ImageNet-21k weights are the default here. The
split of the images is our own: see imagenet_r_l2p.
"""

from configs.cifar100_ncm import DEFAULTS as CIFAR100

DEFAULTS = CIFAR100 | {"dataset": "Split-ImageNet-R"}
