"""import_run.py: a run of the PyTorch re-implementation becomes one of ours, and scores as it did.

The small files have its layout: a run of ours under its names, whose numbers are then known. A real one is used where
it lies beside the repository.
"""

import argparse
import json
import os
from pathlib import Path

import pytest
import torch
from fixtures import ROOT, write_npz
from lab import BASE, DIVERSE, NO_PROMPTS, Interrupting, Lab, call
from safetensors.torch import load_file, save_file

import import_run
import predict
from models.reference_files import read_reference_file
from utils import load_checkpoint

REAL = Path(ROOT).parent / "shared" / "data"
# What the reference's args hold besides the options that a test sets, in its own types.
ARGS = {"batch_size": 4, "epochs": 1, "model": "glyph_vit_tiny", "input_size": 32, "pretrained": True, "opt": "adam",
        "opt_betas": (0.9, 0.999), "sched": "constant", "lr": 0.01, "unscale_lr": True, "decay_epochs": 30,
        "lr_noise": None, "color_jitter": None, "smoothing": 0.1, "data_path": "/local_datasets/", "shuffle": False,
        "dataset": "Split-NPZ", "output_dir": "./output", "device": "cuda", "seed": 42, "num_tasks": 2,
        "train_mask": True, "prompt_pool": True, "size": 10, "length": 5, "top_k": 5, "prompt_key": True,
        "batchwise_prompt": True, "embedding_key": "mean", "head_type": "prompt", "predefined_key": "",
        "freeze": ["blocks", "patch_embed", "cls_token", "norm", "pos_embed"], "print_freq": 10, "world_size": 1,
        "rank": 0, "gpu": None, "distributed": False, "nb_classes": 4}


