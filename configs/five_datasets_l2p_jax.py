"""5-datasets in the official order, L2P with the settings of the official JAX code.

    torchrun --nproc_per_node=8 main.py five_datasets_l2p_jax --data-path DIR --download

Data as for five_datasets_l2p. The order is CIFAR-10, MNIST, SVHN, notMNIST, Fashion-MNIST. The official code trains on
80 % of notMNIST's images and tests on the rest. So does this one where DIR holds one folder of them, `notMNIST_small/`;
which images are in the test differs.

Expected with ViT-B/16 (ImageNet-21k): paper Acc@1 81.14 ± 0.93 / forgetting 4.64 ± 0.52; official code re-run by others
79.68 / 3.71. Processes and rate as for cifar100_l2p_jax.
"""

from configs.cifar100_l2p_jax import DEFAULTS as JAX

DEFAULTS = JAX | {
    "dataset": "CIFAR10,MNIST,SVHN,NotMNIST,FashionMNIST", "size": 20, "pull_constraint_coeff": 0.5,
    "use_prompt_mask": True, "shared_prompt_pool": True,
}
