"""Which of the run's processes this one is, as the program that started it says in the environment.

Nothing here needs torch, so that the question can be answered before anything slow is loaded.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from errors import InputError

_PARENT = os.getppid()  # asked for as early as possible: it may end while torch is loaded

# Rank, local rank, number of processes and local number, as Open MPI's mpirun, MVAPICH's, and MPICH's or Intel's say
# them. srun --mpi=pmi2 sets PMI_RANK too, and no local rank: then Slurm's own variables count.
_MPI_VARIABLES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE", "MPI_LOCALNRANKS"),
)
# Processes that take over those whose parent has ended, and start no training themselves.
_ADOPTERS = ("init", "systemd", "tini", "dumb-init", "docker-init", "catatonit")


@dataclass(frozen=True)
class Processes:
    """This process among those of the run; `local`: among those on the same machine."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    own_gpu: bool = False
    """Whether Slurm shows each process nothing but the one GPU that is its own (--gpus-per-task=1)."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def processes_from_environment(world_size: int | None = None, env: Mapping[str, str] = os.environ) -> Processes:
    """What torchrun, torch.distributed.launch, submitit's local executor, mpirun or srun say; one process without them.

    The innermost launcher counts: torchrun inside a Slurm job step, say. A shell that salloc opened, and the script
    of a batch job itself, are one process, although they know how many tasks the job may start (SLURM_NTASKS).

    Raises:
        InputError: `world_size` is given and is not the number of processes that the launcher started; or the
            environment makes no sense.
    """
    if "RANK" in env or "WORLD_SIZE" in env:
        found = _read(env, "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    elif "SUBMITIT_LOCAL_GLOBALID" in env:
        found = _read(env, "SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_LOCALID", "SUBMITIT_LOCAL_NTASKS",
                      "SUBMITIT_LOCAL_NTASKS")
    elif names := _mpi_variables(env):
        found = _read(env, *names)
    elif "SLURM_STEP_ID" in env:
        tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
        per_node = _tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE", ""))
        here = per_node[_whole_number(env, "SLURM_NODEID", 0):][:1] or [1]
        found = replace(_read(env, "SLURM_PROCID", "SLURM_LOCALID", tasks), local_world_size=here[0],
                        own_gpu=env.get("SLURM_GPUS_PER_TASK") == "1")
    else:
        found = Processes()
    if world_size is not None and world_size != found.world_size:
        raise InputError(f"--world_size {world_size}, but the launcher started {found.world_size} process(es): "
                         f"start them with torchrun --nproc_per_node={world_size}, or leave --world_size out.")
    return found


def _mpi_variables(env: Mapping[str, str]) -> tuple[str, ...]:
    """The variables in which an mpirun says who this process is; empty without one."""
    return next((names for names in _MPI_VARIABLES if all(name in env for name in names)), ())


def speaks_for_its_machine() -> bool:
    """Whether this process should print an error that every process on its machine has."""
    try:
        return processes_from_environment().local_rank == 0
    except InputError:
        return True


def meeting_place(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """MASTER_ADDR and MASTER_PORT on which all processes agree that srun started, or mpirun on one machine.

    Empty otherwise: torchrun sets them, and an mpirun over several machines does not say where process 0 is. In a job
    step of Slurm the address is that of the step's first node, where process 0 is. The port follows from the number
    of the job and lies below those that systems hand out by themselves.
    """
    if names := _mpi_variables(env):
        _, _, world_size, here = names
        if env[world_size] != env[here]:
            return {}
        job = zlib.crc32(env.get("PMIX_NAMESPACE", str(_PARENT)).encode())  # all have the same parent on one machine
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _port(job)}
    nodes = env.get("SLURM_STEP_NODELIST", env.get("SLURM_JOB_NODELIST", ""))
    if "SLURM_STEP_ID" not in env or not nodes:
        return {}
    job, step = _whole_number(env, "SLURM_JOB_ID", 0), _whole_number(env, "SLURM_STEP_ID", 0)
    return {"MASTER_ADDR": _address(first_host(nodes)), "MASTER_PORT": _port(17 * job + step)}


def _port(job: int) -> str:
    return str(10_000 + job % 20_000)


def first_host(nodes: str) -> str:
    """The first name of a Slurm node list: `n1` of `n[1-3,7]`, `rack1n04` of `rack[1-2]n[04-09],login`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)[0]
    return re.sub(r"\[(\w*)[^\]]*\]", r"\1", first)


def _address(host: str) -> str:
    """`host` where its name can be looked up; otherwise the address by which Slurm itself reaches it, if it says so."""
    try:
        socket.getaddrinfo(host, None)
        return host
    except OSError:
        pass
    try:
        shown = subprocess.run(["scontrol", "show", "node", host], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        shown = ""
    found = re.search(r"\bNodeAddr=(\S+)", shown)
    return found[1] if found else host


def end_with_launcher(env: Mapping[str, str] = os.environ) -> None:
    """Let this process have a SIGTERM once the launcher that started it is gone, and so save, stop and free its folder.

    Whoever kills torchrun itself leaves its processes behind. Where no launcher started this one (a shell did, which
    may well end before it) nothing happens.
    """
    if _has_launcher(env):
        threading.Thread(target=_end_after_parent, args=(_PARENT,), daemon=True).start()


def _has_launcher(env: Mapping[str, str]) -> bool:
    """Whether the parent is torchrun, torch.distributed.launch, submitit's local executor, mpirun, or a Slurm step's.

    RANK alone does not say so: a person may have set it. Nor does a step of one task, whose shell may put it aside.
    """
    if "TORCHELASTIC_RUN_ID" in env or "SUBMITIT_LOCAL_GLOBALID" in env or _mpi_variables(env):
        return True
    return "SLURM_STEP_ID" in env and env.get("SLURM_STEP_NUM_TASKS", "1") != "1"


def _end_after_parent(parent: int) -> None:
    gone_before = _name(parent) in _ADOPTERS  # it ended before this process could look
    while os.getppid() == parent and not gone_before:
        time.sleep(0.5)
    while True:  # more than once: a launcher's own handler may swallow it until training begins
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)


def _name(process: int) -> str:
    """The name of a process; empty where the system does not tell it."""
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return ""


def _tasks_per_node(text: str) -> list[int]:
    """Slurm's `2(x3),1` as [2, 2, 2, 1]."""
    return [int(tasks) for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text) for _ in range(int(times or 1))]


def _read(env: Mapping[str, str], rank: str, local_rank: str, world_size: str, local_world_size: str = "") -> Processes:
    found = Processes(_whole_number(env, rank, 0), _whole_number(env, local_rank, 0), _whole_number(env, world_size, 1),
                      _whole_number(env, local_world_size, 1))
    if found.rank >= found.world_size:
        raise InputError(f"the environment says {rank}={found.rank} and {world_size}={found.world_size}: a launcher "
                         "sets both; remove them, or start with torchrun, mpirun or srun.")
    return found


def _whole_number(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name, str(default))
    if not text.isdecimal():
        raise InputError(f"the environment says {name}={text}, which is no number of a process: remove it, or start "
                         "with torchrun, mpirun or srun.")
    return int(text)


def warn(processes: Processes, text: str) -> None:
    """A warning, said once for all processes."""
    if processes.is_main:
        print(f"main.py: warning: {text}", file=sys.stderr)
