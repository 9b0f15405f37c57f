"""What a run says before it begins: rates, test sets that are too small, and how this CPU takes bfloat16."""

import json
from types import SimpleNamespace

import pytest
import timm
import torch
from fixtures import write_npz
from lab import BASE, NO_PROMPTS, call
from tiny_vits import images_for, tiny_vit

import build
from models import PromptedViT
from prompt import FixedPrompt, NoPrompts


def opening(lab, *words: str) -> str:
    code, out, err = call(*lab.words(*BASE, *words), "--output_dir", "")
    assert code == 0, err
    return out[:out.index("classes: ")]


def test_both_learning_rates(lab):
    assert ("learning rate 0.03 given for 256 images in a step, 0.00046875 used for those of this run\n"
            in opening(lab))
    assert "0.064 given for 256 images in a step, 0.001 used" in opening(lab, "--lr", "0.064")
    assert "learning rate" not in opening(lab, *NO_PROMPTS, "--head", "ncm")


def test_few_test_images(lab, tmp_path):
    """Said once, and only where one image is more than a point."""
    few = "the smallest test set has 4 image(s): one of them is 25.0 points of its Acc@1, so small differences mean"
    assert opening(lab).count(few) == 1
    enough = write_npz(tmp_path / "enough.npz", train_per_class=4, test_per_class=50)
    assert "the smallest test set" not in opening(lab, "--data_path", str(enough))


def test_where_no_prompts_are_chosen_the_screen_says_so(lab, tmp_path):
    """The saved words are older, and stay."""
    code, out, err = call(*lab.words(*BASE, *NO_PROMPTS), "--output_dir", tmp_path)
    assert code == 0, err
    assert out.count("; no choice of prompts, class-incremental\n") == 1
    assert out.count("no choice of prompts, class-incremental:  Acc@1") == 1
    assert json.loads((tmp_path / "summary.json").read_text())["protocol"] == "nothing to choose, class-incremental"


HAS, HAS_NOT = {"avx512_bf16", "avx2"}, {"avx2"}


@pytest.mark.parametrize(("precision", "flags", "seconds_in_bf16", "said"), [
    ("fp32", HAS, 0.5, "this CPU computes in bfloat16 (avx512_bf16): a block of this ViT is 2.0 times as fast with "
                       "--precision bf16"),
    ("fp32", HAS, 0.9, None),
    ("fp32", HAS, 2.0, None),
    ("fp32", HAS_NOT, 0.5, None),
    ("bf16", HAS, 0.5, None),
    ("bf16", HAS, 2.0, "--precision bf16: a block of this ViT takes 2.0 times as long as with fp32"),
    ("bf16", HAS_NOT, 22.0, "--precision bf16: this CPU has no instructions for bfloat16: a block of this ViT takes "
                            "22.0 times as long as with fp32"),
])
def test_bfloat16_on_a_cpu(precision, flags, seconds_in_bf16, said, monkeypatch):
    monkeypatch.setattr(build, "cpu_flags", lambda: flags)
    monkeypatch.setattr(build, "seconds_of_block", lambda model, batch_size, most_tokens, dtype: (
        seconds_in_bf16 if dtype == torch.bfloat16 else 1.0))
    assert build.precision_note(precision, None, torch.device("cpu"), 16) == said
    assert build.precision_note(precision, None, torch.device("cuda"), 16) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_is_measured_and_stays_as_it_is(dtype):
    backbone = timm.create_model("vit_tiny_patch16_224")
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    assert 0 < build.seconds_of_block(SimpleNamespace(backbone=backbone), 16, 50, dtype) < 60
    after = backbone.state_dict()
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == torch.float32 for name in before)
    assert all(p.requires_grad and p.grad is None for p in backbone.parameters())
    assert backbone.training


@pytest.mark.parametrize(("with_position", "without", "warned"), [
    (0.17, 0.88, True), (0.17, 0.3, False), (0.73, 0.99, False)])
def test_prompts_that_make_the_vit_blind(with_position, without, warned, lab, monkeypatch):
    measured = {"cls": with_position, "none": without}
    monkeypatch.setattr("models.PromptedViT.likeness_behind_prompts", lambda model, images_BCHW, which: measured[which])
    text = "the cosine of its cls output with and without prompts is 0.17, and 0.88 without that embedding"

    def says_it(*words: str) -> bool:
        code, out, err = call(*lab.words(*BASE, *words), "--output_dir", "")
        assert code == 0, err
        return text in out

    assert says_it() == warned
    for words in (["--prompt_pos_embed", "none"], NO_PROMPTS, ["--freeze"], ["--prompt_layers", "1"]):
        assert not says_it(*words)


def test_likeness_behind_prompts_changes_nothing():
    """It is the cosine of two passes that the head on the cls token would read."""
    images_BCHW = images_for(tiny_vit("plain"))
    plain = build_plain(NoPrompts()).eval().features(images_BCHW)
    for position in ("cls", "none"):
        model = build_plain(FixedPrompt(plain.shape[1], 4, initializer="uniform",
                                        generator=torch.Generator().manual_seed(1)))
        model.train()
        found = model.likeness_behind_prompts(images_BCHW, position)
        assert (model.training, model.prompt_pos_embed) == (True, "none")
        model.prompt_pos_embed = position
        expected = torch.nn.functional.cosine_similarity(model.eval().features(images_BCHW), plain).mean().item()
        assert found == pytest.approx(expected, abs=1e-6)
        assert found < 0.9999


def build_plain(prompt) -> PromptedViT:
    vit = tiny_vit("plain")
    return PromptedViT(vit, prompt, torch.nn.Linear(vit.embed_dim, 3), head_type="token", freeze=("backbone",))
