"""Split ImageNet-R, OnePrompt.

    python main.py imagenet_r_oneprompt --data-path DIR

Published with virtual outliers, which are not part of this, and with ViT-B/16 fine-tuned on ImageNet-1k (OVOR-Deep):
Acc@1 76.11 ± 0.21 / forgetting 7.16 ± 0.34. As cifar100_oneprompt, with 50 epochs as for CODA-Prompt. The split of the
images is our own: see imagenet_r_l2p.
"""

from configs.cifar100_oneprompt import DEFAULTS as CIFAR100

DEFAULTS = CIFAR100 | {"dataset": "Split-ImageNet-R", "epochs": 50}
