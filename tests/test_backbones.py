"""Backbones by name: which timm ViT, with which weights, and one sentence for a name or a hub that has none."""

import re
import time

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from vit_files import backbone, donor, features

from errors import InputError
from models.weights import backbone_fingerprint, model_normalisation, resolve_model_name

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
