"""What a run says before it begins: rates, test sets that are too small, and how this CPU takes bfloat16."""

import json
from types import SimpleNamespace

import pytest
import timm
import torch
from fixtures import write_npz
from lab import BASE, CODA, DUAL, NO_PROMPTS, call
from tiny_vits import images_for, tiny_vit

import build
import speed_test
from configs.command import parse
from models import PromptedViT
from prompt import WITHOUT_POOL, FixedPrompt, Host, NoPrompts
from prompt_methods import build_prompt_method, options_of


def opening(lab, *words: str) -> str:
    code, out, err = call(*lab.words(*BASE, *words), "--output_dir", "")
    assert code == 0, err
    return out[:out.index("classes: ")]


@pytest.fixture
def nothing_measured(monkeypatch):
    """A run that ends where it would begin to train."""
    monkeypatch.setattr(speed_test, "measure_speed", lambda *parts: {})
    monkeypatch.setattr(speed_test, "format_speed", lambda found: "")


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


def test_a_batch_vote_is_of_no_more_images_than_a_test_set_has(lab):
    assert "; batch vote over 3, class-incremental\n" in opening(lab, "--batch-size", "3")
    assert "; batch vote over 4, class-incremental\n" in opening(lab, "--batch-size", "16")


@pytest.mark.parametrize(("dataset", "is_told"), [("Split-Glyphs", True), ("Glyphs,HardGlyphs", True),
                                                  ("Glyphs,NPZ", False)])
def test_a_data_path_that_nothing_reads_is_told(dataset, is_told, lab, tmp_path, nothing_measured):
    path = write_npz(tmp_path / "data.npz", train_per_class=4, test_per_class=4)
    told = "--data_path: without effect" in " ".join(warnings_of(
        lab, *BASE, "--dataset", dataset, "--data-path", str(path), "--subsample", "2", "--subsample_test", "2"))
    assert told is is_told


def test_where_no_prompts_are_chosen_the_screen_says_so(lab, tmp_path):
    """The saved words are older, and stay."""
    code, out, err = call(*lab.words(*BASE, *NO_PROMPTS), "--output_dir", tmp_path)
    assert code == 0, err
    assert out.count("; no choice of prompts, class-incremental\n") == 1
    assert out.count("no choice of prompts, class-incremental:  Acc@1") == 1
    assert json.loads((tmp_path / "summary.json").read_text())["protocol"] == "nothing to choose, class-incremental"


# ---- options that do nothing, and features that mean nothing ----
def warnings_of(lab, *words: str) -> list[str]:
    code, _, err = call(*lab.words(*words), "--output_dir", "", "--speed_test_only")
    assert code == 0, err
    return [line.removeprefix("main.py: warning: ") for line in err.splitlines()]


ONE = (*BASE, "--prompt_method", "oneprompt", "--head_type", "token", "--prompt_layers", "2")
NO_POOL = (*BASE, "--no-prompt_pool")


@pytest.mark.parametrize(("words", "said"), [
    ((*ONE, "--size", "20"), "--size: without effect with --prompt_method oneprompt."),
    ((*ONE, "--top_k", "5", "--no-prompt_pool", "--embedding_key", "mean", "--prompt_pos_embed", "none"),
     "--top_k, --prompt_pool, --embedding_key, --prompt_pos_embed: without effect with --prompt_method oneprompt."),
    ((*DUAL, "--no-prompt_pool"), "--prompt_pool: without effect with --prompt_method dualprompt."),
    ((*DUAL, "--orthogonality", "1"), "--orthogonality: without effect with --prompt_method dualprompt."),
    ((*CODA, "--prompt_key_init", "zero"), "--prompt_key_init: without effect with --prompt_method coda."),
    ((*BASE, *NO_PROMPTS, "--length", "5"), "--length: without effect with --prompt_method none."),
    ((*BASE, "--g_prompt_length", "3"), "--g_prompt_length: without effect with --prompt_method l2p."),
    ((*NO_POOL, "--size", "7", "--prompt_key", "false"), "--size, --prompt_key: without effect with --no-prompt_pool."),
    ((*BASE, "--prompt_choice", "fixed", "--embedding_key", "max"),
     "--embedding_key: without effect with --prompt_choice fixed."),
    (ONE, None), (DUAL, None), (CODA, None), (NO_POOL, None), ((*NO_POOL, "--initializer", "zero"), None),
    ((*BASE, "--size", "7", "--embedding_key", "max", "--prompt_pos_embed", "none"), None)])
@pytest.mark.usefixtures("nothing_measured")
def test_options_that_the_prompt_method_does_not_take_are_told(words, said, lab):
    assert warnings_of(lab, *words) == [said] * (said is not None)


def test_what_is_read_without_a_pool():
    """The words that say so, held against what is built."""
    host = Host(dim=4, depth=3, num_heads=1, head_dim=4, num_tasks=2,
                generator=lambda: torch.Generator().manual_seed(1))
    options = parse(["--no-prompt_pool"]).options | {"prompt_layers": [0]}
    others = {"prompt_layers": [1], "length": 2, "initializer": "zero", "size": 3, "top_k": 2, "prompt_choice": "fixed",
              "prompt_key": False, "prompt_key_init": "zero", "batchwise_prompt": False, "use_prompt_mask": True,
              "shared_prompt_pool": True, "shared_prompt_key": True, "pull_constraint": False,
              "pull_constraint_coeff": 9.0, "prompt_pool": True}
    assert others.keys() == set(options_of("l2p"))

    def built(**changed: object) -> tuple:
        made = build_prompt_method("l2p", options | changed, host)
        return made.layers, [(name, tensor.tolist()) for name, tensor in made.state_dict().items()]

    assert {name for name, value in others.items() if built(**{name: value}) != built()} == set(WITHOUT_POOL)


RANDOM = "--no-pretrained: the ViT's weights are random and stay so"


@pytest.mark.parametrize(("words", "is_told"), [
    (("--model", "test_vit"), True), (("--model", "test_vit", *NO_PROMPTS, "--head", "ncm"), True),
    (("--model", "test_vit", "--freeze"), False), ((), False)])
@pytest.mark.usefixtures("nothing_measured")
def test_random_weights_that_stay_so_are_told(words, is_told, lab):
    """Not of the demo's ViT, which has none to begin from."""
    assert [line.startswith(RANDOM) for line in warnings_of(lab, *BASE, *words)] == [True] * is_told


@pytest.mark.usefixtures("nothing_measured")
def test_weights_from_a_file_are_not_random(lab):
    assert warnings_of(lab, *BASE, "--init_checkpoint", "{weights}") == []


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
