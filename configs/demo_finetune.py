"""Demo baseline: the same tiny ViT fine-tuned task after task, everything trains, no prompts.

    python main.py demo_finetune
"""

from configs.demo_l2p import GLYPHS

DEFAULTS = GLYPHS | {
    "prompt_method": "none", "head_type": "token", "freeze": [],
}
