"""Nothing is ever lost: runs that a signal stops or kills go on, and end as if nothing had happened."""

import fcntl
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from fixtures import ROOT, run_program
from killing import PLACES, Run, alive, assert_same_results, kill_at, log, numbers
from lab import call
from published import class_folders, write_files

from utils import load_checkpoint

pytestmark = pytest.mark.pictures


# ---- signals ----
@pytest.mark.parametrize("number", [
    signal.SIGTERM, *(pytest.param(number, marks=pytest.mark.long) for number in (signal.SIGINT, signal.SIGUSR1))])
def test_a_signal_stops_after_the_step_and_nothing_is_computed_twice(number, short_run, undisturbed, tmp_path):
    run = Run(tmp_path / "run", *short_run)
    assert run.wait_for(r"task 2/3 epoch 1/2 step 3/9")
    run.send(number)
    sent = time.monotonic()
    assert run.end() == 128 + number, run.text()
    assert time.monotonic() - sent < 10
    assert f"stopped by {signal.Signals(number).name}; everything done is saved" in run.lines[-1]
    last_step = [line for line in run.lines if " step " in line][-1].split()[5]

    again = Run(tmp_path / "run", *short_run, "--resume")
    assert again.end() == 0, again.text()
    first_step = next(line for line in again.lines if line.startswith("task") and " step " in line).split()[5]
    assert int(first_step.split("/")[0]) == int(last_step.split("/")[0]) + 1
    assert_same_results(undisturbed, tmp_path / "run")


@pytest.mark.long
@pytest.mark.parametrize("closed", ["terminal", "pipe"])
def test_nobody_reads_the_output_any_more(closed, short_run, tmp_path):
    """A terminal that was closed, a connection that dropped; `| tee` that ended with the Ctrl-C meant for the run."""
    ours, theirs = os.openpty() if closed == "terminal" else os.pipe()

    def take_terminal():
        os.setsid()
        if closed == "terminal":
            fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    run = subprocess.Popen([sys.executable, str(ROOT / "main.py"), *map(str, short_run), "--output_dir",
                            str(tmp_path)], stdout=theirs, stderr=theirs, stdin=theirs, preexec_fn=take_terminal)
    os.close(theirs)
    shown = ""
    while "task 2/3 epoch 1/2" not in shown:
        shown += os.read(ours, 10_000).decode()
    os.close(ours)
    assert run.wait(timeout=60) == 129
    state = load_checkpoint(tmp_path / "checkpoint" / "last.pth")["run"]
    assert state["task"] == 1
    assert 0 < state["step"] < 9, "it stopped after its step"
    again = Run(tmp_path, *short_run, "--resume")
    assert again.wait_for(rf"task 2/3 epoch {state['epoch'] + 1}/2 step {state['step'] + 1}/9")
    again.kill()


@pytest.mark.long
def test_a_closed_terminal_means_nothing_to_nohup(short_run, tmp_path):
    run = Run(tmp_path / "run", *short_run, nohup=True)
    assert run.wait_for("task 1/3 epoch 1/2 step 3/9")
    run.send(signal.SIGHUP)
    assert run.wait_for("after task 1/3")
    run.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_decoding_processes_leave_signals_to_the_trainer_and_end_with_it(number, short_run, tmp_path):
    """Slurm, systemd and a terminal send them a signal, too."""
    write_files(tmp_path / "photos", class_folders(["a", "b"], 90, (48, 48), "JPEG"))
    words = [*short_run, "--dataset", "Split-Folder", "--data-path", tmp_path / "photos", "--num-tasks", 2,
             "--num-workers", 3, "--epochs", 20]
    run = Run(tmp_path / "run", *words)
    assert run.wait_for("task 1/2 epoch 1/20 step 3/")
    trainer = run.process.pid
    children = [int(word) for word in Path(f"/proc/{trainer}/task/{trainer}/children").read_text().split()]
    assert len(children) == 3
    if number == signal.SIGTERM:
        os.killpg(trainer, number)
        assert run.end() == 143, run.text()
        assert "stopped by SIGTERM; everything done is saved" in run.lines[-1]
    else:
        run.send(number)
        assert run.end() == -number
    until = time.monotonic() + 3
    while any(map(alive, children)):
        assert time.monotonic() < until, "they outlive the trainer"
        time.sleep(0.02)


@pytest.mark.long
def test_what_is_drawn_at_the_end_survives_a_kill_before_it(undisturbed, short_run, tmp_path):
    """Killed behind its last checkpoint, a run has no summary and no plots; the next start writes all of them."""
    folder = shutil.copytree(undisturbed, tmp_path / "run")
    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "plots")
    code, _, err = call(*short_run, "--output_dir", folder, "--resume")
    assert code == 0, err
    assert numbers(folder) == numbers(undisturbed)
    assert {path.name for path in (folder / "plots").iterdir()} == {
        path.name for path in (undisturbed / "plots").iterdir()}
    assert "prompts_per_task.png" in {path.name for path in (folder / "plots").iterdir()}


