"""Nothing is ever lost: runs that are stopped, killed, or lose a process go on, and end as if nothing had happened."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fixtures import ROOT, TINY, run_program, write_npz
from killing import PLACES, Run, assert_same_results, kill_at, log, numbers

TASKS = 3


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[object]:
    """36 images and nine steps in each epoch."""
    data = write_npz(tmp_path_factory.mktemp("data") / "data.npz", classes=6, train_per_class=18)
    return ["cifar100_l2p", "--data-path", data, *TINY, "--batch-size", 4, "--num-tasks", TASKS, "--epochs", 2,
            "--print-freq", 1, "--eval-per-image", "always"]


@pytest.fixture(scope="module")
def undisturbed(words, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    done = run_program(*words, "--output_dir", folder)
    assert done.returncode == 0, done.stderr
    return folder


# ---- signals ----
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_stops_after_the_step_and_nothing_is_computed_twice(number, words, undisturbed, tmp_path):
    run = Run(tmp_path / "run", *words)
    assert run.wait_for(r"task 2/3 epoch 1/2 step 3/9")
    run.send(number)
    sent = time.monotonic()
    assert run.end() == 128 + number, run.text()
    assert time.monotonic() - sent < 10
    assert f"stopped by {signal.Signals(number).name}; everything done is saved" in run.lines[-1]
    last_step = [line for line in run.lines if " step " in line][-1].split()[5]

    again = Run(tmp_path / "run", *words, "--resume")
    assert again.end() == 0, again.text()
    first_step = next(line for line in again.lines if " step " in line).split()[5]
    assert int(first_step.split("/")[0]) == int(last_step.split("/")[0]) + 1
    assert_same_results(undisturbed, tmp_path / "run", TASKS)


@pytest.mark.parametrize("changes", [
    ["--drop", 0.2], ["--sched", "plateau", "--warmup-epochs", 0], ["--no-reinit-optimizer", "--num-workers", 2],
    ["--freeze", "patch_embed", "--opt", "sgd"]], ids=lambda changes: changes[0])
def test_whatever_has_a_state_goes_on_where_it_was(changes, words, tmp_path):
    whole = run_program(*words, *changes, "--output_dir", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    run = Run(tmp_path / "run", *words, *changes)
    for stop in ("task 1/3 epoch 2/2 step 5/9", "task 2/3 epoch 1/2 step 8/9"):
        assert run.wait_for(stop)
        run.send(signal.SIGTERM)
        assert run.end() == 143, run.text()
        run = Run(tmp_path / "run", *words, *changes, "--resume")
    assert run.end() == 0, run.text()
    assert_same_results(tmp_path / "whole", tmp_path / "run", TASKS)


def test_a_signal_during_evaluation(words, undisturbed, tmp_path):
    """The evaluation is made anew, and the epochs before it are not."""
    run = Run(tmp_path / "run", *words)
    assert run.wait_for(r"task 2/3 epoch 2/2 done")
    run.send(signal.SIGTERM)
    assert run.end() == 143, run.text()
    again = Run(tmp_path / "run", *words, "--resume")
    assert again.end() == 0, again.text()
    assert not any("task 2/3 epoch" in line for line in again.lines)
    assert_same_results(undisturbed, tmp_path / "run", TASKS)


def test_a_finished_run_stays_as_it_is(words, undisturbed):
    before = numbers(undisturbed), log(undisturbed)
    done = run_program(*words, "--output_dir", undisturbed, "--resume")
    assert done.returncode == 0, done.stderr
    assert " step " not in done.stdout
    assert (numbers(undisturbed), log(undisturbed)) == before


# ---- SIGKILL ----
@pytest.mark.parametrize("place", PLACES)
def test_a_killed_run_goes_on(place, words, undisturbed, tmp_path):
    """Once in training, once in evaluation, once while a checkpoint is written; `make test-long` does it more often."""
    draw, found = random.Random(7), []
    for _ in range(8):
        found.append(kill_at(place, Run(tmp_path / "run", *words, "--resume"), draw))
        if found[-1] == place:
            break
    assert place in found, found
    done = Run(tmp_path / "run", *words, "--resume")
    assert done.end() == 0, done.text()
    assert_same_results(undisturbed, tmp_path / "run", TASKS)
    assert not list((tmp_path / "run").rglob(".*.tmp"))


# ---- files ----
@pytest.fixture(scope="module")
def stopped_once(words, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stopped") / "run"
    run = Run(folder, *words)
    assert run.wait_for(r"task 2/3 epoch 2/2 step 4/9")
    run.send(signal.SIGTERM)
    assert run.end() == 143
    return folder


@pytest.fixture
def stopped(stopped_once, tmp_path) -> Path:
    return shutil.copytree(stopped_once, tmp_path / "run")


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty", "gone"])
def test_a_damaged_last_checkpoint_is_noticed_and_the_one_before_it_used(damage, stopped, words, undisturbed):
    last = stopped / "checkpoint" / "last.pth"
    content = bytearray(last.read_bytes())
    if damage == "gone":
        last.unlink()
    else:
        content[len(content) // 2] ^= 0xFF
        last.write_bytes({"torn": content[:len(content) // 2], "flipped": content, "empty": b""}[damage])
    again = Run(stopped, *words, "--resume")
    assert again.end() == 0, again.text()
    assert "main.py: warning:" in again.text()
    assert "previous.pth, which was saved before it" in again.text()
    assert_same_results(undisturbed, stopped, TASKS)


def test_both_checkpoints_damaged(stopped, words):
    for name in ("last", "previous"):
        (stopped / "checkpoint" / f"{name}.pth").write_bytes(b"")
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    done = run_program(*words, "--output_dir", stopped, "--resume")
    assert done.returncode == 2
    assert "previous.pth" in done.stderr
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before


def test_a_full_disk_leaves_the_last_checkpoint_good(stopped, words, undisturbed):
    """The kernel refuses to let files grow beyond a size, as it does on a full disk: here while last.pth is written."""
    last = stopped / "checkpoint" / "last.pth"
    before, limit = last.read_bytes(), len(last.read_bytes()) // 2
    limited = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *map(str, words), "--output_dir", str(stopped), "--resume"],
        cwd=ROOT, capture_output=True, text=True, timeout=200,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert limited.returncode == 1, limited.stderr
    assert "what was saved before is still good" in limited.stderr
    assert "Traceback" not in limited.stderr
    assert last.read_bytes() == before
    again = Run(stopped, *words, "--resume")
    assert again.end() == 0, again.text()
    assert_same_results(undisturbed, stopped, TASKS)


def test_two_runs_cannot_share_a_folder(words, tmp_path):
    run = Run(tmp_path / "run", *words)
    assert run.wait_for(" step ")
    run.send(signal.SIGSTOP)  # so that it does not end meanwhile
    for mode in ("--resume", "--overwrite"):
        other = run_program(*words, "--output_dir", tmp_path / "run", mode)
        assert other.returncode == 2, other.stdout
        assert "is in use by another run (process " in other.stderr
    run.kill()
    done = run_program(*words, "--output_dir", tmp_path / "run", "--resume")
    assert done.returncode == 0, "a dead holder holds nothing"


def test_other_images_under_the_same_name_are_refused(stopped, words, tmp_path):
    swapped = np.tile([1, 0, 2, 3, 4, 5], 18)
    other = write_npz(tmp_path / "data.npz", classes=6, train_per_class=18, y_train=swapped)
    changed = [other if word == words[2] else word for word in words]
    done = run_program(*changed, "--output_dir", stopped, "--resume")
    assert done.returncode == 2
    assert "--resume: the images are not those that the run began with" in done.stderr


@pytest.mark.parametrize(("change", "named"), [
    (["--lr", 0.5], "--lr 0.5"), (["--batch-size", 6], "--batch_size 6"), (["--precision", "bf16"], "--precision bf16"),
    (["--compile"], "--compile True"), (["--seed", 1, "--epochs", 3], "--epochs 3")])
def test_options_that_change_the_run_are_refused(change, named, stopped, words):
    done = run_program(*words, *change, "--output_dir", stopped, "--resume")
    assert done.returncode == 2
    assert named in done.stderr


# ---- several processes ----
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


@pytest.fixture(scope="module")
def undisturbed_pair(words, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pair") / "run"
    run = Run(folder, *words, launcher=TORCHRUN)
    assert run.end() == 0, run.text()
    return folder


def ranks(run: Run) -> dict[int, int]:
    """Rank → process number, of the processes below a launcher."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                pairs = (folder / "environ").read_text().split("\0")
                environment = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, UnicodeDecodeError):
                continue
            if parent == run.process.pid and "RANK" in environment:
                found[int(environment["RANK"])] = int(folder.name)
    return found


