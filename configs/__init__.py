"""Experiments: one file each, which holds its differences from `configs/base.py` and a docstring.

The docstring's first line is what `main.py --list` prints; the rest is the command and the expected result.
A new experiment is a new file here with `DEFAULTS = {...}`; nothing else has to know of it.
"""

import importlib
import pkgutil
from dataclasses import dataclass
from typing import Any

NOT_EXPERIMENTS = {"base", "checks", "command", "importing", "launcher", "option", "predicting", "report",
                   "reproducing"}
DEFAULT_EXPERIMENT = "cifar100_l2p"


@dataclass(frozen=True)
class Experiment:
    name: str
    summary: str
    defaults: dict[str, Any]


def experiment_names() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in NOT_EXPERIMENTS)


def load_experiment(name: str) -> Experiment:
    """The experiment called `name`, which must be one of `experiment_names()`."""
    module = importlib.import_module(f"{__name__}.{name}")
    return Experiment(name, module.__doc__.strip().splitlines()[0].rstrip("."), dict(module.DEFAULTS))
