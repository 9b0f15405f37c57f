"""Split CIFAR-100, baseline: frozen backbone and a linear head on its cls token.

    python main.py cifar100_linear --data-path DIR

What the frozen features alone give to the same optimizer, steps and class mask as L2P. The L2P paper (Table 1,
"FT-seq-frozen", without the class mask) reports Acc@1 17.72 ± 0.34 / forgetting 59.09 ± 0.25 with ViT-B/16.
"""

DEFAULTS = {"prompt_method": "none", "head_type": "token"}
