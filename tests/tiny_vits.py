"""Six kinds of timm ViT, made small: the case table of every test that must hold for "any VisionTransformer"."""

import timm
import torch
from timm.models.vision_transformer import VisionTransformer

SMALL = {"embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 0}
TINY_VITS = {
    "plain": ("vit_tiny_patch16_224", {"img_size": 64}),
    "deit": ("deit_tiny_patch16_224", {"img_size": 64}),
    "deit3, LayerScale, no cls position": ("deit3_small_patch16_224", {"img_size": 64}),
    "in21k": ("vit_base_patch16_224.augreg_in21k", {"img_size": 64}),
    "dinov2 with registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 56}),
    "clip, pre-norm": ("vit_base_patch16_clip_224", {"img_size": 64}),
    "32 pixels": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8}),
    "qk-norm and LayerScale": ("vit_tiny_patch16_224", {"img_size": 64, "qk_norm": True, "init_values": 0.1}),
}


def tiny_vit(case: str, dtype: torch.dtype = torch.float32) -> VisionTransformer:
    """One of the cases, every tensor random (also the norms and scales, which start as ones and zeros)."""
    name, arguments = TINY_VITS[case]
    vit = timm.create_model(name, pretrained=False, **SMALL, **arguments).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in vit.named_parameters():
            # Weights keep the scale of what passes through; small biases let images differ in their features.
            scale, shift = (0.2, 0.0) if tensor.ndim > 1 else (0.05, 0.0) if name.endswith("bias") else (0.3, 1.0)
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale + shift)
    return vit.to(dtype)


def images_for(vit: VisionTransformer, count: int = 5, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    height, width = vit.patch_embed.img_size
    # Unlike each other, so that their queries are: each image has its own colour and contrast.
    draw = torch.Generator().manual_seed(6)
    colour, contrast = (torch.randn(count, channels, 1, 1, generator=draw, dtype=dtype) for channels in (3, 1))
    return 2 * colour + contrast * torch.randn(count, 3, height, width, generator=draw, dtype=dtype)
