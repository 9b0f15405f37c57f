"""Runs, read from their folders or from records as `python -m results.record` makes them."""

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from errors import DamagedFileError, InputError
from metrics import AccuracyMatrix

T = TypeVar("T")
OWN_FOLDERS = {"checkpoint", "tensorboard", "plots"}
MARKS = ("config.json", "summary.json", "log.jsonl", "accuracy_matrix.csv")  # one of them makes a folder a run's


@dataclass
class Run:
    """One finished run, or one evaluation of it by --eval."""

    name: str
    summary: dict[str, Any]
    config: dict[str, Any]
    """How it was trained; of an evaluation this is not how it was measured, which `summary["config"]` tells."""
    accuracy: AccuracyMatrix
    """Acc@1 alone."""
    unit: str = "task"
    folder: Path | None = None
    """None for a record, which has no files but itself."""
    prefix: str = ""
    """`eval_` of an evaluation."""

    @property
    def seed(self) -> int:
        return self.config["options"]["seed"]

    @property
    def numbers(self) -> list[int]:
        """The tasks after which was evaluated, from 1."""
        return self.summary.get("evaluated_after") or list(range(1, self.accuracy.num_tasks + 1))

    @property
    def choice(self) -> str:
        """How prompts are chosen in the test: `batch vote over 16`, `nothing to choose` …"""
        return self.summary["protocol"].rpartition(", ")[0]

    @property
    def setting(self) -> str:
        """`class-incremental` and the like."""
        return self.summary["protocol"].rpartition(", ")[2]

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """The lines of log.jsonl; none where there is no such file. Raises DamagedFileError."""
        path = self._file("log.jsonl")
        if path is None:
            return []
        try:
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            if not all(isinstance(line, dict) and "kind" in line for line in lines):
                raise ValueError
            return lines
        except (ValueError, OSError) as error:
            raise DamagedFileError(f"{path} is damaged: a line of it is no object of a log.") from error

    @cached_property
    def confusion(self) -> dict[str, np.ndarray]:
        """The arrays of confusion.npz; empty where there is no such file. Raises DamagedFileError."""
        path = self._file("confusion.npz")
        if path is None:
            return {}
        try:
            with np.load(path, allow_pickle=False) as content:
                found = {name: content[name] for name in content.files}
            classes = len(self.config["class_names"])
            if any(found[name].shape != (classes, classes) for name in found.keys() - {"task_of_class"}):
                raise ValueError
            if "task_of_class" in found and found["task_of_class"].shape != (classes,):
                raise ValueError
            return found if found.keys() & {"counts", "counts_per_image"} else {}
        except Exception as error:  # a damaged archive raises whatever zipfile, zlib and numpy raise
            raise DamagedFileError(f"{path} is damaged: it does not hold counts of this run's classes.") from error

    @cached_property
    def checkpoint_bytes(self) -> int | None:
        """The size of the last task's checkpoint; None where it is not there."""
        if self.folder is None:
            return None
        paths = sorted(self.folder.glob(f"checkpoint/{self.unit}*.pth"))
        return paths[-1].stat().st_size if paths else None

    @cached_property
    def kept(self) -> tuple[int, float]:
        """How much there is of it beside its numbers, and when it ended by its log, in seconds since 1970: of two
        recordings the higher one says more."""
        log, confusion = (_if_sound(lambda: self.log), _if_sound(lambda: self.confusion))
        times = [row.get("time") for row in log or []]
        ended = max((time for time in times if isinstance(time, int | float)), default=0.0)
        return sum(map(bool, (self.checkpoint_bytes, log, confusion))), ended

    def _file(self, name: str) -> Path | None:
        path = self.folder / f"{self.prefix}{name}" if self.folder else None
        return path if path is not None and path.is_file() else None


def _if_sound(read: Callable[[], T]) -> T | None:
    """What `read` returns; None of a damaged file, which is named beside the pictures that it would have made."""
    try:
        return read()
    except DamagedFileError:
        return None


def find_and_read(places: Sequence[str]) -> tuple[list[Run], list[str]]:
    """All runs in these folders and files; and sentences on those that are left out.

    Raises:
        InputError: a place that is not there.
    """
    runs, left_out = [], []
    for place in places:
        if not Path(place).exists():
            raise InputError(f"{place} is not there: name folders of runs, or records of them.")
    for path in find(places):
        try:
            runs += read_record(path) if path.is_file() else read_folder(path)
        except DamagedFileError as error:
            left_out.append(str(error))
    copies: dict[tuple, list[Run]] = {}
    for run in runs:
        # Seconds are measured to the last digit: two runs that agree in them are copies of one.
        mark = (run.prefix, run.seed, run.summary.get("train_seconds"), run.summary.get("eval_seconds"),
                run.summary["acc@1"])
        copies.setdefault(mark, []).append(run)
    found = []
    for several in copies.values():
        taken, *others = by_preference(several)
        found.append(taken)
        left_out += [f"{other.name} is a copy of {taken.name}, which is taken: {why_taken(taken, other)}."
                     for other in others]
    return found, left_out


def by_preference(runs: Sequence[Run]) -> list[Run]:
    """Of runs of which one is to count: the one with most of its files first, then the newest, then by name."""
    if len(runs) == 1:  # as nearly always: no file has to be read
        return list(runs)
    return sorted(sorted(runs, key=lambda run: run.name), key=lambda run: run.kept, reverse=True)


def why_taken(taken: Run, other: Run) -> str:
    (parts, ended), (other_parts, other_ended) = taken.kept, other.kept
    if parts != other_parts:
        return "it has more of its files"
    return "it is newer" if ended != other_ended else "its name comes first"


