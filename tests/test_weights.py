"""Model names, backbones and weight files: small files in the true formats, and one sentence for whatever is wrong."""

import argparse
import os
import re
import time
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer

from errors import InputError
from models.weights import backbone_fingerprint, build_backbone, model_normalisation, resolve_model_name

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


# ---- names


@pytest.mark.parametrize(
    ("name", "resolved", "warned"),
    [
        ("vit_base_patch16_224", "vit_base_patch16_224.orig_in21k", False),
        ("vit_base_patch16_224.augreg_in21k", "vit_base_patch16_224.augreg_in21k", False),
        ("vit_base_patch16_224.augreg_in21k_ft_in1k", "vit_base_patch16_224.augreg_in21k_ft_in1k", True),
        ("vit_base_patch16_224_in21k", "vit_base_patch16_224.augreg_in21k", False),
        ("vit_small_patch14_reg4_dinov2", "vit_small_patch14_reg4_dinov2.lvd142m", False),
        ("deit_tiny_patch16_224", "deit_tiny_patch16_224.fb_in1k", True),
        ("weights_test_vit", "weights_test_vit", False),
        ("weights_test_rich_vit", "weights_test_rich_vit", False),
    ],
)
def test_names_get_their_tag_and_in1k_a_warning(name, resolved, warned):
    got, warning = resolve_model_name(name)
    assert got == resolved
    assert resolve_model_name(got) == (resolved, warning)
    assert (warning is not None) == warned
    if warned:
        assert resolved in warning
        assert "ImageNet-1k" in warning
        assert "\n" not in warning


def test_unknown_names_and_tags_are_answered_with_what_there_is():
    with pytest.raises(InputError, match=r"--model vit_bse_patch16_224 .*did you mean vit_base_patch16_224"):
        resolve_model_name("vit_bse_patch16_224")
    with pytest.raises(InputError, match=r"--model zzzzzz .*list_models"):
        resolve_model_name("zzzzzz")
    with pytest.raises(InputError, match=r"no tag in21 of vit_base_patch16_224; it has: .*orig_in21k"):
        resolve_model_name("vit_base_patch16_224.in21")
    with pytest.raises(InputError, match=r"no tag x of weights_test_vit; it has: none"):
        resolve_model_name("weights_test_vit.x")


# ---- refused before any weight is read: pretrained=True would have to download


@pytest.mark.parametrize(
    ("name", "class_name"),
    [
        ("resnet18", "ResNet"),
        ("beit_base_patch16_224", "Beit"),
        ("eva02_tiny_patch14_224", "Eva"),
        ("naflexvit_base_patch16_gap", "NaFlexVit"),
    ],
)
def test_other_architectures_are_refused_by_class(name, class_name):
    with pytest.raises(InputError, match=f"--model {name}.* is a {class_name}, .*VisionTransformer"):
        backbone(name, input_size=224, pretrained=True)


def test_a_vit_without_cls_token_is_refused_only_where_one_is_needed():
    with pytest.raises(InputError, match=r"test_vit2.* no cls token, which --embedding_key cls reads.*mean\|max"):
        backbone("test_vit2", input_size=160, pretrained=True)
    assert features(backbone("test_vit2", input_size=32, needs_cls=False)).shape == (2, 5, 64)


@pytest.mark.parametrize(("size", "advice"), [(36, "take 32 or 40"), (4, "take 8 or 16"), (0, "take 8 or 16")])
def test_patches_must_tile_the_image(size, advice):
    with pytest.raises(InputError, match=f"--input_size {size} is not a multiple of the 8-pixel patches.*{advice}"):
        backbone(input_size=size)


# ---- what is built


def test_backbone_is_headless_float32_in_eval_mode_with_the_given_drop_rates():
    model = backbone(drop=0.25, drop_path=0.5)
    assert model.num_classes == 0
    assert isinstance(model.head, torch.nn.Identity)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.pos_drop.p == model.blocks[1].mlp.drop1.p == model.blocks[1].attn.proj_drop.p == 0.25
    assert model.blocks[1].drop_path1.drop_prob == 0.5
    assert backbone(input_size=64).pos_embed.shape == (1, 65, 24)


