"""Runs of the program that are killed at a moment of choice, and what is left of them."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
from fixtures import ROOT

from utils import load_checkpoint

PLACES = ("training", "evaluation", "writing a checkpoint")


class Run:
    """`python main.py words --output_dir folder` as a child process, whose output is read as it comes."""

    def __init__(self, folder: Path, *words: object, launcher: tuple[str, ...] = (), nohup: bool = False,
                 **environment: str):
        self.folder, self.lines = folder, []
        self.process = subprocess.Popen(
            [*["nohup"] * nohup, sys.executable, *launcher, str(ROOT / "main.py"), *map(str, words), "--output_dir",
             str(folder)],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            env=os.environ | environment)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def wait_for(self, pattern: str, count: int = 1, timeout: float = 120) -> bool:
        """Whether `count` lines came that match, before the program ended."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            if sum(bool(re.search(pattern, line)) for line in list(self.lines)) >= count:
                return True
            if self.process.poll() is not None:
                return False
            time.sleep(0.001)
        raise TimeoutError(f"no line {pattern!r} in {timeout} s: {self.lines[-5:]}")

    def wait_for_half_written_checkpoint(self, timeout: float = 120) -> bool:
        until = time.monotonic() + timeout
        checkpoints = self.folder / "checkpoint"
        while self.process.poll() is None and time.monotonic() < until:
            try:
                if any(name.endswith(".tmp") for name in os.listdir(checkpoints)):
                    return True
            except FileNotFoundError:
                time.sleep(0.001)
        return False

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to the whole session: launcher, processes, workers."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.end()

    def end(self, timeout: float = 200) -> int:
        code = self.process.wait(timeout)
        self._reader.join(timeout)
        return code

    def text(self) -> str:
        return "\n".join(self.lines)


def alive(process: int) -> bool:
    """Whether a process of this number runs; one that ended and that nobody has asked for does not."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes() != b""
    except OSError:
        return False


def kill_at(place: str, run: Run, draw: random.Random) -> str | None:
    """Kill a run at a random moment of one kind; returns where it landed, None when the run had already ended."""
    if place == "training":
        reached = run.wait_for(r" step \d+/\d+ ", count=draw.randint(1, 3))
    elif place == "evaluation":
        reached = run.wait_for(r"epoch (\d+)/\1 done")
    else:
        reached = True
        for _ in range(draw.randint(1, 3)):
            reached = reached and run.wait_for_half_written_checkpoint()
    if place != "writing a checkpoint" and reached:
        time.sleep(draw.uniform(0, 0.08))
    if not reached or run.process.poll() is not None:
        run.end()
        return None
    run.kill()
    return landed(run)


def landed(run: Run) -> str:
    """Where a run was killed, told by what it left: a half-written file, or the last line that it printed."""
    if any(run.folder.glob("checkpoint/.*.tmp")):
        return "writing a checkpoint"
    said = [line for line in run.lines if re.match(r"(task|after task) ", line)]
    if said and re.search(r"epoch (\d+)/\1 done", said[-1]):
        return "evaluation"
    return "training" if said else "before the first step"


def assert_same_results(one: Path, other: Path) -> None:
    """Every tensor and every number of two finished runs, but for times and command lines."""
    names, others = (sorted(path.name for path in folder.glob("checkpoint/*.pth")) for folder in (one, other))
    assert names == others
    assert len(names) > 3
    for name in names:
        part = "statistics" if name.startswith("statistics") else "model"
        ours, theirs = (load_checkpoint(folder / "checkpoint" / name)[part] for folder in (one, other))
        assert ours.keys() == theirs.keys()
        for key, tensor in ours.items():
            assert torch.equal(tensor, theirs[key]), f"{name}: {key}"
    assert numbers(one) == numbers(other)
    assert log(one) == log(other)
    assert (one / "accuracy_matrix.csv").read_text() == (other / "accuracy_matrix.csv").read_text()


def numbers(folder: Path) -> dict:
    summary = json.loads((folder / "summary.json").read_text())
    return {k: v for k, v in summary.items() if "seconds" not in k and k not in ("config", "train_images_per_second")}


def log(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("time", "seconds")} for row in rows]
