"""Split CIFAR-100, RanPAC: ridge regression on random features of the frozen ViT.

    python main.py cifar100_ranpac --data-path DIR

Published with ViT-B/16 (ImageNet-21k, the AugReg weights), whole test images (--crop_pct 1) and --class_order
numpy:1993: Acc@1 92.2; 89.0 without its first phase, in which the ViT is adapted to the first task. This is the one
without; cifar100_l2p_ranpac has prompts as its first phase. 10,000 random features: 0.8 GB while tasks are learned
(float64), and as much once per task on disk; a task's checkpoint has 4 MB. One pass over the images.
"""

DEFAULTS = {"prompt_method": "none", "head_type": "token", "head": "ridge", "epochs": 1}
