"""One small model for each kind of VisionTransformer in timm: with no prompts the program computes timm's features.

`tiny_vits.py` holds the common kinds, which many tests share; here are all others, as timm 1.0.31 builds them.
"""

import pytest
import timm
import torch
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer

from configs import load_experiment
from configs.command import default_options
from models import build_model
from models.prompted_vit import PromptedViT

SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 4}
# kind -> (timm's model, what makes it small, input size in pixels); three get their width from a convolutional stem
KINDS = {
    "SwiGLU, RMSNorm, mean pooling": ("aimv2_1b_patch14_224", SMALL, 28),
    "norm after attention, cls token and mean pooling": ("beit3_base_patch16_224", SMALL, 32),
    "distilled": ("deit_base_distilled_patch16_224", SMALL, 32),
    "no position for the cls token": ("flexivit_small", SMALL, 32),
    "convolutional stem without projection": ("vit_base_mci_224", {"depth": 1}, 32),
    "one register and cls token": ("vit_base_patch14_reg1_tipsv2", SMALL, 28),
    "parallel attention and MLP twice": ("vit_small_patch16_18x2_224", SMALL, 32),
    "clip with QuickGELU": ("vit_base_patch16_clip_quickgelu_224", SMALL, 32),
    "siglip, mean pooling": ("vit_base_patch16_siglip_gap_224", SMALL, 32),
    "siglip, attention pooling": ("vit_base_patch16_siglip_224", SMALL, 32),
    "registers and attention pooling": ("vit_so150m_patch16_reg4_map_256", SMALL, 32),
    "no final norm, seven registers": ("vit_base_patch16_radio_v3", SMALL, 32),
    "no final norm, no registers": ("vit_intern300m_patch14_448", SMALL, 28),
    "registers without cls token": ("vit_base_patch16_reg4_gap_256", SMALL, 32),
    "RMSNorm behind the pooling": ("test_vit4", SMALL, 32),
    "norm behind the residual": ("vit_base_patch16_rpn_224", SMALL, 32),
    "parallel scaling, RMSNorm": ("vit_base_patch16_xp_224", SMALL, 32),
    "parallel scaling, mean pooling": ("vit_pwee_patch16_reg1_gap_256", SMALL, 32),
    "differential attention": ("vit_dwee_patch16_reg1_gap_256", SMALL, 32),
    "differential attention, parallel": ("vit_dpwee_patch16_reg1_gap_256", SMALL, 32),
    "resnet stem": ("vit_tiny_r_s16_p8_224", SMALL, 64),
    "gated MLP": ("vit_giant_patch14_dinov2", SMALL, 28),
    "vitamin": ("vitamin_small_224", {"depth": 1}, 32),
}


def register_small(model: str, changes: dict[str, int]) -> str:
    """Teach timm a smaller model of the same kind, and return its name."""

    def small(pretrained: bool = False, **options: object) -> VisionTransformer:
        return timm.create_model(model, pretrained=pretrained, **{**options, **changes})

    small.__name__ = f"small_{model}"
    register_model(small)
    return small.__name__


NAMES = {kind: register_small(model, changes) for kind, (model, changes, _) in KINDS.items()}


def small_model(kind: str, **changes: object) -> PromptedViT:
    """The program's model, all weights of its backbone drawn anew so that none is zero or one."""
    options = default_options(load_experiment("cifar100_l2p")) | {
        "model": NAMES[kind], "pretrained": False, "input_size": KINDS[kind][2], "seed": 0, "prompt_pos_embed": "none"}
    model = build_model(options | changes, num_classes=5, num_tasks=10).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for tensor in model.backbone.parameters():
            scale, shift = (0.1, 0.0) if tensor.ndim > 1 else (0.3, 0.5)
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale + shift)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_features_without_prompts_are_those_of_timm(kind):
    has_cls = timm.create_model(NAMES[kind]).has_class_token
    size = KINDS[kind][2]
    images_BCHW = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(8))
    for head_type in ("token", "gap") if has_cls else ("gap",):
        model = small_model(kind, prompt_method="none", head_type=head_type)
        with torch.no_grad():
            tokens_BTD = model.backbone.forward_features(images_BCHW)
            read_BD = tokens_BTD[:, 0] if head_type == "token" else tokens_BTD.mean(1)
            wanted_BK = model.head(model.backbone.fc_norm(read_BD))
            torch.testing.assert_close(model(images_BCHW).logits_BK, wanted_BK, rtol=1e-5, atol=1e-6)
        assert (wanted_BK[0] - wanted_BK[1]).abs().max() > 1e-4, "images must differ in their features"


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_learn_in_front_of_every_kind(kind):
    has_cls = timm.create_model(NAMES[kind]).has_class_token
    size = KINDS[kind][2]
    model = small_model(kind, embedding_key="cls" if has_cls else "mean").train()
    images_BCHW = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(8))
    torch.nn.functional.cross_entropy(model(images_BCHW, task=0).logits_BK, torch.tensor([0, 1, 2])).backward()
    gradients = [p.grad for name, p in model.named_parameters() if name.startswith("prompt.") and p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert max(float(gradient.abs().max()) for gradient in gradients) > 0
    assert all(p.grad is None for p in model.backbone.parameters())
