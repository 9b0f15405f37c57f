"""Split CIFAR-100, baseline: nearest class mean of the frozen cls feature, no gradient at all.

    python main.py cifar100_ncm --data-path DIR

Published for ViT-B/16 (ImageNet-21k): 83.4 (the AugReg weights) and 83.7, on whole test images (--crop_pct 1), and no
forgetting beyond the growing number of classes.
"""

DEFAULTS = {"prompt_method": "none", "head_type": "token", "head": "ncm", "epochs": 1}
