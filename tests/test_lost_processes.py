"""Several processes: all stop after the same step, and none waits for one that is gone."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from killing import Run, assert_same_results

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


@pytest.fixture(scope="module")
def undisturbed_pair(short_run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pair") / "run"
    run = Run(folder, *short_run, launcher=TORCHRUN)
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


@pytest.mark.long
def test_a_signal_to_one_process_stops_both_after_the_same_step(short_run, undisturbed_pair, tmp_path):
    run = Run(tmp_path / "run", *short_run, launcher=TORCHRUN)
    assert run.wait_for("task 2/3 epoch 1/2 step 1/5")
    os.kill(ranks(run)[1], signal.SIGUSR1)
    assert run.end() != 0
    assert "stopped by SIGUSR1; everything done is saved" in run.text()
    again = Run(tmp_path / "run", *short_run, "--resume", launcher=TORCHRUN)
    assert again.end() == 0, again.text()
    assert_same_results(undisturbed_pair, tmp_path / "run")


@pytest.mark.long
@pytest.mark.parametrize(("rank", "number"), [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_the_others_end_when_one_process_is_lost(rank, number, short_run, undisturbed_pair, tmp_path):
    """Without a launcher that would stop them: each process of its own."""
    meeting = tmp_path / "meeting"
    pair = [Run(tmp_path / "run", *short_run, "--dist_url", f"file://{meeting}", "--dist_timeout", 20, RANK=str(r),
                LOCAL_RANK=str(r), WORLD_SIZE="2") for r in range(2)]
    assert pair[0].wait_for("task 2/3 epoch 1/2 step 2/5")
    pair[rank].send(number)
    lost, said = time.monotonic(), len(pair[1 - rank].lines)
    assert pair[1 - rank].end(timeout=60) == 1
    # One that is stopped is waited for once, and not again when the process group is taken down.
    assert time.monotonic() - lost < (25 if number == signal.SIGSTOP else 15)
    pair[rank].kill()
    last = [line for line in pair[1 - rank].lines[said:] if not re.search(" (step|done) ", line)]
    assert len(last) == 1, last
    assert re.fullmatch(r"main.py: error: another process of this run has ended, or did not answer within "
                        r"--dist_timeout \([A-Z][^/]*\); the same command with --resume .*", last[0])
    again = Run(tmp_path / "run", *short_run, "--resume", launcher=TORCHRUN)
    assert again.end() == 0, again.text()
    assert_same_results(undisturbed_pair, tmp_path / "run")


@pytest.mark.long
def test_processes_end_when_torchrun_is_killed(short_run, undisturbed_pair, tmp_path):
    """After their step, saved; the folder is free for a new start."""
    run = Run(tmp_path / "run", *short_run, launcher=TORCHRUN)
    assert run.wait_for("task 2/3 epoch 1/2 step 1/5")
    run.send(signal.SIGKILL)
    again = Run(tmp_path / "run", *short_run, "--resume", launcher=TORCHRUN)
    assert again.end() == 0, again.text()
    assert not any("task 1/3 epoch" in line for line in again.lines)
    run.end()
    assert "stopped by SIGTERM; everything done is saved" in run.text()
    assert_same_results(undisturbed_pair, tmp_path / "run")


def test_processes_that_cannot_meet_say_so_alone(short_run, tmp_path):
    """Where nobody listens at MASTER_PORT, torch's C++ would print its stack."""
    run = Run(tmp_path / "run", *short_run, "--dist_timeout", 1, RANK="1", LOCAL_RANK="0", WORLD_SIZE="2",
              MASTER_ADDR="127.0.0.1", MASTER_PORT="9")
    assert run.end() == 2
    assert len(run.lines) == 1, run.text()
    assert "the 2 processes could not meet there" in run.text()


@pytest.mark.long
def test_torchrun_heals_a_run_that_lost_a_process(short_run, undisturbed_pair, tmp_path):
    run = Run(tmp_path / "run", *short_run, "--resume", launcher=(*TORCHRUN, "--max_restarts=2"))
    assert run.wait_for("task 2/3 epoch 1/2 step 2/5")
    os.kill(ranks(run)[1], signal.SIGKILL)
    assert run.end() == 0, run.text()
    assert_same_results(undisturbed_pair, tmp_path / "run")
