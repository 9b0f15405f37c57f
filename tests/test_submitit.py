"""run_with_submitit.py: what it refuses, and jobs on this machine. With a real Slurm: tests/slurm."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fixtures import ROOT, write_npz
from launching import environment, run, summary, tiny

import run_with_submitit
from configs.base import OPTIONS
from configs.launcher import LAUNCHER_GROUPS, read_submission


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_npz(tmp_path_factory.mktemp("data") / "data.npz")


# ---- what it refuses ----
REFUSED = {
    "no shared folder": (["demo_l2p"], "--shared_folder is missing"),
    "a mistyped option of main.py": (["--epohcs", 3], "unknown option --epohcs: did you mean --epochs?"),
    "a mistyped option of its own": (["--timeuot", 3], "unknown option --timeuot: did you mean --timeout?"),
    "an abbreviation": (["--node", 2], "unknown option --node: did you mean --nodes or --nodelist?"),
    "a value": (["--nodes", 0], "--nodes: '0' is not a whole number of at least 1"),
    "a choice": (["--cluster", "pbs"], "--cluster: invalid choice: 'pbs'"),
    "an experiment": (["demo_l2"], "unknown experiment 'demo_l2': did you mean demo_l2p"),
    "a contradiction in main.py's": (["--top_k", 11], "--top_k 11 is more than --size 10"),
    "tasks and GPUs": (["--gpus_per_node", 4, "--tasks_per_node", 2], "--tasks_per_node 2, but the job asks for 4 GPU"),
    "volta without GPU": (["--gpus_per_node", 0, "--use_volta32"], "--use_volta32 asks for a kind of GPU"),
    "local nodes": (["--cluster", "local", "--gpus_per_node", 0, "--nodes", 2], "--nodes 2, but --cluster local"),
    "debug tasks": (["--cluster", "debug", "--gpus_per_node", 0, "--tasks_per_node", 2], "--cluster debug runs in one"),
    "overwrite": (["--overwrite"], "--overwrite would also remove the job's own progress"),
    "resume false": (["--no-resume"], "--resume false: a job always continues"),
    "eval of nothing": (["--eval"], "--eval needs the run that it evaluates"),
    "eval of no run": (["--eval", "--gpus_per_node", 0, "--output_dir", "{tmp}/none"], "holds no run"),
    "no output": (["--output_dir", ""], "--output_dir '' saves nothing"),
    "world size": (["--gpus_per_node", 0, "--tasks_per_node", 2, "--world_size", 3],
                   "--world_size 3, but the job has 2 process(es)"),
    "cuda without GPUs": (["--device", "cuda", "--gpus_per_node", 0], "--device cuda, but --gpus_per_node 0"),
    "GPUs for nothing": (["--device", "cpu", "--gpus_per_node", 2], "--device cpu, but the job asks for 2 GPU(s)"),
    "a folder that cannot be": (["--gpus_per_node", 0, "--shared_folder", "/proc/none"], "--shared_folder /proc/none"),
    "no folder for logs": (["--gpus_per_node", 0, "--job_dir", "/proc/none/%j"], "--job_dir /proc/none: "),
    "nobody's home": (["--gpus_per_node", 0, "--shared_folder", "~nosuchuser/x"], "no home folder of ~nosuchuser"),
    "a device for logs": (["--gpus_per_node", 0, "--job_dir", "/dev/zero"], "--job_dir /dev/zero is a device"),
    "too many processes": (["--tasks_per_node", 5000], "--tasks_per_node: '5000' is too much: give at most 1000"),
}


@pytest.mark.parametrize(("words", "message"), REFUSED.values(), ids=REFUSED)
def test_what_the_launcher_refuses(words, message, tmp_path, capsys):
    words = [str(word).format(tmp=tmp_path) for word in words]
    if words != ["demo_l2p"]:
        # The launcher's options may stand before or behind the experiment.
        words = ["--shared_folder", str(tmp_path / "shared"), "--cluster", "local", *words]
    assert run_with_submitit.main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("run_with_submitit.py: error: ")
    assert message in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_slurm_where_there_is_none(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_with_submitit.main(["--shared_folder", str(tmp_path / "shared")]) == 2
    assert "there is no sbatch and srun on this machine" in capsys.readouterr().err


def test_help_shows_both_sets_of_options(capsys):
    assert run_with_submitit.main(["demo_l2p", "--help"]) == 0
    text = capsys.readouterr().out
    launcher = {option.name for group in LAUNCHER_GROUPS.values() for option in group}
    assert not launcher & OPTIONS.keys()
    assert launcher | OPTIONS.keys() <= set(re.findall(r"^  --(\w+)", text, re.MULTILINE))
    assert "learning rate for a batch of 256 [0.01]" in text, "the experiment's defaults"


def test_every_option_of_the_reference_is_one_here():
    """Those that the script of this name in JH-LEE-KR/l2p-pytorch adds to main.py's."""
    words = ("--shared_folder a --job_name b --nodes 3 --timeout 4 --job_dir c --nodelist d --gpus_per_node 5 "
             "--cpus_per_task 6 --mem_gb 7 --partition e --use_volta32 --comment f")
    given = {"shared_folder": "a", "job_name": "b", "nodes": 3, "timeout": 4, "job_dir": "c", "nodelist": "d",
             "gpus_per_node": 5, "cpus_per_task": 6, "mem_gb": 7, "partition": "e", "use_volta32": True, "comment": "f"}
    launcher = read_submission(words.split()).launcher
    assert {name: launcher[name] for name in given} == given


