"""Heads that observe: stopped and killed at any moment they end alike, and what they gather is written once a task.

With a head of the tests' own, which learns by gradient, observes, and gathers more than all else that is saved.
"""

import contextlib
import functools
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fixtures import ROOT, write_npz
from killing import assert_same_results
from methods import METHODS
from test_methods import call, command
from torch import Tensor, nn

import main
import models
import outputs
from utils import load_checkpoint

GATHERED = 512  # values on a side of what the head gathers: 2 MB


class GatheringHead(nn.Linear):
    """Linear by gradient, plus a bias that it settles from means of what it has observed of all tasks."""

    learns_by_gradient, observes = True, True
    note = ""
    signal_at: int | None = None
    """How many batches are observed until a SIGTERM comes."""

    def __init__(self, dim: int, num_classes: int):
        super().__init__(dim, num_classes)
        self.register_buffer("settled_K", torch.zeros(num_classes))
        self.register_buffer("gathered_XX", torch.zeros(GATHERED, GATHERED, dtype=torch.float64), persistent=False)
        self.new_XX: Tensor | None = None

    def forward(self, features_BD: Tensor) -> Tensor:
        return super().forward(features_BD) + self.settled_K

    def observe(self, features_BD: Tensor, labels_B: Tensor) -> None:
        if self.new_XX is None:
            self.new_XX = torch.zeros_like(self.gathered_XX)
        for feature_D, label in zip(features_BD.double(), labels_B.tolist(), strict=True):
            self.new_XX[label, :len(feature_D)] += feature_D
        if GatheringHead.signal_at is not None:
            GatheringHead.signal_at -= 1
            if GatheringHead.signal_at == 0:
                GatheringHead.signal_at = None
                signal.raise_signal(signal.SIGTERM)

    def settle(self, task: int) -> None:
        self.gathered_XX += self.new_XX
        self.new_XX = None
        self.settled_K.copy_(self.gathered_XX[:len(self.settled_K)].mean(1) / (task + 1))

    def statistics(self) -> dict[str, Tensor]:
        return {"gathered_XX": self.gathered_XX}


