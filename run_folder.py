"""The folder of a run: whether it holds one, who may write there, and what to go on from. Names as in `outputs`."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import saved_files
from configs import experiment_names
from errors import InputError
from kinds import like
from paths import outside_path
from utils import load_checkpoint, write_atomically

RUN_FILES = ("config.json", "scenario.json", "manifest.json.gz", "log.jsonl", "accuracy_matrix.csv", "summary.json",
             "confusion.npz", "eval_summary.json", "eval_accuracy_matrix.csv", "eval_confusion.npz", "eval_log.jsonl",
             "checkpoint", "tensorboard", "plots")
UNITS = ("task", "session", "episode")
DEFAULT_FOLDER = "./output"
EVALUATION_FILES = ("eval_summary.json", "eval_accuracy_matrix.csv", "eval_confusion.npz", "eval_log.jsonl")
RUN_PATTERNS = ("scenario.json", "manifest.json.gz", "log.jsonl", "accuracy_matrix.csv", "summary.json",
                "confusion.npz", *EVALUATION_FILES, *(f"checkpoint/{unit}*.pth" for unit in UNITS),
                "checkpoint/last.pth", "checkpoint/previous.pth", "checkpoint/statistics*.pth", "checkpoint/.*.tmp",
                ".*.tmp", "tensorboard/events.out.tfevents.*", "plots/*.png", "speed.json")


def read_config(output_dir: str) -> dict[str, Any]:
    """The config.json of the run in `output_dir`. Raises InputError where there is none, or a damaged one."""
    path = Path(output_dir) / "config.json"
    try:
        return saved_files.read_json(path, saved_files.CONFIG)
    except FileNotFoundError:
        if holds_run(output_dir):
            raise InputError(f"--output_dir {output_dir} holds files of a run but no {path}: put it back, remove them "
                             "by hand, or name another folder.") from None
        raise InputError(f"--output_dir {output_dir} holds no run: there is no {path}.") from None


def holds_run(output_dir: str) -> bool:
    return any((Path(output_dir) / name).exists() for name in RUN_FILES)


def find_run(experiment: str, named: bool, evaluates: bool) -> tuple[str, str | None]:
    """The folder that --eval or --resume means without --output_dir, and a sentence where others hold runs, too.

    That is ./output, where a run may have been written by that name, or ./output/EXPERIMENT, where runs are written
    otherwise. A command that names no experiment may evaluate any.

    Args:
        experiment: the one of the command line, or the default.
        named: whether the command line names it.

    Raises:
        InputError: several folders could be meant.
    """
    own = f"{DEFAULT_FOLDER}/{experiment}"
    in_subfolders = [f"{DEFAULT_FOLDER}/{name}" for name in experiment_names()] if evaluates and not named else [own]
    found = [folder for folder in in_subfolders if holds_run(folder)]
    in_output = holds_run(DEFAULT_FOLDER) and not (named and _experiment_of(DEFAULT_FOLDER) not in (experiment, None))
    if in_output and not (named and found):
        others = f"; give --output_dir for that in {' or '.join(found)}" if found else ""
        return DEFAULT_FOLDER, f"this is the run in {DEFAULT_FOLDER}{others}." if found else None
    folders = [DEFAULT_FOLDER] * in_output + found
    if len(folders) > 1:
        raise InputError(f"there are runs in {' and '.join(folders)}: give the --output_dir of the one you mean.")
    return (found[0] if found else own), None


def _experiment_of(output_dir: str) -> str | None:
    """The experiment of a run; None where its config.json does not tell."""
    try:
        return read_config(output_dir)["experiment"]
    except InputError:
        return None


def check_writable(output_dir: str, patterns: Iterable[str] = RUN_PATTERNS) -> None:
    """Raise InputError unless files can be made in `output_dir`, which need not exist yet. Makes nothing.

    Args:
        patterns: the files of a run that are written: those that are there must be ours to write, and their folders.
    """
    path = outside_path("--output_dir", output_dir).absolute()
    nearest = next(p for p in (path, *path.parents) if p.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"--output_dir {output_dir}: no files can be made in {nearest}; name another folder.")
    for pattern in patterns:
        inside = path / Path(pattern).parent
        if inside.is_dir() and not os.access(inside, os.W_OK | os.X_OK):
            raise InputError(f"--output_dir {output_dir}: no files can be made in {inside}, which may belong to "
                             "another user; name another folder.")
        for file in path.glob(pattern):
            if not os.access(file, os.W_OK):
                raise InputError(f"--output_dir {output_dir}: {file} cannot be written, and may belong to another "
                                 "user; name another folder.")


def remove_run(output_dir: str) -> None:
    """Remove the files that a run wrote, and nothing else that lies there.

    Raises InputError where files have the names of a run's but there is no run's config.json beside them.
    """
    folder = Path(output_dir)
    if not holds_run(output_dir):
        return
    read_config(output_dir)
    for pattern in RUN_PATTERNS:
        for path in folder.glob(pattern):
            path.unlink()
    for name in RUN_FILES:
        path = folder / name
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()
    (folder / "config.json").unlink()  # last, so that a removal cut short can be finished


def check_scenario(output_dir: str, record: dict[str, Any]) -> None:
    """Raise InputError where the run in `output_dir` had another split or class order than is found now."""
    path = Path(output_dir) / "scenario.json"
    try:
        before = saved_files.read_json(path, saved_files.SCENARIO)
    except FileNotFoundError:
        return
    differing = [name for name in before if before[name] != record.get(name)]
    if differing:
        raise InputError(f"the data are not those of the run: its {' and '.join(differing)} in {path} differ from what "
                         "--data_path and --class_order give now; put the files back as they were. If they are, this "
                         "version reads them in another way (CHANGELOG.md): go on with the version of the run's "
                         "config.json.")


def other_data(output_dir: str, config: dict[str, Any]) -> str | None:
    """A warning where the images are not those of the run in `output_dir`. Raises InputError for other classes."""
    before = read_config(output_dir)
    names = before.get("class_names", config["class_names"])
    if names != config["class_names"]:
        theirs, ours = _first(names, config["class_names"]), _first(config["class_names"], names)
        raise InputError(f"the run in {output_dir} has the classes {theirs}, and the data {ours} in their place; give "
                         "the --data_path of the same classes.")
    if before.get("data_sha256", config["data_sha256"]) != config["data_sha256"]:
        return "the images or their order are not those of the run (their checksum differs): the numbers are of these."
    return None


def _first(names: list[str], others: list[str]) -> str:
    differing = [name for number, name in enumerate(names) if number >= len(others) or name != others[number]]
    return ", ".join(differing[:3] + ["…"] * (len(differing) > 3)) or "nothing more"


def take_as_result(folder: Path) -> None:
    """An imported run was never measured here: its first evaluation is what it has in the place of a run's results."""
    if "imported_from" not in read_config(str(folder)) or (folder / "summary.json").exists():
        return
    for name in reversed(EVALUATION_FILES):  # the summary last: with it a run is complete
        if (folder / name).exists():
            write_atomically(folder / name.removeprefix("eval_"), (folder / name).read_bytes())


