"""Every option does something: what each one changes in the computed values, not only in config.json.

`PROBES` holds one row per option: words that set it, and which of the measured values then differ from those of the
same command line without them. Options whose effect is no difference between two runs have a test of their own, named
in `OWN_TESTS`. Whoever adds an option adds a row to one of the two.
"""

import contextlib
import io
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
from fixtures import ROOT, run_program, write_npz
from safetensors.torch import save_file

import build
import main
from configs.base import OPTIONS, parse
from continual_datasets import Scenario
from continual_datasets.readers import read_npz
from records import opening_lines
from utils import Processes, load_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated")

# {data}, {other}, {weights} and {order} stand for files of the `Lab`.
BASE = ("cifar100_l2p", "--data_path", "{data}", "--num_tasks", "2", "--epochs", "1", "--batch_size", "4",
        "--num_workers", "0", "--model", "glyph_vit_tiny", "--no-pretrained", "--input_size", "32",
        "--eval_per_image", "never", "--device", "cpu")
# A stream without tasks: BASE without its --num_tasks.
STREAM = (*BASE[:3], *BASE[5:], "--schedule", "gaussian", "--reinit_optimizer", "false", "--gaussian_episodes", "4",
          "--gaussian_steps", "2", "--gaussian_width", "2", "--gaussian_eval_every", "2")
NO_PROMPTS = ("--prompt_method", "none", "--head_type", "token")
SGD = ("--opt", "sgd")
# Queries that differ from image to image, whatever the weights: an untrained ViT's cls outputs are all alike.
DIVERSE = ("--embedding_key", "mean", "--input_norm", "imagenet")


