"""Altered files of a run: never a traceback, never a hang, and nothing outside the folder is touched.

Each seed is one alteration, and one command that meets it: `pytest -k "seed17"` tries it again.
"""

import os
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest
from alterations import alter_one_file
from lab import BASE, Interrupting, call

SEEDS = [*range(40), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(40, 240))]
SECONDS = 60
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class TookTooLong(BaseException):
    """Not an Exception, which the program might take for one of its own."""


class Written:
    """Python's own audit events: every path that is opened for writing, made, moved or removed while it is `on`."""

    def __init__(self):
        self.on, self.paths = False, []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple) -> None:
        if not self.on or not arguments or isinstance(arguments[0], int):  # a number: of a file that is open
            return
        if event == "open" and not arguments[2] & WRITING:
            return
        if event in ("open", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "shutil.rmtree"):
            self.paths.append(os.fsdecode(arguments[0]))
        elif event in ("os.rename", "os.link", "os.symlink"):
            self.paths += [os.fsdecode(arguments[0]), os.fsdecode(arguments[1])]

    def outside(self, folder: Path) -> list[str]:
        """But for what Python and its libraries keep for themselves."""
        return [path for path in self.paths if not Path(path).absolute().is_relative_to(folder)
                and "__pycache__" not in path and path != os.devnull]


@pytest.fixture(scope="module")
def runs(lab, tmp_path_factory) -> dict[str, Path]:
    """A finished run and a stopped one; the data record the order of the classes in scenario.json."""
    folder = tmp_path_factory.mktemp("runs")
    words = lab.words(*BASE, "--class_order", "{order}", "--sched", "cosine", "--warmup-epochs", "0",
                      "--no-reinit-optimizer")
    assert call(*words, "--output_dir", folder / "finished")[0] == 0
    assert call(*words, "--output_dir", folder / "stopped", out=Interrupting("task 2/2"))[0] == 130
    return {name: folder / name for name in ("finished", "stopped")}


@pytest.fixture(scope="module")
def written() -> Written:
    return Written()


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"seed{seed}")
def test_an_altered_file(seed, runs, written, tmp_path):
    draw = random.Random(seed)
    name, mode = draw.choice((("finished", "--eval"), ("finished", "--resume"), ("stopped", "--resume")))
    folder = shutil.copytree(runs[name], tmp_path / "around" / "run")
    (tmp_path / "around" / "mine.txt").write_text("mine")
    said = f"seed {seed}, {name} run, {mode}: {alter_one_file(draw, folder)}"
    print(said)

    def too_long(number, frame):
        raise TookTooLong(said)

    before, written.paths[:] = signal.signal(signal.SIGALRM, too_long), []
    signal.alarm(SECONDS)
    written.on = True
    try:
        code, _, err = call(mode, "--output_dir", folder, "--device", "cpu")
    finally:
        written.on = False
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert code in (0, 1, 2), said
    assert "Traceback" not in err
    if code:
        assert any(line.startswith("main.py: error: ") for line in err.splitlines()), (said, err)
    assert written.outside(folder) == [], said
    assert sorted(path.name for path in (tmp_path / "around").iterdir()) == ["mine.txt", "run"]


def test_what_is_written_is_heard(written, tmp_path):
    """A listener that is deaf would pass every test above."""
    written.paths.clear()
    written.on = True
    (tmp_path / "file").write_text("x")
    (tmp_path / "file").rename(tmp_path / "other")
    written.on = False
    assert written.outside(tmp_path / "elsewhere") == [str(tmp_path / name) for name in ("file", "file", "other")]
