"""Weight files of other programs: each is timm's own state dict renamed, and must give timm's own features."""

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from vit_files import backbone, donor, features, refusal, save_as

State = dict[str, Tensor]


def loaded(tmp_path, content: object, name: str = "weights_test_vit") -> torch.nn.Module:
    return backbone(name, init_checkpoint=save_as(tmp_path / "vit.pth", content))


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def without_head(state: State) -> State:
    return {key: value for key, value in state.items() if not key.startswith("head.")}


def headed(state: State, name: str) -> State:
    return {re.sub(r"^head\.", f"{name}.", key): value for key, value in state.items()}


def zeroed(state: State) -> State:
    return {key: value * 0 for key, value in state.items()}


def mae(state: State) -> State:
    """As a masked autoencoder is saved at the end of its training: encoder, mask token and decoder."""
    decoder = {"decoder_pos_embed": torch.ones(1, 17, 8), "decoder_embed.weight": torch.ones(8, 24),
               "decoder_blocks.0.norm1.weight": torch.ones(8), "decoder_pred.bias": torch.ones(192)}
    return {**without_head(state), "mask_token": torch.ones(1, 1, 8), **decoder}


def moco(state: State) -> State:
    """As MoCo v3 is saved: two encoders with projection heads, and a predictor."""
    state = {**without_head(state), "head.0.weight": torch.ones(4, 24)}
    return {**prefixed("module.momentum_encoder.", zeroed(state)), **prefixed("module.base_encoder.", state),
            "module.predictor.0.weight": torch.ones(4, 4)}


def lightning(state: State) -> State:
    return {**prefixed("model.", state), "criterion.weight": torch.ones(7)}


def under(word: str) -> Callable[[State], State]:
    return lambda state: prefixed(f"{word}.", state)


