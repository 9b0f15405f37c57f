"""The runs of a table: what each would compute, where it lies, and how far it is."""

import difflib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs import load_experiment
from configs.base import OPTIONS
from configs.checks import check
from configs.command import default_options, parse
from errors import DamagedFileError, InputError
from reporting.runs import Run as FinishedRun
from reporting.runs import read_run
from reproducing.tables import Table
from resuming import free_to_change

NATURAL = "natural"
COMPARED = ("data_path", "init_checkpoint", "class_order")
"""Options that may name the same thing in another way: main.py compares what they name with what a run began with."""
COSTS = ("train_seconds", "eval_seconds", "trainable_parameters", "replay_bytes")
"""What a table tells of a run besides its accuracies."""


@dataclass(frozen=True)
class Run:
    """One method with one seed, and the folder that it is written to."""

    method: str
    folder: Path
    words: tuple[str, ...]
    """main.py's command line."""

    @property
    def log(self) -> Path:
        """What it prints, with that of its earlier starts."""
        return self.folder.with_name(self.folder.name + ".log")

    @property
    def command(self) -> str:
        return shlex.join(["python", "main.py", *self.words])

    def summary(self) -> dict[str, Any] | None:
        """What it came to; None where that is missing, damaged or not of its accuracy matrix."""
        try:
            return read_whole(self.folder).summary
        except DamagedFileError:
            return None

    def state(self) -> str:
        """`finished`, `begun` or `not begun`.

        A run is begun, too, where its summary is damaged or gone, or where its images, weights or order of classes are
        named in another way than they were: a resume writes the summary again, and looks whether they are the same.

        Raises:
            InputError: the folder holds a run of another command line, or is none.
        """
        for path, is_right in ((self.folder, Path.is_dir), (self.log, Path.is_file)):
            if path.exists() and not is_right(path):
                raise InputError(f"{path} is in the way: move it, or name another --output_dir.")
        summary = self.summary()
        config = summary["config"] if summary else _json(self.folder / "config.json")
        if not config:
            return "begun" if (self.folder / "config.json").exists() else "not begun"
        command = parse(self.words)
        options = command.options  # what came after the run was as it is by default
        saved = default_options(load_experiment(command.experiment)) | config.get("options", {})
        free = free_to_change(False, saved, options)
        changed = [name for name in OPTIONS if name not in free  # a resumed run saves what `auto` came to
                   and options[name] not in ("auto", saved.get(name))]
        if changed:
            raise InputError(f"{self.folder} holds a run with another --{changed[0]} than {self.method!r} has now: "
                             "remove the folder, or name another --output_dir.")
        return "finished" if summary and all(options[name] == saved.get(name) for name in COMPARED) else "begun"


def read_whole(folder: Path) -> FinishedRun:
    """The finished run in a folder, with all that a table tells of it. Raises DamagedFileError."""
    found = read_run(folder)
    for name in COSTS:
        if not isinstance(found.summary.get(name), int | float):
            raise DamagedFileError(f"{folder} is damaged: the {name} of its summary is no number.")
    return found


def _json(path: Path) -> dict[str, Any]:
    """What the file holds; nothing where it is missing or damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def planned(table: Table, folder: Path, *, methods: Sequence[str] = (), seeds: Sequence[int] = (),
            class_orders: Sequence[str] = (), more: Sequence[str] = ()) -> list[Run]:
    """The runs of a table, every command line checked; the first seed of all methods comes first.

    Args:
        methods: some of the table's; none: all of them.
        seeds: none: those of the table, of which slow methods have the first.
        class_orders: an order of the classes for each seed, or none.
        more: words for every run.

    Raises:
        InputError: a method that the table has not, or a command line that cannot be.
    """
    lines = _chosen(table.methods, methods)
    if len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds {' '.join(map(str, seeds))}: each seed is one run, so name it once.")
    if class_orders and len(class_orders) != len(seeds or table.seeds):
        raise InputError(f"--class_orders has {len(class_orders)} value(s) for the seeds "
                         f"{' '.join(map(str, seeds or table.seeds))}: give each seed an order of its own.")
    runs = []
    for number, seed in enumerate(seeds or table.seeds):
        order = class_orders[number] if class_orders else NATURAL
        order_words = [] if order == NATURAL else ["--class_order", order]
        for name, line in lines.items():
            if number and not (seeds or class_orders) and name in table.first_seed_only:
                continue
            place = folder / f"{name}_seed{seed}"
            words = (*line.split(), *more, *order_words, "--seed", str(seed), "--resume", "--output_dir", str(place))
            check(parse(words).options)
            runs.append(Run(name, place, words))
    return runs


def _chosen(lines: Mapping[str, str], methods: Sequence[str]) -> dict[str, str]:
    unknown = [name for name in methods if name not in lines]
    if unknown and "," in unknown[0]:
        raise InputError(f"--methods {unknown[0]}: names stand apart by blanks: "
                         f"{unknown[0].replace(',', ' ').strip()}.")
    if unknown:
        near = difflib.get_close_matches(unknown[0], lines, n=1)
        raise InputError(f"--methods {unknown[0]}: {f'did you mean {near[0]}? ' if near else ''}This table has "
                         f"{', '.join(lines)}.")
    return {name: line for name, line in lines.items() if not methods or name in methods}
