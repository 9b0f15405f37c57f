"""Split ImageNet-R, baseline: nearest class mean of the frozen cls feature.

    python main.py imagenet_r_ncm --data-path DIR

Published for ViT-B/16 (ImageNet-21k): 61.2. The split of the images is our own: see imagenet_r_l2p.
"""

from configs.cifar100_ncm import DEFAULTS as CIFAR100

DEFAULTS = CIFAR100 | {"dataset": "Split-ImageNet-R"}
