"""Nothing is ever lost: runs that a signal stops or kills go on, and end as if nothing had happened."""

import random
import signal
import time

import pytest
from fixtures import run_program
from killing import PLACES, TASKS, Run, assert_same_results, kill_at, log, numbers


# ---- signals ----
@pytest.mark.parametrize("number", [
    signal.SIGTERM, signal.SIGINT, pytest.param(signal.SIGUSR1, marks=pytest.mark.long)])
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
    first_step = next(line for line in again.lines if " step " in line).split()[5]
    assert int(first_step.split("/")[0]) == int(last_step.split("/")[0]) + 1
    assert_same_results(undisturbed, tmp_path / "run", TASKS)


@pytest.mark.parametrize("changes", [
    ["--drop", 0.2], *(pytest.param(changes, marks=pytest.mark.long) for changes in (
        ["--sched", "plateau", "--warmup-epochs", 0], ["--no-reinit-optimizer", "--num-workers", 2],
        ["--freeze", "patch_embed", "--opt", "sgd"]))], ids=lambda changes: changes[0])
def test_whatever_has_a_state_goes_on_where_it_was(changes, short_run, tmp_path):
    whole = run_program(*short_run, *changes, "--output_dir", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    run = Run(tmp_path / "run", *short_run, *changes)
    for stop in ("task 1/3 epoch 2/2 step 5/9", "task 2/3 epoch 1/2 step 8/9"):
        assert run.wait_for(stop)
        run.send(signal.SIGTERM)
        assert run.end() == 143, run.text()
        run = Run(tmp_path / "run", *short_run, *changes, "--resume")
    assert run.end() == 0, run.text()
    assert_same_results(tmp_path / "whole", tmp_path / "run", TASKS)


def test_a_signal_during_evaluation(short_run, undisturbed, tmp_path):
    """The evaluation is made anew, and the epochs before it are not."""
    run = Run(tmp_path / "run", *short_run)
    assert run.wait_for(r"task 2/3 epoch 2/2 done")
    run.send(signal.SIGTERM)
    assert run.end() == 143, run.text()
    again = Run(tmp_path / "run", *short_run, "--resume")
    assert again.end() == 0, again.text()
    assert not any("task 2/3 epoch" in line for line in again.lines)
    assert_same_results(undisturbed, tmp_path / "run", TASKS)


def test_a_finished_run_stays_as_it_is(short_run, undisturbed):
    before = numbers(undisturbed), log(undisturbed)
    done = run_program(*short_run, "--output_dir", undisturbed, "--resume")
    assert done.returncode == 0, done.stderr
    assert " step " not in done.stdout
    assert (numbers(undisturbed), log(undisturbed)) == before


# ---- SIGKILL ----
@pytest.mark.parametrize("place", PLACES)
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
    assert_same_results(undisturbed, tmp_path / "run", TASKS)
    assert not list((tmp_path / "run").rglob(".*.tmp"))