# ---- measuring ----
def measure_run(words: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Run the program and collect what it computed, without times; values of one name can be compared by ==."""
    # Stopped at the table after the last task: every value is there by then, and plots would take as long again.
    code, out, err = call(*words, "--output_dir", folder, out=Interrupting("\nafter "))
    assert code == 130, err
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    epochs = [row for row in log if row["kind"] == "epoch"]
    evaluations = [row for row in log if row["kind"] == "evaluation"]
    learned = learned_in(folder)
    config = json.loads((folder / "config.json").read_text())
    return {
        "warnings": [line for line in err.splitlines() if "interrupted" not in line],
        "opening": re.search(r"^seed .*(?=, writing)", out, re.MULTILINE)[0],
        "steps": re.findall(r"^(?:task|episode) (\S+) epoch (\S+) step (\S+)", out, re.MULTILINE),
        "first loss": [row.get("loss") for row in epochs if (row.get("task") or row["episode"]) == 1],
        "later loss": [row.get("loss") for row in epochs if (row.get("task") or row["episode"]) > 1],
        "lr": [row.get("lr") for row in epochs],
        "evaluation": [{k: v for k, v in row.items() if k not in ("time", "acc@1_per_image")} for row in evaluations],
        "per image": [row.get("acc@1_per_image") for row in evaluations],
        "shapes": [{name: tensor.shape for name, tensor in state.items()} for state in learned],
        "learned": [{name: tensor.numpy().tobytes() for name, tensor in state.items()} for state in learned],
        "backbone": config["model"]["backbone_sha256"],
        "device": config["device"],
    }


def measure_rates(words: tuple[str, ...], folder: Path | None = None) -> dict[str, Any]:
    """The learning rate of each epoch of a task whose loss never falls; `folder` stays empty."""
    options = parse(words).options
    recipe = build.build_recipe(options)
    optimizer = recipe.make_optimizer([("weight", torch.nn.Parameter(torch.zeros(1, 1)))])
    schedule = recipe.make_schedule(optimizer, options["epochs"])
    found = []
    for epoch in range(options["epochs"]):
        found.append(optimizer.param_groups[0]["lr"])
        if schedule is not None:
            schedule.step(epoch + 1, metric=1.0)
    return {"rates": found}


def call(*words: object, out: io.StringIO | None = None) -> tuple[int, str, str]:
    """Run the program in this process: exit code (130 after Ctrl-C, as shells have it), stdout, stderr."""
    out, err = out or io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main.main([str(word) for word in words])
    return code, out.getvalue(), err.getvalue()


class Interrupting(io.StringIO):
    """A terminal whose user presses Ctrl-C before a text that begins with `text` is printed."""

    def __init__(self, text: str):
        super().__init__()
        self.text = text

    def write(self, printed: str) -> int:
        if printed.startswith(self.text):
            raise KeyboardInterrupt
        return super().write(printed)


def learned_in(folder: Path) -> list[dict[str, torch.Tensor]]:
    return [load_checkpoint(path)["model"] for unit in ("task", "episode")
            for path in sorted(folder.glob(f"checkpoint/{unit}*.pth"))]


class Lab:
    """Small files, and what command lines over them compute; the same words are measured once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files = {"data": folder / "data.npz", "other": folder / "other.npz",
                      "weights": folder / "weights.safetensors", "order": folder / "order.txt"}
        write_npz(self.files["data"], train_per_class=4, test_per_class=2)
        write_npz(self.files["other"], train_per_class=5, test_per_class=2)
        save_file(timm_weights("glyph_vit_tiny"), self.files["weights"])
        self.files["order"].write_text("3\n1\n2\n0\n")
        self.known: dict[tuple, dict[str, Any]] = {}

    def words(self, *words: str) -> tuple[str, ...]:
        return tuple(word.format(**self.files) for word in words)

    def measure(self, words: tuple[str, ...], how: Callable = measure_run) -> dict[str, Any]:
        if (words, how) not in self.known:
            self.known[words, how] = self.measure_anew(words, how)
        return self.known[words, how]

    def measure_anew(self, words: tuple[str, ...], how: Callable = measure_run) -> dict[str, Any]:
        return how(self.words(*words), Path(tempfile.mkdtemp(dir=self.folder)))


def timm_weights(model: str) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return timm.create_model(model).state_dict()


@pytest.fixture(scope="session")
def lab(tmp_path_factory) -> Lab:
    return Lab(tmp_path_factory.mktemp("options"))


# ---- the table ----
@dataclass(frozen=True)
class Probe:
    """Setting an option to any of `values` moves all of `moves`, differently for each value, and none of `keeps`."""

    values: tuple[str, ...]
    """Each is the words behind `--option`, separated by blanks."""
    moves: tuple[str, ...]
    keeps: tuple[str, ...] = ()
    base: tuple[str, ...] = BASE
    how: Callable = measure_run


def rates(sched: str, *values: str, base: str = "--warmup_epochs 0 --epochs 12") -> Probe:
    return Probe(values, ("rates",), (), ("--sched", sched, *base.split()), measure_rates)


PROBES: dict[str, Probe] = {
    # training
    "batch_size": Probe(("8",), ("steps", "first loss", "lr"), ("backbone",)),
    "epochs": Probe(("2",), ("steps", "first loss", "later loss"), ("shapes", "backbone")),
    "seed": Probe(("1",), ("first loss", "learned", "backbone"), ("steps", "lr")),
    "print_freq": Probe(("1",), ("steps",), ("first loss", "evaluation", "learned")),
    # speed
    "precision": Probe(("bf16",), ("opening", "first loss", "evaluation"), ("backbone", "steps", "lr", "shapes")),
    # model
    "model": Probe(("test_vit",), ("backbone", "shapes", "first loss"), ("steps", "lr")),
    "input_size": Probe(("16",), ("first loss", "evaluation"), ("shapes", "lr")),
    "init_checkpoint": Probe(("{weights}",), ("backbone", "first loss"), ("shapes", "lr")),
    "input_norm": Probe(("imagenet", "model"), ("first loss", "evaluation"), ("backbone",),
                        (*BASE, "--model", "test_vit")),
    "drop": Probe(("0.5",), ("first loss", "evaluation"), ("backbone", "lr")),
    "drop_path": Probe(("0.5",), ("first loss", "evaluation"), ("backbone", "lr")),
    "freeze": Probe(("", "blocks", "blocks patch_embed prompt"), ("shapes", "learned", "later loss"), ("lr",)),
    "head": Probe(("ncm",), ("shapes", "first loss", "evaluation"), ("backbone",), (*BASE, *NO_PROMPTS)),
    "head_type": Probe(("token", "gap", "token+prompt"), ("first loss", "evaluation"), ("shapes", "lr")),
    "head_init": Probe(("zero",), ("first loss", "learned"), ("shapes",)),
    # optimizer
    "opt": Probe(("sgd", "adamw"), ("later loss", "learned"), ("lr",), (*BASE, "--weight_decay", "0.1")),
    "opt_eps": Probe(("0.1",), ("later loss", "learned"), ("lr",)),
    "opt_betas": Probe(("0.5 0.999", "0.9 0.5"), ("later loss", "learned"), ("lr",)),
    "momentum": Probe(("0.5",), ("later loss", "learned"), ("lr",), (*BASE, *SGD)),
    "weight_decay": Probe(("0.5",), ("later loss", "learned"), ("lr",)),
    "clip_grad": Probe(("0.01", "none"), ("later loss", "learned"), ("lr",), (*BASE, *SGD, "--clip_grad", "0.1")),
    "reinit_optimizer": Probe(("false",), ("later loss", "learned"), ("first loss", "lr")),
    # learning rate
    "lr": Probe(("0.1",), ("lr", "later loss", "learned"), ("steps",)),
    "sched": rates("constant", "cosine", "tanh", "step", "multistep", "poly", "plateau",
                   base="--warmup_epochs 0 --epochs 12 --patience_epochs 2 --decay_epochs 4 --decay_milestones 3 9"),
    "warmup_epochs": rates("cosine", "2", "5"),
    "warmup_lr": rates("cosine", "1e-5", "1e-4", base="--warmup_epochs 3 --epochs 6"),
    "min_lr": rates("cosine", "0", "1e-4"),
    "decay_epochs": rates("step", "2", "5"),
    "decay_milestones": rates("multistep", "2", "2 4"),
    "decay_rate": rates("step", "0.5", "0.9", base="--warmup_epochs 0 --epochs 6 --decay_epochs 2"),
    "patience_epochs": rates("plateau", "1", "3"),
    "cooldown_epochs": rates("plateau", "0", "3", base="--warmup_epochs 0 --epochs 12 --patience_epochs 1"),
    "lr_noise": rates("step", "0.5", "0.2 0.6"),
    "lr_noise_pct": rates("step", "0.1", "0.3", base="--warmup_epochs 0 --epochs 12 --lr_noise 0.1"),
    "lr_noise_std": rates("step", "0.1", "0.5", base="--warmup_epochs 0 --epochs 12 --lr_noise 0.1"),
    # data
    "data_path": Probe(("{other}",), ("first loss", "evaluation"), ("shapes", "backbone")),
    "dataset": Probe(("Split-Glyphs",), ("shapes", "first loss"), ("backbone",),
                     (*BASE, "--subsample", "1", "--subsample_test", "1")),
    "shuffle": Probe(("true",), ("first loss", "later loss", "evaluation"), ("steps", "backbone")),
    "class_order": Probe(("seed:5", "{order}"), ("first loss", "later loss", "evaluation"), ("steps", "backbone")),
    "subsample": Probe(("2",), ("steps", "first loss"), ("backbone", "lr")),
    "subsample_test": Probe(("1",), ("evaluation",), ("first loss", "later loss", "learned")),
    "scale": Probe(("0.5 1",), ("first loss", "learned"), ("steps",)),
    "ratio": Probe(("0.25 4",), ("first loss", "learned"), ("steps",)),
    "hflip": Probe(("0",), ("first loss", "learned"), ("steps",)),
    # continual learning
    "num_tasks": Probe(("4",), ("steps", "first loss", "evaluation"), ("backbone",)),
    "classes_per_task": Probe(("3",), ("steps", "first loss", "evaluation"), ("backbone",)),
    "train_mask": Probe(("false",), ("first loss", "later loss", "learned"), ("steps", "lr")),
    "task_inc": Probe(("true",), ("evaluation",), ("first loss", "later loss", "learned")),
    "gaussian_episodes": Probe(("6",), ("steps", "evaluation", "later loss"), ("backbone",), STREAM),
    "gaussian_steps": Probe(("3",), ("steps", "first loss", "evaluation"), ("backbone",), STREAM),
    "gaussian_width": Probe(("20",), ("later loss", "evaluation"), ("steps", "lr"), STREAM),
    "gaussian_eval_every": Probe(("1", "4"), ("evaluation", "shapes"), ("steps", "first loss", "later loss"), STREAM),
    "replay_per_class": Probe(("1", "2"), ("later loss", "learned"), ("first loss", "steps", "lr")),
    # prompts
    "prompt_method": Probe(("none",), ("shapes", "first loss", "evaluation"), ("lr",), (*BASE, "--head_type", "token")),
    "prompt_pool": Probe(("false",), ("shapes", "first loss", "evaluation"), ("lr",)),
    "size": Probe(("12",), ("shapes", "first loss"), ("lr",)),
    "length": Probe(("3",), ("shapes", "first loss"), ("lr",)),
    "top_k": Probe(("3",), ("first loss", "evaluation"), ("shapes", "lr")),
    "initializer": Probe(("flax_uniform", "zero", "normal"), ("first loss", "evaluation"), ("shapes", "lr")),
    "prompt_key": Probe(("false",), ("shapes", "first loss"), ("lr",)),
    "prompt_key_init": Probe(("flax_uniform", "zero", "normal"), ("first loss", "learned"), ("shapes", "lr")),
    "use_prompt_mask": Probe(("true",), ("first loss", "later loss"), ("shapes",)),
    "shared_prompt_pool": Probe(("true",), ("later loss", "learned"), ("first loss",), (*BASE, "--use_prompt_mask")),
    "shared_prompt_key": Probe(("true",), ("later loss", "learned"), ("first loss",), (*BASE, "--use_prompt_mask")),
    "batchwise_prompt": Probe(("false",), ("first loss", "evaluation"), ("shapes", "lr"), (*BASE, *DIVERSE)),
    "embedding_key": Probe(("mean", "max", "mean_max"), ("first loss", "learned"), ("shapes", "lr")),
    "prompt_pos_embed": Probe(("none",), ("first loss", "evaluation"), ("shapes", "lr")),
    "pull_constraint": Probe(("false",), ("first loss", "learned"), ("shapes", "lr")),
    "pull_constraint_coeff": Probe(("0.5",), ("first loss", "learned"), ("shapes", "lr")),
    "eval_per_image": Probe(("final", "always"), ("per image",), ("first loss", "evaluation", "learned")),
}


# ---- the tests of the table ----
def test_the_same_words_compute_the_same_values(lab):
    """Without this, no difference that a probe finds would mean anything."""
    for words in (BASE, (*BASE, "--drop", "0.5")):
        assert lab.measure(words) == lab.measure_anew(words)


@pytest.mark.parametrize("name", PROBES)
def test_the_option_changes_computed_values(name, lab):
    probe = PROBES[name]
    commands = [probe.base, *((*probe.base, f"--{name}", *value.split()) for value in probe.values)]
    options = [parse(words).options for words in commands]
    assert all({n for n in o if o[n] != options[0][n]} == {name} for o in options[1:]), "not a probe of this option"
    if OPTIONS[name].choices and name not in CHOICES_ELSEWHERE:
        assert {o[name] for o in options} == set(OPTIONS[name].choices)

    found = [lab.measure(words, probe.how) for words in commands]
    for what in probe.moves:
        for (words, one), (others, other) in itertools.combinations(zip(commands, found, strict=True), 2):
            assert one[what] != other[what], f"{what} of {words[len(probe.base):]} and {others[len(probe.base):]}"
    for what in probe.keeps:
        assert all(each[what] == found[0][what] for each in found), what


def test_every_option_has_a_probe_or_a_test_of_its_own():
    covered = [*PROBES, *OWN_TESTS, *NO_EFFECT]
    assert sorted(covered) == sorted(name for name, option in OPTIONS.items() if not option.inert)


def test_a_run_trains_at_the_rates_of_the_schedule(lab):
    """What the rows with `measure_rates` measure is what training uses, and every task starts anew."""
    schedule = ("--sched", "cosine", "--epochs", "3", "--warmup_epochs", "1")
    rates = lab.measure((*BASE, *schedule), measure_rates)["rates"]
    assert len(set(rates)) == 3
    assert lab.measure((*BASE, *schedule))["lr"] == rates * 2


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.inert])
def test_an_inert_option_gives_one_warning_and_changes_nothing(name, lab):
    base, found = lab.measure(BASE), lab.measure((*BASE, f"--{name.replace('_', '-')}", "0.4"))
    assert found["warnings"] == [f"main.py: warning: --{name} is accepted for compatibility and does nothing."]
    assert base["warnings"] == []
    assert found | {"warnings": []} == base