def test_a_signal_to_one_process_stops_both_after_the_same_step(words, undisturbed_pair, tmp_path):
    run = Run(tmp_path / "run", *words, launcher=TORCHRUN)
    assert run.wait_for("task 2/3 epoch 1/2 step 1/5")
    os.kill(ranks(run)[1], signal.SIGUSR1)
    assert run.end() != 0
    assert "stopped by SIGUSR1; everything done is saved" in run.text()
    again = Run(tmp_path / "run", *words, "--resume", launcher=TORCHRUN)
    assert again.end() == 0, again.text()
    assert_same_results(undisturbed_pair, tmp_path / "run", TASKS)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_others_end_when_one_process_is_killed(rank, words, undisturbed_pair, tmp_path):
    """Without a launcher that would stop them: each process of its own."""
    meeting = tmp_path / "meeting"
    pair = [Run(tmp_path / "run", *words, "--dist_url", f"file://{meeting}", "--dist_timeout", 20, RANK=str(r),
                LOCAL_RANK=str(r), WORLD_SIZE="2") for r in range(2)]
    assert pair[0].wait_for("task 2/3 epoch 1/2 step 2/5")
    pair[rank].kill()
    killed = time.monotonic()
    assert pair[1 - rank].end(timeout=60) == 1
    assert time.monotonic() - killed < 40
    assert "another process of this run has ended" in pair[1 - rank].text()
    assert "Traceback" not in pair[1 - rank].text()
    again = Run(tmp_path / "run", *words, "--resume", launcher=TORCHRUN)
    assert again.end() == 0, again.text()
    assert_same_results(undisturbed_pair, tmp_path / "run", TASKS)


def test_torchrun_heals_a_run_that_lost_a_process(words, undisturbed_pair, tmp_path):
    run = Run(tmp_path / "run", *words, "--resume", launcher=(*TORCHRUN, "--max_restarts=2"))
    assert run.wait_for("task 2/3 epoch 1/2 step 2/5")
    os.kill(ranks(run)[1], signal.SIGKILL)
    assert run.end() == 0, run.text()
    assert_same_results(undisturbed_pair, tmp_path / "run", TASKS)


def test_the_summary_names_no_interruption(stopped, words, undisturbed):
    """What a reader of the results sees is the same run."""
    again = Run(stopped, *words, "--resume")
    assert again.end() == 0
    one, other = (json.loads((folder / "summary.json").read_text())["config"] for folder in (undisturbed, stopped))
    assert {k: v for k, v in one.items() if k not in ("command", "options")} == {
        k: v for k, v in other.items() if k not in ("command", "options")}
