"""train.sh without Slurm: processes, errors, signals, and modes that it leaves alone. With Slurm: tests/slurm."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures import ROOT, write_npz
from launching import environment, run, summary, tiny

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


@pytest.mark.long
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


# ---- arrays of Slurm ----
def in_array(folder: Path, number: int | None, *words: object, inherited: bool = False,
             called: bool = False) -> tuple[list[str], str]:
    """train.sh as Slurm starts it, a copy named slurm_script, as that job of array 12 (None: in no array).

    Args:
        called: not so, but as train.sh by the script that Slurm started.
        inherited: the job has the array's variables only because it was submitted by a job of the array.

    Returns:
        main.py's words as srun is given them, and what stands on stderr. In the place of Slurm's programs are scripts:
        one prints what it should start, one knows the number. tests/slurm has the real ones.
    """
    shutil.copy(ROOT / "train.sh", folder / "slurm_script")
    for name, line in (("srun", "printf '%s\\0' \"$@\""), ("squeue", f"echo {'N/A' if inherited else number}")):
        (folder / name).write_text(f"#!/usr/bin/env bash\n{line}\n")
        (folder / name).chmod(0o755)
    array = {} if number is None else {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": str(number)}
    done = run("bash", ROOT / "train.sh" if called else folder / "slurm_script", *words, cwd=folder, **array,
               SLURM_JOB_ID="13", SLURM_SUBMIT_DIR=str(ROOT), PYTHON=sys.executable,
               PATH=f"{folder}:{os.environ['PATH']}")
    assert done.returncode == (0 if done.stdout else 2), done
    printed = done.stdout.split("\0")[:-1]
    return printed[printed.index(str(ROOT / "main.py")) + 1:] if printed else [], done.stderr


@pytest.mark.parametrize(("words", "started"), [
    ("demo_l2p --lr 0.1", "demo_l2p --lr 0.1 --seed 3 --resume --output_dir output/job_12_seed3"),
    ("", "--seed 3 --resume --output_dir output/job_12_seed3"),
    ("demo_l2p --output_dir out/demo/ --lr 0.1", "demo_l2p --output_dir out/demo_seed3 --lr 0.1 --seed 3 --resume"),
    ("demo_l2p --output-dir=my_runs", "demo_l2p --output-dir=my_runs_seed3 --seed 3 --resume"),
    ("--eval --output_dir out", "--eval --output_dir out_seed3 --seed 3"),
    ("demo_l2p --output_dir --lr 0.1", "demo_l2p --output_dir --lr 0.1 --seed 3 --resume"),  # which main.py refuses
    ("demo_l2p --output_dir=", "demo_l2p --output_dir= --seed 3 --resume"),
])
def test_an_array_of_seeds(words, started, tmp_path):
    assert in_array(tmp_path, 3, *words.split()) == (started.split(), "")


@pytest.mark.parametrize("seed", ["--seed 3", "--seed=5"])
def test_an_array_of_seeds_refuses_a_seed(seed, tmp_path):
    assert in_array(tmp_path, 3, "demo_l2p", *seed.split()) == ([], (
        "train.sh: error: the numbers of the array are the seeds of its runs: leave --seed out, as in sbatch "
        "--array=0-4 train.sh.\n"))


def test_a_job_that_is_in_no_array(tmp_path):
    """By its variables, or although it has those of the job that submitted it."""
    for inherited in (False, True):
        words, errors = in_array(tmp_path, 3 if inherited else None, "demo_l2p", "--seed", 7, inherited=inherited)
        assert (words, errors) == (["demo_l2p", "--seed", "7", "--resume", "--output_dir", "output/job_13"], "")


def test_a_script_of_ones_own_decides_what_the_numbers_are(tmp_path):
    """Such as the learning rate, with one seed; a line of a file it asks for."""
    assert in_array(tmp_path, 3, "demo_l2p", "--lr", 0.3, called=True) == (
        ["demo_l2p", "--lr", "0.3", "--resume", "--output_dir", "output/job_13"], "")
    (tmp_path / "runs.txt").write_text("\n\ndemo_l2p --lr 0.3")
    assert in_array(tmp_path, 3, "@runs.txt", called=True) == (
        ["demo_l2p", "--lr", "0.3", "--resume", "--output_dir", "output/job_12_line3"], "")


LINES = """\ufeffdemo_l2p --lr 0.1\r
# three that differ in their quotes

