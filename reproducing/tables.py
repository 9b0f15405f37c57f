"""The tables of `reproduce.py`: for each method its name and its command line.

The official JAX runs have 8 processes, whose batches together are one step. On one GPU the same step is one larger
batch, so their lines here give the batch of all eight. A batch vote is then taken over that batch.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Runs that belong together. `methods`: name -> command line of main.py."""

    summary: str
    methods: dict[str, str]
    seeds: tuple[int, ...] = (42, 43, 44)
    first_seed_only: frozenset[str] = frozenset()
    """Methods that draw nothing, or take long: they have one seed, unless --seeds says more."""
    small: bool = False
    """Whether a run is so small that one core is best for it, and several run side by side."""


ALL_LAYERS = "--prompt_layers 0 1 2 3"
PREFIXES = "--head_type token --g_prompt_layers 0 1 --prompt_layers 2 3"  # as in the papers' first five blocks
GENTLE = "--lr 0.000128 --head_init zero"  # the shared rate wrecks what was pretrained

# Images, batches, steps and the class mask are those of the demo everywhere, and so is the learning rate where the line
# does not say why not. CODA and OnePrompt are published with a fifteenth of L2P's rate and more epochs; of 0.01, 0.003
# and 0.00067 the shared 0.01 was best for both (seed 0; demo/README.md).
DEMO = {
    "l2p": "demo_l2p",
    "l2p_deep": f"demo_l2p {ALL_LAYERS}",
    "l2p_random": "demo_l2p --prompt_choice random",
    "l2p_fixed": "demo_l2p --prompt_choice fixed",
    "l2p_pool_of_one": "demo_l2p --size 1 --top_k 1",
    "one_prompt_no_pool": "demo_l2p --no-prompt_pool",
    "dualprompt": f"demo_l2p --prompt_method dualprompt {PREFIXES} --shared_prompt_pool --pull_constraint_coeff 1",
    "coda": f"demo_l2p --prompt_method coda --head_type token {ALL_LAYERS} --size 50 --length 8",
    "oneprompt": f"demo_l2p --prompt_method oneprompt {PREFIXES} --length 20",
    "l2p_align": "demo_l2p --align",
    "l2p_then_ranpac": "demo_l2p --head_type token --adapt first --head ridge --random_features 2000",
    "linear": "demo_linear",
    "linear_align": "demo_linear --align",
    "nearest_class_mean": "demo_linear --head ncm --epochs 1",  # no gradient: one pass is all it can use
    "ridge": "demo_linear --head ridge --random_features 0 --epochs 1",  # likewise
    "ranpac": "demo_linear --head ridge --random_features 2000 --epochs 1",  # likewise
    "fine_tuning": "demo_finetune",
    "fine_tuning_gentle": f"demo_finetune {GENTLE}",
    "joint_linear": "demo_linear --joint",
    "joint_l2p": "demo_l2p --joint",
    "joint_fine_tuning": f"demo_finetune {GENTLE} --joint",  # the rate at which fine-tuning learns most
}
DEMO_FAST = {"l2p", "linear", "linear_align", "nearest_class_mean", "ridge", "ranpac", "joint_linear"}

# Few real images and a small pretrained ViT. All train as many steps (but for OnePrompt of the first task before
# RanPAC), at L2P's rate or, where a fifteenth of it is published, at a tenth; what trains before or beside RanPAC has
# rates of its own. Controls of the pool leave out the position embedding on prompts, which blinds this ViT
# (docs/results.md).
_FEW = ("--model deit_tiny_patch16_224 --input_norm imagenet --subsample 50 --subsample_test 20 --batch-size 16 "
        "--epochs 3 --lr")
