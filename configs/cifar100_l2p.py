"""Split CIFAR-100, L2P with the settings of the PyTorch re-implementation.

    python main.py cifar100_l2p --data-path DIR

Expected with ViT-B/16 (ImageNet-21k), 10 tasks of 10 classes, published for that implementation: Acc@1 83.77 /
forgetting 6.63 (later release, which had these settings). Its first release, 82.77 / 6.43, shuffled the classes and had
other augmentation: RandAugment, colours, erased patches, ImageNet's mean and standard deviation. Paper: 83.83 ± 0.04 /
7.63 ± 0.30.
"""

DEFAULTS = {}  # configs/base.py holds these very settings
