"""Every option does something: what each one changes in the computed values, not only in config.json.

`PROBES` holds one row per option: words that set it, and which of the values measured by `Lab` differ then from those of
the same command line without them. Options whose effect is not a difference between two runs have a test of their own,
listed in `OWN_TESTS`. Whoever adds an option adds a row to one of the two.
"""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
from fixtures import ROOT, write_npz
from safetensors.torch import save_file

import main
from configs.base import OPTIONS, default_options, parse
from utils import Processes, load_checkpoint

BASE = ("cifar100_l2p", "--num_tasks", "2", "--model", "glyph_vit_tiny", "--no-pretrained", "--input_size", "32",
        "--batch_size", "4", "--epochs", "1", "--num_workers", "0", "--eval_per_image", "never", "--device", "cpu")
NO_PROMPTS = ("--prompt_method", "none", "--head_type", "token")
SGD = ("--opt", "sgd")
NORMAL = ("--initializer", "normal", "--prompt_key_init", "normal")
# Queries that differ from image to image, whatever the weights: an untrained ViT's cls outputs are all alike.
DIVERSE = ("--embedding_key", "mean", "--input_norm", "imagenet")


# ---- measuring ----
def measure_run(words: tuple[str, ...], folder: Path, data: Path) -> dict[str, Any]:
    """Run the program and collect what it computed; times are left out. A value of any name can be compared by ==."""
    weights = data.with_suffix(".safetensors")
    words = tuple(word.format(data=data, weights=weights) for word in words)
    given = ("--data_path", str(data)) if "--data_path" not in words else ()
    code, out, err = call(*words, *given, "--output_dir", folder)
    assert code == 0, err
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    epochs = [row for row in log if row["kind"] == "epoch"]
    evaluations = [{k: v for k, v in row.items() if k != "time"} for row in log if row["kind"] == "evaluation"]
    learned = [load_checkpoint(path)["model"] for path in sorted(folder.glob("checkpoint/task*.pth"))]
    return {
        "warnings": err.splitlines(),
        "steps": re.findall(r"^task (\S+) epoch (\S+) step (\S+)", out, re.MULTILINE),
        "first loss": [row.get("loss") for row in epochs if row["task"] == 1],
        "later loss": [row.get("loss") for row in epochs if row["task"] > 1],
        "lr": [row.get("lr") for row in epochs],
        "evaluation": [{k: v for k, v in row.items() if k != "acc@1_per_image"} for row in evaluations],
        "per image": [row.get("acc@1_per_image") for row in evaluations],
        "shapes": [{name: tuple(tensor.shape) for name, tensor in state.items()} for state in learned],
        "learned": [{name: tensor.numpy().tobytes() for name, tensor in state.items()} for state in learned],
        "backbone": json.loads((folder / "config.json").read_text())["model"]["backbone_sha256"],
    }


def measure_rates(words: tuple[str, ...], folder: Path, data: Path) -> dict[str, Any]:
    """The learning rate of every epoch of a task whose loss never falls."""
    options = parse(words).options
    recipe = main.build_recipe(options)
    optimizer = recipe.make_optimizer([("weight", torch.nn.Parameter(torch.zeros(1, 1)))])
    schedule = recipe.make_schedule(optimizer)
    rates = []
    for epoch in range(options["epochs"]):
        rates.append(optimizer.param_groups[0]["lr"])
        if schedule is not None:
            schedule.step(epoch + 1, metric=1.0)
    return {"rates": rates}


