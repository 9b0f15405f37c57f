"""Split ImageNet-R, DualPrompt: longer prompts of each task, chosen for each image alone.

    torchrun --nproc_per_node=8 main.py imagenet_r_dualprompt --data-path DIR

Published with ViT-B/16 (ImageNet-21k), 10 tasks: Acc@1 68.13 ± 0.49 / forgetting 4.68 ± 0.20 (paper),
67.55 / 5.06 (official code re-run), 68.23 / 4.49 (PyTorch). The split of the
images is our own, or yours: see imagenet_r_l2p.
"""

from configs.cifar100_dualprompt import DEFAULTS as CIFAR100

DEFAULTS = CIFAR100 | {
    "dataset": "Split-ImageNet-R", "length": 20, "batchwise_prompt": False, "lr": 0.005, "epochs": 50,
}