def checkpoint_paths(folder: Path) -> dict[int, Path]:
    """Number of a task (session, episode), from 1 -> the file that holds the state after it."""
    found = {}
    for path in (folder / "checkpoint").glob("*.pth"):
        number = path.stem.lstrip(ascii_lowercase)
        if path.stem.removesuffix(number) in UNITS and number.isdecimal():
            found[int(number)] = path
    return found


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run, and what they must be to belong to it.

    Args:
        folder: the run's folder.
        names: what the checkpoint of each task is called that has one.
        config: of the run as it would go on: its model, images and number of processes.
        learned: the model's `learned_state`, for names, shapes and types of what a checkpoint holds.
    """

    folder: Path
    names: dict[int, str]
    config: dict[str, Any]
    learned: dict[str, Any]

    def path(self, name: str) -> Path:
        return self.folder / "checkpoint" / f"{name}.pth"

    def of_task(self, task: int) -> dict[str, Any]:
        """The content of task01.pth …. Raises InputError where it is missing, damaged, or of another task or model."""
        path = self.path(self.names[task])
        content = load_checkpoint(path)
        of_a_run = "run" in content
        if not of_a_run:
            saved_files.check(content, saved_files.TASK, path)
        if of_a_run or content["task"] != task:
            raise InputError(f"{path} is not the checkpoint of {self.names[task]}; put the true one back.")
        self._check_model(content, path)
        return content

    def of_all_tasks(self) -> Iterator[dict[str, Any]]:
        """Those of all tasks, one after another. Raises InputError naming all files that are missing."""
        missing = [f"{name}.pth" for name in self.names.values() if not self.path(name).exists()]
        if missing:
            raise InputError(f"--eval: {self.folder / 'checkpoint'} lacks {', '.join(missing)}; finish the run with "
                             "--resume if it was stopped, or put the files back.")
        for task in self.names:
            yield self.of_task(task)

    def unusable(self, done: int) -> dict[int, tuple[str, str]]:
        """Of the first `done` tasks, those whose checkpoint is missing or damaged: task -> name, what is wrong."""
        found = {}
        for task, name in self.names.items():
            if task < done:
                try:
                    self.of_task(task)
                except InputError as error:
                    found[task] = name, str(error)
        return found

    def last(self, run: saved_files.Run, training: dict[str, Any]) -> tuple[dict[str, Any] | None, str | None]:
        """The content of last.pth, or None where a run has saved nothing yet; and a warning, or None.

        Where last.pth cannot be read, it is the content of previous.pth, the one saved before: the run goes on from
        there, and computes the same.

        Args:
            run: what its state must be.
            training: examples of the states of optimizer and schedule, as `saved_files.training_state` takes them.
        """
        path, previous = self.path("last"), self.path("previous")
        if not path.exists() and not previous.exists():
            others = sorted(p.name for unit in UNITS for p in path.parent.glob(f"{unit}*.pth"))
            if others:
                raise InputError(f"--resume: {path} is missing beside {', '.join(others)}; put it back, or begin anew "
                                 "with --overwrite.")
            return None, None
        warning = None
        try:
            content = load_checkpoint(path)
        except InputError as error:
            if not previous.exists():
                raise
            content = self._previous(error)
            warning = f"{str(error).split(':')[0]}: going on from {previous}, which was saved before it."
        read = previous if warning else path
        if "run" not in content:
            raise InputError(f"--resume: {read} is the checkpoint of a task, not of a run; put the true last.pth back.")
        saved_files.check(content, saved_files.last(run), read)
        self._check_model(content, read)
        theirs, ours = content["made_by"]["world_size"], self.config["world_size"]
        if theirs != ours:
            raise InputError(f"--resume: the run had {theirs} process(es) and would go on with {ours}, which changes "
                             f"its batches; start {theirs}.")
        if content["made_by"]["data_sha256"] != self.config["data_sha256"]:
            raise InputError("--resume: the images or their order are not those that the run began with (their "
                             "checksum differs); give the same --data_path, or begin anew in another --output_dir.")
        saved_files.check({name: content[name] for name in training}, saved_files.training_state(training), read)
        if warning:  # else the next save would keep the damaged file in the place of the good one
            write_atomically(path, previous.read_bytes())
        return content, warning

    def statistics(self, last: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
        """What the head had gathered when `last` was saved: in a file of its own, as it may be large. Often nothing.

        Args:
            example: the head's statistics, for names, shapes and types.
        """
        if last.get("statistics") is None:
            return {}
        path = self.path(f"statistics{last['run']['task']:02d}")
        content = load_checkpoint(path).get("statistics")
        saved_files.check(content, like(example, finite=True), path, "statistics")
        return content

    def _previous(self, error: InputError) -> dict[str, Any]:
        try:
            return load_checkpoint(self.path("previous"))
        except InputError:
            raise InputError(f"--resume: {self.path('last')} and {self.path('previous')} are both damaged or missing: "
                             "put one back, or begin anew with --overwrite.") from error

    def _check_model(self, content: dict[str, Any], path: Path) -> None:
        theirs, ours = content["made_by"], self.config["model"]
        if theirs["backbone_sha256"] != ours["backbone_sha256"]:
            raise InputError(f"{path} is a checkpoint of another model: it was trained on {theirs['name']} with other "
                             f"backbone weights than these of {ours['name']}; give the same --init_checkpoint.")
        saved_files.check(content["model"], like(self.learned, finite=True), path, "model")
