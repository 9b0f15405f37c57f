"""CORe50, domain-incremental: eight sessions of the same 50 objects, the backbone trains, too.

    torchrun --nproc_per_node=8 main.py core50_l2p --data-path DIR

DIR holds the official `core50_128x128/` (s1 … s11, in each o1 … o50) or its archive. Sessions 1, 2, 4, 5, 6, 8, 9, 11
are trained on, one after another; 3, 7, 10 are the test set after each of them.

The settings are those of the official JAX code: no class mask, prompts of 5 vectors, SGD with Nesterov momentum 0.9,
nothing frozen (the query comes from a frozen copy of the pretrained ViT). Published in the paper with ViT-B/16
(ImageNet-21k): Acc@1 78.33 ± 0.06. The official code tests on images that went through its training transforms; here
they are cut as for any test, so the numbers may not compare. A checkpoint of a session holds the whole ViT, as all of
it was trained.
"""

from configs.cifar100_l2p_jax import DEFAULTS as JAX

# The prompts' length is that of configs/base.py.
DEFAULTS = {name: value for name, value in JAX.items() if name != "length"} | {
    "dataset": "CORe50", "train_mask": False, "freeze": [], "opt": "sgd"}