@pytest.fixture(autouse=True)
def _its_own_head(monkeypatch):
    def build_head(options, dim, num_classes):
        head = GatheringHead(dim, num_classes)
        nn.init.zeros_(head.bias)
        nn.init.zeros_(head.weight)
        return head

    monkeypatch.setattr(models, "build_head", build_head)
    monkeypatch.setattr(outputs.Reporter, "_plot", lambda self, run: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_npz(tmp_path_factory.mktemp("data") / "data.npz", 6, train_per_class=6, test_per_class=2)


def words(name: str, data: Path) -> tuple[object, ...]:
    method = next(method for method in METHODS if method.name == name)
    return (*command(method, data), "--epochs", 2)


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """The folder of a run that nothing stopped, of each method."""
    def run(name: str) -> Path:
        folder = tmp_path_factory.mktemp("whole")
        code, _, err = call(*words(name, data), "--output-dir", folder)
        assert code == 0, err
        return folder

    return functools.cache(run)


def assert_same_run(one: Path, other: Path) -> None:
    kept = sorted(path.name for path in one.glob("checkpoint/statistics*.pth"))
    assert kept == ["statistics02.pth", "statistics03.pth"], "of last.pth and of previous.pth"
    assert all(load_checkpoint(one / "checkpoint" / name)["statistics"]["gathered_XX"].any() for name in kept)
    assert_same_results(one, other)


@pytest.mark.parametrize("name", ["no prompts", "dualprompt", "random choice"])
def test_a_run_stopped_while_it_observes(name, data, undisturbed, tmp_path, monkeypatch):
    """Three times, in the first task and in later ones; what was observed until then is observed again."""
    run = words(name, data)
    for batches in (1, 3, 2):  # three batches a task: in the first, after the second, in the third
        monkeypatch.setattr(GatheringHead, "signal_at", batches)
        code, out, err = call(*run, "--output-dir", tmp_path / "stopped", "--resume")
        assert code == 143, err
        assert "everything done is saved" in out
    assert call(*run, "--output-dir", tmp_path / "stopped", "--resume")[0] == 0
    assert_same_run(undisturbed(name), tmp_path / "stopped")


@pytest.mark.parametrize("name", ["statistics02", "last"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_run_killed_around_the_writing_of_what_was_gathered(name, after, data, undisturbed, tmp_path, monkeypatch):
    """The new statistics are there and last.pth still is of before, or the other way round: both go on alike."""
    run, save, writing = words("no prompts", data), outputs.Reporter.save, []

    def killed(self, saved, content):
        writing.append(saved)
        here = saved == name and "statistics02" in writing
        if here and not after:
            raise KeyboardInterrupt
        save(self, saved, content)
        if here:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(outputs.Reporter, "save", killed)
        assert call(*run, "--output-dir", tmp_path / "killed")[0] == 130
    assert call(*run, "--output-dir", tmp_path / "killed", "--resume")[0] == 0
    assert_same_run(undisturbed("no prompts"), tmp_path / "killed")


def test_a_damaged_last_checkpoint_finds_the_statistics_of_the_one_before(data, undisturbed, tmp_path):
    run = words("no prompts", data)
    code, _, err = call(*run, "--output-dir", tmp_path / "run", stop_at="task 3/3 epoch 1/2 step 1/3")
    assert code == 143, err
    last = tmp_path / "run" / "checkpoint" / "last.pth"
    last.write_bytes(last.read_bytes()[:-100])
    assert call(*run, "--output-dir", tmp_path / "run", "--resume")[0] == 0
    assert_same_run(undisturbed("no prompts"), tmp_path / "run")


class Watching(io.StringIO):
    """A terminal that looks at the checkpoints whenever an epoch is done: name -> (bytes, time of writing)."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder, self.seen = folder, []

    def write(self, printed: str) -> int:
        if printed.startswith("task ") and " done " in printed:
            self.seen.append({path.name: (path.stat().st_size, path.stat().st_mtime_ns)
                              for path in self.folder.glob("checkpoint/*.pth")})
        return super().write(printed)


def test_what_is_gathered_is_written_once_a_task_and_not_between_epochs(data, tmp_path, monkeypatch):
    out = Watching(tmp_path)
    with contextlib.redirect_stdout(out):
        assert main.main([str(word) for word in (*words("no prompts", data), "--epochs", 4, "--output-dir",
                                                 tmp_path)]) == 0
    whole = GATHERED**2 * 8
    learned = sum(tensor.nbytes for tensor in load_checkpoint(tmp_path / "checkpoint" / "task03.pth")["model"].values())
    assert len(out.seen) == 12
    for number, (before, now) in enumerate(zip(out.seen, out.seen[1:], strict=False), start=1):
        written = {name: size for name, (size, time) in now.items() if before.get(name) != (size, time)}
        if number % 4:  # between two epochs of a task: last.pth, and what it was before under another name
            assert written.keys() <= {"last.pth", "previous.pth"}
            assert max(written.values()) < 4 * learned + 20_000 < whole / 50, "learned, Adam's two moments, and names"
        else:
            assert written.keys() == {"last.pth", "previous.pth", f"task0{number // 4}.pth",
                                      f"statistics0{number // 4}.pth"}
            assert whole <= written[f"statistics0{number // 4}.pth"] < whole + 5_000
            assert written[f"task0{number // 4}.pth"] < learned + 5_000, "a test needs no statistics"
    assert call("--eval", "--output-dir", tmp_path)[0] == 0
    assert (tmp_path / "eval_accuracy_matrix.csv").read_text() == (tmp_path / "accuracy_matrix.csv").read_text()


TWO_PROCESSES = """
import os, sys
import torch
import main
from models.heads import NearestMeanHead

heads, settle = [], NearestMeanHead.settle

def settle_apart(head, task):
    settle(head, task)
    with torch.no_grad():
        for values in head.state_dict().values():
            values += int(os.environ["RANK"])
    heads.append(head)

NearestMeanHead.settle = settle_apart
code = main.main(sys.argv[2:])
torch.save(heads[-1].state_dict(), f"{sys.argv[1]}/head{os.environ['RANK']}.pth")
sys.exit(code)
"""


@pytest.mark.long  # two processes that begin with torch
def test_processes_whose_heads_settle_apart_go_on_with_one(data, tmp_path):
    """A GPU adds in no fixed order, and processors of two kinds round in two ways."""
    (tmp_path / "two.py").write_text(TWO_PROCESSES)
    run = next(command(method, data) for method in METHODS if method.name == "class means")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", tmp_path / "two.py",
         tmp_path, *map(str, run), "--output-dir", tmp_path / "run"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, text=True, capture_output=True,
        timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (torch.load(tmp_path / f"head{rank}.pth") for rank in (0, 1))
    assert one
    for name, values in one.items():
        assert torch.equal(values, two[name]), name