def test_local_rank_is_accepted_and_changes_nothing(lab):
    assert lab.measure((*BASE, "--local_rank", "3")) == lab.measure(BASE)


# ---- options with a test of their own ----
def test_device(lab):
    gpu = torch.cuda.is_available()
    cpu = lab.measure(BASE)
    assert cpu["device"] == "cpu"
    assert "on cpu," in cpu["opening"]
    auto = lab.measure((*BASE, "--device", "auto"))
    assert auto["device"] == ("cuda:0" if gpu else "cpu")
    assert f"on {auto['device']}," in auto["opening"]
    for name in ["cuda:99"] if gpu else ["cuda:99", "cuda"]:
        code, out, err = call(*lab.words(*BASE, "--device", name, "--output_dir", ""))
        assert (code, out) == (2, "")
        assert f"--device {name} needs " in err


def test_precision_is_chosen_by_the_device(lab):
    """`auto` is told and stored as what it came to; what a device has not is refused before anything is written."""
    gpu = torch.cuda.is_available()
    auto = lab.measure(BASE)
    assert ", fp32, " in auto["opening"]
    assert auto | {"opening": ""} == lab.measure((*BASE, "--precision", "fp32")) | {"opening": ""}
    code, out, err = call(*lab.words(*BASE, "--precision", "tf32", "--output_dir", ""))
    assert (code, out) == (2, "")
    assert "--precision tf32 is a mode of NVIDIA GPUs" in err
    if gpu:
        found = {name: lab.measure((*BASE, "--device", "cuda", "--precision", name)) for name in ("auto", "tf32")}
        assert ", tf32, " in found["tf32"]["opening"]
        assert (", bf16, " in found["auto"]["opening"]) == (torch.cuda.get_device_capability() >= (8, 0))


