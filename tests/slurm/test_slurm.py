"""A real Slurm of two nodes (tests/slurm/cluster.sh): jobs by train.sh and by submitit, requeued in the middle.

`make test-slurm` runs this; without `sbatch` everything here is skipped.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from fixtures import ROOT

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(shutil.which("sbatch") is None, reason="there is no Slurm here")]

DEMO = ("demo_l2p", "--dataset", "Split-Glyphs", "--lr", "0.005", "--epochs", "2", "--subsample", "60",
        "--subsample_test", "20")
IN_THE_MIDDLE = "task 2/5 epoch 1/2 done"
STARTED = "process(es) on cpu"
RESULTS = ("acc@1", "acc@5", "loss", "forgetting", "backward", "learning_acc", "average_incremental_acc", "per_task",
           "acc@1_per_image", "trainable_parameters", "seed")


class Cluster:
    """The cluster, and commands as a person types them at it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
        self.env["PYTHON"] = sys.executable
        printed = self.run(ROOT / "tests" / "slurm" / "cluster.sh", "up", folder / "slurm").stdout
        self.env["SLURM_CONF"] = re.search(r"^export SLURM_CONF=(.*)$", printed, re.MULTILINE)[1]

    def down(self) -> None:
        self.run("scancel", "--user", os.environ.get("USER", "root"), check=False)
        self.run(ROOT / "tests" / "slurm" / "cluster.sh", "down", self.folder / "slurm")

    def run(self, *words: object, check: bool = True) -> subprocess.CompletedProcess:
        done = subprocess.run([str(word) for word in words], cwd=ROOT, env=self.env, capture_output=True, text=True,
                              timeout=120)
        assert not check or done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
        return done

    def sbatch(self, *words: object) -> "Job":
        """`sbatch train.sh` on both nodes."""
        log = self.folder / "train-%j.out"
        number = self.run("sbatch", "--parsable", "--nodes=2", "--mem=2G", f"--output={log}", "train.sh", *words).stdout
        return Job(self, number.strip(), Path(str(log).replace("%j", number.strip())))

    def array(self, numbers: str, *words: object) -> list["Job"]:
        """`sbatch --array=FIRST-LAST train.sh` with its results in the cluster's folder, once all jobs have started.

        Each takes one node, so that two run at the same time.
        """
        array = self.run("sbatch", "--parsable", f"--array={numbers}", "--mem=2G", f"--chdir={self.folder}",
                         f"--output={self.folder}/array-%j.out", "train.sh", *words).stdout.strip()
        first, last = map(int, numbers.split("-"))
        return [Job(self, f"{array}_{number}").started() for number in range(first, last + 1)]

    def submitit(self, *words: object) -> "Job":
        """`run_with_submitit.py` on both nodes."""
        printed = self.run(sys.executable, "run_with_submitit.py", *words, "--shared_folder", self.folder / "shared",
                           "--nodes", 2, "--gpus_per_node", 0, "--cpus_per_task", 1, "--mem_gb", 2).stdout
        number, log = re.match(r"job (\d+), logs: (\S+) ", printed).groups()
        return Job(self, number, Path(log))


class Job:
    def __init__(self, cluster: Cluster, number: str, log: Path | None = None):
        self.cluster, self.number, self.log = cluster, number, log

    def text(self) -> str:
        return self.log.read_text() if self.log and self.log.exists() else ""

    def state(self) -> dict[str, str]:
        shown = self.cluster.run("scontrol", "show", "job", "--oneliner", self.number).stdout
        return dict(re.findall(r"(\w+)=(\S*)", shown))

    def started(self) -> "Job":
        """Wait for a job of an array to have a number, and a log, of its own."""
        self._wait(lambda: self.state()["JobState"] != "PENDING")
        self.log = Path(self.state()["StdOut"])
        return self

    def reaches(self, text: str) -> "Job":
        """Wait until the job has printed `text`."""
        self._wait(lambda: text in self.text())
        return self

    def ends(self) -> str:
        """Wait for the end of the job, and of its last start where it is requeued. Returns the state it ended in."""
        self._wait(lambda: self.state()["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"))
        return self.state()["JobState"]

    def _wait(self, happened, seconds: float = 200) -> None:
        until = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < until, f"{self.state()}\n{self.text()[-3000:]}"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster():
    folder = Path(tempfile.mkdtemp(prefix="l2p-"))  # short: the path of a socket has room for 107 bytes
    cluster = Cluster(folder)
    yield cluster
    cluster.down()
    shutil.rmtree(folder)


def results(folder: Path) -> dict:
    found = json.loads((folder / "summary.json").read_text())
    return {key: found[key] for key in RESULTS}


def continued(job: Job, signal: str) -> None:
    """The job was stopped by `signal`, saved, and went on where it was when it was started again."""
    text = job.text()
    assert text.count(f"main.py: stopped by {signal}") == 1, text
    assert text.count(STARTED) == 2
    assert text.count("after task 1/5") == 1