def test_random_weights_follow_the_seed():
    prints = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        prints.append(backbone_fingerprint(backbone()))
    assert prints[0] == prints[1] != prints[2]


def test_fingerprint_sees_one_changed_value_and_the_input_size():
    model = backbone()
    before = backbone_fingerprint(model)
    assert re.fullmatch("[0-9a-f]{64}", before)
    with torch.no_grad():
        model.norm.bias[-1] += 1e-6
    assert backbone_fingerprint(model) != before


def test_normalisation_is_that_of_the_weights():
    assert model_normalisation("weights_test_vit") == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert model_normalisation(backbone()) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert model_normalisation("vit_base_patch16_224") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert model_normalisation("deit_tiny_patch16_224") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


# ---- weights from timm's hub


def test_pretrained_weights_come_from_the_hub_cache_and_are_resampled(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    source = donor("test_vit", num_classes=1000)
    repository = tmp_path / "models--timm--test_vit.r160_in1k"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    save_file(source.state_dict(), snapshot / "model.safetensors")

    assert torch.equal(features(backbone("test_vit", input_size=160, pretrained=True), 160), features(source, 160))
    small = backbone("test_vit", input_size=64, pretrained=True)
    assert torch.equal(small.pos_embed, resample_abs_pos_embed(source.pos_embed, new_size=(4, 4)))


def test_weights_that_cannot_be_downloaded_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"weights of test_vit.r160_in1k .*--init_checkpoint FILE.*--pretrained false"):
        backbone("test_vit", pretrained=True)


def test_an_unreachable_hub_is_reported_without_a_minute_of_retries(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    nobody = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", nobody)
    start = time.monotonic()
    with pytest.raises(InputError, match=r"weights of test_vit.r160_in1k .*refused.*--init_checkpoint FILE"):
        backbone("test_vit", pretrained=True)
    assert time.monotonic() - start < 20  # huggingface_hub would wait 23 seconds for each of two files


def test_a_model_without_weights_in_timm_needs_a_file():
    with pytest.raises(InputError, match=r"no pretrained weights of weights_test_vit: .*--init_checkpoint FILE"):
        backbone(pretrained=True)
    with pytest.raises(InputError, match=r"no pretrained weights of vit_large_patch14_224"):
        backbone("vit_large_patch14_224", input_size=224, pretrained=True)


# ---- weights from a file: the formats


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_official_jax_file(tmp_path, prefix):
    source, path = donor(), tmp_path / "ViT.npz"
    arrays = {prefix + name: array for name, array in jax_arrays(source).items()}
    if prefix:
        arrays["opt/state/step"] = np.array(3)
    np.savez(path, **arrays)
    # A file wins over `pretrained`: nothing is asked of the hub.
    model = backbone(init_checkpoint=str(path), pretrained=True)
    assert torch.equal(features(model), features(source))


def test_official_jax_file_of_half_precision_and_another_grid(tmp_path):
    source, path = donor(img_size=48), tmp_path / "ViT.npz"
    np.savez_compressed(path, **{name: array.astype(np.float16) for name, array in jax_arrays(source).items()})
    model = backbone(init_checkpoint=str(path))
    assert model.norm.weight.dtype == torch.float32
    resampled = resample_abs_pos_embed(source.pos_embed.half(), (4, 4), interpolation="bilinear", antialias=False)
    assert torch.equal(model.pos_embed, resampled.float())


def save_as(path: Path, content: dict) -> str:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return str(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
@pytest.mark.parametrize("name", ["weights_test_vit", "weights_test_rich_vit"])
def test_torch_and_safetensors_files(tmp_path, suffix, name):
    source = donor(name)
    path = save_as(tmp_path / f"vit{suffix}", source.state_dict())
    assert torch.equal(features(backbone(name, init_checkpoint=path)), features(source))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {"teacher": {"dino_head.x": torch.ones(1)} | {f"backbone.{key}": state[key] for key in state}},
        lambda state: {"state_dict": {key: value * 0 for key, value in state.items()}, "state_dict_ema": state},
        lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
    ],
)
def test_wrapped_state_dicts(tmp_path, wrap):
    source = donor()
    path = save_as(tmp_path / "vit.pth", wrap(source.state_dict()))
    assert torch.equal(features(backbone(init_checkpoint=path)), features(source))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_load_as_float32(tmp_path, dtype):
    source = donor().to(dtype)
    model = backbone(init_checkpoint=save_as(tmp_path / "vit.safetensors", source.state_dict()))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(features(model), features(source.float()))


