"""Which of the run's processes this one is, as the program that started it says in the environment.

Nothing here needs torch, so that the question can be answered before anything slow is loaded.
"""

import os
import re
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace

from errors import InputError


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
    """What torchrun, torch.distributed.launch, submitit's local executor or srun say; one process without them.

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


def speaks_for_its_machine() -> bool:
    """Whether this process should print an error that every process on its machine has."""
    try:
        return processes_from_environment().local_rank == 0
    except InputError:
        return True


def slurm_meeting_place(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """MASTER_ADDR and MASTER_PORT on which all processes of a Slurm job step agree; empty outside of one.

    The address is that of the step's first node, where process 0 is; the port follows from the job's and the step's
    number and lies below those that systems hand out by themselves.
    """
    nodes = env.get("SLURM_STEP_NODELIST", env.get("SLURM_JOB_NODELIST", ""))
    if "SLURM_STEP_ID" not in env or not nodes:
        return {}
    job, step = _whole_number(env, "SLURM_JOB_ID", 0), _whole_number(env, "SLURM_STEP_ID", 0)
    return {"MASTER_ADDR": _address(first_host(nodes)), "MASTER_PORT": str(10_000 + (17 * job + step) % 20_000)}


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


def _tasks_per_node(text: str) -> list[int]:
    """Slurm's `2(x3),1` as [2, 2, 2, 1]."""
    return [int(tasks) for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text) for _ in range(int(times or 1))]


def _read(env: Mapping[str, str], rank: str, local_rank: str, world_size: str, local_world_size: str = "") -> Processes:
    found = Processes(_whole_number(env, rank, 0), _whole_number(env, local_rank, 0), _whole_number(env, world_size, 1),
                      _whole_number(env, local_world_size, 1))
    if found.rank >= found.world_size:
        raise InputError(f"the environment says {rank}={found.rank} and {world_size}={found.world_size}: a launcher "
                         "sets both; remove them, or start with torchrun or srun.")
    return found


def _whole_number(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name, str(default))
    if not text.isdecimal():
        raise InputError(f"the environment says {name}={text}, which is no number of a process: remove it, or start "
                         "with torchrun or srun.")
    return int(text)