@pytest.mark.long
def test_compile(lab):
    """The same values to rounding."""
    base, compiled = lab.measure(BASE), lab.measure((*BASE, "--compile"))
    assert ", compiled, " in compiled["opening"]
    assert base["shapes"] == compiled["shapes"]
    for found, expected in ((compiled[name], base[name]) for name in ("first loss", "later loss")):
        assert found == pytest.approx(expected, abs=1e-4)
    assert base["learned"] != compiled["learned"], "nothing was compiled"


def test_compile_where_there_is_no_compiler(lab, tmp_path):
    """One sentence and no folder."""
    done = run_program(*lab.words(*BASE, "--compile", "--output_dir", str(tmp_path / "run")), CXX="/nowhere/g++",
                       TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    assert done.returncode == 2
    assert "--compile: torch cannot compile here" in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "run").exists()


def test_schedule(lab):
    """Tasks or episodes: other units, other steps, one test set."""
    tasks, stream = lab.measure(BASE), lab.measure(STREAM)
    assert len(tasks["evaluation"]) == len(stream["evaluation"]) == 2
    assert [row["task"] for row in tasks["evaluation"]] == [1, 2]
    assert [row["episode"] for row in stream["evaluation"]] == [2, 4]
    assert "forgetting" in tasks["evaluation"][0]
    assert "forgetting" not in stream["evaluation"][0]


