"""Gaussian CIFAR-100: the task-agnostic stream, L2P with the settings of the official JAX code.

    torchrun --nproc_per_node=8 main.py cifar100_gaussian_l2p --data-path DIR

A stream of 200 · 5 batches, in which each of the 100 classes has its peak at a place of its own and is active around it
with a probability of standard deviation 50 batches. An episode trains 5 epochs of 5 batches drawn from its active
classes. Nobody says where a task begins: the loss masks to the episode's active classes, the optimizer goes on, and the
whole test set is evaluated every 10 episodes. The accuracy at the end is the result.

Expected with ViT-B/16 (ImageNet-21k), published in the paper: Acc@1 88.34 ± 0.14; its text says that each batch is
trained on once, and the official code has these 5 epochs. The schedule is the one that the official function documents;
the shipped config leaves its number of steps at -1, which stretches the schedule and trains each episode for whole
epochs. The config is of the first official release, whose prompts are not those of cifar100_l2p_jax: five prompts of
five vectors, the cls token's position embedding on each, and a tenth of the weight of the pull.
"""

from configs.cifar100_l2p_jax import DEFAULTS as JAX

# Of the first official release are the values in configs/base.py.
OF_TASKS = {"length", "top_k", "pull_constraint_coeff", "prompt_pos_embed"}
DEFAULTS = {name: value for name, value in JAX.items() if name not in OF_TASKS} | {
    "schedule": "gaussian", "reinit_optimizer": False}
