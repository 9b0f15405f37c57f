"""Split ImageNet-R, L2P: 200 classes in 10 tasks, images of any size from their files.

    torchrun --nproc_per_node=8 main.py imagenet_r_l2p --data-path DIR

DIR holds the official `imagenet-r/` (or `imagenet-r.tar`), of which a fifth of each class is drawn for the test, the
same for every --seed, and written to `scenario.json` beside the results; or `imagenet-r/train/` and `imagenet-r/test/`.

Neither reference has settings for L2P here: these are those of the official JAX code for CIFAR-100 with a learning
rate of 0.005 and 50 epochs, as for DualPrompt on ImageNet-R. Published for L2P with ViT-B/16 (ImageNet-21k) beside
DualPrompt, settings and split not known: Acc@1 61.57 ± 0.66 / forgetting 9.73 ± 0.47.
"""

from configs.cifar100_l2p_jax import DEFAULTS as JAX

DEFAULTS = JAX | {"dataset": "Split-ImageNet-R", "lr": 0.005, "epochs": 50}
