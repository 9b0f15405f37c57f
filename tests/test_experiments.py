"""Every experiment that `--list` prints, and every setting of continual learning, through two tasks on small files."""

import json
from pathlib import Path

import pytest
import torch
from fixtures import ROOT, write_npz
from published import class_folders, write_files
from test_bad_input import run
from test_data_runs import write_five
from test_published import accept
from test_published_folders import write_core50

from configs import experiment_names, load_experiment
from configs.base import OPTIONS
from configs.command import default_options, parse
from utils import load_checkpoint

# The model of the demo on 32 pixels, one epoch, one or two images of each class.
SMALL = ("--model", "glyph_vit_tiny", "--no-pretrained", "--input-size", 32, "--batch-size", 4, "--epochs", 1,
         "--num-workers", 0, "--device", "cpu")
BLOCKS = 4  # of that model
STREAM = ("--gaussian_episodes", 2, "--gaussian_steps", 2, "--gaussian_width", 1, "--gaussian_eval_every", 1)


def cifar100(root: Path) -> tuple[object, ...]:
    return "--data-path", write_npz(root / "data.npz"), "--num-tasks", 2


def stream(root: Path) -> tuple[object, ...]:
    return "--data-path", write_npz(root / "data.npz"), *STREAM


def glyphs(root: Path) -> tuple[object, ...]:
    return "--num-tasks", 2, "--subsample", 1, "--subsample_test", 1


def five(root: Path) -> tuple[object, ...]:
    write_five(root)
    return "--data-path", root, "--dataset", "MNIST,SVHN"


def core50(root: Path) -> tuple[object, ...]:
    write_core50(root, per_session=1)
    return "--data-path", root


def imagenet_r(root: Path) -> tuple[object, ...]:
    write_files(root / "imagenet-r", class_folders([f"n0{n}" for n in range(4)], 5, (60, 48), "JPEG"))
    return "--data-path", root, "--num-tasks", 2


FILES = {"cifar100": cifar100, "cifar100_gaussian_l2p": stream, "demo": glyphs, "five": five, "core50": core50,
         "imagenet": imagenet_r}  # by the name, or by its first word
SETTINGS = {"cifar100_gaussian_l2p": "task-agnostic", "core50_l2p": "domain-incremental"}  # others: class-incremental


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.long if name == "core50_l2p" else ()) for name in experiment_names()])
def test_two_tasks(name, tmp_path, monkeypatch):
    """To the end, with the experiment's own settings; and `--eval` finds the same numbers."""
    (tmp_path / "data").mkdir()
    given = (FILES.get(name) or FILES[name.partition("_")[0]])(tmp_path / "data")
    if layers := [layer for layer in load_experiment(name).defaults.get("prompt_layers", []) if layer < BLOCKS]:
        given = (*given, "--prompt_layers", *layers)
    if load_experiment(name).defaults.get("head") == "ridge":
        given = (*given, "--random_features", 20)  # of 10,000, which take their time
    accept(monkeypatch, tmp_path / "data")
    assert run(name, *SMALL, *given, "--output-dir", tmp_path / "run") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    joint = load_experiment(name).defaults.get("joint", False)
    assert len(summary["evaluated_after"]) == (8 if name == "core50_l2p" else 1 if joint else 2)
    assert summary["protocol"].endswith(SETTINGS.get(name, "joint" if joint else "class-incremental"))
    options = summary["config"]["options"]
    overridden = {word.removeprefix("--").replace("-", "_") for word in map(str, (*SMALL, *given))}
    for option, value in load_experiment(name).defaults.items():
        assert option in overridden | {"output_dir", "pretrained"} or options[option] == value, option
    assert run("--eval", "--output-dir", tmp_path / "run") == 0
    again = json.loads((tmp_path / "run" / "eval_summary.json").read_text())
    for key in ("acc@1", "loss", "average_incremental_acc"):
        assert again[key] == summary[key]