@pytest.fixture(scope="module")
def whole(cluster) -> dict:
    """What `sbatch train.sh` finds on two nodes when nothing disturbs it."""
    job = cluster.sbatch(*DEMO, "--output_dir", cluster.folder / "whole")
    assert job.ends() == "COMPLETED", job.text()
    assert job.text().count(STARTED) == 1
    assert job.text().count("after task 5/5") == 1, "one process prints"
    return results(cluster.folder / "whole")


def test_who_a_process_is(cluster):
    """In the shell that salloc opens, one process; started by srun there, each its own of two."""
    who = "import sys; sys.path.insert(0, '.'); import distributed as d; p = d.processes_from_environment(); " \
          "print(p.rank, p.local_rank, p.world_size, p.local_world_size, d.meeting_place())"
    shell = f'{sys.executable} -c "{who}"; srun {sys.executable} -c "{who}"'
    printed = cluster.run("salloc", "--quiet", "--nodes=2", "--ntasks=2", "bash", "-c", shell).stdout.splitlines()
    assert printed[0] == "0 0 1 1 {}"
    tasks = sorted(printed[1:])
    assert [task.split(" {")[0] for task in tasks] == ["0 0 2 1", "1 0 2 1"]
    # The nodes' names are known to Slurm only; their address is this machine's.
    assert [task.split(" {")[1] for task in tasks] == [tasks[0].split(" {")[1]] * 2
    assert "'MASTER_ADDR': '127.0.0.1'" in tasks[0]


def test_sbatch_train_sh(whole):
    assert whole["acc@1"] > 70
    assert len(whole["per_task"]) == 5


def test_train_sh_requeued(cluster, whole):
    """By hand or because a node failed: Slurm starts the same job again."""
    job = cluster.sbatch(*DEMO, "--output_dir", cluster.folder / "requeued").reaches(IN_THE_MIDDLE)
    cluster.run("scontrol", "requeue", job.number)
    assert job.ends() == "COMPLETED", job.text()
    assert job.state()["Restarts"] == "1"
    continued(job, "SIGTERM")
    assert results(cluster.folder / "requeued") == whole


@pytest.mark.parametrize(("launcher", "signal"), [("srun", "SIGUSR1"), ("torchrun", "SIGTERM")])
def test_train_sh_out_of_time(launcher, signal, cluster, whole, monkeypatch):
    """Warned as by Slurm before the time is over, the job requeues itself."""
    monkeypatch.setitem(cluster.env, "LAUNCHER", launcher)
    folder = cluster.folder / f"out_of_time_{launcher}"
    job = cluster.sbatch(*DEMO, "--output_dir", folder).reaches(IN_THE_MIDDLE)
    cluster.run("scancel", "--batch", "--signal=USR1", job.number)
    assert job.ends() == "COMPLETED", job.text()
    assert "the time is over; requeueing" in job.text()
    continued(job, signal)
    assert results(folder) == whole


def test_train_sh_fails(cluster):
    """With main.py's sentence in the log; a job's folder is its own unless --output_dir says another."""
    job = cluster.sbatch("demo_l2p", "--init_checkpoint", "nowhere")
    assert job.ends() == "FAILED"
    assert "main.py: error: --init_checkpoint nowhere does not exist" in job.text()
    assert not (ROOT / "output" / f"job_{job.number}").exists()


def test_submitit(cluster, whole):
    """Into the job's own folder, beside the logs."""
    job = cluster.submitit(*DEMO)
    assert job.ends() == "COMPLETED", job.text()
    assert job.text().count(STARTED) == 1
    assert results(job.log.parent) == whole


def test_submitit_requeued(cluster, whole):
    job = cluster.submitit(*DEMO, "--output_dir", cluster.folder / "submitit").reaches(IN_THE_MIDDLE)
    cluster.run("scontrol", "requeue", job.number)
    assert job.ends() == "COMPLETED", job.text()
    assert job.state()["Restarts"] == "1"
    continued(job, "SIGTERM")
    assert results(cluster.folder / "submitit") == whole


@pytest.mark.parametrize("signals", [("USR2",), ("TERM", "USR2")], ids=["out of time", "preempted"])
def test_submitit_requeues_itself(signals, cluster, whole):
    """At submitit's signal, alone before the time is over, behind SIGTERM where a job is preempted: `checkpoint()`."""
    folder = cluster.folder / "_".join(signals)
    job = cluster.submitit(*DEMO, "--output_dir", folder).reaches(IN_THE_MIDDLE)
    for signal in signals:
        cluster.run("scancel", f"--signal={signal}", job.number)
    assert job.ends() == "COMPLETED", job.text()
    assert "Calling checkpoint method" in job.text()
    assert job.state()["Restarts"] == "1"
    continued(job, f"SIG{signals[-1]}" if len(signals) == 1 else "SIG")
    assert results(folder) == whole


def test_submitit_fails(cluster):
    job = cluster.submitit("demo_l2p", "--init_checkpoint", "nowhere")
    assert job.ends() == "FAILED"
    errors = job.log.with_suffix(".err").read_text()
    assert "main.py: error: --init_checkpoint nowhere does not exist" in errors
    assert "RuntimeError: main.py ended with exit code 2" in errors


