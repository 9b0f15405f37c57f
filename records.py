"""What a run records of itself: enough to make it again, and to know what its numbers mean."""

import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy
import timm
import torch
import torchvision

from continual_datasets import Scenario
from models import PromptedViT, backbone_fingerprint, resolve_model_name
from utils import Processes, shown


def describe_run(experiment: str, options: dict[str, Any], model: PromptedViT, scenario: Scenario,
                 processes: Processes, device: torch.device, precision: str) -> dict[str, Any]:
    """The content of config.json. `precision`: what `auto` came to."""
    counts = [sum(p.numel() for p in group) for group in (
        model.parameters(), (p for _, p in model.trained_parameters()))]
    return {
        "experiment": experiment, "options": options,
        "protocol": protocol(model, options["batch_size"], scenario),
        "model": {"name": resolve_model_name(options["model"])[0], "parameters": counts[0],
                  "trainable_parameters": counts[1], "backbone_sha256": backbone_fingerprint(model.backbone)},
        "class_names": list(scenario.class_names), "tasks": describe_tasks(scenario),
        "data_sha256": scenario.fingerprint, "turn_photos": scenario.turn_photos,
        "world_size": processes.world_size, "device": str(device),
        "precision": precision, **environment_record(device),
    }


def describe_tasks(scenario: Scenario) -> dict[str, Any]:
    """What one has to know of the tasks to use a checkpoint without the data.

    `first_with_class`: for each class the first task (from 1) that has it; None where no task has.
    """
    first = [None] * scenario.num_classes
    for task in reversed(scenario.tasks):
        for label in task.classes:
            first[label] = task.index + 1
    return {"unit": scenario.setting.unit, "count": len(scenario.tasks),
            "known_in_training": scenario.setting.known_in_training, "first_with_class": first}


def protocol(model: PromptedViT, batch_size: int, scenario: Scenario) -> str:
    """How prompts are chosen in the test, and which classes compete: numbers of different protocols do not compare."""
    together = min(batch_size, max(len(task.test) for task in scenario.tested))  # no batch has more of one test set
    return f"{model.prompt.describe_choice(together)}, {scenario.setting.name}"


FEW_IMAGES = 100
"""With fewer in a test set, one image is more than a point of accuracy."""


def opening_lines(config: dict[str, Any], scenario: Scenario, notes: Iterable[str | None] = (),
                  lr: float | None = None) -> list[str]:
    """What is printed at the start.

    Args:
        notes: further lines: what the head has to say of itself.
        lr: the learning rate as it is used; None where nothing learns by gradient.
    """
    model, options = config["model"], config["options"]
    replayed = scenario.replay_size
    return [
        f"{config['experiment']}: {model['name']}, {model['trainable_parameters']:,} of {model['parameters']:,} values "
        f"train; {len(scenario.tasks)} {scenario.setting.unit}s, {scenario.num_classes} classes, "
        f"{scenario.num_images('train')} training and {scenario.num_images('test')} test images; "
        f"{shown(config['protocol'])}"
        + (f"; replay of up to {replayed[0]} images, {replayed[1] / 1e6:.2f} MB" if replayed[0] else ""),
        f"seed {options['seed']}, {config['world_size']} process(es) on {config['device']}, "
        f"{config['precision']}{', compiled' if options['compile'] else ''}, "
        f"{options['num_workers']} batches ahead, pinned memory "
        f"{'on' if options['pin_mem'] and config['device'] != 'cpu' else 'off'}, "
        + (f"writing {options['output_dir']}" if options["output_dir"] else "nothing is written"),
        *([] if lr is None else [
            f"learning rate {options['lr']:g} given for 256 images in a step, {lr:g} used for those of this run"]),
        *_few_images(scenario),
        f"weights of the ViT: {_weights(options)}",
        _class_line(scenario.class_names),
    ] + [note for note in notes if note]


def _few_images(scenario: Scenario) -> list[str]:
    fewest = min((len(task.test) for task in scenario.tested), default=FEW_IMAGES)
    if fewest >= FEW_IMAGES:
        return []
    return [f"the smallest test set has {fewest} image(s): one of them is {100 / fewest:.1f} points of its Acc@1, so "
            "small differences mean nothing"]


def _weights(options: dict[str, Any]) -> str:
    if options["init_checkpoint"]:
        return f"from {options['init_checkpoint']}"
    return "pretrained, as its name says" if options["pretrained"] else "random, nothing was pretrained"


def _class_line(names: tuple[str, ...], shown: int = 10) -> str:
    """Read by who starts a run: a folder that was taken for a class is seen here."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"classes: {', '.join(map(printable, names[:shown]))}{more}"


def printable(name: str) -> str:
    """A name of a file or a folder, which may hold what a terminal cannot print."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return (name if name.isprintable() else ascii(name)[1:-1]).encode(encoding, "backslashreplace").decode(encoding)


def environment_record(device: torch.device) -> dict[str, Any]:
    """Versions, source commit, command line and hardware of this process."""
    libraries = {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__,
                 "torchvision": torchvision.__version__, "numpy": numpy.__version__}
    return {"command": sys.argv, "commit": source_commit(), "versions": libraries,
            "hardware": {"device": hardware_name(device), "threads": torch.get_num_threads()}}


def source_commit() -> str | None:
    """The commit of this program's source, with `+changes` when files differ from it; None outside a git checkout."""
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True,
                              check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def hardware_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def without_folders(config: dict[str, Any]) -> dict[str, Any]:
    """The same with every path cut down to its last part: for records that leave the machine they were made on."""
    def name(value: Any) -> Any:
        return Path(value).name if isinstance(value, str) and "/" in value and not value.endswith("://") else value

    return config | {"options": {key: name(value) for key, value in config["options"].items()},
                     "command": [name(word) for word in config["command"]]}
