"""Split CIFAR-100, L2P's prompts trained on the first task, then RanPAC's ridge regression.

    python main.py cifar100_l2p_ranpac --data-path DIR

RanPAC with prompts in the place of its adapters: no result of it is published. The settings of the first task are
those of cifar100_l2p_jax, with the cls token as the feature, which prompts change least; afterwards nothing trains by
gradient.
"""

from configs.cifar100_l2p_jax import DEFAULTS as JAX

DEFAULTS = JAX | {"head": "ridge", "adapt": "first", "head_type": "token"}