demo_l2p --data_path 'a  $HOME' --output_dir "b \\"c\\" $(touch x) `touch x`" --class_order d\\ e#f --freeze '' *
demo_l2p --seed=4 --output-dir=own
demo_l2p --lr "0.1
demo_l2p --lr \\
--epochs 2"""


@pytest.mark.parametrize(("number", "more", "started"), [
    (1, [], ["demo_l2p", "--lr", "0.1", "--resume", "--output_dir", "output/job_12_line1"]),
    (1, ["--epochs", "1", "--data-path", "x y"], [
        "demo_l2p", "--lr", "0.1", "--epochs", "1", "--data-path", "x y", "--resume", "--output_dir",
        "output/job_12_line1"]),
    (1, ["--seed", "7", "--output_dir", "grid/"], [
        "demo_l2p", "--lr", "0.1", "--seed", "7", "--output_dir", "grid_line1", "--resume"]),
    (4, [], ["demo_l2p", "--data_path", "a  $HOME", "--output_dir", 'b "c" $(touch x) `touch x`', "--class_order",
             "d e#f", "--freeze", "", "*", "--resume"]),
    (5, ["--epochs", "1"], ["demo_l2p", "--seed=4", "--output-dir=own", "--epochs", "1", "--resume"]),
    (8, [], ["--epochs", "2", "--resume", "--output_dir", "output/job_12_line8"]),
])
def test_an_array_over_the_lines_of_a_file(number, more, started, tmp_path):
    (tmp_path / "my runs.txt").write_text(LINES)
    assert in_array(tmp_path, number, "@my runs.txt", *more) == (started, "")
    assert not (tmp_path / "x").exists(), "something of the line was executed"


@pytest.mark.parametrize(("number", "words", "sentence"), [
    (0, "@runs.txt", "runs.txt has no line 0: give --array numbers from 1 to 8."),
    (9, "@runs.txt", "runs.txt has no line 9: give --array numbers from 1 to 8."),
    (2, "@runs.txt", "line 2 of runs.txt is empty or a comment: leave its number out of --array."),
    (3, "@runs.txt", "line 3 of runs.txt is empty or a comment: leave its number out of --array."),
    (6, "@runs.txt", "line 6 of runs.txt ends in an open quote or a backslash: a run is one line, quoted as for a "
                     "shell."),
    (7, "@runs.txt", "line 7 of runs.txt ends in an open quote or a backslash: a run is one line, quoted as for a "
                     "shell."),
    (5, "@runs.txt --seed 3", "line 5 of runs.txt names its own --seed: leave it out behind @runs.txt, or in that "
                              "line."),
    (5, "@runs.txt --output_dir=x", "line 5 of runs.txt names its own --output_dir: leave it out behind @runs.txt, or "
                                    "in that line."),
    (1, "@nowhere.txt", "@nowhere.txt: there is no readable file nowhere.txt with lines in it."),
    (1, "@empty.txt", "@empty.txt: there is no readable file empty.txt with lines in it."),
    (1, "@.", "@.: there is no readable file . with lines in it."),
    (None, "@runs.txt", "@runs.txt is for an array of Slurm, which runs one line in each job: sbatch --array=1-8 "
                        "train.sh @runs.txt"),
])
def test_lines_that_cannot_be_run(number, words, sentence, tmp_path):
    (tmp_path / "runs.txt").write_text(LINES)
    (tmp_path / "empty.txt").touch()
    assert in_array(tmp_path, number, *words.split()) == ([], f"train.sh: error: {sentence}\n")


def test_lines_of_a_file_need_an_array(tmp_path):
    (tmp_path / "runs.txt").write_text(LINES)
    done = train_sh("@runs.txt", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "sbatch --array=1-8 train.sh @runs.txt" in done.stderr