TASKS_STOP = "task 1/3 epoch 2/2 step 5/9", "task 2/3 epoch 1/2 step 8/9"
STREAM_STOP = "episode 2/6 epoch 1/2 step 2/4", "episode 4/6 epoch 2/2 step 3/4"
STREAM = ["--schedule", "gaussian", "--num-tasks", "none", "--no-reinit-optimizer", "--gaussian_episodes", 6,
          "--gaussian_steps", 4, "--gaussian_width", 4, "--gaussian_eval_every", 2]
STATES = {
    "dropout and replay": (["--drop", 0.2, "--replay_per_class", 3], TASKS_STOP),
    "a stream without tasks": (STREAM, STREAM_STOP),
    "a stream's schedule": ([*STREAM, "--sched", "cosine", "--warmup-epochs", 0], STREAM_STOP),
    "plateau": (["--sched", "plateau", "--warmup-epochs", 0], TASKS_STOP),
    "one optimizer": (["--no-reinit-optimizer", "--num-workers", 2], TASKS_STOP),
    "a backbone that trains": (["--freeze", "patch_embed", "--opt", "sgd"], TASKS_STOP),
}


@pytest.mark.long
@pytest.mark.parametrize("name", STATES)
def test_whatever_has_a_state_goes_on_where_it_was(name, short_run, tmp_path):
    changes, stops = STATES[name]
    whole = run_program(*short_run, *changes, "--output_dir", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    run = Run(tmp_path / "run", *short_run, *changes)
    for stop in stops:
        assert run.wait_for(stop), run.text()
        run.send(signal.SIGTERM)
        assert run.end() == 143, run.text()
        run = Run(tmp_path / "run", *short_run, *changes, "--resume")
    assert run.end() == 0, run.text()
    assert_same_results(tmp_path / "whole", tmp_path / "run")


@pytest.mark.long
def test_a_signal_stops_where_an_epoch_is_one_step(short_run, tmp_path):
    """At the end of the epoch, not of the task."""
    words = [*short_run, "--batch-size", 64, "--epochs", 300]
    run = Run(tmp_path / "run", *words)
    assert run.wait_for(r"task 1/3 epoch 5/300 done")
    run.send(signal.SIGTERM)
    assert run.end() == 143, run.text()
    assert "everything done is saved" in run.lines[-1]
    last = [line for line in run.lines if "/300 done" in line][-1]
    assert int(re.search(r"epoch (\d+)/300", last)[1]) < 150
    again = Run(tmp_path / "run", *words, "--resume")
    assert again.wait_for(r"epoch (\d+)/300 done")
    again.kill()
    first = next(line for line in again.lines if "/300 done" in line)
    assert int(re.search(r"epoch (\d+)/300", first)[1]) == int(re.search(r"epoch (\d+)/300", last)[1]) + 1


@pytest.mark.long
def test_a_signal_during_evaluation(short_run, undisturbed, tmp_path):
    """The evaluation is made anew, and the epochs before it are not."""
    run = Run(tmp_path / "run", *short_run)
    assert run.wait_for(r"task 2/3 epoch 2/2 done")
    run.send(signal.SIGTERM)
    assert run.end() == 143, run.text()
    again = Run(tmp_path / "run", *short_run, "--resume")
    assert again.end() == 0, again.text()
    assert not any("task 2/3 epoch" in line for line in again.lines)
    assert_same_results(undisturbed, tmp_path / "run")


@pytest.mark.long
def test_a_finished_run_stays_as_it_is(short_run, undisturbed):
    before = numbers(undisturbed), log(undisturbed)
    done = run_program(*short_run, "--output_dir", undisturbed, "--resume")
    assert done.returncode == 0, done.stderr
    assert " step " not in done.stdout
    assert (numbers(undisturbed), log(undisturbed)) == before


# ---- SIGKILL ----
@pytest.mark.parametrize("place", [PLACES[0], *(pytest.param(place, marks=pytest.mark.long) for place in PLACES[1:])])
def test_a_killed_run_goes_on(place, short_run, undisturbed, tmp_path):
    """Once in training, once in evaluation, once while a checkpoint is written; `make test-long` does it more often."""
    draw, found = random.Random(7), []
    for _ in range(8):
        found.append(kill_at(place, Run(tmp_path / "run", *short_run, "--resume"), draw))
        if found[-1] == place:
            break
    assert place in found, found
    done = Run(tmp_path / "run", *short_run, "--resume")
    assert done.end() == 0, done.text()
    assert_same_results(undisturbed, tmp_path / "run")
    assert not list((tmp_path / "run").rglob(".*.tmp"))
