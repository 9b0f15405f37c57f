"""What each file of a run holds: described once, and checked in one place when the file is read.

A file that is not as described gives one sentence with its name and the field, whoever reads it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import paths
from configs import experiment_names
from configs.base import OPTIONS
from configs.command import accepts
from errors import InputError
from kinds import (
    Anything,
    Array,
    Exactly,
    Fields,
    Flag,
    Items,
    Kind,
    ListOf,
    MapOf,
    Mismatch,
    Number,
    OrNone,
    Table,
    Text,
    Whole,
    like,
)
from metrics import AccuracyMatrix
from utils import load_checkpoint

MAX_JSON_BYTES = 256 * 2**20


@dataclass(frozen=True)
class SavedOptions:
    """What `configs.command.parse` could have given, by its names."""

    def check(self, value: Any, where: str) -> None:
        MapOf(Anything()).check(value, where)
        for name, given in value.items():
            if name not in OPTIONS:
                raise Mismatch(where, f"options of this program: there is no option {name!r}", given)
            for part in given if isinstance(given, list) else [given]:
                if isinstance(part, str):
                    Text().check(part, f"{where}.{name}")
            if not accepts(OPTIONS[name], given):
                raise Mismatch(f"{where}.{name}", f"a value that --{name} accepts", given)


@dataclass(frozen=True)
class ExperimentName:
    def check(self, value: Any, where: str) -> None:
        Text().check(value, where)
        if value not in experiment_names():
            raise Mismatch(where, f"an experiment (there is no experiment {value[:40]!r})", value)


@dataclass(frozen=True)
class Matrix:
    """The state of an `AccuracyMatrix`."""

    columns: int
    num_tests: int | None
    """As `AccuracyMatrix.num_tests`."""

    def check(self, value: Any, where: str) -> None:
        rows = self.columns if self.num_tests is None else self.num_tests

        def table(kind: Kind) -> Kind:
            return ListOf(ListOf(kind, self.columns), rows)

        Fields({"one_test_set": Exactly(self.num_tests is not None), "acc1": table(Number(0, 100)),
                "acc5": table(Number(0, 100)), "loss": table(Number()), "recorded": table(Flag())},
               closed=True).check(value, where)
        try:
            AccuracyMatrix.from_state(value)
        except ValueError as error:
            raise Mismatch(where, f"of a run ({error})", value) from error


# ---- what the files hold ----
CONFIG = Fields({"experiment": ExperimentName(), "options": SavedOptions()}, optional={
    "protocol": Text(), "class_names": ListOf(Text()), "data_sha256": Text(), "world_size": Whole(1), "device": Text(),
    "precision": Text(), "command": ListOf(Text()), "commit": OrNone(Text()), "versions": MapOf(Text()),
    "model": Fields({}, optional={"name": Text(), "parameters": Whole(), "trainable_parameters": Whole(),
                                  "backbone_sha256": Text()}),
    "hardware": Fields({}, optional={"device": Text(), "threads": Whole(1)}),
    "tasks": Fields({"unit": Text(), "count": Whole(1), "known_in_training": Flag(),
                     "first_with_class": ListOf(OrNone(Whole(1)))}),
    "turn_photos": Flag(), "imported_from": Text()})

SCENARIO = Fields({}, optional={
    "splits": MapOf(Fields({"seed": Whole(), "train": ListOf(Text()), "test": ListOf(Text())})),
    "class_order": ListOf(Text())})

_MADE_BY = Fields({"name": Text(), "backbone_sha256": Text(), "world_size": Whole(1), "data_sha256": Text()})

# Tensors are compared with those of the model once it is known that the file is of this model.
TASK = Fields({"model": MapOf(Array()), "task": Whole(), "made_by": _MADE_BY})


@dataclass(frozen=True)
class Run:
    """The state of an `evaluation.RunState`: what a run through `tasks` tasks of `epochs` epochs has found so far."""

    evaluated_after: Sequence[int]
    tasks: int
    epochs: int
    num_tests: int | None
    top_k: int
    """Prompts that an image is given of a pool; 0 without one."""
    follows: int | None
    """The width of features whose drift is followed; None where it is not."""

    def check(self, value: Any, where: str) -> None:
        matrix = Matrix(len(self.evaluated_after), self.num_tests)
        Fields({
            "accuracy": matrix, "per_image": matrix, "task": Whole(0, self.tasks), "epoch": Whole(0, self.epochs),
            "step": Whole(), "sums": ListOf(ListOf(Number(), 3)), "prompts_RM": OrNone(Table(Whole())),
            "train_seconds": Number(low=0), "eval_seconds": Number(low=0), "images_trained": Whole(),
        }, {"mean_before_D": Anything()}, closed=True).check(value, where)
        begun = self.follows is not None and value["task"] > 0 and value["epoch"] + value["step"] > 0
        before = Array(torch.zeros(self.follows), finite=True) if begun else Exactly(None)
        before.check(value.get("mean_before_D"), f"{where}.mean_before_D")
        done = sum(task < value["task"] for task in self.evaluated_after)
        recorded = AccuracyMatrix.from_state(value["accuracy"])
        if not all(recorded.column_complete(column) for column in range(done)):
            raise Mismatch(f"{where}.accuracy", f"recorded after the {value['task']} tasks that are done",
                           value["accuracy"])
        for row in value["prompts_RM"] or []:
            if max(row) * self.top_k > sum(row) or not self.top_k:
                raise Mismatch(f"{where}.prompts_RM", f"counts of {self.top_k} prompts for each image", row)


def last(run: Run) -> Fields:
    """last.pth and previous.pth."""
    return Fields({"model": MapOf(Array()), "run": run, "log_bytes": Whole(), "made_by": _MADE_BY,
                   "optimizer": OrNone(MapOf(Anything())), "schedule": ListOf(MapOf(Anything()))},
                  optional={"statistics": OrNone(Text())})


def training_state(example: dict[str, Any]) -> Fields:
    """The states of optimizer and schedule; `example`: those of the same options after a step.

    A parameter that never had a gradient has no state, and a schedule that never took a step no last metric. Other
    versions of torch and timm may save more, or less.
    """
    schedule = Items(tuple(Fields({}, {name: OrNone(kind) for name, kind in like(part).required.items()})
                           for part in example["schedule"]))
    if example["optimizer"] is None:
        return Fields({"optimizer": Exactly(None), "schedule": schedule})
    states = {index: Fields(like(state).required) for index, state in example["optimizer"]["state"].items()}
    groups = Items(tuple(Fields({"params": Exactly(group["params"])}, like(group).required)
                         for group in example["optimizer"]["param_groups"]))
    return Fields({"optimizer": Fields({"state": Fields({}, states, closed=True), "param_groups": groups}),
                   "schedule": schedule})


# ---- reading ----
def read_json(path: Path, kind: Kind) -> Any:
    """The content of a JSON file, as `kind` describes it.

    Raises:
        FileNotFoundError: there is none.
        InputError: it is no file, or damaged; the text names file and field.
    """
    text = paths.read_text(path, str(path), MAX_JSON_BYTES)
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise InputError(f"{path} is damaged: it is nested too deeply; put it back as it was.") from None
    except ValueError as error:  # no JSON, or a number of thousands of digits
        raise InputError(f"{path} is damaged: it is no JSON ({str(error).splitlines()[0]}); put it back as it was."
                         ) from error
    check(content, kind, path)
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def read_checkpoint(path: Path, kind: Kind) -> dict[str, Any]:
    """The content of a checkpoint, as `kind` describes it. Raises InputError as `load_checkpoint` does, and `check`."""
    content = load_checkpoint(path)
    check(content, kind, path)
    return content


def check(content: Any, kind: Kind, path: Path, where: str = "") -> None:
    """Raise InputError, which names file and field, unless `content` of the file at `path` is as described."""
    try:
        kind.check(content, where)
    except Mismatch as mismatch:
        raise InputError(f"{path} is damaged: {mismatch}; put it back as it was.") from mismatch
