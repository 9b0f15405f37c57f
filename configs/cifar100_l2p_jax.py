"""Split CIFAR-100, L2P with the settings of the official JAX code.

    torchrun --nproc_per_node=8 main.py cifar100_l2p_jax --data-path DIR

Expected with ViT-B/16 (ImageNet-21k), 10 tasks of 10 classes: paper Acc@1 83.83 ± 0.04 / forgetting 7.63 ± 0.30;
official code re-run by others 82.59 / 7.88. These settings are of the official code since DualPrompt joined it; its
first release had 5 of 10 prompts of 5 vectors, the cls token's position embedding on each, and a tenth of the weight of
the pull. Which of them made those numbers is not told. The official run has 8 processes of 16 images and scales the
learning rate by all 128; on one process, --batch-size 128 takes the same steps (but one batch then votes as a whole).
"""

DEFAULTS = {
    "length": 10,
    "top_k": 4,
    "pull_constraint_coeff": 1.0,
    "initializer": "flax_uniform",
    "prompt_key_init": "flax_uniform",
    "head_init": "zero",
    "prompt_pos_embed": "none",
    "unscale_lr": False,
}
