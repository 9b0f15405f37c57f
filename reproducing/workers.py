"""Where runs happen: processes on this machine, one on each GPU or several on its cores; or an array job of Slurm."""

import ctypes
import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from errors import InputError
from progress import duration
from reproducing.runs import Run

CODE = Path(__file__).resolve().parents[1]
BAD_INPUT = 2  # main.py's exit code
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def places(device: str, small: bool, jobs: int | None) -> list[dict[str, str]]:
    """The environment variables of each run that may be under way at the same time.

    Args:
        device: as main.py's --device.
        small: one core for each run, where there is no GPU.
        jobs: how many; None: one for each GPU, or without GPUs one run, or as many small ones as there are cores.
    """
    gpus = _gpus() if device in ("auto", "cuda") else []
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} for number in range(jobs or len(gpus))]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = jobs or (cores if small and device in ("auto", "cpu") else 1)
    if count == 1:
        return [{}]
    return [{"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // count)))}] * count


def _gpus() -> list[str]:
    """The names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES takes them."""
    import torch  # slow to load, and needed only here

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


@dataclass
class _Working:
    run: Run
    place: Mapping[str, str]
    process: subprocess.Popen
    began: float
    said_before: int
    """Bytes in its log before it began."""


def run_all(runs: Sequence[Run], at: Sequence[Mapping[str, str]], say: Callable[[str], None]) -> int:
    """Make the runs, as many at a time as there are places. One that fails does not keep the others from running; but
    what two methods are refused for, such as data that are not there, would be said of all.

    A signal to stop is passed on: each run saves what it has done, and the same call goes on there.

    Returns:
        0; 1 where a run failed; 128 + the number of a signal that stopped them.
    """
    waiting, free, working = list(runs), list(at), []
    done, failed, stopped = 0, 0, 0
    refused: dict[str, set[str]] = {}  # why -> methods

    def stop(number: int, frame: object) -> None:
        nonlocal stopped
        stopped = stopped or number
        for each in working:
            each.process.send_signal(signal.SIGTERM if number == signal.SIGINT else number)

    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS
              if signal.getsignal(number) != signal.SIG_IGN}  # under nohup
    try:
        while working or (waiting and not stopped):
            while waiting and free and not stopped:
                run, place = waiting.pop(0), free.pop(0)
                said = run.log.stat().st_size if run.log.exists() else 0
                working.append(_Working(run, place, _start(run, place), time.monotonic(), said))
            for each in [each for each in working if each.process.poll() is not None]:
                working.remove(each)
                free.append(each.place)
                code = each.process.returncode
                done, failed = done + (code == 0), failed + (code != 0 and not stopped)
                seconds = time.monotonic() - each.began
                if code and stopped:
                    say(f"{each.run.folder.name}: stopped")
                    continue
                why = _why(each)
                say(f"{done + failed}/{len(runs)}  {each.run.folder.name}: {duration(seconds)}"
                    + (f", ended with exit code {code}: {why} (see {each.run.log})" if code else ""))
                if code == BAD_INPUT:
                    methods = refused.setdefault(why, set())
                    methods.add(each.run.method)
                    if len(methods) > 1 and waiting:
                        say(f"two methods were refused for the same reason: {len(waiting)} run(s) are not started")
                        waiting.clear()
            time.sleep(0.05)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 + stopped if stopped else int(failed > 0)


def _why(ended: _Working) -> str:
    """The error that a run ended with, or what it said last. Another program may write to the same log."""
    with open(ended.run.log, "rb") as log:
        log.seek(ended.said_before)
        lines = log.read().decode(errors="replace").splitlines() or [""]
    errors = [line for line in lines if line.startswith("main.py: error:")]
    return (errors or lines)[-1][:500]


def _start(run: Run, place: Mapping[str, str]) -> subprocess.Popen:
    run.log.parent.mkdir(parents=True, exist_ok=True)
    with open(run.log, "ab") as log:
        return subprocess.Popen([sys.executable, CODE / "main.py", *run.words], stdin=subprocess.DEVNULL, stdout=log,
                                stderr=subprocess.STDOUT, env=os.environ | place, preexec_fn=_end_with_parent,
                                start_new_session=True)  # Ctrl-C is this program's to answer


def _end_with_parent() -> None:
    """In the new process: a SIGTERM comes, and the run saves, when this program is gone, however that happened."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG of prctl.h


def submit(runs: Sequence[Run], folder: Path) -> str:
    """Submit the runs as one array job of `train.sh`. Returns what to tell the user.

    Raises:
        InputError: there is no Slurm here, or it refuses the job.
    """
    if not shutil.which("sbatch"):
        raise InputError("--slurm: there is no sbatch on this machine; submit where Slurm is, or leave --slurm out.")
    folder.mkdir(parents=True, exist_ok=True)
    # A name of its own: jobs of an earlier array read their lines when they start, or start again.
    lines = next(path for number in itertools.count(1) if not (path := folder / f"runs-{number}.txt").exists())
    lines.write_text("".join(shlex.join(run.words) + "\n" for run in runs))
    command = ["sbatch", f"--array=1-{len(runs)}", "--parsable", f"--chdir={Path.cwd()}",
               f"--output={folder.absolute()}/slurm-%A_%a.out", str(CODE / "train.sh"), f"@{lines.absolute()}"]
    answer = subprocess.run(command, cwd=CODE, text=True, capture_output=True)  # train.sh finds its code there
    if answer.returncode:
        lines.unlink()
        raise InputError(f"--slurm: sbatch made no job of it: {(answer.stderr.strip() or '?').splitlines()[-1]}")
    return f"job {answer.stdout.strip().partition(';')[0]}: an array of {len(runs)} run(s), the lines of {lines}"