def test_speed_test(lab, tmp_path):
    """Measured before training, which then computes what it would have computed; or measured alone."""
    words = lab.words(*BASE, "--speed_test", "--output_dir", str(tmp_path / "run"))
    code, out, err = call(*words)
    assert code == 0, err
    expected = lab.measure(BASE)["learned"]
    assert [{k: v.numpy().tobytes() for k, v in state.items()} for state in learned_in(tmp_path / "run")] == expected

    code, out, err = call(*lab.words(*BASE, "--speed_test_only", "--output_dir", str(tmp_path / "alone")))
    assert code == 0, err
    assert "epoch" not in out
    assert [path.name for path in (tmp_path / "alone").iterdir()] == ["speed.json"]
    for folder in ("run", "alone"):
        found = json.loads((tmp_path / folder / "speed.json").read_text())
        parts = {part["name"]: part for part in found["parts"]}
        assert list(parts) == ["query pass", "prompted pass", "training step", "training with its data",
                               "evaluation, new task", "evaluation, task seen before"]
        assert all(part[value] > 0 for part in found["parts"] for value in (
            "images_per_second", "gflop_per_image", "fraction_of_peak", "peak_memory_bytes"))
        # Without weight gradients a step costs the query pass, and forward and backward of the prompted pass.
        query, prompted, step = (parts[n]["gflop_per_image"] for n in ("query pass", "prompted pass", "training step"))
        assert query + 1.9 * prompted < step < query + 2.4 * prompted
        assert parts["evaluation, new task"]["gflop_per_image"] == query + prompted
        assert found["checkpoint_bytes"] < 100_000
        assert found["config"]["precision"] == "fp32"
    for other in ("--eval", "--resume", "--overwrite"):
        code, out, err = call(*lab.words(*BASE, "--speed_test_only", other, "--output_dir", str(tmp_path / "run")))
        assert (code, out) == (2, "")
        assert "exclude each other" in err


