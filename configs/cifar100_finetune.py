"""Split CIFAR-100, baseline: sequential fine-tuning, everything trains, no prompts.

    python main.py cifar100_finetune --data-path DIR

The lower bound of the field: the L2P paper (Table 1) reports Acc@1 33.61 ± 0.85 / forgetting 86.87 ± 0.20 for
"FT-seq" with ViT-B/16, without the class mask that is on here (--no-train_mask turns it off).
"""

DEFAULTS = {"prompt_method": "none", "head_type": "token", "freeze": [], "opt": "sgd", "lr": 0.16}
