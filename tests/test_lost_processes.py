"""Several processes: all stop after the same step, and none waits for one that is gone."""

import os
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


def test_a_signal_to_one_process_stops_both_after_the_same_step(short_run, undisturbed_pair, tmp_path):
    run = Run(tmp_path / "run", *short_run, launcher=TORCHRUN)
    assert run.wait_for("task 2/3 epoch 1/2 step 1/5")
    os.kill(ranks(run)[1], signal.SIGUSR1)
    assert run.end() != 0
    assert "stopped by SIGUSR1; everything done is saved" in run.text()
    again = Run(tmp_path / "run", *short_run, "--resume", launcher=TORCHRUN)
    assert again.end() == 0, again.text()
    assert_same_results(undisturbed_pair, tmp_path / "run")


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.long), 1])
def test_the_others_end_when_one_process_is_killed(rank, short_run, undisturbed_pair, tmp_path):
    """Without a launcher that would stop them: each process of its own."""
    meeting = tmp_path / "meeting"
    pair = [Run(tmp_path / "run", *short_run, "--dist_url", f"file://{meeting}", "--dist_timeout", 20, RANK=str(r),
                LOCAL_RANK=str(r), WORLD_SIZE="2") for r in range(2)]
    assert pair[0].wait_for("task 2/3 epoch 1/2 step 2/5")
    pair[rank].kill()
    killed = time.monotonic()
    assert pair[1 - rank].end(timeout=60) == 1
    assert time.monotonic() - killed < 40
    assert "another process of this run has ended" in pair[1 - rank].text()
    assert "Traceback" not in pair[1 - rank].text()
    again = Run(tmp_path / "run", *short_run, "--resume", launcher=TORCHRUN)
    assert again.end() == 0, again.text()
    assert_same_results(undisturbed_pair, tmp_path / "run")


def test_torchrun_heals_a_run_that_lost_a_process(short_run, undisturbed_pair, tmp_path):
    run = Run(tmp_path / "run", *short_run, "--resume", launcher=(*TORCHRUN, "--max_restarts=2"))
    assert run.wait_for("task 2/3 epoch 1/2 step 2/5")
    os.kill(ranks(run)[1], signal.SIGKILL)
    assert run.end() == 0, run.text()
    assert_same_results(undisturbed_pair, tmp_path / "run")
