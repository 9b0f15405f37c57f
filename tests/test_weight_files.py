"""Weight files: small ones in the true formats, and one sentence for whatever is wrong with one."""

import argparse
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.layers import resample_abs_pos_embed
from vit_files import backbone, donor, features, jax_arrays, refusal, save_as

# ---- the formats


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
    assert model.left_out.endswith("left out: pre_logits, head.")


def test_official_jax_file_of_half_precision_and_another_grid(tmp_path):
    source, path = donor(img_size=48), tmp_path / "ViT.npz"
    np.savez_compressed(path, **{name: array.astype(np.float16) for name, array in jax_arrays(source).items()})
    model = backbone(init_checkpoint=str(path))
    assert model.norm.weight.dtype == torch.float32
    resampled = resample_abs_pos_embed(source.pos_embed.half(), (4, 4), interpolation="bilinear", antialias=False)
    assert torch.equal(model.pos_embed, resampled.float())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
@pytest.mark.parametrize("name", ["weights_test_vit", "weights_test_rich_vit"])
def test_torch_and_safetensors_files(tmp_path, suffix, name):
    source = donor(name)
    path = save_as(tmp_path / f"vit{suffix}", source.state_dict())
    assert torch.equal(features(backbone(name, init_checkpoint=path)), features(source))


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


# ---- what is wrong with a file


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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e300])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth"])
def test_values_that_are_not_finite_in_float32_are_refused_by_name(tmp_path, suffix, value):
    source, path = donor().double(), tmp_path / f"vit{suffix}"
    with torch.no_grad():
        source.blocks[1].mlp.fc1.weight[-1, 3] = value
        source.norm.bias[0] = value
    if suffix == ".npz":
        np.savez(path, **jax_arrays(source))
    else:
        save_as(path, source.state_dict())
    assert re.search(r"too large for float32, in blocks\.1\.mlp\.fc1\.weight, norm\.bias: take another", refusal(path))


def test_tensors_that_cannot_be_copied_make_a_file_unreadable(tmp_path):
    state = {**donor().state_dict(), "norm.weight": torch.ones(24, device="meta")}
    assert "cannot be read as .pth" in refusal(save_as(tmp_path / "vit.pth", state))


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
    assert "no dictionary of tensors" in refusal(save_as(tmp_path / "numbers.pth", {"model": {"epoch": 1}}))
    text = refusal(save_as(tmp_path / "odd.pth", {"epoch": 1, 7: torch.zeros(1), "model": {"fc": torch.zeros(1)}}))
    assert "holds no ViT of a known layout" in text
    assert text.endswith("there are 7, model.fc.")


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
