"""train.sh without Slurm: processes, errors, signals, and modes that it leaves alone. With Slurm: tests/slurm."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures import ROOT, write_npz
from test_launchers import environment, run, summary, tiny

import run_with_submitit
from configs.launcher import read_submission


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_npz(tmp_path_factory.mktemp("data") / "data.npz")


def train_sh(*words: object, cwd: Path = ROOT, **more: str) -> subprocess.CompletedProcess:
    return run("bash", ROOT / "train.sh", *words, cwd=cwd, PYTHON=sys.executable, **more)


def test_train_sh_is_a_shell_script_and_its_slurm_lines_come_first():
    assert run("bash", "-n", ROOT / "train.sh").returncode == 0
    lines = (ROOT / "train.sh").read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not [line for line in lines[first_command:] if line.startswith("#SBATCH")], "Slurm would not read these"
    assert {"#SBATCH --requeue", "#SBATCH --open-mode=append", "#SBATCH --signal=B:USR1@120"} <= set(lines)


def test_train_sh_without_slurm(data, tmp_path):
    """Called from another folder; the same command again continues, here a run that is finished."""
    words = tiny(data, "--device", "cpu", "--output_dir", "out")
    done = train_sh(*words, cwd=tmp_path, PROCESSES="1")
    assert done.returncode == 0, done.stderr
    assert "1 process(es) on cpu" in done.stdout
    found = summary(tmp_path / "out")
    again = train_sh(*words, cwd=tmp_path, PROCESSES="1")
    assert again.returncode == 0, again.stderr
    assert "epoch" not in again.stdout
    assert summary(tmp_path / "out")["per_task"] == found["per_task"]


@pytest.mark.long
def test_train_sh_with_two_processes(data, tmp_path):
    done = train_sh(*tiny(data, "--device", "cpu", "--output_dir", tmp_path / "out"), PROCESSES="2")
    assert done.returncode == 0, done.stderr
    assert "2 process(es) on cpu" in done.stdout
    assert done.stdout.count("after task 2/2") == 1


def test_train_sh_passes_errors_on(data, tmp_path):
    done = train_sh("demo_l2p", "--epohcs", "3", PROCESSES="1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "main.py: error: unknown option --epohcs: did you mean --epochs?\n"
    done = train_sh("demo_l2p", "--overwrite", SLURM_JOB_ID="7")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--overwrite would also remove the job's own progress" in done.stderr
    done = run("bash", ROOT / "train.sh", PYTHON=str(tmp_path / "python"))
    assert done.returncode == 2
    assert "set PYTHON at the top of train.sh" in done.stderr


def test_train_sh_asks_for_a_number_of_processes():
    for count in ("0", "abc", "1.5"):
        done = train_sh("demo_l2p", PROCESSES=count)
        assert done.returncode == 2
        assert done.stderr == f"train.sh: error: PROCESSES={count}: give a whole number of at least 1.\n"


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_train_sh_stops_all_its_processes(number, data, tmp_path):
    """A signal to train.sh alone reaches both processes, which save; its exit code tells of it."""
    words = tiny(data, "--device", "cpu", "--output_dir", tmp_path / "out", "--epochs", 60, "--print-freq", 1)
    script = subprocess.Popen(["bash", str(ROOT / "train.sh"), *words], env=environment(
        PROCESSES="2", PYTHON=sys.executable), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    printed = []
    for line in script.stdout:
        printed.append(line)
        if "epoch 3/60" in line:
            script.send_signal(number)
            break
    printed += script.stdout.readlines()  # until the last process has closed it
    assert script.wait(timeout=100) == 128 + number
    assert "everything done is saved" in printed[-1]
    assert not any("epoch 60/60" in line for line in printed)
    assert (tmp_path / "out" / "checkpoint" / "last.pth").exists()


@pytest.mark.long
def test_modes_that_exclude_resume(data, tmp_path):
    """Neither train.sh nor the launcher adds --resume to them, and a false one is none of them."""
    done = train_sh(*tiny(data, "--output_dir", tmp_path, "--speed_test_only", "--device", "cuda:99"), PROCESSES="1")
    assert "--device cuda:99 needs" in done.stderr, "what is refused first, had --resume been added, is that"
    for words in (("--eval", "false"), ("--overwrite=no",)):
        assert train_sh(*tiny(data, "--output_dir", tmp_path / "out", "--device", "cpu", *words), PROCESSES="1"
                        ).returncode == 0  # the second time it is there, and continued
    submission = read_submission(["demo_l2p", "--shared_folder", str(tmp_path), "--gpus_per_node", "0",
                                  "--cluster", "local", "--speed_test_only"])
    assert "--resume" not in run_with_submitit.job_words(submission, tmp_path / "%j")


def test_train_sh_evaluates(data, tmp_path):
    """--eval excludes --resume, which train.sh adds otherwise."""
    done = train_sh("--eval", "--output_dir", tmp_path, PROCESSES="1")
    assert done.returncode == 2
    assert "holds no run" in done.stderr
