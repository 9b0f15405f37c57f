"""A run's folder in, a model that can be asked out: of images alone, without the data it was trained on.

Shapes: B images, S the side of the model's input, K classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import run_folder
import saved_files
from build import build_eval_transform, choose_device, choose_precision, device_warning
from configs import load_experiment
from configs.command import default_options
from continual_datasets.large_images import in_rgb, read_picture
from continual_datasets.transforms import EvalTransform
from distributed import Processes
from errors import InputError
from kinds import ListOf, OrNone, Whole
from models import PromptedViT, backbone_fingerprint, build_model, resolve_model_name
from utils import random_seed

SHOWN = 5


@dataclass(frozen=True)
class PictureTransform:
    """A picture, or the path of one, to the model's input: float32 [3, S, S], cut as for a test."""

    of_pixels: EvalTransform
    turned: bool
    """Stand photos upright, as their EXIF says."""

    def __call__(self, picture: Image.Image | str | Path) -> Tensor:
        """Raises InputError for a file that is no image."""
        if isinstance(picture, Image.Image):
            picture = in_rgb(picture, self.turned)
        else:
            picture = read_picture(str(picture), self.turned)
        return self.of_pixels.normalised(self.of_pixels.of_picture(picture)[None].float())[0]


@dataclass(frozen=True)
class Prediction:
    """What is said of one image."""

    classes: tuple[str, ...]
    """The most probable first: five, or as many as the run had seen."""
    probabilities: tuple[float, ...]
    """Of the same: the softmax of the head's logits over all classes seen."""
    prompts: tuple[int, ...] | None
    """Their numbers in the pool, from 0; None where nothing is chosen."""


@dataclass(frozen=True)
class LoadedRun:
    """A model as it was after a task. `model, transform, class_names = load_run(…)` takes it apart."""

    model: PromptedViT
    """In eval mode, float32, on the device."""
    transform: PictureTransform
    class_names: tuple[str, ...]
    seen_K: Tensor
    """bool, on the device: the classes that training had met. The others do not compete."""
    task: int
    """From 1."""
    unit: str
    """What that is a number of: task, session or episode."""
    count: int
    """How many of these the run has, or will have."""
    options: dict[str, Any] = field(repr=False)
    """main.py's."""

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.transform, self.class_names))

    @property
    def device(self) -> torch.device:
        return self.seen_K.device

    @property
    def warning(self) -> str | None:
        """What to know of the device that it is on; often nothing."""
        return device_warning(self.device)

    @torch.no_grad()
    def predict(self, images_BCHW: Tensor, number: int = 0) -> list[Prediction]:
        """One answer for each image; each chooses its prompts alone, so an answer depends on no other image.

        Args:
            images_BCHW: as `transform` makes them, on any device.
            number: of the batch; it matters to prompts that are drawn (`--prompt_choice random`) and nothing else.
        """
        images_BCHW = images_BCHW.to(self.device)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(random_seed(self.options["seed"], "predict", number))
            output = self.model(images_BCHW, per_image=True)
        logits_BK = output.logits_BK.masked_fill(~self.seen_K, float("-inf"))
        shown = min(SHOWN, int(self.seen_K.sum()))
        values, classes = logits_BK.softmax(1).topk(shown)
        prompts = [None] * len(images_BCHW) if output.selected_BN is None else output.selected_BN.tolist()
        return [Prediction(tuple(self.class_names[k] for k in best), tuple(probabilities), chosen and tuple(chosen))
                for best, probabilities, chosen in zip(classes.tolist(), values.tolist(), prompts, strict=True)]


def load_run(folder: str | Path, task: int | None = None, device: str = "cpu",
             init_checkpoint: str | None = None) -> LoadedRun:
    """The model of the run in `folder`.

    Args:
        task: the state after this task (session, episode), from 1; None: the last that was saved.
        device: auto, cpu, cuda, cuda:N or mps.
        init_checkpoint: the backbone's weights, where they no longer lie where the run found them.

    Raises:
        InputError: no run, no such state, or other backbone weights than those that the run was trained on.
    """
    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise InputError(f"{folder} holds no run: there is no {folder / 'config.json'}; give the --output_dir of a run "
                         "of main.py.")
    config = run_folder.read_config(str(folder))
    options = default_options(load_experiment(config["experiment"])) | config["options"]
    if init_checkpoint is not None:
        options["init_checkpoint"] = init_checkpoint
    if "class_names" not in config:
        raise InputError(f"{folder}/config.json does not name the classes, as the first versions of this program did "
                         "not: the run has to be made anew.")
    chosen_device = choose_device(device, Processes())
    choose_precision("fp32", chosen_device)  # torch by itself lets a GPU embed patches in TF32
    number, name = _checkpoint(folder, task)
    tasks = _tasks(config, folder, number)

    with torch.random.fork_rng([]):  # random weights are drawn from torch's global generator
        model = build_model(options, len(config["class_names"]), tasks["count"] if tasks["known_in_training"] else None)
    ours = {"name": resolve_model_name(options["model"])[0], "backbone_sha256": backbone_fingerprint(model.backbone)}
    checkpoints = run_folder.Checkpoints(folder, {number - 1: name}, {"model": ours}, model.learned_state())
    model.load_learned_state(checkpoints.of_task(number - 1)["model"])
    model.to(chosen_device).eval()
    seen = [first is not None and first <= number for first in tasks["first_with_class"]]
    return LoadedRun(model, PictureTransform(build_eval_transform(options, model), config.get("turn_photos", False)),
                     tuple(config["class_names"]), torch.tensor(seen, device=chosen_device), number, tasks["unit"],
                     tasks["count"], options)


def _checkpoint(folder: Path, task: int | None) -> tuple[int, str]:
    """The number of the task that is asked for, and what its checkpoint is called."""
    there = run_folder.checkpoint_paths(folder)
    if not there:
        raise InputError(f"{folder / 'checkpoint'} holds no state after a task: finish one with main.py --resume.")
    number = max(there) if task is None else task
    if number not in there:
        known = ", ".join(map(str, sorted(there)))
        raise InputError(f"--task {task}: {folder / 'checkpoint'} has the states after {known} alone; give one.")
    return number, there[number].stem


def _tasks(config: dict[str, Any], folder: Path, number: int) -> dict[str, Any]:
    """`records.describe_tasks` as the run wrote it down; of an older run, which did not, what follows from its end."""
    if "tasks" in config:
        saved_files.check(config["tasks"]["first_with_class"], ListOf(OrNone(Whole(1)), len(config["class_names"])),
                          folder / "config.json", "tasks.first_with_class")
        return config["tasks"]
    last = max(run_folder.checkpoint_paths(folder))
    if number < last:
        raise InputError(f"--task {number}: {folder}/config.json is of an older version and does not say which classes "
                         "each task has: leave --task out, or make the run anew.")
    options = config["options"]
    unit = run_folder.checkpoint_paths(folder)[last].stem.rstrip("0123456789")
    return {"unit": unit, "count": last, "first_with_class": [1] * len(config["class_names"]),
            "known_in_training": options.get("schedule", "tasks") == "tasks" and not options.get("joint", False)}
