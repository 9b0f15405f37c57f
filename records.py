"""What a run records of itself: enough to make it again, and to know what its numbers mean."""

import hashlib
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import timm
import torch
import torchvision

from continual_datasets import Scenario
from models import PromptedViT, backbone_fingerprint, resolve_model_name
from utils import Processes


def describe_run(experiment: str, options: dict[str, Any], model: PromptedViT, scenario: Scenario,
                 processes: Processes, device: torch.device, precision: str) -> dict[str, Any]:
    """The content of config.json. `precision`: what `auto` came to."""
    counts = [sum(p.numel() for p in group) for group in (
        model.parameters(), (p for _, p in model.trained_parameters()))]
    return {
        "experiment": experiment, "options": options, "protocol": protocol(options),
        "model": {"name": resolve_model_name(options["model"])[0], "parameters": counts[0],
                  "trainable_parameters": counts[1], "backbone_sha256": backbone_fingerprint(model.backbone)},
        "data_sha256": data_fingerprint(scenario), "world_size": processes.world_size, "device": str(device),
        "precision": precision, **environment_record(device),
    }


def data_fingerprint(scenario: Scenario) -> str:
    """sha256 over the images and labels of all tasks, in their order."""
    parts = [f"{task.classes} {task.train.fingerprint} {task.test.fingerprint}" for task in scenario.tasks]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def protocol(options: dict[str, Any]) -> str:
    """How prompts are chosen in the test, and which classes compete: numbers of different protocols do not compare."""
    if options["prompt_method"] == "none" or not options["prompt_pool"]:
        how = "nothing to choose"
    else:
        how = f"batch vote over {options['batch_size']}" if options["batchwise_prompt"] else "prompts chosen per image"
    return f"{how}, {'task' if options['task_inc'] else 'class'}-incremental"


def opening_lines(config: dict[str, Any], scenario: Scenario) -> list[str]:
    model, options = config["model"], config["options"]
    images = [sum(len(getattr(task, part)) for task in scenario.tasks) for part in ("train", "test")]
    return [
        f"{config['experiment']}: {model['name']}, {model['trainable_parameters']:,} of {model['parameters']:,} values "
        f"train; {len(scenario.tasks)} tasks, {scenario.num_classes} classes, {images[0]} training and {images[1]} "
        f"test images; {config['protocol']}",
        f"seed {options['seed']}, {config['world_size']} process(es) on {config['device']}, "
        f"{config['precision']}{', compiled' if options['compile'] else ''}, "
        f"{options['num_workers']} batches ahead, pinned memory "
        f"{'on' if options['pin_mem'] and config['device'] != 'cpu' else 'off'}, "
        + (f"writing {options['output_dir']}" if options["output_dir"] else "nothing is written"),
    ]


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
