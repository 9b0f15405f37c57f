"""Submit a run to Slurm (or run it here) with submitit; it is requeued when its time is over, and continues.

    python run_with_submitit.py [EXPERIMENT] --shared_folder DIR [--nodes 2 --gpus_per_node 4 ...] [options of main.py]
    python run_with_submitit.py --help
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from configs import load_experiment
from configs.checks import check
from configs.command import build_parser, parse
from configs.launcher import PROGRAM, Submission, help_groups, read_submission
from errors import InputError
from paths import outside_path
from resuming import with_saved_options

MAX_TIMEOUTS = 1000
"""How often submitit may requeue a job whose time is over: in effect, until the run is finished."""


class Training:
    """What every process of a job calls. It travels to them as a pickle, and its class with it, because they may not
    find this file: so its methods import what belongs to the project only when they run.

    Args:
        words: main.py's command line; `%j` in it stands for the job's number.
        meetings: the folder of the files by which the processes find each other; None where `words` say --dist_url.
        threads: of each process, where the environment does not say (OMP_NUM_THREADS).
    """

    def __init__(self, words: list[str], meetings: Path | None, threads: int):
        self.words, self.meetings, self.threads = words, meetings, threads
        self.meeting = uuid.uuid4().hex
        self.code = str(Path(__file__).resolve().parent)

    def __call__(self) -> None:
        """Run the command line as one process of the job.

        Raises:
            RuntimeError: main.py ended with an exit code of failure, and so the job fails.
            SystemExit: a signal stopped the run, which is saved. After submitit's signal it is requeued.
        """
        import submitit

        os.environ.setdefault("OMP_NUM_THREADS", str(self.threads))  # before torch is loaded
        job = submitit.JobEnvironment()
        words = [word.replace("%j", job.job_id) for word in self.words]
        meeting = self.meetings and self.meetings / self._meeting_file()
        if meeting:
            words += ["--dist_url", f"file://{meeting}"]
        stop = getattr(signal, f"SIG{job.USR_SIG}")
        requeue = signal.getsignal(stop)  # submitit's handler: in process 0 it calls `checkpoint` and requeues the job
        code, signals = self._run_main(words, stop)
        signal.signal(stop, requeue)
        if code > 128 and stop in signals and callable(requeue):
            with suppress(subprocess.CalledProcessError):  # Slurm may end its scontrol together with the job
                requeue(stop, None)
            raise SystemExit(0)
        if code == 128 + signal.SIGTERM and job.cluster == "slurm":
            time.sleep(5)  # a cluster may announce preemption with SIGTERM before it sends the signal to requeue
        if code > 128:
            raise SystemExit(code)
        if code:
            raise RuntimeError(f"main.py ended with exit code {code}; what it said stands in the logs of process 0")
        if meeting and job.global_rank == 0:
            meeting.unlink(missing_ok=True)

    def checkpoint(self):
        """The job that takes this one's place: the same, but its processes meet elsewhere."""
        import submitit

        self.meeting = uuid.uuid4().hex
        return submitit.helpers.DelayedSubmission(self)

    def _meeting_file(self) -> str:
        """A new name for every start of the job: a file left by processes that were killed keeps new ones waiting.

        Slurm also restarts jobs by itself, without `checkpoint`; then the number of restarts is another.
        """
        return f"init_{self.meeting}_{os.environ.get('SLURM_RESTART_COUNT', 0)}"

    def _run_main(self, words: list[str], stop: signal.Signals) -> tuple[int, bytes]:
        """main.py's exit code, and the numbers of all signals meanwhile: its code tells of one of several."""
        sys.path.insert(0, self.code)
        sys.argv = [f"{self.code}/main.py", *words]  # what config.json records as the command
        import main as program

        arrived, note = os.pipe()
        for end in (arrived, note):
            os.set_blocking(end, False)
        before = signal.set_wakeup_fd(note)
        try:
            code = program.main(words, stop_signals=(stop,))
        finally:
            signal.set_wakeup_fd(before)
            os.close(note)
        with os.fdopen(arrived, "rb") as signals:
            return code, signals.read()