@pytest.mark.long
def test_core50_trains_the_backbone_and_asks_a_frozen_copy(tmp_path):
    """One accuracy for each session on the common test set; a checkpoint holds the ViT, for all of it has moved."""
    write_core50(tmp_path / "data", per_session=1)
    assert run("core50_l2p", *SMALL, "--data-path", tmp_path / "data", "--output-dir", tmp_path / "run") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["curve"]) == 8
    assert summary["acc@1"] == summary["curve"][-1]
    assert "forgetting" not in summary
    options = summary["config"]["options"]
    assert (options["opt"], options["momentum"], options["length"], options["freeze"]) == ("sgd", 0.9, 5, [])
    assert summary["trainable_parameters"] == summary["config"]["model"]["parameters"]
    states = [load_checkpoint(tmp_path / "run" / "checkpoint" / f"session0{s}.pth")["model"] for s in (1, 8)]
    moved = [name for name in states[0] if not torch.equal(states[0][name], states[1][name])]
    assert any(name.startswith("backbone.blocks.0.") for name in moved)
    assert (tmp_path / "run" / "accuracy_matrix.csv").read_text().splitlines()[0].startswith("test,after_session_1,")


@pytest.mark.parametrize(("name", "pool"), [
    ("cifar100_l2p_jax", (10, 10, 4, 1.0, "none")), ("cifar100_gaussian_l2p", (10, 5, 5, 0.1, "cls")),
    ("five_datasets_l2p_jax", (20, 10, 4, 0.5, "none")), ("five_datasets_l2p", (20, 10, 4, 0.5, "cls")),
    ("core50_l2p", (10, 5, 4, 1.0, "none"))])
def test_pool_and_pull_are_those_of_the_official_settings(name, pool):
    """Prompts, their length, how many are chosen, the weight of the pull, the position embedding: google-research/l2p.

    The stream's config is of its first release, which tiled the cls token's position over the prompts.
    """
    options = parse([name]).options
    assert tuple(options[option] for option in (
        "size", "length", "top_k", "pull_constraint_coeff", "prompt_pos_embed")) == pool


def test_the_official_five_datasets_differ_from_its_cifar100_in_pool_pull_mask_and_data():
    """google-research/l2p, configs/five_datasets_l2p.py; the order is that of libml/input_pipeline.py."""
    five, cifar100 = (parse([name]).options for name in ("five_datasets_l2p_jax", "cifar100_l2p_jax"))
    assert {name: five[name] for name in OPTIONS if five[name] != cifar100[name]} == {
        "dataset": "CIFAR10,MNIST,SVHN,NotMNIST,FashionMNIST", "size": 20, "pull_constraint_coeff": 0.5,
        "use_prompt_mask": True, "shared_prompt_pool": True, "output_dir": "./output/five_datasets_l2p_jax"}


def test_task_incremental_needs_tasks_with_classes_of_their_own(tmp_path, capsys):
    write_core50(tmp_path, per_session=1)
    assert run("core50_l2p", *SMALL, "--data-path", tmp_path, "--task_inc", "--output-dir", "") == 2
    assert "--task_inc: in a domain-incremental scenario all sessions are tested on the same" in capsys.readouterr().err


def test_the_command_in_the_results_has_the_settings_of_its_record():
    """What is best in our table must be what people get by the name of its experiment."""
    record = json.loads((ROOT / "results" / "cifar100_500per_oneprompt_deep_ranpac_order0.json").read_text())
    options = parse(["cifar100_oneprompt_ranpac", "--random_features", "5000"]).options
    recorded = default_options() | record["config"]["options"]  # options came later, with what was so before
    given = {"dataset", "data_path", "model", "init_checkpoint", "input_norm", "num_workers", "device", "precision"}
    differing = {name for name in OPTIONS if not OPTIONS[name].run_only
                 and recorded[name] != options[name]}
    assert differing <= given
