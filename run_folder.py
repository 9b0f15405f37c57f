"""The folder of a run: whether it holds one, who may write there, and what to go on from. Names as in `outputs`."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from errors import InputError
from utils import load_checkpoint, write_atomically

RUN_FILES = ("config.json", "scenario.json", "log.jsonl", "accuracy_matrix.csv", "summary.json", "eval_summary.json",
             "eval_accuracy_matrix.csv", "checkpoint", "tensorboard", "plots")
UNITS = ("task", "session", "episode")
RUN_PATTERNS = ("scenario.json", "log.jsonl", "*accuracy_matrix.csv", "summary.json", "eval_summary.json",
                *(f"checkpoint/{unit}*.pth" for unit in UNITS), "checkpoint/last.pth", "checkpoint/previous.pth",
                "checkpoint/statistics*.pth",
                "checkpoint/.*.tmp", ".*.tmp", "tensorboard/events.out.tfevents.*", "plots/*.png", "speed.json")


def read_config(output_dir: str) -> dict[str, Any]:
    """The config.json of the run in `output_dir`. Raises InputError where there is none, or an unreadable one."""
    path = Path(output_dir) / "config.json"
    try:
        config = json.loads(path.read_text())
        return config if isinstance(config["options"], dict) else {}["options"]
    except FileNotFoundError:
        if holds_run(output_dir):
            raise InputError(f"--output_dir {output_dir} holds files of a run but no {path}: put it back, remove them "
                             "by hand, or name another folder.") from None
        raise InputError(f"--output_dir {output_dir} holds no run: there is no {path}.") from None
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged: it does not hold the options of a run.") from error


def holds_run(output_dir: str) -> bool:
    return any((Path(output_dir) / name).exists() for name in RUN_FILES)


def check_writable(output_dir: str) -> None:
    """Raise InputError unless files can be made in `output_dir`, which need not exist yet. Makes nothing."""
    path = Path(output_dir).absolute()
    nearest = next(p for p in (path, *path.parents) if p.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"--output_dir {output_dir}: no files can be made in {nearest}; name another folder.")


class OutputLock:
    """Keeps every other run out of `output_dir` until it is let go, or this process ends, however that happens.

    Raises:
        InputError: another run has it.
    """

    def __init__(self, output_dir: str, patience: float = 0.0):
        """Wait up to `patience` seconds: a job that was requeued may meet the last moments of its predecessor."""
        self.path = Path(output_dir) / ".lock"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--output_dir {output_dir}: it cannot be made ({error.strerror}); name another folder."
                             ) from error
        until = time.monotonic() + patience
        while not self._taken():
            if time.monotonic() >= until:
                raise InputError(f"--output_dir {output_dir} is in use by another run ({self._holder()}): wait until "
                                 "it ends, or name another folder.")
            time.sleep(0.2)

    def _taken(self) -> bool:
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(self._file).st_ino != os.stat(self.path).st_ino:  # its holder removed it meanwhile
                raise FileNotFoundError
        except (BlockingIOError, FileNotFoundError):
            os.close(self._file)
            return False
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            # A file system without locks: then there is none.
        os.ftruncate(self._file, 0)
        os.write(self._file, f"process {os.getpid()} on {socket.gethostname()}".encode())
        return True

    def _holder(self) -> str:
        try:
            return self.path.read_text() or "another process"
        except OSError:
            return "another process"

    def release(self) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self._file)


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
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text())
        differing = [name for name in before if before[name] != record.get(name)]
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise InputError(f"{path} is damaged: put it back, or remove it to go on without this check.") from error
    if differing:
        raise InputError(f"the data are not those of the run: its {' and '.join(differing)} in {path} differ from what "
                         "--data_path and --class_order give now; put the files back as they were.")


def other_data(output_dir: str, config: dict[str, Any]) -> str | None:
    """A warning where the images are not those of the run in `output_dir`. Raises InputError for other classes."""
    before = read_config(output_dir)
    names = before.get("class_names", config["class_names"])
    if names != config["class_names"]:
        theirs, ours = _first(names, config["class_names"]), _first(config["class_names"], names)
        raise InputError(f"the run in {output_dir} has the classes {theirs}, and the data {ours} in their place; give "
                         "the --data_path of the same classes.")
    if before.get("data_sha256", config["data_sha256"]) != config["data_sha256"]:
        return "the images are not those of the run (their checksum differs): the numbers are of these."
    return None


def _first(names: list[str], others: list[str]) -> str:
    differing = [name for number, name in enumerate(names) if number >= len(others) or name != others[number]]
    return ", ".join(differing[:3] + ["…"] * (len(differing) > 3)) or "nothing more"


def load_last_checkpoint(folder: Path, config: dict[str, Any]) -> tuple[dict[str, Any] | None, str | None]:
    """The content of last.pth, or None where a run has saved nothing yet; and a warning, or None.

    Where last.pth is damaged or gone, it is the content of previous.pth, the one saved before: the run goes on from
    there, and computes the same.
    """
    paths = [folder / "checkpoint" / name for name in ("last.pth", "previous.pth")]
    if not any(path.exists() for path in paths):
        others = sorted(p.name for unit in UNITS for p in paths[0].parent.glob(f"{unit}*.pth"))
        if others:
            raise InputError(f"--resume: {paths[0]} is missing beside {', '.join(others)}; put it back, or begin anew "
                             "with --overwrite.")
        return None, None
    warning = None
    try:
        content, path = load_checkpoint(paths[0]), paths[0]
    except InputError as error:
        if not paths[1].exists():
            raise
        try:
            content, path = load_checkpoint(paths[1]), paths[1]
        except InputError:
            raise InputError(f"--resume: {paths[0]} and {paths[1]} are both damaged or missing: put one back, or begin "
                             "anew with --overwrite.") from error
        warning = f"{str(error).split(':')[0]}: going on from {path}, which was saved before it."
    check_made_by(content, config, path)
    if "run" not in content:
        raise InputError(f"--resume: {path} is the checkpoint of a task, not of a run; put the true last.pth back.")
    theirs, ours = content["made_by"]["world_size"], config["world_size"]
    if theirs != ours:
        raise InputError(f"--resume: the run had {theirs} process(es) and would go on with {ours}, which changes its "
                         f"batches; start {theirs}.")
    if content["made_by"]["data_sha256"] != config["data_sha256"]:
        raise InputError("--resume: the images are not those that the run began with (their checksum differs); give "
                         "the same --data_path, or begin anew in another --output_dir.")
    if warning:  # else the next save would keep the damaged file in the place of the good one
        write_atomically(paths[0], paths[1].read_bytes())
    return content, warning


def load_statistics(folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    """What the head had gathered when last.pth was saved: a file of its own, as it may be large. Often nothing."""
    name = content.get("statistics")
    return load_checkpoint(folder / "checkpoint" / f"{name}.pth")["statistics"] if name else {}


def load_task_checkpoints(folder: Path, names: dict[int, str], config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The contents of task01.pth …, one after another. Raises InputError naming all files that are missing.

    Args:
        names: what the checkpoint of each task is called that has one.
    """
    paths = {task: folder / "checkpoint" / f"{name}.pth" for task, name in names.items()}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise InputError(f"--eval: {folder / 'checkpoint'} lacks {', '.join(missing)}; finish the run with --resume "
                         "if it was stopped, or put the files back.")
    for task, path in paths.items():
        content = load_checkpoint(path)
        check_made_by(content, config, path)
        if content.get("task") != task or "run" in content:
            raise InputError(f"--eval: {path} is not the checkpoint of {names[task]}; put the true one back.")
        yield content


def take_as_result(folder: Path) -> None:
    """An imported run was never measured here: its first evaluation is what it has in the place of a run's results."""
    if "imported_from" not in read_config(str(folder)) or (folder / "summary.json").exists():
        return
    # The summary last: with it a run is complete.
    for path in sorted(folder.glob("eval_*"), key=lambda path: path.name == "eval_summary.json"):
        write_atomically(folder / path.name.removeprefix("eval_"), path.read_bytes())


def checkpoints(folder: Path) -> dict[int, Path]:
    """Number of a task (session, episode), from 1 -> the file that holds the state after it."""
    found = {}
    for path in (folder / "checkpoint").glob("*.pth"):
        number = path.stem.lstrip(ascii_lowercase)
        if path.stem.removesuffix(number) in UNITS and number.isdecimal():
            found[int(number)] = path
    return found


def check_made_by(content: dict[str, Any], config: dict[str, Any], path: Path) -> None:
    theirs, ours = content["made_by"], config["model"]
    if theirs["backbone_sha256"] != ours["backbone_sha256"]:
        raise InputError(f"{path} is a checkpoint of another model: it was trained on {theirs['name']} with other "
                         f"backbone weights than these of {ours['name']}; give the same --init_checkpoint.")
