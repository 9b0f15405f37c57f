"""Tiny ViTs that timm knows by name, files of their weights, and what the program makes of such a file."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer

from errors import InputError
from models.weights import build_backbone

# Read by timm when the models below are registered: a model without weights of its own, and without a tag.
default_cfgs = generate_default_cfgs(
    {"weights_test_vit": {"input_size": (3, 32, 32), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "num_classes": 0}}
)
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}


def build(name: str, pretrained: bool, **options: object) -> VisionTransformer:
    return build_model_with_cfg(VisionTransformer, name, pretrained, **{**SIZES, **options})


@register_model
def weights_test_vit(pretrained: bool = False, **options: object) -> VisionTransformer:
    return build("weights_test_vit", pretrained, **options)


@register_model
def weights_test_rich_vit(pretrained: bool = False, **options: object) -> VisionTransformer:
    rich = {"qk_norm": True, "init_values": 1e-5, "reg_tokens": 2, "no_embed_class": True}
    return build("weights_test_rich_vit", pretrained, **rich, **options)


@register_model
def weights_test_reg_vit(pretrained: bool = False, **options: object) -> VisionTransformer:
    dinov2 = {"init_values": 1e-5, "reg_tokens": 2, "no_embed_class": True}
    return build("weights_test_reg_vit", pretrained, **dinov2, **options)


def backbone(name: str = "weights_test_vit", **options: object) -> VisionTransformer:
    defaults = {
        "input_size": 32,
        "pretrained": False,
        "init_checkpoint": None,
        "drop": 0.0,
        "drop_path": 0.0,
        "needs_cls": True,
        "needs_for": "--embedding_key cls",
    }
    return build_backbone(name, **{**defaults, **options})


def features(model: VisionTransformer, size: int = 32) -> torch.Tensor:
    images_BCHW = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.forward_features(images_BCHW)


def donor(name: str = "weights_test_vit", **options: object) -> VisionTransformer:
    """A model with a head, all of its values drawn anew so that none equals timm's initialisation."""
    model = timm.create_model(name, **{"num_classes": 7, **options}).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def jax_arrays(model: VisionTransformer) -> dict[str, np.ndarray]:
    """The model's weights in the layout of the official JAX files, written from that layout's description."""
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    heads, width = model.blocks[0].attn.num_heads, model.embed_dim
    arrays = {
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "pre_logits/kernel": np.zeros((width, width), np.float32),
        "pre_logits/bias": np.zeros(width, np.float32),
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for index in range(len(model.blocks)):
        ours, theirs = f"blocks.{index}", f"Transformer/encoderblock_{index}"
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        for part, name in enumerate(("query", "key", "value")):
            rows = slice(part * width, (part + 1) * width)
            arrays[f"{attention}/{name}/kernel"] = state[f"{ours}.attn.qkv.weight"][rows].T.reshape(width, heads, -1)
            arrays[f"{attention}/{name}/bias"] = state[f"{ours}.attn.qkv.bias"][rows].reshape(heads, -1)
        arrays[f"{attention}/out/kernel"] = state[f"{ours}.attn.proj.weight"].T.reshape(heads, -1, width)
        arrays[f"{attention}/out/bias"] = state[f"{ours}.attn.proj.bias"]
        for norm, name in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            arrays[f"{theirs}/{name}/scale"] = state[f"{ours}.{norm}.weight"]
            arrays[f"{theirs}/{name}/bias"] = state[f"{ours}.{norm}.bias"]
        for layer in (0, 1):
            arrays[f"{theirs}/MlpBlock_3/Dense_{layer}/kernel"] = state[f"{ours}.mlp.fc{layer + 1}.weight"].T
            arrays[f"{theirs}/MlpBlock_3/Dense_{layer}/bias"] = state[f"{ours}.mlp.fc{layer + 1}.bias"]
    return arrays


def save_as(path: Path, content: dict) -> str:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return str(path)


def refusal(path: str | Path, name: str = "weights_test_vit", **options: object) -> str:
    with pytest.raises(InputError) as caught:
        backbone(name, init_checkpoint=str(path), **options)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text