WRAPPED = {  # case -> (what is saved, given timm's state dict; what the user is told was left out)
    "a training script's": (lambda state: {"model": state, "epoch": 3, "optimizer": {"lr": 0.1}}, "head"),
    "model_state_dict": (lambda state: {"epoch": 3, "model_state_dict": state}, "head"),
    "wrapped twice": (lambda state: {"model": {"state_dict": without_head(state)}}, None),
    "distributed": (lambda state: {"state_dict": prefixed("module.", state)}, "head"),
    "distributed and compiled": (under("module._orig_mod"), "head"),
    **{f"{word}.": (under(word), "head") for word in ("model", "module", "net", "backbone", "encoder", "any.other")},
    "averaged": (lambda state: {"state_dict": zeroed(state), "state_dict_ema": state}, "head, state_dict"),
    "dino's teacher": (lambda state: {"student": prefixed("module.backbone.", zeroed(without_head(state))),
                                      "teacher": {"dino_head.x": torch.ones(1), **prefixed("backbone.", state)}},
                       "head, student, teacher.dino_head"),
    "lightning": (lambda state: {"state_dict": lightning(state), "hyper_parameters": {"lr": 0.1}, "callbacks": {}},
                  "head, state_dict.criterion"),
    "moco v3": (lambda state: {"state_dict": moco(state), "arch": "vit_base"},
                "head, state_dict.module.momentum_encoder, state_dict.module.predictor"),
    "mae": (lambda state: {"model": mae(state)},
            "mask_token, decoder_pos_embed, decoder_embed, decoder_blocks, decoder_pred"),
    "a classifier fc": (lambda state: headed(state, "fc"), "fc"),
    "a classifier classifier": (lambda state: headed(state, "classifier"), "classifier"),
    "numbers among the tensors": (lambda state: {**without_head(state), "epoch": 3, 7: "x"}, None),
    "numpy scalars": (lambda state: {"model": without_head(state), "accuracy": np.float64(0.5), "epoch": np.int64(3),
                                     "loss": np.float32(1), "best": np.bool_(True)}, None),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_the_vit_in_a_file_is_found_and_the_rest_is_said(tmp_path, case):
    save, left_out = WRAPPED[case]
    source = donor()
    model = loaded(tmp_path, save(source.state_dict()))
    torch.testing.assert_close(features(model), features(source), rtol=0, atol=1e-6)
    told = f"--init_checkpoint {tmp_path}/vit.pth holds more than a backbone; left out: {left_out}."
    assert model.left_out == (told if left_out else None)


def test_one_object_under_two_names_is_one_vit(tmp_path):
    source = donor()
    state = dict(source.state_dict())
    model = loaded(tmp_path, {"last": state, "best": state})
    assert torch.equal(features(model), features(source))


def test_numpy_scalars_of_numpy_1(tmp_path):
    source, path = donor(), tmp_path / "vit.pth"
    content = {"model": source.state_dict(), "accuracy": np.float64(0.5)}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    saved = path.read_bytes()
    path.write_bytes(saved.replace(b"cnumpy._core.multiarray\nscalar\n", b"cnumpy.core.multiarray\nscalar\n"))
    assert path.read_bytes() != saved
    assert torch.equal(features(backbone(init_checkpoint=str(path))), features(source))


def test_numpy_arrays_are_still_refused(tmp_path):
    content = {"model": donor().state_dict(), "accuracies": np.arange(3)}
    assert "carries pickled code" in refusal(save_as(tmp_path / "vit.pth", content))


def test_two_vits_that_nothing_tells_apart_are_refused(tmp_path):
    state = donor().state_dict()
    text = refusal(save_as(tmp_path / "vit.pth", {**prefixed("online.net.", state), **prefixed("target.net.", state)}))
    assert "holds several ViTs (online.net, target.net): save the state_dict() of the one to use alone" in text
    text = refusal(save_as(tmp_path / "vit.pth", {**state, "old": state}))
    assert "several ViTs (one without a prefix, old)" in text


# ---- Hugging Face's transformers: the names that version 5.24 gives to a model's state_dict() and to what it saves

HUGGING_FACE = {  # timm's name -> the one of transformers before 5, which 5 still saves, and the one in memory of 5
    "cls_token": ("embeddings.cls_token",) * 2,
    "pos_embed": ("embeddings.position_embeddings",) * 2,
    "patch_embed.proj.": ("embeddings.patch_embeddings.projection.",) * 2,
    "norm.": ("layernorm.",) * 2,
    "blocks.": ("encoder.layer.", "layers."),
    ".norm1.": (".layernorm_before.",) * 2,
    ".norm2.": (".layernorm_after.",) * 2,
    ".attn.q.": (".attention.attention.query.", ".attention.q_proj."),
    ".attn.k.": (".attention.attention.key.", ".attention.k_proj."),
    ".attn.v.": (".attention.attention.value.", ".attention.v_proj."),
    ".attn.proj.": (".attention.output.dense.", ".attention.o_proj."),
    ".mlp.fc1.": (".intermediate.dense.", ".mlp.fc1."),
    ".mlp.fc2.": (".output.dense.", ".mlp.fc2."),
}


def hugging_face(state: State, layout: int, kept: tuple[str, ...] = ()) -> State:
    """Renamed, but for the parts of names in `kept`."""
    renamed = {}
    for key, value in without_head(state).items():
        pieces = {key: value}
        if ".attn.qkv." in key:
            pieces = {key.replace("qkv", part): each for part, each in zip("qkv", value.chunk(3), strict=True)}
        for name, piece in pieces.items():
            for ours, theirs in HUGGING_FACE.items():
                at_start = not ours.startswith(".")
                if ours not in kept and (name.startswith(ours) if at_start else ours in name):
                    name = name.replace(ours, theirs[layout], 1)
            renamed[name] = piece
    return renamed


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize(
    ("kind", "prefix", "beside", "left_out"),
    [
        ("ViTModel", "", {"pooler.dense.weight": torch.ones(24, 24)}, "pooler"),
        ("ViTForImageClassification", "vit.", {"classifier.weight": torch.ones(7, 24)}, "classifier"),
        ("DeiTForImageClassification", "deit.", {"cls_classifier.bias": torch.ones(7)}, "cls_classifier"),
        ("ViTMAEForPreTraining", "vit.", {"decoder.decoder_embed.bias": torch.ones(8)}, "decoder"),
        ("ViTModel in Lightning", "model.vit.", {"model.fc.bias": torch.ones(8)}, "model.fc"),
    ],
)
def test_hugging_face_vits(tmp_path, layout, kind, prefix, beside, left_out):
    source = donor()
    state = {**prefixed(prefix, hugging_face(source.state_dict(), layout)), **beside}
    assert f"{prefix}embeddings.cls_token" in state
    query = ("encoder.layer.1.attention.attention.query", "layers.1.attention.q_proj")[layout]
    assert f"{prefix}{query}.weight" in state
    model = loaded(tmp_path, state)
    torch.testing.assert_close(features(model), features(source), rtol=0, atol=1e-6)
    assert model.left_out.endswith(f"left out: {left_out}.")


@pytest.mark.parametrize("layout", [0, 1])
def test_hugging_face_dinov2_with_registers(tmp_path, layout):
    source = donor("weights_test_reg_vit")
    state = hugging_face(source.state_dict(), layout, kept=(".norm1.", ".norm2.", ".mlp.fc1.", ".mlp.fc2."))
    state = {re.sub(r"\.ls(\d)\.gamma$", r".layer_scale\1.lambda1", key): value for key, value in state.items()}
    state = {key.replace("layers.", "encoder.layer."): value for key, value in state.items()}
    cls_position = torch.full((1, 1, 24), 0.5)
    state["embeddings.register_tokens"] = state.pop("reg_token")
    state["embeddings.position_embeddings"] = torch.cat([cls_position, state["embeddings.position_embeddings"]], dim=1)
    state["embeddings.cls_token"] = state["embeddings.cls_token"] - cls_position
    state["embeddings.mask_token"] = torch.zeros(1, 24)
    model = loaded(tmp_path, state, "weights_test_reg_vit")
    torch.testing.assert_close(features(model), features(source), rtol=0, atol=1e-6)
    assert model.left_out.endswith("left out: mask_token.")


@pytest.mark.parametrize("key_bias", [None, torch.ones(25), torch.tensor(1.0)])
def test_a_hugging_face_vit_with_a_missing_or_misshapen_key_is_refused_by_name(tmp_path, key_bias):
    state = hugging_face(donor().state_dict(), 1)
    del state["layers.1.attention.k_proj.bias"]
    if key_bias is not None:
        state["layers.1.attention.k_proj.bias"] = key_bias
    text = refusal(save_as(tmp_path / "vit.pth", state))
    assert "missing keys: blocks.1.attn.qkv.bias;" in text
    assert "unexpected keys: blocks.1.attn.q.bias, " in text


# ---- what timm converts


def test_original_dinov2_and_deit3_names_are_converted_by_timm(tmp_path):
    source = donor("weights_test_rich_vit")
    state = {re.sub(r"ls([12])\.gamma", r"gamma_\1", key): value for key, value in source.state_dict().items()}
    cls_position = torch.full((1, 1, 24), 0.5)
    state["mask_token"] = torch.zeros(1, 24)
    state["register_tokens"] = state.pop("reg_token")
    state["pos_embed"] = torch.cat([cls_position, state["pos_embed"]], dim=1)
    state["cls_token"] = state["cls_token"] - cls_position
    model = loaded(tmp_path, state, "weights_test_rich_vit")
    torch.testing.assert_close(features(model), features(source), rtol=0, atol=1e-5)