def write_reference(folder: Path, run: Path, backbone: dict[str, torch.Tensor], **changed: object) -> Path:
    """The states of a run of ours as its files: one dictionary of the whole model, positions of prompts included."""
    (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
    for task, path in enumerate(sorted(run.glob("checkpoint/task*.pth")), start=1):
        learned = load_checkpoint(path)["model"]
        model = {name: tensor.clone() for name, tensor in backbone.items() if not name.startswith("head.")}
        model |= {name.removeprefix("backbone."): learned[name] for name in learned if name.startswith("backbone.")}
        if "prompt.prompts_MLD" in learned:
            model["prompt.prompt"] = learned["prompt.prompts_MLD"]
            cls_1CD, grid_1GD = model["pos_embed"][:, :1], model["pos_embed"][:, 1:]
            model["pos_embed"] = torch.cat([cls_1CD.expand(-1, 26, -1), grid_1GD], dim=1)
        if "prompt.keys_MD" in learned:
            model["prompt.prompt_key"] = learned["prompt.keys_MD"]
        model |= {name: learned[name] for name in ("head.weight", "head.bias")}
        content = {"model": model, "optimizer": {"state": {}, "param_groups": [{"lr": 0.01}]}, "epoch": 0,
                   "args": argparse.Namespace(**ARGS | changed)}
        torch.save(content, folder / "checkpoint" / f"task{task}_checkpoint.pth")
    return folder


class Small:
    """A run of ours, its files in the reference's layout, and what it scored."""

    def __init__(self, lab: Lab, folder: Path, *words: str, **changed: object):
        self.lab, self.run, self.weights = lab, folder / "run", load_file(lab.files["weights"])
        common = lab.words(*BASE, *DIVERSE, "--init_checkpoint", "{weights}", "--eval_per_image", "always", "--lr", "1")
        code, _, errors = call(*common, *words, "--output_dir", self.run, out=Interrupting("\nafter "))
        assert code == 130, errors
        self.reference = write_reference(folder / "reference", self.run, self.weights, **changed)


@pytest.fixture(scope="module")
def small(lab, tmp_path_factory) -> Small:
    return Small(lab, tmp_path_factory.mktemp("small"))


def take(capsys, small: Small, output: Path, *words: object, reference: Path | None = None) -> tuple[int, str]:
    capsys.readouterr()
    code = import_run.main([str(word) for word in (reference or small.reference, output, "--data-path",
                                                   small.lab.files["data"], "--input_norm", "imagenet", *words)])
    return code, capsys.readouterr().err


def scores(run: Path) -> list[dict]:
    """What was found after each task."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "evaluation"]


def check_same_scores(small: Small, output: Path) -> None:
    code, _, errors = call("--eval", "--output_dir", output, "--device", "cpu", "--num_workers", 0)
    assert code == 0, errors
    found, expected = json.loads((output / "eval_summary.json").read_text()), scores(small.run)
    for name in ("acc@1", "loss", "per_task", "acc@1_per_image"):
        assert found.get(name) == expected[-1].get(name)
    assert json.loads((output / "summary.json").read_text()) == found, "the first evaluation is its result"
    rows = (output / "accuracy_matrix.csv").read_text().splitlines()
    assert float(rows[1].split(",")[1]) == expected[0]["per_task"][0]


def test_a_run_and_its_numbers(small, tmp_path, capsys):
    """From the files alone, without the weights that the reference began with."""
    code, errors = take(capsys, small, tmp_path / "run")
    assert (code, errors) == (0, "")
    check_same_scores(small, tmp_path / "run")
    options = json.loads((tmp_path / "run" / "config.json").read_text())["options"]
    assert options["lr"] == 0.01 * 256 / 4, "it saves the rate that it trained with; ours is for a batch of 256"
    assert (options["decay_epochs"], options["opt_betas"]) == (30.0, [0.9, 0.999])
    assert options["init_checkpoint"] == str(tmp_path / "run" / "backbone.safetensors")
    assert options["output_dir"] == str(tmp_path / "run")
    manifests = [(folder / "manifest.json.gz").read_bytes() for folder in (small.run, tmp_path / "run")]
    assert manifests[0] == manifests[1]
    assert predict.main([str(tmp_path / "run"), str(write_picture(tmp_path)), "--num_workers", "0"]) == 0
    assert "after task 2 of 2, 4 of 4 classes seen" in capsys.readouterr().out
    code, errors = take(capsys, small, tmp_path / "run")
    assert code == 2
    assert "already holds a run: name another folder" in errors


def write_picture(folder: Path) -> Path:
    from PIL import Image

    Image.new("RGB", (40, 30), (200, 40, 40)).save(folder / "picture.png")
    return folder / "picture.png"


def test_weights_that_are_the_same_are_not_written_again(small, tmp_path, capsys):
    code, errors = take(capsys, small, tmp_path / "run", "--init_checkpoint", small.lab.files["weights"])
    assert (code, errors) == (0, "")
    assert not (tmp_path / "run" / "backbone.safetensors").exists()
    other = {name: tensor + 0.1 for name, tensor in small.weights.items()}
    save_file(other, tmp_path / "other.safetensors")
    code, errors = take(capsys, small, tmp_path / "other", "--init_checkpoint", tmp_path / "other.safetensors")
    assert code == 0
    assert "are not those of the files, which go into" in errors
    check_same_scores(small, tmp_path / "other")


def test_without_prompts(lab, tmp_path, capsys):
    small = Small(lab, tmp_path, *NO_PROMPTS, head_type="token", prompt_pool=False)
    assert take(capsys, small, tmp_path / "ours") == (0, "")
    check_same_scores(small, tmp_path / "ours")


def test_keys_that_are_means_of_prompts(lab, tmp_path, capsys):
    small = Small(lab, tmp_path, "--no-prompt_key", prompt_key=False)
    assert take(capsys, small, tmp_path / "ours") == (0, "")
    check_same_scores(small, tmp_path / "ours")


def test_a_backbone_that_trained_needs_the_one_it_began_with(lab, tmp_path, capsys):
    frozen = ["cls_token", "pos_embed"]
    small = Small(lab, tmp_path, "--freeze", *frozen, "--lr", "0.01", freeze=frozen)
    code, errors = take(capsys, small, tmp_path / "ours")
    assert code == 2
    assert "--init_checkpoint is missing" in errors
    assert not (tmp_path / "ours").exists()
    assert take(capsys, small, tmp_path / "ours", "--init_checkpoint", lab.files["weights"]) == (0, "")
    check_same_scores(small, tmp_path / "ours")


def test_options_without_a_counterpart_are_named(small, tmp_path, capsys):
    reference = write_reference(tmp_path / "theirs", small.run, small.weights, wandb="on", tricks=[1, 2])
    code, errors = take(capsys, small, tmp_path / "run", reference=reference)
    assert code == 0
    assert errors == "import_run.py: warning: options of the reference that mean nothing here: wandb, tricks.\n"


def test_a_part_of_the_tasks(small, tmp_path, capsys):
    reference = write_reference(tmp_path / "theirs", small.run, small.weights)
    (reference / "checkpoint" / "task2_checkpoint.pth").unlink()
    code, errors = take(capsys, small, tmp_path / "run", reference=reference)
    assert code == 0
    assert "1 of 2 tasks have files" in errors


CHANGES = {
    "shuffled classes": ({"shuffle": True}, "--class_order FILE is missing: the reference shuffled its classes"),
    "the five data sets, shuffled": ({"shuffle": True, "dataset": "5-datasets"}, "--dataset A,B,… is missing: the"),
    "shuffled data sets": ({"shuffle": True, "dataset": "MNIST,SVHN"}, "--dataset A,B,… is missing: the reference "),
    "an unknown schedule": ({"sched": "onecycle"}, "the reference ran with --sched 'onecycle', which this program"),
    "another length": ({"length": 4}, "does not fit the model of these options: backbone.pos_embed, prompt.prompts"),
    "another model": ({"model": "deit_tiny_patch16_224"}, "does not fit the model of these options"),
    "more files than tasks": ({"num_tasks": 1}, "the files are of 2 tasks, and --num_tasks 1 makes 1"),
    "options that are no values": ({"lr": torch.zeros(1)}, "has options that are no plain values: lr."),
    "a contradiction": ({"top_k": 20}, "--top_k 20 is more than --size 10"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_refused_options(name, small, tmp_path, capsys):
    changed, sentence = CHANGES[name]
    reference = write_reference(tmp_path / "theirs", small.run, small.weights, **changed)
    refuse(capsys, small, tmp_path, reference, sentence)


def refuse(capsys, small: Small, tmp_path: Path, reference: Path, sentence: str) -> None:
    code, errors = take(capsys, small, tmp_path / "run", reference=reference)
    assert code == 2
    assert len(errors.splitlines()) == 1
    assert sentence in errors
    assert not (tmp_path / "run").exists()


def change(path: Path, edit) -> None:
    content = torch.load(path, weights_only=False)
    edit(content)
    torch.save(content, path)


def move_position(content: dict) -> None:
    content["model"]["pos_embed"][:, 3] += 1


def move_backbone(content: dict) -> None:
    content["model"]["norm.bias"] += 1


def drop_args(content: dict) -> None:
    del content["args"]


def drop_model(content: dict) -> None:
    content["model"] = {}


def drop_head(content: dict) -> None:
    del content["model"]["head.bias"]


def add_code(content: dict) -> None:
    content["trap"] = Trap()


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


FILES = {
    "positions that trained": (move_position, "has position embeddings of prompts that differ from that of the cls"),
    "two backbones": (move_backbone, "the frozen backbones of task 1 and task 2 differ"),
    "no args": (drop_args, "is no checkpoint of the PyTorch re-implementation: it has no args"),
    "no model": (drop_model, "it has no model of tensors"),
    "half a head": (drop_head, "does not fit the model of these options: head.bias differ"),
    "code": (add_code, "carries more than tensors, plain values and an argparse.Namespace"),
}


@pytest.mark.parametrize("name", FILES)
def test_refused_files(name, small, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    edit, sentence = FILES[name]
    reference = write_reference(tmp_path / "theirs", small.run, small.weights)
    change(reference / "checkpoint" / "task2_checkpoint.pth", edit)
    refuse(capsys, small, tmp_path, reference, sentence)
    assert not (tmp_path / "sprung").exists()


def test_files_that_are_damaged_or_not_there(small, tmp_path, capsys):
    reference = write_reference(tmp_path / "theirs", small.run, small.weights)
    first = reference / "checkpoint" / "task1_checkpoint.pth"
    whole = first.read_bytes()
    for content in (whole[:len(whole) // 2], b"", b"text"):
        first.write_bytes(content)
        refuse(capsys, small, tmp_path, reference, f"{first} ")
    first.unlink()
    refuse(capsys, small, tmp_path, reference, "lacks task1_checkpoint.pth: put it back")
    refuse(capsys, small, tmp_path, tmp_path, "holds no task1_checkpoint.pth")


WORDS = {
    "nothing": ([], "come first: import_run.py REFERENCE_DIR OUTPUT_DIR"),
    "an option first": (["--data-path", "x", "theirs", "ours"], "come first"),
    "an experiment": (["theirs", "ours", "cifar100_l2p"], "unexpected word 'cifar100_l2p'"),
    "how it runs": (["theirs", "ours", "--output_dir", "x"], "--output_dir says how main.py runs: leave it out here"),
    "a mistyped option": (["theirs", "ours", "--input_nrom", "imagenet"], "did you mean --input_norm?"),
}


@pytest.mark.parametrize("name", WORDS)
def test_refused_command_lines(name, capsys):
    words, sentence = WORDS[name]
    assert import_run.main(words) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert len(printed.err.splitlines()) == 1
    assert sentence in printed.err


def test_other_classes(small, tmp_path, capsys):
    data = write_npz(tmp_path / "six.npz", classes=6)
    code, errors = take(capsys, small, tmp_path / "run", "--data-path", data)
    assert code == 2
    assert "head.bias, head.weight differ in name or shape" in errors


# ---- the real one ----
needs_real = pytest.mark.skipif(not (REAL / "reference_run").is_dir(), reason="no real files beside the repository")


@needs_real
def test_small_files_have_the_layout_of_real_ones(small):
    real = read_reference_file(REAL / "reference_run" / "task2_checkpoint.pth")
    ours = read_reference_file(small.reference / "checkpoint" / "task2_checkpoint.pth")

    def names(file):  # of the first block alone: the depth differs
        return {name for name in file.tensors if not name.startswith("blocks.") or name.startswith("blocks.0.")}

    assert names(real) == names(ours)
    assert real.tensors["pos_embed"].shape[1] == 14**2 + 1 + 5 * 5
    assert ours.args.keys() <= real.args.keys()
    for name, value in ours.args.items():
        assert type(value) is type(real.args[name]), name


@needs_real
@pytest.mark.long
def test_the_real_ones_score_as_the_reference_said(tmp_path):
    code = import_run.main([str(REAL / "reference_run"), str(tmp_path / "run"), "--dataset", "Split-NPZ", "--data-path",
                            str(REAL / "reference_run" / "cifar20.npz"), "--input_norm", "imagenet"])
    assert code == 0
    code, _, errors = call("--eval", "--output_dir", tmp_path / "run", "--device", "cpu", "--num_workers", 0)
    assert code == 0, errors
    found = json.loads((tmp_path / "run" / "eval_summary.json").read_text())
    assert found["per_task"] == [18.0, 28.0]
    assert (found["acc@1"], found["forgetting"], found["learning_acc"]) == (23.0, 14.0, 30.0)