@pytest.mark.parametrize("name", ["weights_test_vit", "weights_test_rich_vit"])
def test_another_grid_is_resampled_by_timm(tmp_path, name):
    source = donor(name, img_size=56)
    model = backbone(name, init_checkpoint=save_as(tmp_path / "vit.safetensors", source.state_dict()))
    prefix = 1 if name == "weights_test_vit" else 0
    assert torch.equal(model.pos_embed, resample_abs_pos_embed(source.pos_embed, (4, 4), num_prefix_tokens=prefix))
    assert torch.equal(model.cls_token, source.cls_token)


def test_original_dinov2_and_deit3_names_are_converted_by_timm(tmp_path):
    source = donor("weights_test_rich_vit")
    state = {re.sub(r"ls([12])\.gamma", r"gamma_\1", key): value for key, value in source.state_dict().items()}
    cls_position = torch.full((1, 1, 24), 0.5)
    state["mask_token"] = torch.zeros(1, 24)
    state["register_tokens"] = state.pop("reg_token")
    state["pos_embed"] = torch.cat([cls_position, state["pos_embed"]], dim=1)
    state["cls_token"] = state["cls_token"] - cls_position
    model = backbone("weights_test_rich_vit", init_checkpoint=save_as(tmp_path / "vit.pth", state))
    torch.testing.assert_close(features(model), features(source), rtol=0, atol=1e-5)


# ---- weights from a file: what is wrong with it


def refusal(path: str | Path, name: str = "weights_test_vit", **options: object) -> str:
    with pytest.raises(InputError) as caught:
        backbone(name, init_checkpoint=str(path), **options)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


def test_missing_unexpected_and_misshapen_keys_are_named(tmp_path):
    state = donor().state_dict()
    del state["norm.bias"], state["blocks.1.mlp.fc1.weight"]
    state["blocks.0.attn.proj.bias"] = torch.zeros(25)
    state["extra.weight"] = torch.zeros(1)
    text = refusal(save_as(tmp_path / "vit.pth", state))
    assert "missing keys: blocks.1.mlp.fc1.weight, norm.bias;" in text
    assert "unexpected keys: extra.weight;" in text
    assert "wrong shapes: blocks.0.attn.proj.bias (25 in the file, 24 in the model)." in text


def test_long_lists_of_keys_are_cut(tmp_path):
    text = refusal(save_as(tmp_path / "vit.pth", donor(depth=4).state_dict()))
    assert "missing" not in text
    assert text.count("blocks.2.") == 10
    assert text.endswith("... and 14 more.")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"patch_size": 16, "img_size": 64}, r"patch_embed.proj.weight \(16x16 in the file, 8x8 in the model\)"),
        ({"embed_dim": 12, "img_size": 64}, r"pos_embed \(1x65x12 in the file, 1x17x24 in the model\)"),
        ({"no_embed_class": True}, r"pos_embed \(1x16x24 in the file, 1x17x24 in the model\)"),
        ({"class_token": False, "global_pool": "avg"}, r"missing keys: cls_token, norm.weight.*unexpected.*fc_norm"),
        ({"reg_tokens": 1}, r"unexpected keys: reg_token; wrong shapes: pos_embed \(1x18x24"),
    ],
)
def test_files_of_another_vit(tmp_path, options, complaint):
    assert re.search(complaint, refusal(save_as(tmp_path / "vit.pth", donor(**options).state_dict())))


def test_quantised_weights_are_no_weights(tmp_path):
    state = {**donor().state_dict(), "norm.weight": torch.ones(24, dtype=torch.int8)}
    assert "norm.weight (24 torch.int8 in the file, 24 in the model)" in refusal(save_as(tmp_path / "vit.pth", state))


