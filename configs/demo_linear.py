"""Demo baseline: the same tiny ViT frozen, a linear head on its cls token.

    python main.py demo_linear
"""

from configs.demo_l2p import GLYPHS

DEFAULTS = GLYPHS | {
    "prompt_method": "none", "head_type": "token", "head_init": "zero",
}