def main(argv: Sequence[str] | None = None) -> int:
    """Submit one command line. Returns the exit code: 0; 2 for bad input; 1 for a job that failed on this machine."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        if "-h" in argv or "--help" in argv:
            named = not argv[0].startswith("-")
            experiment = load_experiment(parse(argv[:1]).experiment) if named else None
            build_parser(experiment, help_groups(), PROGRAM).print_help()
            return 0
        return submit(read_submission(argv))
    except InputError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def submit(submission: Submission) -> int:
    """Check what can be checked before the job starts, submit it, and say where its logs are.

    A job on a cluster is left to it; one on this machine is waited for.
    """
    o = submission.launcher
    cluster = o["cluster"]
    if cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise InputError("--cluster slurm: there is no sbatch and srun on this machine; submit where Slurm is, or use "
                         "--cluster local.")
    shared = outside_path("--shared_folder", o["shared_folder"]).absolute()
    job_dir = outside_path("--job_dir", o["job_dir"]).absolute() if o["job_dir"] else shared / "%j"
    training = Training(job_words(submission, job_dir), None if "dist_url" in submission.command.given else shared,
                        o["cpus_per_task"])
    for warning in submission.warnings:
        print(f"{PROGRAM}: warning: {warning}", file=sys.stderr)
    if o["job_dir"]:
        _make_folder("--job_dir", next(path for path in (job_dir, *job_dir.parents) if "%j" not in str(path)))
    _make_folder("--shared_folder", shared)

    import submitit

    executor = submitit.AutoExecutor(job_dir, cluster, slurm_max_num_timeout=MAX_TIMEOUTS,
                                     local_max_num_timeout=MAX_TIMEOUTS)
    executor.update_parameters(**job_parameters(submission))
    try:
        job = executor.submit(training)
    except submitit.core.utils.FailedJobError as error:
        reasons = [line for line in str(error).splitlines() if line.strip()]
        raise InputError(f"Slurm refuses the job: {reasons[-1] if reasons else error}") from error
    print(f"job {job.job_id}, logs: {job.paths.stdout} and {job.paths.stderr.name} (one pair for each process: "
          f"{submission.tasks_per_node} on each of {o['nodes']} node(s))", flush=True)
    return 0 if cluster == "slurm" else wait_for(job, job_dir)


def _make_folder(option: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{option} {folder}: {error.strerror}; name a folder in which files can be made.") from error


def job_words(submission: Submission, job_dir: Path) -> list[str]:
    """main.py's command line in the job. Raises InputError where main.py would refuse it for what is on the disk."""
    import main as program

    given, options = submission.command.given, submission.command.options
    words = list(submission.words)
    output_dir = given.get("output_dir", str(job_dir))
    if "output_dir" not in given:
        words += ["--output_dir", output_dir]
    if "%j" not in output_dir:
        given["output_dir"] = options["output_dir"] = output_dir
        program.check_output_dir(options)
        options = with_saved_options(submission.command).options
    submission.warnings.extend(check(options))
    if not (options["eval"] or options["speed_test_only"]):
        words.append("--resume")
    if "device" not in given:  # a job that asked for GPUs fails without them, and one that did not takes none
        words += ["--device", "cuda" if submission.gpus_per_node else "cpu"]
    return words


def job_parameters(submission: Submission) -> dict[str, object]:
    """What submitit should ask the cluster for."""
    o = submission.launcher
    return {
        "name": o["job_name"], "nodes": o["nodes"], "tasks_per_node": submission.tasks_per_node,
        "gpus_per_node": submission.gpus_per_node or None, "cpus_per_task": o["cpus_per_task"], "mem_gb": o["mem_gb"],
        "timeout_min": o["timeout"], "slurm_partition": o["partition"], "slurm_nodelist": o["nodelist"],
        "slurm_comment": o["comment"], "slurm_constraint": "volta32gb" if o["use_volta32"] else None,
        "slurm_signal_delay_s": min(120, 15 * o["timeout"]),  # seconds between the warning and the end
        # One process that fails ends the others; and since Slurm 22.05 srun does not take over the cores of a task.
        "slurm_srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={o['cpus_per_task']}"],
        "slurm_additional_parameters": {"requeue": True},
    }


def wait_for(job, job_dir: Path) -> int:
    """The exit code of a job on this machine, and what it said when it failed."""
    from submitit.core.utils import UncompletedJobError

    try:
        job.results()
        return 0
    except (UncompletedJobError, RuntimeError) as error:
        logs = [path.read_text() for path in (job.paths.stderr, job.paths.stdout) if path.exists()]
        said = re.findall(r"^main\.py: (?:error: )?(.*)", "\n".join(logs), re.MULTILINE)
        reason = said[0] if said else str(error).strip().splitlines()[-1]
        print(f"{PROGRAM}: the job failed: {reason}", file=sys.stderr)
        return 1
    finally:
        if "%j" in job_dir.name:  # submitit's local executor also makes the folder under this very name
            with suppress(OSError):
                job_dir.rmdir()


if __name__ == "__main__":
    sys.exit(main())
