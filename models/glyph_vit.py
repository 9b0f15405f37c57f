"""The demo's backbone as a timm model: `timm.create_model("glyph_vit_tiny")` after this module is imported.

Its weights are `demo/glyph_vit.safetensors`: `demo/pretrain.py` made them, `--init_checkpoint` loads them as others.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer

from errors import InputError

# timm.create_model("vit_tiny_patch16_224", num_classes=0, **GLYPH_VIT) builds the same network.
GLYPH_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 4}

default_cfgs = generate_default_cfgs(
    {
        "glyph_vit_tiny": {
            "input_size": (3, 32, 32),
            "num_classes": 0,
            "mean": (0.0, 0.0, 0.0),  # it was pretrained on plain [0, 1] pixels
            "std": (1.0, 1.0, 1.0),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
    }
)


@register_model
def glyph_vit_tiny(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """A ViT for 32×32 images in [0, 1], without a head unless `num_classes` asks for one.

    Raises:
        InputError: `pretrained` is true; timm has no weights of this name.
    """
    if pretrained:
        raise InputError(
            "glyph_vit_tiny has no weights to download: give --init_checkpoint demo/glyph_vit.safetensors instead."
        )
    settings = {"num_classes": 0, **GLYPH_VIT, **kwargs}
    return build_model_with_cfg(VisionTransformer, "glyph_vit_tiny", pretrained, **settings)
