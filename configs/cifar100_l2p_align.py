"""Split CIFAR-100, L2P with its head aligned after each task (SLCA).

    python main.py cifar100_l2p_align --data-path DIR

No result of L2P with this alignment is published; SLCA itself, which fine-tunes the whole ViT slowly, has 91.53 with
ViT-B/16 (ImageNet-21k). Settings of cifar100_l2p_jax; the head is then retrained on samples of Gaussians with
SLCA's settings: 256 of each class and epoch, 5 epochs. Unlike there, the next task goes on with the aligned head
(docs/differences.md). Whole covariances of 100 classes of a ViT-B are 236 MB, once per task on disk.
"""

from configs.cifar100_l2p_jax import DEFAULTS as JAX

DEFAULTS = JAX | {"align": True}
