"""Split ImageNet-R, RanPAC: ridge regression on random features of the frozen ViT.

    python main.py imagenet_r_ranpac --data-path DIR

Published with ViT-B/16 *fine-tuned on ImageNet-1k*: 71.8 without a first phase (this one), 77.9 with it. ImageNet-21k
weights are the default here. See cifar100_ranpac. The split of the images is our own: see imagenet_r_l2p.
"""

from configs.cifar100_ranpac import DEFAULTS as CIFAR100

DEFAULTS = CIFAR100 | {"dataset": "Split-ImageNet-R"}