def test_a_job_that_names_no_size_is_one_process_on_one_gpu():
    """The reference takes two machines with four GPUs each: docs/clusters.md."""
    alone = read_submission(["cifar100_l2p", "--shared_folder", "a"])
    assert (alone.launcher["nodes"], alone.gpus_per_node, alone.tasks_per_node) == (1, 1, 1)
    theirs = read_submission(["cifar100_l2p", "--shared_folder", "a", "--nodes", "2", "--gpus_per_node", "4",
                              "--mem_gb", "40"])
    asked = run_with_submitit.job_parameters(theirs)
    assert (asked["nodes"], asked["gpus_per_node"], asked["tasks_per_node"], asked["mem_gb"]) == (2, 4, 4, 40)


# ---- jobs on this machine ----
def submit(data: Path, shared: Path, *words: object, **options) -> subprocess.CompletedProcess:
    return run(sys.executable, ROOT / "run_with_submitit.py", *tiny(data, "--shared_folder", shared, "--cluster",
               "local", "--gpus_per_node", 0, *words), **options)


@pytest.mark.long
@pytest.mark.parametrize("tasks", [1, 2])
def test_a_local_job(tasks, data, tmp_path):
    """Submitted in a folder that is not the program's; its output is in the job's folder, and nothing else is left."""
    shared = tmp_path / "shared"
    done = submit(data, shared, "--tasks_per_node", tasks, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    job = re.match(r"job (\d+), logs: (\S+) ", done.stdout)
    assert Path(job[2]) == shared / job[1] / f"{job[1]}_0_log.out"
    assert done.stdout.endswith(f"(one pair for each process: {tasks} on each of 1 node(s))\n")
    log = Path(job[2]).read_text()
    assert f"{tasks} process(es) on cpu" in log
    assert "after task 2/2" in log
    config = json.loads((shared / job[1] / "config.json").read_text())
    assert config["world_size"] == tasks
    assert config["command"][:2] == [str(ROOT / "main.py"), "cifar100_l2p"]
    assert [path.name for path in shared.iterdir()] == [job[1]]


@pytest.mark.long
def test_a_job_in_this_very_process(data, tmp_path):
    done = run(sys.executable, ROOT / "run_with_submitit.py", *tiny(
        data, "--shared_folder", tmp_path, "--cluster", "debug", "--gpus_per_node", 0, "--job_dir", tmp_path / "job",
        "--partition", "any"))
    assert done.returncode == 0, done.stderr
    assert "--partition means nothing to --cluster debug" in done.stderr
    assert "1 process(es) on cpu" in done.stdout
    assert summary(tmp_path / "job")["per_task"]


@pytest.mark.long
def test_a_job_that_fails(tmp_path, data):
    """main.py's own sentence reaches the logs and whoever waits; the job has failed for submitit, too."""
    shared = tmp_path / "shared"
    done = submit(tmp_path / "none.npz", shared, "--tasks_per_node", 2)
    assert done.returncode == 1
    assert "run_with_submitit.py: the job failed: --data_path" in done.stderr
    folder = next(path for path in shared.iterdir() if path.is_dir())
    assert "main.py: error: --data_path" in (folder / f"{folder.name}_0_log.err").read_text()
    kind, text = pickle.loads((folder / f"{folder.name}_0_result.pkl").read_bytes())
    assert kind == "error"
    assert "RuntimeError: main.py ended with exit code 2" in text


@pytest.mark.long
def test_a_job_continues_after_submitits_signal(data, tmp_path):
    """SIGUSR2, by which submitit's jobs learn that their time is over: saved, started again, and the same result."""
    words = ["--epochs", 3, "--tasks_per_node", 2, "--print-freq", 1]
    assert submit(data, tmp_path / "shared", *words, "--output_dir", tmp_path / "whole").returncode == 0
    command = [sys.executable, ROOT / "run_with_submitit.py", *tiny(
        data, "--shared_folder", tmp_path / "shared", "--cluster", "local", "--gpus_per_node", 0, *words,
        "--output_dir", tmp_path / "stopped")]
    launcher = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        job, log = re.match(r"job (\d+), logs: (\S+) ", launcher.stdout.readline()).groups()
        wait_until(lambda: "task 1/2 epoch 2/3" in Path(log).read_text() if Path(log).exists() else False)
        for process in Path(f"/proc/{job}/task/{job}/children").read_text().split():
            os.kill(int(process), signal.SIGUSR2)
        assert launcher.wait(timeout=200) == 0
    finally:
        launcher.kill()
        launcher.stdout.close()
    text = Path(log).read_text()
    assert "Requeued job" in text
    assert "main.py: stopped by SIGUSR2" in text
    assert text.count("2 process(es) on cpu") == 2, "it was started twice"
    one, other = summary(tmp_path / "whole"), summary(tmp_path / "stopped")
    for key in ("acc@1", "loss", "forgetting", "per_task", "acc@1_per_image"):
        assert one[key] == other[key], key


def wait_until(happened, seconds: float = 100) -> None:
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


def test_an_existing_run_is_continued_only_when_asked(tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"experiment": "demo_l2p", "options": {"lr": 0.1}}))
    words = ["demo_l2p", "--shared_folder", str(tmp_path / "shared"), "--cluster", "local", "--gpus_per_node", "0",
             "--output_dir", str(folder)]
    assert run_with_submitit.main(words) == 2
    assert "already holds a run: add --resume to continue it" in capsys.readouterr().err
    assert run_with_submitit.main([*words, "--resume", "--lr", "0.2"]) == 2
    assert "was made by demo_l2p with other values than --lr 0.2" in capsys.readouterr().err
    (folder / "config.json").write_text(json.dumps({"experiment": "demo_linear", "options": {"head": "ncm"}}))
    assert run_with_submitit.main([*words[1:], "--eval", "--head", "ridge"]) == 2
    assert "was made by demo_linear with other values than --head ridge" in capsys.readouterr().err
    assert not (tmp_path / "shared").exists()


def test_every_start_of_a_job_meets_elsewhere(tmp_path, monkeypatch):
    """After submitit's requeueing (a new pickle) and after Slurm's own (the same pickle, one more restart)."""
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    training = run_with_submitit.Training([], tmp_path, 1)
    names = {training._meeting_file()}
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    names.add(training._meeting_file())
    names.add(training.checkpoint().function._meeting_file())
    names.add(run_with_submitit.Training([], tmp_path, 1)._meeting_file())
    assert len(names) == 4
