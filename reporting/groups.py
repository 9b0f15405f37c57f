"""Which runs may be averaged, which may be compared, and which stand apart.

A *group* is runs that differ in their seed only. A *table* holds groups that may be ranked: same weights, same data in
the same split and order, same setting, and the same say of a test image's neighbours in its prompts. A run with a batch
vote that was also evaluated with prompts chosen per image is in a table of either kind.
"""

import functools
import hashlib
import json
import shlex
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from configs import experiment_names, load_experiment
from configs.base import OPTIONS
from configs.command import default_options
from reporting.runs import Run, by_preference, why_taken

ALONE = "prompts chosen per image, or not at all"
FILES_OF_ONES_OWN = ("Split-Folder", "Split-NPZ")  # their names do not say which images they hold
# What says how a run was made or measured, and not what it computes; or what the conditions of a table tell.
NOT_OF_A_METHOD = {name for name, option in OPTIONS.items() if option.run_only} | {
    "seed", "device", "data_path", "init_checkpoint", "eval_per_image", "precision", "shuffle", "class_order",
    "task_inc", "num_tasks", "classes_per_task"}

METRICS = {  # name in summary.json -> (what a table calls it, whether more is better)
    "acc@1": ("Acc@1", True), "forgetting": ("forgetting", False), "backward": ("backward transfer", True),
    "learning_acc": ("just learned", True), "average_incremental_acc": ("average incremental", True),
    "acc@5": ("Acc@5", True), "loss": ("test loss", False),
}
COSTS = {"train_seconds": "training (s)", "eval_seconds": "evaluation (s)",
         "train_images_per_second": "training images/s", "trainable_parameters": "trained values",
         "checkpoint_bytes": "checkpoint (bytes)", "replay_images": "images kept", "replay_bytes": "bytes kept"}


@dataclass(frozen=True)
class Conditions:
    """What two runs must have in common for their numbers to be compared."""

    weights: str
    data: str
    setting: str
    choice: str

    @property
    def how(self) -> str:
        return f"{self.setting}, {self.choice}"

    @property
    def what(self) -> str:
        return f"{self.data}; weights {self.weights}"


@dataclass
class Member:
    """A run in one table: its numbers under one way of choosing prompts."""

    run: Run
    values: dict[str, float]


@dataclass
class Group:
    experiment: str
    changes: list[str]
    """The options in which it differs from its experiment."""
    members: list[Member] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    said_above: list[str] = field(default_factory=list)
    """Those of `changes` that its neighbours have too, so that they are told once, above its table."""

    @property
    def label(self) -> str:
        return " ".join([self.experiment, *(word for word in self.changes if word not in self.said_above)])

    @property
    def whole_label(self) -> str:
        return " ".join([self.experiment, *self.changes])

    @property
    def seeds(self) -> list[int]:
        return [member.run.seed for member in self.members]

    @property
    def runs(self) -> list[Run]:
        return [member.run for member in self.members]

    def statistic(self, name: str) -> tuple[float, float | None, int] | None:
        """Mean, sample standard deviation (None of one run) and number of runs that have this metric or cost."""
        found = [member.values[name] for member in self.members if member.values.get(name) is not None]
        if not found:
            return None
        return float(np.mean(found)), float(np.std(found, ddof=1)) if len(found) > 1 else None, len(found)


@dataclass
class Table:
    conditions: Conditions
    groups: list[Group]
    """The one with the highest Acc@1 first."""
    common: list[str] = field(default_factory=list)
    """Changes of the experiments' options that all of its groups have, and its section's do not."""
    number: int = 0
    """Its place in the report, from 1. `reporting.sections` gives this, `common` and `reason`."""
    reason: str = ""
    """Why these runs are not in an earlier table."""

    @property
    def metrics(self) -> list[str]:
        return [name for name in METRICS if any(group.statistic(name) for group in self.groups)]

    @property
    def costs(self) -> list[str]:
        return [name for name in COSTS if any((group.statistic(name) or (0,))[0] for group in self.groups)]


def make_tables(runs: Iterable[Run], over_orders: bool = False) -> list[Table]:
    """All runs in groups, all groups in tables.

    Args:
        over_orders: average over orders of the classes too (and over what the seed draws of a stream).
    """
    runs = list(runs)
    # Records of older versions do not name their classes, and those of the same images lend them the number.
    classes = {_images(run): len(run.config["class_names"]) for run in runs if run.config["class_names"]}
    grouped: dict[Conditions, dict[str, list[Member]]] = defaultdict(lambda: defaultdict(list))
    options: dict[str, dict[str, Any]] = {}
    for run in runs:
        key_options = method_options(run)
        key = json.dumps(key_options, sort_keys=True)
        options[key] = key_options
        for choice, values in measured(run):
            data = data_of(run, over_orders, classes.get(_images(run), 0) if _images(run) else None)
            grouped[Conditions(_weights(run), data, run.setting, choice)][key].append(Member(run, values))
    tables = []
    for found, groups in grouped.items():
        made = [_group(options[key], members) for key, members in groups.items()]
        made.sort(key=lambda group: (-group.statistic("acc@1")[0], group.whole_label))
        tables.append(Table(found, made))
    return tables


def measured(run: Run) -> Iterable[tuple[str, dict[str, float]]]:
    """How prompts were chosen, and the numbers that were measured so."""
    costs = {name: run.summary.get(name) for name in COSTS} | {"checkpoint_bytes": run.checkpoint_bytes}
    votes = "batch vote" in run.choice
    # "random prompts, batch vote over 16": the neighbours have the same say in either.
    choice = run.choice[run.choice.index("batch vote"):] if votes else ALONE
    yield choice, {name: _number(run.summary.get(name)) for name in METRICS} | costs
    if votes and _number(run.summary.get("acc@1_per_image")) is not None:
        yield ALONE, {"acc@1": run.summary["acc@1_per_image"],
                      "forgetting": _number(run.summary.get("forgetting_per_image"))} | costs


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else None


