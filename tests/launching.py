"""How tests start the program as a person, or a launcher, would."""

import json
import os
import subprocess
from pathlib import Path

from fixtures import ROOT, TINY

LAUNCHERS_VARIABLES = ("SLURM", "SUBMITIT", "MASTER_", "RANK", "LOCAL_", "WORLD_SIZE", "TORCHELASTIC", "OMPI_", "PMI",
                       "MPI_", "MV2_")


def tiny(data: Path, *words: object) -> list[str]:
    return [str(word) for word in ("cifar100_l2p", *TINY, "--data-path", data, "--num-tasks", 2, *words)]


def environment(**more: str) -> dict[str, str]:
    """This one, as a person's shell has it: started by none of the launchers."""
    return {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS_VARIABLES)} | more


def run(*words: object, cwd: Path = ROOT, **more: str) -> subprocess.CompletedProcess:
    return subprocess.run([str(word) for word in words], cwd=cwd, env=environment(**more), capture_output=True,
                          text=True, timeout=200)


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())