def call(*words: object) -> tuple[int, str, str]:
    """Run the program in this process: exit code, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main.main([str(word) for word in words])
    return code, out.getvalue(), err.getvalue()


class Lab:
    """Measures command lines, each one once."""

    def __init__(self, folder: Path):
        self.folder, self.data = folder, write_npz(folder / "data.npz", train_per_class=4, test_per_class=2)
        write_npz(folder / "other.npz", train_per_class=5, test_per_class=2)
        vit = timm.create_model("glyph_vit_tiny")
        save_file({name: torch.full_like(t, 0.01) + t for name, t in vit.state_dict().items()},
                  folder / "data.safetensors")
        self.known: dict[tuple, dict[str, Any]] = {}

    def measure(self, how: Callable, words: tuple[str, ...]) -> dict[str, Any]:
        if (how, words) not in self.known:
            self.known[how, words] = self.measure_anew(how, words)
        return self.known[how, words]

    def measure_anew(self, how: Callable, words: tuple[str, ...]) -> dict[str, Any]:
        folder = self.folder / f"run{len(list(self.folder.glob('run*')))}"
        folder.mkdir()
        return how(words, folder, self.data)


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
    return Probe(values, ("rates",), base=("--sched", sched, *base.split()), how=measure_rates)


PROBES: dict[str, Probe] = {
    # training
    "batch_size": Probe(("2", "8"), ("steps", "first loss", "lr"), ("backbone",)),
    "epochs": Probe(("2",), ("steps", "first loss", "later loss"), ("shapes", "backbone")),
    "seed": Probe(("1", "2"), ("first loss", "learned", "backbone"), ("steps", "lr")),
    "print_freq": Probe(("1",), ("steps",), ("first loss", "evaluation", "learned")),
    # model
    "model": Probe(("test_vit",), ("backbone", "shapes", "first loss"), ("steps", "lr")),
    "input_size": Probe(("16",), ("first loss", "evaluation"), ("shapes", "lr")),
    "init_checkpoint": Probe(("{weights}",), ("backbone", "first loss"), ("shapes", "lr")),
    "input_norm": Probe(("imagenet", "model"), ("first loss", "evaluation"), ("backbone",),
                        (*BASE, "--model", "test_vit")),
    "drop": Probe(("0.1", "0.5"), ("first loss", "evaluation"), ("backbone", "lr")),
    "drop_path": Probe(("0.2", "0.5"), ("first loss", "evaluation"), ("backbone", "lr")),
    "freeze": Probe(("", "blocks", "blocks patch_embed prompt"), ("shapes", "learned", "later loss"), ("lr",)),
    "head": Probe(("ncm",), ("shapes", "first loss", "evaluation"), ("backbone",), (*BASE, *NO_PROMPTS)),
    "head_type": Probe(("token", "gap", "token+prompt"), ("first loss", "evaluation"), ("shapes", "lr")),
    "head_init": Probe(("zero",), ("first loss", "learned"), ("shapes",)),
    # optimizer
    "opt": Probe(("sgd", "adamw", "rmsprop"), ("later loss", "learned"), ("lr",), (*BASE, "--weight_decay", "0.1")),
    "opt_eps": Probe(("0.1",), ("later loss", "learned"), ("lr",)),
    "opt_betas": Probe(("0.5 0.999", "0.9 0.5"), ("later loss", "learned"), ("lr",)),
    "momentum": Probe(("0", "0.5"), ("later loss", "learned"), ("lr",), (*BASE, *SGD)),
    "weight_decay": Probe(("0.5",), ("later loss", "learned"), ("lr",)),
    "clip_grad": Probe(("0.01", "none"), ("later loss", "learned"), ("lr",), (*BASE, *SGD)),
    "reinit_optimizer": Probe(("false",), ("later loss", "learned"), ("first loss", "lr")),
    # learning rate
    "lr": Probe(("0.01", "0.1"), ("lr", "later loss", "learned"), ("steps",)),
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
    "data_path": Probe(("{data}/../other.npz",), ("first loss", "evaluation"), ("shapes", "backbone")),
    "shuffle": Probe(("true",), ("first loss", "later loss", "evaluation"), ("steps", "backbone")),
    "subsample": Probe(("1", "3"), ("steps", "first loss"), ("backbone", "lr")),
    "subsample_test": Probe(("1",), ("evaluation",), ("first loss", "later loss", "learned")),
    "scale": Probe(("0.5 1", "0.05 0.3"), ("first loss", "learned"), ("steps",)),
    "ratio": Probe(("1 1", "0.25 4"), ("first loss", "learned"), ("steps",)),
    "hflip": Probe(("0", "1"), ("first loss", "learned"), ("steps",)),
    # continual learning
    "num_tasks": Probe(("1", "4"), ("steps", "first loss", "evaluation"), ("backbone",)),
    "train_mask": Probe(("false",), ("first loss", "later loss", "learned"), ("steps", "lr")),
    "task_inc": Probe(("true",), ("evaluation",), ("first loss", "later loss", "learned")),
    # prompts
    "prompt_method": Probe(("none",), ("shapes", "first loss", "evaluation"), ("lr",), (*BASE, "--head_type", "token")),
    "prompt_pool": Probe(("false",), ("shapes", "first loss", "evaluation"), ("lr",)),
    "size": Probe(("7", "12"), ("shapes", "first loss"), ("lr",)),
    "length": Probe(("1", "3"), ("shapes", "first loss"), ("lr",)),
    "top_k": Probe(("1", "3"), ("first loss", "evaluation"), ("shapes", "lr")),
    "initializer": Probe(("flax_uniform", "zero", "normal"), ("first loss", "evaluation"), ("shapes", "lr")),
    "prompt_key": Probe(("false",), ("shapes", "first loss"), ("lr",)),
    "prompt_key_init": Probe(("flax_uniform", "zero", "normal"), ("first loss", "learned"), ("shapes", "lr")),
    "use_prompt_mask": Probe(("true",), ("first loss", "later loss"), ("shapes",)),
    "shared_prompt_pool": Probe(("true",), ("later loss", "learned"), ("first loss",), (*BASE, "--use_prompt_mask")),
    "shared_prompt_key": Probe(("true",), ("later loss", "learned"), ("first loss",), (*BASE, "--use_prompt_mask")),
    "batchwise_prompt": Probe(("false",), ("first loss", "evaluation"), ("shapes", "lr"), (*BASE, *DIVERSE)),
    "embedding_key": Probe(("mean", "max", "mean_max"), ("first loss", "evaluation"), ("shapes", "lr")),
    "prompt_pos_embed": Probe(("none",), ("first loss", "evaluation"), ("shapes", "lr")),
    "pull_constraint": Probe(("false",), ("first loss", "learned"), ("shapes", "lr")),
    "pull_constraint_coeff": Probe(("0.5", "0"), ("first loss", "learned"), ("shapes", "lr")),
    "eval_per_image": Probe(("final", "always"), ("per image",), ("first loss", "evaluation", "learned")),
}