def _weights(run: Run) -> str:
    return f"{run.config['model'].get('name', 'unknown model')} ({run.config['model']['backbone_sha256'][:12]})"


def _images(run: Run) -> str | None:
    """The hash of which image is in which task; None where it was not recorded."""
    return run.summary["config"].get("data_sha256")


def data_of(run: Run, over_orders: bool, classes: int | None = None) -> str:
    """The images, their split into tasks and tests, and, without `over_orders`, the order of the classes, as words.

    Args:
        classes: how many there are, 0 where nobody knows; the run's own number when not given.
    """
    options = run.config["options"]
    classes = len(run.config["class_names"]) if classes is None else classes
    tests = len(run.accuracy.acc1_RT)
    words = [str(options.get("dataset")), *[f"{classes} classes"] * bool(classes),
             f"{tests} test set{'s' * (tests > 1)}"]
    images = _images(run)
    if not over_orders and images:
        if options.get("dataset") == "Split-Folder":  # the hash is of names of files, not of what they hold
            words.append(Path(options["data_path"]).name)
        return f"{', '.join(words)} ({images[:12]})"
    per_task = options.get("classes_per_task")
    if per_task and classes and per_task * tests != classes and tests > 1:
        words.append(f"{per_task} classes in all tasks but the last")
    words += [f"{name} {options[name]}" for name in ("subsample", "subsample_test") if options.get(name)]
    if options.get("schedule") == "gaussian":
        words += [f"{name} {value}" for name, value in sorted(options.items()) if name.startswith("gaussian_")]
    if options.get("dataset") in FILES_OF_ONES_OWN:
        words.append(Path(options["data_path"]).name)
    split = _split(run)
    if split:
        words.append(f"split {split}")
    if over_orders:
        return f"{', '.join(words)}, any order of classes"
    orders = [f"{name} {options[name]}" for name in ("shuffle", "class_order") if options.get(name)]
    if options.get("shuffle") or str(options.get("class_order")).startswith("seed"):
        orders.append(f"seed {run.seed}")
    return f"{', '.join(words + orders)} (images not recorded)"


def _split(run: Run) -> str:
    """Names the images that were drawn for the test, where they were; '' elsewhere."""
    path = run.folder / "scenario.json" if run.folder else None
    if path is None or not path.is_file():
        return ""
    try:
        split = json.loads(path.read_text()).get("splits")
    except (ValueError, AttributeError):
        return f"unknown, {path} is damaged"
    return hashlib.sha256(json.dumps(split).encode()).hexdigest()[:12] if split else ""


def method_options(run: Run) -> dict[str, Any]:
    """What runs of one group have in common: the options that decide what is computed, and what they came to."""
    experiment = run.config["experiment"]
    known = _defaults(experiment)
    options = {name: value for name, value in (known | run.config["options"]).items() if name not in NOT_OF_A_METHOD}
    return options | {"experiment": experiment, "world_size": run.config.get("world_size", 1),
                      "precision": run.summary["config"].get("precision", "fp32"), "evaluation": bool(run.prefix)}


@functools.cache
def _defaults(experiment: str) -> dict[str, Any]:
    """The options of an experiment as they are today; the program's own for one that is not known any more."""
    return default_options(load_experiment(experiment) if experiment in experiment_names() else None)


def changes_of(options: dict[str, Any]) -> list[str]:
    """The options in which an experiment was changed, as words of a command line; and what they came to."""
    known = _defaults(options["experiment"])
    words = [as_typed(name, value) for name, value in sorted(options.items())
             if name in known and name != "precision" and name != "world_size" and value != known[name]]
    words += [options["precision"]] * (options["precision"] != "fp32")
    words += [f"{options['world_size']} processes"] * (options["world_size"] != 1)
    return words + ["(--eval)"] * options["evaluation"]


def differing_options(run: Run) -> dict[str, Any]:
    """Every option of a run, as it was trained, that is not the program's default; folders and modes left out."""
    defaults = default_options()
    return {name: value for name, value in run.config["options"].items() if value != defaults.get(name)
            and not (name in OPTIONS and OPTIONS[name].run_only)}


def as_typed(name: str, value: Any) -> str:
    """An option as one would type it: `--align`, `--no-prompt_pool`, `--prompt_layers 0 3`, `--clip_grad none`."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    values = value if isinstance(value, list) else ["none" if value is None else value]
    return shlex.join([f"--{name}", *map(str, values)])


def _group(options: dict[str, Any], members: list[Member]) -> Group:
    """One member for each seed and order; what else is to be said goes into the notes."""
    group = Group(options["experiment"], changes_of(options))
    of_one_seed: dict[tuple, list[Run]] = defaultdict(list)
    for run in (member.run for member in members):
        of_one_seed[run.seed, str(_images(run))].append(run)
    for (seed, _), runs in sorted(of_one_seed.items()):
        taken, *others = by_preference(runs)
        group.members += [member for member in members if member.run is taken]
        group.notes += [f"{run.name} repeats seed {seed} of {taken.name}, which is taken: {why_taken(taken, run)}."
                        for run in others]
    for what, values in (("commits", [str(run.config.get("commit")) for run in group.runs]),
                         ("versions of libraries", [str(run.config.get("versions")) for run in group.runs]),
                         ("hardware", [str(run.config.get("hardware", {}).get("device")) for run in group.runs])):
        if len(set(values)) > 1:
            group.notes.append(f"runs of {len(set(values))} different {what} are averaged.")
    return group
