"""Split ImageNet-R, OnePrompt.

    python main.py imagenet_r_oneprompt --data-path DIR

Published (OVOR-Deep) with ViT-B/16: Acc@1 76.11, weights and split as its authors have them. As cifar100_oneprompt,
with 50 epochs as for CODA-Prompt. The split of the images is our own: see imagenet_r_l2p.
"""

from configs.cifar100_oneprompt import DEFAULTS as CIFAR100

DEFAULTS = CIFAR100 | {"dataset": "Split-ImageNet-R", "epochs": 50}
