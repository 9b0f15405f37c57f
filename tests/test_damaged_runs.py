"""Damaged checkpoints, full disks, folders in use, other data: noticed, said, and nothing lost."""

import json
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fixtures import ROOT, run_program, write_npz
from killing import Run, assert_same_results, log, numbers
from lab import call

from utils import load_checkpoint


@pytest.fixture(scope="module")
def stopped_once(short_run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stopped") / "run"
    run = Run(folder, *short_run)
    assert run.wait_for(r"task 2/3 epoch 2/2 step 4/9")
    run.send(signal.SIGTERM)
    assert run.end() == 143
    return folder


@pytest.fixture
def stopped(stopped_once, tmp_path) -> Path:
    return shutil.copytree(stopped_once, tmp_path / "run")


@pytest.mark.parametrize("damage", ["torn", "gone", *(
    pytest.param(damage, marks=pytest.mark.long) for damage in ("flipped", "empty"))])
def test_a_damaged_last_checkpoint_is_noticed_and_the_one_before_it_used(damage, stopped, short_run, undisturbed):
    last = stopped / "checkpoint" / "last.pth"
    content = bytearray(last.read_bytes())
    if damage == "gone":
        last.unlink()
    else:
        content[len(content) // 2] ^= 0xFF
        last.write_bytes({"torn": content[:len(content) // 2], "flipped": content, "empty": b""}[damage])
    code, out, err = call(*short_run, "--output_dir", stopped, "--resume")
    assert code == 0, err
    assert re.search(r"main\.py: warning: .*previous\.pth, which was saved before it", out + err)
    assert_same_results(undisturbed, stopped)


@pytest.mark.parametrize(("commit", "warned"), [("0123abc", True), (None, False)])
def test_going_on_with_another_version_is_warned_of(commit, warned, stopped, short_run):
    """What it computes may have changed, as that of replay has."""
    path = stopped / "config.json"
    config = json.loads(path.read_text())
    now = config["commit"]
    path.write_text(json.dumps(config | {"commit": commit}))
    code, out, err = call(*short_run, "--output_dir", stopped, "--resume")
    assert code == 0, err
    warning = f"the run began with another version of this program (0123abc) and goes on with {now}: look in CHANGELOG"
    assert (warning in out + err) == (warned and now is not None)


def test_a_damaged_checkpoint_never_takes_the_place_of_the_good_one(stopped, short_run):
    """A run that went on from previous.pth and is killed at once still has a good checkpoint in both places."""
    good = (stopped / "checkpoint" / "previous.pth").read_bytes()
    (stopped / "checkpoint" / "last.pth").write_bytes(b"")
    run = Run(stopped, *short_run, "--resume")
    assert run.wait_for(" step ")
    run.kill()
    for name in ("last", "previous"):
        load_checkpoint(stopped / "checkpoint" / f"{name}.pth")
    assert (stopped / "checkpoint" / "previous.pth").read_bytes() == good


@pytest.mark.long
def test_both_checkpoints_damaged(stopped, short_run):
    for name in ("last", "previous"):
        (stopped / "checkpoint" / f"{name}.pth").write_bytes(b"")
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    code, _, err = call(*short_run, "--output_dir", stopped, "--resume")
    assert code == 2
    assert re.search(r"last\.pth and .*previous\.pth are both damaged or missing", err)
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("damage", ["gone", pytest.param("cut short", marks=pytest.mark.long)])
def test_a_log_that_is_gone_stops_no_run(damage, stopped, short_run, undisturbed):
    """The checkpoint counts: the run goes on, the log holds whole lines only, and what was lost is said."""
    path = stopped / "log.jsonl"
    lines = path.read_text()
    path.unlink()
    if damage == "cut short":
        path.write_text(lines[:len(lines) // 2])
    code, out, err = call(*short_run, "--output_dir", stopped, "--resume")
    assert code == 0, err
    assert "log.jsonl is gone or shorter than it was" in out
    kept = log(stopped)
    assert kept == log(undisturbed)[-len(kept):] or damage == "cut short"
    assert all(row in log(undisturbed) for row in kept)
    assert numbers(stopped) == numbers(undisturbed)


@pytest.mark.parametrize("mode", ["--resume", "--eval", "--overwrite", "--no-resume"])
def test_a_run_without_its_config(mode, stopped, short_run):
    (stopped / "config.json").unlink()
    code, _, err = call(*short_run, "--output_dir", stopped, mode)
    assert code == 2
    assert "holds files of a run but no" in err
    assert "put it back, remove them by hand, or name another folder" in err


@pytest.mark.long
def test_a_full_disk_leaves_the_last_checkpoint_good(stopped, short_run, undisturbed):
    """The kernel refuses to let files grow beyond a size, as it does on a full disk: here while last.pth is written."""
    last = stopped / "checkpoint" / "last.pth"
    before, limit = last.read_bytes(), len(last.read_bytes()) // 2
    limited = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *map(str, short_run), "--output_dir", str(stopped), "--resume"],
        cwd=ROOT, capture_output=True, text=True, timeout=200,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert limited.returncode == 1, limited.stderr
    assert "what was saved before is still good" in limited.stderr
    assert "Traceback" not in limited.stderr
    assert last.read_bytes() == before
    code, _, err = call(*short_run, "--output_dir", stopped, "--resume")
    assert code == 0, err
    assert_same_results(undisturbed, stopped)


@pytest.mark.long
def test_two_runs_cannot_share_a_folder(short_run, tmp_path):
    run = Run(tmp_path / "run", *short_run)
    assert run.wait_for(" step ")
    run.send(signal.SIGSTOP)  # so that it does not end meanwhile
    for mode in ("--resume", "--overwrite"):
        other = run_program(*short_run, "--output_dir", tmp_path / "run", mode)
        assert other.returncode == 2, other.stdout
        assert "is in use by another run (process " in other.stderr
    run.kill()
    done = run_program(*short_run, "--output_dir", tmp_path / "run", "--resume")
    assert done.returncode == 0, "a dead holder holds nothing"


def test_other_images_under_the_same_name_are_refused(stopped, short_run, tmp_path):
    swapped = np.tile([1, 0, 2, 3, 4, 5], 18)
    other = write_npz(tmp_path / "data.npz", classes=6, train_per_class=18, y_train=swapped)
    changed = [other if word == short_run[2] else word for word in short_run]
    code, _, err = call(*changed, "--output_dir", stopped, "--resume")
    assert code == 2
    assert "--resume: the images or their order are not those that the run began with" in err


@pytest.mark.parametrize(("change", "named"), [
    (["--lr", 0.5], "--lr 0.5"), (["--batch-size", 6], "--batch_size 6"), (["--precision", "bf16"], "--precision bf16"),
    (["--compile"], "--compile True"), (["--seed", 1, "--epochs", 3], "--epochs 3")])
def test_options_that_change_the_run_are_refused(change, named, stopped, short_run):
    code, _, err = call(*short_run, *change, "--output_dir", stopped, "--resume")
    assert code == 2
    assert named in err


def test_the_summary_names_no_interruption(stopped, short_run, undisturbed):
    """What a reader of the results sees is the same run."""
    assert call(*short_run, "--output_dir", stopped, "--resume")[0] == 0
    one, other = (json.loads((folder / "summary.json").read_text())["config"] for folder in (undisturbed, stopped))
    assert {k: v for k, v in one.items() if k not in ("command", "options")} == {
        k: v for k, v in other.items() if k not in ("command", "options")}