def test_files_that_are_not_there_or_empty(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none.pth")
    assert "is a directory" in refusal(tmp_path)
    (tmp_path / "vit.ckpt").write_bytes(b"x")
    assert ".npz, .safetensors, .pth" in refusal(tmp_path / "vit.ckpt")
    for suffix in (".npz", ".safetensors", ".pth"):
        (tmp_path / f"vit{suffix}").touch()
        assert "is empty" in refusal(tmp_path / f"vit{suffix}")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth"])
def test_damaged_files(tmp_path, suffix):
    source, path = donor(), tmp_path / f"vit{suffix}"
    if suffix == ".npz":
        np.savez(path, **jax_arrays(source))
    else:
        save_as(path, source.state_dict())
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    broken = {"truncated": whole[: len(whole) // 2], "random": os.urandom(999), "text": b"not a file of weights\n"}
    if suffix == ".npz":  # the one format with check sums
        broken["flipped"] = bytes(flipped)
    for content in broken.values():
        path.write_bytes(content)
        text = refusal(path)
        assert "damaged or of another format" in text
        assert "weights_only" not in text


def test_training_checkpoints_and_pickled_code_are_refused_and_not_run(tmp_path):
    state = donor().state_dict()
    reference = {"model": state, "optimizer": {}, "epoch": 5, "args": argparse.Namespace(lr=0.03)}
    text = refusal(save_as(tmp_path / "task1_checkpoint.pth", reference))
    assert "training checkpoint" in text
    assert "PyTorch L2P" in text
    assert "carries pickled code" in refusal(save_as(tmp_path / "module.pth", donor()))

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    assert "carries pickled code" in refusal(save_as(tmp_path / "trap.pth", {"model": state, "x": Trap()}))
    assert not (tmp_path / "sprung").exists()


def test_pickles_of_other_things(tmp_path):
    assert "no dictionary of tensors" in refusal(save_as(tmp_path / "tensor.pth", torch.zeros(3)))
    assert "no dictionary of tensors" in refusal(save_as(tmp_path / "empty.pth", {}))
    assert "because of epoch, 7:" in refusal(save_as(tmp_path / "odd.pth", {"epoch": 1, 7: torch.zeros(1)}))


def refused_jax_file(tmp_path: Path, changes: dict[str, np.ndarray | None], **options: object) -> str:
    arrays = {**jax_arrays(donor(**options)), **changes}
    path = tmp_path / "ViT.npz"
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return refusal(path)


def test_jax_files_are_checked_array_by_array(tmp_path):
    missing = "Transformer/encoderblock_1/LayerNorm_2/bias"
    text = refused_jax_file(tmp_path, {missing: None, "extra": np.zeros(2, np.float32), "cls": np.zeros(3, np.float32)})
    assert f"missing keys: {missing};" in text
    assert "unexpected keys: extra;" in text
    assert "wrong shapes: cls (3 in the file, 1x1x24 in the model)." in text
    assert "cls (1x1x24 int64 in the file" in refused_jax_file(tmp_path, {"cls": np.zeros((1, 1, 24), np.int64)})
    assert "cannot be read" in refused_jax_file(tmp_path, {"cls": np.array([{}], dtype=object)})


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"depth": 3}, "it holds 3 encoder blocks of the official JAX layout, and the model has 2"),
        ({"depth": 1}, "it holds 1 encoder blocks"),
        ({"num_heads": 2}, "query/kernel (24x2x12 in the file, 24x3x8 in the model)"),
        ({"embed_dim": 12}, "cls (1x1x12 in the file, 1x1x24 in the model)"),
        ({"patch_size": 16}, "embedding/kernel (16x16x3x24 in the file, 8x8x3x24 in the model)"),
        ({"no_embed_class": True}, "pos_embedding (1x16x24 in the file, 1x17x24 in the model)"),
    ],
)
def test_jax_files_of_another_vit(tmp_path, options, complaint):
    assert complaint in refused_jax_file(tmp_path, {}, **options)


def test_jax_files_fit_plain_vits_only(tmp_path):
    np.savez(tmp_path / "ViT.npz", **jax_arrays(donor()))
    text = refusal(tmp_path / "ViT.npz", "weights_test_rich_vit")
    assert "hold plain ViTs" in text
    assert "blocks.0.attn.q_norm.weight" in text
    np.savez(tmp_path / "images.npz", x_train=np.zeros((2, 32, 32, 3), np.uint8))
    assert "it holds 0 encoder blocks" in refusal(tmp_path / "images.npz")
