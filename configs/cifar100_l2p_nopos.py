"""Split CIFAR-100, L2P with the PyTorch settings but no position embedding on prompts.

    python main.py cifar100_l2p_nopos --data-path DIR

One change from cifar100_l2p, and not a published setting. With DeiT-Tiny, prompts that carry the cls token's position
embedding leave the head features in which the nearest class mean finds 24 % of 20 classes, before any training; without
it 79 %, the cls token of the unprompted ViT 81 % (benchmarks/prompt_features.json).
"""

DEFAULTS = {"prompt_pos_embed": "none"}