def find(places: Sequence[str]) -> Iterator[Path]:
    """Folders of runs, and files that may be records, each once, in the order of their names."""
    seen = set()
    for place in places:
        for path in [Path(place)] if Path(place).is_file() else _below(place):
            real = os.path.realpath(path)
            if real not in seen:
                seen.add(real)
                yield path


def _below(place: str) -> Iterator[Path]:
    visited = set()
    for folder, folders, files in os.walk(place, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # a link that leads back
            folders.clear()
            continue
        visited.add(real)
        is_run = any(mark in files for mark in MARKS)
        folders[:] = sorted(name for name in folders
                            if not name.startswith(".") and not (is_run and name in OWN_FOLDERS))
        if is_run:
            yield Path(folder)
        else:
            yield from (Path(folder) / name for name in sorted(files) if name.endswith(".json"))


# ---- reading ----
def read_run(folder: Path) -> Run:
    """The run in a folder, without an evaluation of it. Raises DamagedFileError as `read_folder`."""
    if not (folder / "summary.json").exists():
        raise DamagedFileError(f"{folder} is unfinished: it has no summary.json{_how_far(folder)}.")
    summary = _json(folder / "summary.json")
    run = _checked(str(folder), summary, summary.get("config"), *_matrix(folder / "accuracy_matrix.csv"))
    run.folder = folder
    return run


def read_folder(folder: Path) -> list[Run]:
    """The run in a folder, and its evaluation by --eval where that measured something else.

    Raises:
        DamagedFileError: the run is unfinished, or a file of it does not hold what a run writes.
    """
    run = read_run(folder)
    if not (folder / "eval_summary.json").exists():
        return [run]
    again = _json(folder / "eval_summary.json")
    evaluation = _checked(f"{folder} --eval", again, run.config, *_matrix(folder / "eval_accuracy_matrix.csv"))
    evaluation.folder, evaluation.prefix = folder, "eval_"
    same = [(r.summary["protocol"], r.summary["config"].get("data_sha256"), r.summary["config"].get("precision"))
            for r in (run, evaluation)]
    return [run] if same[0] == same[1] else [run, evaluation]


def read_record(path: Path) -> list[Run]:
    """The run in a record; none in a JSON file of another kind. Raises DamagedFileError."""
    content = _json(path)
    if not {"config", "accuracy_matrix", "protocol"} <= content.keys():
        return []
    try:
        cells = [[float("nan") if cell is None else float(cell) for cell in row] for row in content["accuracy_matrix"]]
    except (TypeError, ValueError) as error:
        raise DamagedFileError(f"{path} is damaged: its accuracy_matrix holds something that is no number.") from error
    config = content["config"]
    unit = {"domain-incremental": "session", "task-agnostic": "episode"}.get(
        str(content["protocol"]).rpartition(", ")[2], "task")
    run = _checked(str(path), content, config, _accuracy(path, cells), unit)
    run.prefix = "eval_" if config["options"].get("eval") else ""
    return [run]


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise DamagedFileError(f"{path} is damaged: it is no JSON.") from error
    return content if isinstance(content, dict) else {}


def _matrix(path: Path) -> tuple[AccuracyMatrix, str]:
    try:
        header, *rows = csv.reader(io.StringIO(path.read_text()))
        cells = [[float(cell) if cell else float("nan") for cell in row[1:]] for row in rows]
        unit = header[1].split("_")[1]
    except (OSError, ValueError, IndexError, csv.Error) as error:
        raise DamagedFileError(f"{path} is missing or damaged: it is no accuracy matrix.") from error
    return _accuracy(path, cells), unit


def _accuracy(path: Path, cells: list[list[float]]) -> AccuracyMatrix:
    rows, columns = len(cells), len(cells[0]) if cells else 0
    known = [[not math.isnan(cell) for cell in row] for row in cells]
    triangle = rows == columns and not any(known[i][t] for i in range(rows) for t in range(i))
    try:
        accuracy = AccuracyMatrix(columns, None if triangle else rows)
        if {len(row) for row in cells} != {columns}:
            raise ValueError
        for t in range(columns):
            for i in range(accuracy.rows(t)):
                accuracy.record(i, t, cells[i][t], 0.0, 0.0)
    except ValueError as error:
        raise DamagedFileError(f"{path} is damaged: its accuracies are not those of a whole run.") from error
    return accuracy


def _checked(name: str, summary: dict[str, Any], config: Any, accuracy: AccuracyMatrix, unit: str) -> Run:
    """A run whose summary has what a report needs, and agrees with its matrix."""
    try:
        sound = (isinstance(config["options"]["seed"], int) and isinstance(config["experiment"], str)
                 and isinstance(config["model"]["backbone_sha256"], str) and isinstance(summary["protocol"], str)
                 and isinstance(summary["config"]["options"], dict)
                 and math.isclose(summary["acc@1"], accuracy.acc_at_1(accuracy.num_tasks - 1), abs_tol=1e-6)
                 and len(summary.get("evaluated_after") or range(accuracy.num_tasks)) == accuracy.num_tasks)
    except (KeyError, TypeError):
        sound = False
    if not sound:
        raise DamagedFileError(f"{name} is damaged: its summary lacks what a run writes, or is not of its accuracy "
                               "matrix.")
    config.setdefault("class_names", [])
    return Run(name, summary, config, accuracy, unit)


def _how_far(folder: Path) -> str:
    """How far an unfinished run came, as its log tells."""
    try:
        last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
        unit = next(name for name in ("task", "session", "episode") if name in last)
        return f", and its log ends in {unit} {last[unit]}"
    except (OSError, ValueError, IndexError, TypeError, StopIteration):
        return ""
