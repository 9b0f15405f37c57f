"""Demo: L2P on generated glyphs with a tiny pretrained ViT, nothing to download.

    python main.py demo_l2p
"""

# What the three demos share: the comparison is of methods, everything else is the same.
GLYPHS = {
    "dataset": "Split-HardGlyphs", "num_tasks": 5, "subsample": 200,
    "model": "glyph_vit_tiny", "pretrained": False, "init_checkpoint": "demo/glyph_vit.safetensors", "input_size": 32,
    "batch_size": 20, "epochs": 2, "lr": 0.01, "scale": [0.7, 1.0], "hflip": 0.0,
    "num_workers": 0, "print_freq": 1000,
}

DEFAULTS = GLYPHS | {
    "top_k": 4, "initializer": "flax_uniform",
    "prompt_key_init": "flax_uniform", "head_init": "zero", "prompt_pos_embed": "none",
}
