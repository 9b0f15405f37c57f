"""Demo baseline: the same tiny ViT fine-tuned task after task, everything trains, no prompts.

    python main.py demo_finetune
"""

from configs.demo_l2p import GLYPHS

DEFAULTS = GLYPHS | {
    "output_dir": "./output/demo_finetune", "prompt_method": "none", "head_type": "token", "freeze": [],
}
