"""Split CIFAR-100, DualPrompt: a general prompt and one of each task, as keys and values.

    python main.py cifar100_dualprompt --data-path DIR --batch-size 24

The general prompt is in the first two blocks, that of the task in the three behind them; each has five keys and five
values. Published with ViT-B/16 (ImageNet-21k), 10 tasks: Acc@1 86.51 ± 0.33 / forgetting 5.16 ± 0.09 (paper),
85.59 / 5.03 (official code re-run by others), 86.13 / 5.17 (PyTorch). That PyTorch code mixes keys with values over the
images of a batch; here each image has its own. Initial values are those of the official code (U(0, 0.01), zero head).
The official run has 8 processes of 24 images and scales the rate by all 192 of them. A step costs a little less than
L2P's: the same two passes, fewer tokens.
"""

DEFAULTS = {
    "prompt_method": "dualprompt", "head_type": "token", "prompt_layers": [2, 3, 4],
    "initializer": "flax_uniform", "prompt_key_init": "flax_uniform", "head_init": "zero",
    "shared_prompt_pool": True, "pull_constraint_coeff": 1.0, "batch_size": 24, "unscale_lr": False,
}
