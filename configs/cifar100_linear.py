"""Split CIFAR-100, baseline: frozen backbone and a linear head on its cls token.

    python main.py cifar100_linear --data-path DIR

What the frozen features alone give to the same optimizer, steps and class mask as L2P.
"""

DEFAULTS = {"prompt_method": "none", "head_type": "token"}