def test_what_slurm_refuses(cluster):
    done = cluster.run(sys.executable, "run_with_submitit.py", "demo_l2p", "--shared_folder", cluster.folder / "shared",
                       "--gpus_per_node", 0, "--partition", "elsewhere", check=False)
    assert done.returncode == 2
    assert "run_with_submitit.py: error: Slurm refuses the job: sbatch: error: " in done.stderr


def test_an_array_of_seeds(cluster):
    """Each writes to a folder of its own. The one that has the array's own number is warned and requeues itself alone,
    and ends as it does where nothing disturbs it."""
    jobs = cluster.array("1-2", *DEMO, "--output_dir", cluster.folder / "seeds")
    disturbed = next(job for job in jobs if job.state()["JobId"] == job.state()["ArrayJobId"])
    other, = (job for job in jobs if job is not disturbed)
    disturbed.reaches(IN_THE_MIDDLE)
    cluster.run("scancel", "--batch", "--signal=USR1", disturbed.number)
    for job in jobs:
        assert job.ends() == "COMPLETED", job.text()
    continued(disturbed, "SIGUSR1")
    assert f"the time is over; requeueing job {disturbed.number}, which" in disturbed.text()
    assert [job.state()["Restarts"] for job in (disturbed, other)] == ["1", "0"]
    assert "stopped by" not in other.text()
    assert other.text().count(STARTED) == 1
    found = {number: results(cluster.folder / f"seeds_seed{number}") for number in (1, 2)}
    assert {number: run["seed"] for number, run in found.items()} == {1: 1, 2: 2}
    assert found[1]["loss"] != found[2]["loss"]
    for number, job in zip((1, 2), jobs, strict=True):
        assert f"seed {number}, 1 {STARTED}" in job.text()
    seed = disturbed.number.partition("_")[2]
    cluster.run(sys.executable, "main.py", *DEMO, "--seed", seed, "--output_dir", cluster.folder / "alone")
    assert results(cluster.folder / "alone") == found[int(seed)]


def test_an_array_over_the_lines_of_a_file(cluster):
    """Two experiments; one job is requeued by hand and keeps its line and its folder."""
    line = " ".join(DEMO[1:])
    (cluster.folder / "my runs.txt").write_text(
        f"# experiments\ndemo_linear {line} --output_dir 'a linear head'\ndemo_l2p {line} --seed 7\n")
    jobs = cluster.array("2-3", "@my runs.txt", "--epochs", 1)
    l2p = jobs[1].reaches("after task 1/5")
    cluster.run("scontrol", "requeue", l2p.number)
    for job in jobs:
        assert job.ends() == "COMPLETED", job.text()
    continued(l2p, "SIGTERM")
    assert [job.state()["Restarts"] for job in jobs] == ["0", "1"]
    folders = [cluster.folder / "a linear head", cluster.folder / "output" / f"job_{l2p.number.replace('_', '_line')}"]
    configs, summaries = ([json.loads((folder / name).read_text()) for folder in folders]
                          for name in ("config.json", "summary.json"))
    assert [config["experiment"] for config in configs] == ["demo_linear", "demo_l2p"]
    assert [summary["seed"] for summary in summaries] == [42, 7]
    assert [len(summary["per_task"]) for summary in summaries] == [5, 5]


def test_a_line_that_there_is_not(cluster):
    (cluster.folder / "short.txt").write_text("demo_l2p\n\n")
    job, = cluster.array("2-2", "@short.txt")
    assert job.ends() == "FAILED"
    assert job.state()["ExitCode"] == "2:0"
    assert job.text() == ("train.sh: error: line 2 of short.txt is empty or a comment: leave its number out of "
                          "--array.\n")


def test_a_job_submitted_by_one_of_an_array(cluster):
    """It has the variables of that array, and is in none."""
    (cluster.folder / "five.txt").write_text("demo_l2p\n" * 5)
    log = cluster.folder / "submitted.out"
    submit = f"cd {ROOT}; sbatch --wait --output={log} train.sh @{cluster.folder}/five.txt"
    cluster.run("sbatch", "--wait", "--array=3", f"--output={cluster.folder}/array.out", "--wrap", submit, check=False)
    assert "five.txt is for an array of Slurm, which runs one line in each job" in log.read_text()


def test_a_table_of_runs(cluster):
    """`reproduce.py --slurm`: what is not finished becomes an array; when that is done, the same command compares."""
    command = (sys.executable, "reproduce.py", "demo", "--methods", "linear", "ridge", "--seeds", 1, "--output_dir",
               cluster.folder / "table", *DEMO[1:])
    cluster.env["SBATCH_MEM_PER_NODE"] = "2G"
    printed = cluster.run(*command, "--slurm").stdout
    del cluster.env["SBATCH_MEM_PER_NODE"]
    array = re.match(r"job (\d+): an array of 2 run\(s\)", printed)[1]
    for number in (1, 2):
        job = Job(cluster, f"{array}_{number}").started()
        assert job.ends() == "COMPLETED", job.text()
        assert job.log.parent == cluster.folder / "table"
    again = cluster.run(*command, "--slurm")
    assert "to do" not in again.stdout
    assert "| linear |" in again.stdout
    assert (cluster.folder / "table" / "report.html").exists()
