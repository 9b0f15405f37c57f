"""Split ImageNet-R, CODA-Prompt.

    python main.py imagenet_r_coda --data-path DIR

Published: Acc@1 75.45 ± 0.56 with ViT-B/16 *fine-tuned on ImageNet-1k*; others find 70.0 with ImageNet-21k weights,
which are the default here. As cifar100_coda, with 50 epochs. The split of the images is our own: see imagenet_r_l2p.
"""

from configs.cifar100_coda import DEFAULTS as CIFAR100

DEFAULTS = CIFAR100 | {"dataset": "Split-ImageNet-R", "epochs": 50}