def test_pretrained(lab, tmp_path, monkeypatch):
    """From the hub's cache when it is there, one sentence when it cannot be had, random without the option."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    words = (*BASE, "--model", "test_vit", "--input_size", "160", "--subsample", "1")
    code, out, err = call(*lab.words(*words, "--pretrained", "--output_dir", ""))
    assert (code, out) == (2, "")
    assert "pretrained weights of test_vit.r160_in1k could not be obtained" in err

    repository, revision = tmp_path / "models--timm--test_vit.r160_in1k", "0" * 40
    file = repository / "snapshots" / revision / "model.safetensors"
    file.parent.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    save_file(timm_weights("test_vit"), file)
    found = lab.measure_anew((*words, "--pretrained"))["backbone"]
    assert found != lab.measure(words)["backbone"]
    assert found == lab.measure((*words, "--init_checkpoint", str(file)))["backbone"]


def test_download(lab, tmp_path, monkeypatch):
    """Without it the folder is only read; with it the archive is asked for (here of a port where nobody answers)."""
    from torchvision.datasets import CIFAR100

    monkeypatch.setattr(CIFAR100, "url", f"http://127.0.0.1:9/{CIFAR100.filename}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    words = lab.words(*BASE, "--data_path", str(tmp_path / "data"), "--output_dir", "")
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert "add --download" in err
    code, out, err = call(*words, "--download")
    assert (code, out) == (2, "")
    assert "--download could not fetch CIFAR-100" in err


def test_num_workers(lab):
    """Batches made ahead by a thread of their own: another line, and not one value differs."""
    base, ahead = lab.measure(BASE), lab.measure((*BASE, "--num_workers", "2"))
    assert ", 0 batches ahead," in base["opening"]
    assert ", 2 batches ahead," in ahead["opening"]
    assert base | {"opening": ""} == ahead | {"opening": ""}

    images = read_npz(str(lab.files["data"])).train
    for workers in (0, 2):
        options = parse((*BASE, "--batch_size", "1", "--num_workers", str(workers))).options
        before = set(threading.enumerate())
        batches = build.build_batches(options, None, torch.device("cpu"), Processes()).training(images, 0, 0)
        next(batches)
        assert [t.name for t in threading.enumerate() if t not in before] == ["batches"] * bool(workers)
        batches.close()


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_pin_mem(device):
    """For copies to a GPU only. Whether to pin, and the line about it, are decided without touching the GPU."""
    for pinned in (True, False):
        options = parse((*BASE, "--pin_mem", str(pinned))).options
        batches = build.build_batches(options, None, torch.device(device), Processes())
        assert batches.pin_memory == (pinned and device != "cpu")
        config = {"experiment": "any", "options": options, "protocol": "any", "world_size": 1, "device": device,
                  "precision": "fp32", "model": {"name": "any", "parameters": 1, "trainable_parameters": 1}}
        line = opening_lines(config, Scenario((), ()))[1]
        assert ("pinned memory on" in line) == batches.pin_memory


def test_output_dir(lab, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    code, out, _ = call(*lab.words(*BASE, "--output_dir", ""))
    assert code == 0
    assert "nothing is written" in out
    assert list(tmp_path.rglob("*")) == [tmp_path / "here"]
    code, out, _ = call(*lab.words(*BASE, "--output_dir", "there"))
    assert code == 0
    assert "writing there" in out
    assert sorted(path.name for path in Path("there").iterdir()) == [
        "accuracy_matrix.csv", "checkpoint", "config.json", "log.jsonl", "plots", "summary.json", "tensorboard"]


def test_resume_and_overwrite(lab, tmp_path):
    """A run stopped in its second task: refused without either, continued by the one, begun anew by the other."""
    expected = lab.measure(BASE)
    words = lab.words(*BASE, "--output_dir", str(tmp_path))
    assert call(*words, out=Interrupting("task 2/2"))[0] == 130
    note = tmp_path / "note.txt"
    note.write_text("the user's own")
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert "already holds a run" in err

    code, out, err = call(*words, "--resume")
    assert code == 0, err
    assert re.findall(r"^task (\S+) epoch .*done", out, re.MULTILINE) == ["2/2"]
    assert [{k: v.numpy().tobytes() for k, v in state.items()} for state in learned_in(tmp_path)] == expected["learned"]

    (tmp_path / "eval_summary.json").write_text("of the run to be removed")
    code, out, err = call(*words, "--overwrite", "--seed", "1")
    assert code == 0, err
    assert not (tmp_path / "eval_summary.json").exists()
    assert re.findall(r"^task (\S+) epoch .*done", out, re.MULTILINE) == ["1/2", "2/2"]
    assert json.loads((tmp_path / "config.json").read_text())["options"]["seed"] == 1
    assert note.read_text() == "the user's own"


def test_eval(lab, tmp_path):
    """Nothing is trained, and the task checkpoints are measured again."""
    expected = lab.measure(BASE)
    measure_run(lab.words(*BASE), tmp_path)
    checkpoints = {path: path.read_bytes() for path in tmp_path.glob("checkpoint/*")}
    code, out, err = call("--eval", "--output_dir", tmp_path)
    assert code == 0, err
    assert "epoch" not in out
    assert json.loads((tmp_path / "eval_summary.json").read_text())["acc@1"] == expected["evaluation"][-1]["acc@1"]
    assert {path: path.read_bytes() for path in tmp_path.glob("checkpoint/*")} == checkpoints


def test_unscale_lr(monkeypatch):
    """The rate grows with the batch of all processes together, or of one."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    one, all_of_them = (measure_rates((*BASE, "--unscale_lr", value))["rates"][0] for value in ("true", "false"))
    assert all_of_them == 2 * one == 2 * 0.03 * 4 / 256


