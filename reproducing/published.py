"""What others reported for the methods of `tables.py`, each number with its source and weights."""

from dataclasses import dataclass

IN21K, AUGREG_IN21K = "ImageNet-21k", "ImageNet-21k (AugReg)"
IN1K = "ImageNet-21k (AugReg), then ImageNet-1k"
SOME_IN21K = "ImageNet-21k (which of them is not told)"
WEIGHTS = {"orig_in21k": IN21K, "augreg_in21k": AUGREG_IN21K, "augreg_in21k_ft_in1k": IN1K}
"""timm's tag of a ViT-B/16 -> what it was pretrained on. L2P and DualPrompt have `orig_in21k`. CODA-Prompt and OVOR
take what timm had without a tag, now `augreg_in21k_ft_in1k`."""

SOURCES = {
    "L2P paper": "Wang et al., Learning to Prompt for Continual Learning, CVPR 2022",
    "L2P official, re-run": "the official JAX code of L2P, run again by others",
    "L2P PyTorch": "README of the PyTorch re-implementation of L2P",
    "L2P PyTorch, first": "README of the PyTorch re-implementation of L2P, first release",
    "L2P PyTorch, later": "README of the PyTorch re-implementation of L2P, later release",
    "DualPrompt paper": "Wang et al., DualPrompt, ECCV 2022; spreads as later papers quote them",
    "DualPrompt official, re-run": "the official JAX code of DualPrompt, run again by others",
    "DualPrompt PyTorch": "README of the PyTorch re-implementation of DualPrompt",
    "CODA paper": "Smith et al., CODA-Prompt, CVPR 2023",
    "CODA, others": "CODA-Prompt from ImageNet-21k weights, in later papers",
    "OVOR paper": "Huang et al., OVOR, ICLR 2024: OVOR-Deep",
    "class mean, others": "Janson et al., A Simple Baseline that Questions the Use of Pretrained-Models, 2022",
    "RanPAC paper": "McDonnell et al., RanPAC, NeurIPS 2023: without its first phase, and its baselines",
}


@dataclass(frozen=True)
class Published:
    """Acc@1 and forgetting in percent after the last task, with their spread where it was given."""

    method: str
    source: str
    """One of SOURCES."""
    acc1: float
    forgetting: float | None = None
    acc1_std: float | None = None
    forgetting_std: float | None = None
    weights: str = IN21K
    order: str = "natural"
    """Of the classes: that of their numbers, `numpy:N`, or SHUFFLED."""
    more: str = ""
    """What was done otherwise than here, where the numbers do not compare."""


SHUFFLED = "shuffled"  # by seeds of the source's own; a spread is then one over orders
RANPACS = "numpy:1993"
OUTLIERS = "reported with virtual outliers"
LONGER = "reported with 30 epochs of SGD"
TRAINED_CUTS = "reported with test images cut as for training"
UNFROZEN = "whether the ViT trained is not told"
# That release shuffled the classes, drew RandAugment, colours and erased patches, and normalised as ImageNet.
FIRST_RELEASE = "reported with shuffled classes and other augmentation"
# Its prefixes take keys from one image of a batch and values from another (docs/methods.md).
MIXED_PREFIXES = "reported with code that mixes the prefixes of a batch"
PUBLISHED: dict[str, tuple[Published, ...]] = {
    "cifar100": (
        Published("l2p", "L2P PyTorch, first", 82.77, 6.43, more=FIRST_RELEASE),
        Published("l2p", "L2P PyTorch, later", 83.77, 6.63),
        Published("l2p_official", "L2P paper", 83.83, 7.63, 0.04, 0.30),
        Published("l2p_official_first", "L2P paper", 83.83, 7.63, 0.04, 0.30),
        Published("l2p_official", "L2P official, re-run", 82.59, 7.88),
        Published("l2p_official_first", "L2P official, re-run", 82.59, 7.88),
        Published("l2p_replay", "L2P paper", 84.21, 7.72, 0.53, 0.77, more=UNFROZEN),
        Published("dualprompt", "DualPrompt paper", 86.51, 5.16, 0.33, 0.09),
        Published("dualprompt", "DualPrompt official, re-run", 85.59, 5.03),
        Published("dualprompt", "DualPrompt PyTorch", 86.13, 5.17, more=MIXED_PREFIXES),
        Published("coda", "CODA paper", 86.25, None, 0.74, None, IN1K, SHUFFLED),
        Published("coda", "CODA, others", 86.9, weights=SOME_IN21K),
        Published("oneprompt", "OVOR paper", 85.99, 6.42, 0.89, 2.03, IN1K, SHUFFLED, OUTLIERS),
        Published("nearest_class_mean", "class mean, others", 83.70, weights=SOME_IN21K),
        Published("nearest_class_mean", "RanPAC paper", 83.4, weights=AUGREG_IN21K, order=RANPACS),
        Published("ranpac", "RanPAC paper", 89.0, weights=AUGREG_IN21K, order=RANPACS),
        Published("joint_linear", "RanPAC paper", 87.9, weights=AUGREG_IN21K, more=LONGER),
        Published("joint_fine_tuning", "L2P paper", 90.85, None, 0.12),
        Published("joint_fine_tuning", "RanPAC paper", 93.8, weights=AUGREG_IN21K, more=LONGER),
        Published("gaussian", "L2P paper", 88.34, None, 0.14),
    ),
    "imagenet_r": (
        Published("l2p", "DualPrompt paper", 61.57, 9.73, 0.66, 0.47),
        Published("dualprompt", "DualPrompt paper", 68.13, 4.68, 0.49, 0.20),
        Published("dualprompt", "DualPrompt official, re-run", 67.55, 5.06),
        Published("dualprompt", "DualPrompt PyTorch", 68.23, 4.49, more=MIXED_PREFIXES),
        Published("coda", "CODA paper", 75.45, None, 0.56, None, IN1K, SHUFFLED),
        Published("coda", "CODA, others", 70.0, weights=SOME_IN21K),
        Published("oneprompt", "OVOR paper", 76.11, 7.16, 0.21, 0.34, IN1K, SHUFFLED, OUTLIERS),
        Published("nearest_class_mean", "RanPAC paper", 61.2, weights=IN1K, order=RANPACS),
        Published("ranpac", "RanPAC paper", 71.8, weights=IN1K, order=RANPACS),
        Published("joint_linear", "RanPAC paper", 72.0, weights=IN1K, more=LONGER),
        Published("joint_fine_tuning", "RanPAC paper", 86.6, weights=IN1K, more=LONGER),
    ),
    "five_datasets": (
        Published("l2p", "L2P PyTorch", 80.22, 3.81),
        Published("l2p_official", "L2P paper", 81.14, 4.64, 0.93, 0.52),
        Published("l2p_official", "L2P official, re-run", 79.68, 3.71),
    ),
    "core50": (Published("l2p", "L2P paper", 78.33, None, 0.06, more=TRAINED_CUTS),),
    "gaussian": (Published("gaussian", "L2P paper", 88.34, None, 0.14),),
    "few": (),
    "demo": (),
}
