"""The options of `run_with_submitit.py`: where and how a job runs. What it computes stays with `configs/base.py`."""

from dataclasses import dataclass
from typing import Any

from configs.base import GROUPS
from configs.checks import check_places
from configs.command import Command, parse, split_off
from configs.option import Option, boolean, integer, number, or_none, path, word
from errors import InputError

PROGRAM = "run_with_submitit.py"


def folder(text: str) -> str:
    return path(word(text))


_o = Option
LAUNCHER_GROUPS: dict[str, list[Option]] = {
    "the job": [
        _o("cluster", str, "slurm", "slurm; local: processes on this machine; debug: in this very process",
           ("slurm", "local", "debug")),
        _o("shared_folder", or_none(folder), None,
           "a folder that every node sees: processes meet and jobs write there"),
        _o("job_dir", or_none(folder), None, "folder of the job's logs, and of its output without --output_dir; %j "
           "stands for the job's number (none: SHARED_FOLDER/%j)"),
        _o("nodes", integer(1, 10_000), 1, "machines"),
        _o("gpus_per_node", or_none(integer(0, 1_000)), None,
           "GPUs, and processes, on each machine; 0: CPU only; none: 1, or 0 when the machine is this one and has "
           "no GPU"),
        _o("tasks_per_node", or_none(integer(1, 1_000)), None,
           "processes on each machine: one for each GPU, or without GPUs as many as you say here, else one"),
        _o("cpus_per_task", integer(1, 10_000), 4, "CPU cores of each process"),
        _o("mem_gb", or_none(number(0.001, 1e6)), None, "memory on each machine, GiB; none: what Slurm gives"),
        _o("timeout", integer(1, 10_000_000), 1440, "minutes after which the job is requeued and continues"),
        _o("partition", or_none(word), None, "Slurm partition"),
        _o("nodelist", or_none(word), None, "the machines to use, as Slurm writes them"),
        _o("use_volta32", boolean, False, "ask for GPUs with the feature volta32gb"),
        _o("comment", or_none(word), None, "comment for Slurm"),
        _o("job_name", word, "l2p", "name of the job"),
    ],
}
SLURM_ONLY = ("nodelist", "partition", "comment", "use_volta32", "mem_gb")


@dataclass(frozen=True)
class Submission:
    """A command line of the launcher, read and checked."""

    launcher: dict[str, Any]
    words: list[str]
    """What is left for main.py."""
    command: Command
    """The same, read."""
    gpus_per_node: int
    tasks_per_node: int
    warnings: list[str]


def read_submission(argv: list[str]) -> Submission:
    """Read a command line of the launcher.

    Raises:
        InputError: what `parse` refuses, or a contradiction: among the launcher's options, or with main.py's.
    """
    o, words = split_off(argv, LAUNCHER_GROUPS, PROGRAM)
    command = parse(words, launcher=list(o))
    warnings = [f"--{name} means nothing to --cluster {o['cluster']}." for name in SLURM_ONLY
                if o["cluster"] != "slurm" and o[name]]
    gpus = _gpus_per_node(o)
    tasks = o["tasks_per_node"] or max(1, gpus)
    _check_job(o, gpus, tasks)
    _check_run(command, gpus, o["nodes"] * tasks)
    check_places(command.options)
    return Submission(o, words, command, gpus, tasks, warnings + command.warnings)


def _gpus_per_node(o: dict[str, Any]) -> int:
    if o["gpus_per_node"] is not None:
        return o["gpus_per_node"]
    if o["cluster"] == "slurm" or o["use_volta32"]:
        return 1
    import torch  # late: it is slow to load, and this is the only question for it

    return min(1, torch.cuda.device_count())


def _check_job(o: dict[str, Any], gpus: int, tasks: int) -> None:
    """Refuse launcher options that contradict each other."""
    if o["shared_folder"] is None:
        raise InputError("--shared_folder is missing: name a folder that every node sees.")
    if gpus and tasks != gpus:
        raise InputError(f"--tasks_per_node {tasks}, but the job asks for {gpus} GPU(s) on each node: each GPU has one "
                         "process, so leave --tasks_per_node out, or use --gpus_per_node 0.")
    if o["use_volta32"] and not gpus:
        raise InputError("--use_volta32 asks for a kind of GPU, but --gpus_per_node 0 for none: leave one of them out.")
    if o["cluster"] != "slurm" and o["nodes"] > 1:
        raise InputError(f"--nodes {o['nodes']}, but --cluster {o['cluster']} is this machine: use --nodes 1, or "
                         "--cluster slurm.")
    if o["cluster"] == "debug" and tasks > 1:
        raise InputError(f"--cluster debug runs in one process, not in {tasks}: use --gpus_per_node 1 or 0, or "
                         "--cluster local.")


def _check_run(command: Command, gpus: int, world_size: int) -> None:
    """Refuse options of main.py that cannot be meant for this job."""
    options, given = command.options, command.given
    if options["overwrite"]:
        raise InputError("--overwrite would also remove the job's own progress whenever it is requeued: name another "
                         "--output_dir, or remove the run first.")
    if given.get("resume") is False:
        raise InputError("--resume false: a job always continues what it began; leave the option out.")
    if options["eval"] and "output_dir" not in given:
        raise InputError("--eval needs the run that it evaluates: give its --output_dir.")
    if given.get("output_dir") == "":
        raise InputError("--output_dir '' saves nothing, so a requeued job could not continue: name a folder, or leave "
                         "it out for the job's own.")
    if options["world_size"] not in (None, world_size):
        raise InputError(f"--world_size {options['world_size']}, but the job has {world_size} process(es): leave "
                         "--world_size out, or change --nodes, --gpus_per_node or --tasks_per_node.")
    if options["device"].startswith("cuda") and not gpus:
        raise InputError(f"--device {options['device']}, but --gpus_per_node 0: ask for GPUs, or leave --device out.")
    if options["device"] == "cpu" and gpus:
        raise InputError(f"--device cpu, but the job asks for {gpus} GPU(s) on each node: add --gpus_per_node 0.")


def help_groups() -> dict[str, list[Option]]:
    return LAUNCHER_GROUPS | GROUPS