def test_world_size_and_dist_url(lab, tmp_path):
    """Two processes meet where --dist_url says (the environment names no place), and are as many as expected."""
    code, out, err = call(*lab.words(*BASE, "--world_size", "2", "--output_dir", ""))
    assert (code, out) == (2, "")
    assert "--world_size 2, but the launcher started 1 process(es)" in err

    words = lab.words(*BASE, "--world_size", "2", "--dist_url", f"file://{tmp_path}/meeting", "--output_dir", "")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MASTER_")}
    processes = [subprocess.Popen([sys.executable, ROOT / "main.py", *words], stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True,
                                  env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"})
                 for rank in range(2)]
    try:
        printed = [process.communicate(timeout=200)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], printed
    assert "seed 42, 2 process(es) on cpu" in printed[0]
    assert "task" not in printed[1]


def test_dist_timeout(lab):
    """The process that waits for one that never comes gives up after so many seconds, and says where it waited."""
    words = lab.words(*BASE, "--output_dir", "", "--dist_timeout", "1")
    environment = {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    done = subprocess.run([sys.executable, ROOT / "main.py", *words], capture_output=True, text=True, timeout=100,
                          env=os.environ | environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert "main.py: error: --dist_url env:// (MASTER_ADDR=127.0.0.1 MASTER_PORT=9): the 2 processes could not meet " \
           "there" in done.stderr
    assert re.search("timed out after 1s|[Tt]imeout.* 1000 ?ms", done.stderr), done.stderr


OWN_TESTS: dict[str, Callable] = {
    "device": test_device,
    "compile": test_compile,
    "schedule": test_schedule,
    "speed_test": test_speed_test,
    "speed_test_only": test_speed_test,
    "pretrained": test_pretrained,
    "unscale_lr": test_unscale_lr,
    "download": test_download,
    "num_workers": test_num_workers,
    "pin_mem": test_pin_mem,
    "output_dir": test_output_dir,
    "overwrite": test_resume_and_overwrite,
    "resume": test_resume_and_overwrite,
    "eval": test_eval,
    "world_size": test_world_size_and_dist_url,
    "dist_url": test_world_size_and_dist_url,
    "dist_timeout": test_dist_timeout,
}
CHOICES_ELSEWHERE = {"precision": test_precision_is_chosen_by_the_device}  # not every machine has them all
# Deliberately without effect, although not listed as inert: torch.distributed.launch without --use_env gives it to each
# process by itself, so a warning would blame people for nothing. The environment's LOCAL_RANK says the same and counts.
NO_EFFECT = {"local_rank": test_local_rank_is_accepted_and_changes_nothing}