COSINE = "--sched cosine --warmup_epochs 0 --min_lr 0"  # what OnePrompt was measured with; OVOR's code has another
FAST, SLOW, GENTLY = f"{_FEW} 0.16", f"{_FEW} 0.016", f"{_FEW} 0.0016"
FEW = {
    "l2p": f"cifar100_l2p {FAST}",
    "l2p_official": f"cifar100_l2p_jax {FAST}",
    "l2p_nopos": f"cifar100_l2p_nopos {FAST}",
    "l2p_deep": f"cifar100_l2p_nopos {FAST} --prompt_layers 0 1 2 3 4",
    "l2p_random": f"cifar100_l2p_nopos {FAST} --prompt_choice random",
    "l2p_fixed": f"cifar100_l2p_nopos {FAST} --prompt_choice fixed",
    "l2p_pool_of_one": f"cifar100_l2p_nopos {FAST} --size 1 --top_k 1",
    "one_prompt_no_pool": f"cifar100_l2p_nopos {FAST} --no-prompt_pool",
    "dualprompt": f"cifar100_dualprompt {FAST}",
    "coda": f"cifar100_coda {SLOW}",
    "oneprompt": f"cifar100_oneprompt {SLOW} {COSINE}",
    "l2p_align": f"cifar100_l2p_align {FAST}",
    "oneprompt_align": f"cifar100_oneprompt {SLOW} {COSINE} --align",
    "l2p_then_ranpac": f"cifar100_l2p_ranpac {FAST} --random_features 5000",
    "oneprompt_then_ranpac": f"cifar100_oneprompt {SLOW} {COSINE} --epochs 20 --adapt first --head ridge "
                             "--random_features 5000",
    "oneprompt_deep_then_ranpac": f"cifar100_oneprompt_ranpac {_FEW} 0.08 --random_features 5000",
    "linear": f"cifar100_linear {FAST}",
    "linear_align": f"cifar100_linear {FAST} --align",
    "nearest_class_mean": f"cifar100_ncm {FAST}",
    "ridge": f"cifar100_ranpac {FAST} --random_features 0",
    "ranpac": f"cifar100_ranpac {FAST} --random_features 5000",
    "drift_ranpac": f"cifar100_drift_ranpac {_FEW} 0.04 --random_features 5000",
    "drift_ranpac_mild_crops": f"cifar100_drift_ranpac {_FEW} 0.04 --random_features 5000 --scale 0.4 1",
    "oneprompt_deep_then_ranpac_mild_crops": f"cifar100_oneprompt_ranpac {_FEW} 0.08 --random_features 5000 "
                                             "--scale 0.4 1",
    "oneprompt_then_ranpac_mild_crops": f"cifar100_oneprompt {_FEW} 0.04 {COSINE} --adapt first --head ridge "
                                        "--random_features 5000 --scale 0.4 1",
    "drift_ignored": f"cifar100_drift_ranpac {_FEW} 0.04 --random_features 5000 --drift ignore",
    "fine_tuning": f"cifar100_finetune {GENTLY}",
    "joint_linear": f"cifar100_joint_linear {FAST}",
    "joint_l2p": f"cifar100_l2p_nopos {FAST} --joint",
    "joint_fine_tuning": f"cifar100_joint_finetune {GENTLY}",
}

# CODA-Prompt, OVOR and RanPAC tested on whole images of CIFAR-100; other methods with RanPAC's head get the same.
UNCUT = "--crop_pct 1"
# The official code before DualPrompt joined it. Which release made the numbers that others reported is not told.
FIRST_RELEASE = "--length 5 --top_k 5 --pull_constraint_coeff 0.1 --prompt_pos_embed cls"

TABLES = {
    "cifar100": Table("Split CIFAR-100 in 10 tasks, and its Gaussian stream", {
        "l2p": "cifar100_l2p",
        "l2p_official": "cifar100_l2p_jax --batch-size 128",
        "l2p_official_first": f"cifar100_l2p_jax --batch-size 128 {FIRST_RELEASE}",
        "l2p_nopos": "cifar100_l2p_nopos",
        "l2p_replay": "cifar100_l2p_replay --batch-size 128",
        "dualprompt": "cifar100_dualprompt --batch-size 192",
        "coda": f"cifar100_coda {UNCUT}",
        "oneprompt": f"cifar100_oneprompt {UNCUT}",
        "l2p_align": "cifar100_l2p_align --batch-size 128",
        "l2p_then_ranpac": f"cifar100_l2p_ranpac --batch-size 128 {UNCUT}",
        "linear": "cifar100_linear",
        "nearest_class_mean": f"cifar100_ncm {UNCUT}",
        "ranpac": f"cifar100_ranpac {UNCUT}",
        "oneprompt_deep_then_ranpac": f"cifar100_oneprompt_ranpac {UNCUT}",
        "drift_ranpac": f"cifar100_drift_ranpac {UNCUT}",
        "fine_tuning": "cifar100_finetune",
        "joint_linear": f"cifar100_joint_linear {UNCUT}",
        "joint_fine_tuning": "cifar100_joint_finetune",
        "gaussian": "cifar100_gaussian_l2p --batch-size 128",
    }, first_seed_only=frozenset({"nearest_class_mean"})),
    "imagenet_r": Table("Split ImageNet-R: 200 classes in 10 tasks", {
        "l2p": "imagenet_r_l2p --batch-size 128",
        "dualprompt": "imagenet_r_dualprompt --batch-size 192",
        "coda": "imagenet_r_coda",
        "oneprompt": "imagenet_r_oneprompt",
        "nearest_class_mean": "imagenet_r_ncm",
        "ranpac": "imagenet_r_ranpac",
        "joint_linear": "imagenet_r_joint_linear",
        "joint_fine_tuning": "imagenet_r_joint_finetune",
    }, first_seed_only=frozenset({"nearest_class_mean"})),
    "five_datasets": Table("SVHN, MNIST, CIFAR-10, notMNIST, Fashion-MNIST: a task for each", {
        "l2p": "five_datasets_l2p",
        "l2p_official": "five_datasets_l2p_jax --batch-size 128",
        "dualprompt": "five_datasets_dualprompt --batch-size 192",
    }),
    "core50": Table("CORe50, domain-incremental: the same 50 objects in eight sessions", {
        "l2p": "core50_l2p --batch-size 128",
    }),
    "gaussian": Table("Gaussian CIFAR-100, a stream without tasks", {
        "gaussian": "cifar100_gaussian_l2p --batch-size 128",
    }),
    "few": Table("Split CIFAR-100 with 50 images of each class, and a small ViT", FEW,
                 first_seed_only=frozenset({"nearest_class_mean"})),
    "demo": Table("all methods and baselines on the demo's images, offline", DEMO, (42, 1, 2),
                  frozenset(DEMO.keys() - DEMO_FAST), small=True),
}
