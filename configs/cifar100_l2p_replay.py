"""Split CIFAR-100, L2P-R: L2P with 10 images of each class kept for replay.

    torchrun --nproc_per_node=8 main.py cifar100_l2p_replay --data-path DIR

From the second task on, each batch is joined by as many images that are kept of this task and those before; the class
mask does not concern these. The same number of each class is kept (the official code takes a random part of its
augmented batches, which need not be even).

Published in the paper with ViT-B/16 (ImageNet-21k): 10 per class Acc@1 84.21 / forgetting 7.72, 50 per class
(--replay_per_class 50) 86.31 / 5.83. The official config advises to train the backbone as well (an empty --freeze, and
--opt sgd); users report that they could not reproduce these numbers.
"""

from configs.cifar100_l2p_jax import DEFAULTS as JAX

DEFAULTS = JAX | {"replay_per_class": 10}
