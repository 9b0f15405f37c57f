"""5-datasets (SVHN, MNIST, CIFAR-10, notMNIST, Fashion-MNIST), L2P with the PyTorch settings.

    python main.py five_datasets_l2p --data-path DIR --download

`--download` fetches all but notMNIST, which has to lie in DIR: `notMNIST.zip` (docs/data.md says where it is), or its
`notMNIST/Train/` and `notMNIST/Test/`. With `notMNIST_small/` a fifth of each class is drawn for the test, and
the numbers below do not compare. One task for each data set, 10 classes each.

Expected with ViT-B/16 (ImageNet-21k), published for that implementation: Acc@1 80.22 / forgetting 3.81. The paper's
numbers belong to five_datasets_l2p_jax.
"""

DEFAULTS = {
    "dataset": "5-datasets", "size": 20, "top_k": 4, "length": 10, "pull_constraint_coeff": 0.5,
    "use_prompt_mask": True, "shared_prompt_pool": True,
}
