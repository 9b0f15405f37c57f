"""Options in, objects out: the parts that main.py puts together."""

import copy
import difflib
import math
import time
from collections.abc import Collection, Iterable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.scheduler import create_scheduler
from timm.scheduler.scheduler import Scheduler

from continual_datasets import Batches, GaussianSchedule, Scenario, build_scenario
from continual_datasets.readers import reads_nothing
from continual_datasets.transforms import EvalTransform, TrainTransform
from distributed import Processes, processes_from_environment
from errors import InputError
from models import PromptedViT, model_normalisation, resolve_model_name, untaken_options
from models.trunk import is_plain, run_block
from training import Recipe, load_training_state, training_state
from utils import keep_freed_memory


def choose_device(name: str, processes: Processes) -> torch.device:
    """The torch device of this process, made ready for it. Raises InputError for a device that is not there."""
    if name == "auto":
        alone = processes.world_size == 1
        name = "cuda" if torch.cuda.is_available() else "mps" if alone and torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name}: there is no such device; use auto, cpu, cuda, cuda:N or mps.") from error
    if device.type == "cuda":
        # The same answer in every process of this machine, so that the one that speaks knows of it.
        here, count = processes.local_world_size, torch.cuda.device_count()
        sharing, own = (1, 0) if processes.own_gpu else (here, processes.local_rank)
        needed = sharing if device.index is None else device.index + 1
        if needed > count:
            raise InputError(f"--device {name} needs {needed} GPU(s) for {here} process(es) and torch sees {count}; "
                             "use --device cpu, or fewer processes.")
        if device.index is not None and sharing > 1:
            raise InputError(f"--device {name} would put {here} processes on one GPU: use --device cuda.")
        device = torch.device("cuda", own if device.index is None else device.index)
        torch.cuda.set_device(device)
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise InputError(f"--device {name}: torch finds no GPU of Apple's here; use --device cpu.")
        if processes.world_size > 1:
            raise InputError(f"--device {name} serves one process, not {processes.world_size}; use --device cpu.")
    elif device.type == "cpu":
        keep_freed_memory()
    else:
        raise InputError(f"--device {name}: use auto, cpu, cuda, cuda:N or mps.")
    return device


def device_warning(device: torch.device) -> str | None:
    return f"--device {device.type} was never run by those who wrote this program: compare a short run with one of " \
           "--device cpu." if device.type == "mps" else None


def choose_precision(name: str, device: torch.device) -> str:
    """`fp32`, `tf32` or `bf16`, set for this process. Raises InputError for one that the device has not."""
    on_gpu = device.type == "cuda"
    has_bf16 = not on_gpu or torch.cuda.get_device_capability(device) >= (8, 0)
    if name == "auto":
        name = "bf16" if on_gpu and has_bf16 else "fp32"
    if name == "tf32" and not on_gpu:
        raise InputError("--precision tf32 is a mode of NVIDIA GPUs: use fp32 or bf16 on the CPU.")
    if name == "bf16" and not has_bf16:
        raise InputError(f"--precision bf16: {torch.cuda.get_device_name(device)} has no bfloat16; use fp32.")
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = name == "tf32"
    return name


def precision_note(precision: str, model: PromptedViT, device: torch.device, batch_size: int) -> str | None:
    """What the user of a CPU should know of bfloat16 here, measured with a block of the ViT; None: nothing."""
    if device.type != "cpu":
        return None
    instructions = BFLOAT16_INSTRUCTIONS & cpu_flags()
    if precision == "fp32" and not instructions:
        return None
    tokens = 500 if instructions else 50  # without them 500 would take a ViT-B half a minute
    times = seconds_of_block(model, batch_size, tokens, torch.float32) / seconds_of_block(
        model, batch_size, tokens, torch.bfloat16)
    if precision == "fp32" and times >= CLEARLY:
        return (f"this CPU computes in bfloat16 ({', '.join(sorted(instructions))}): a block of this ViT is "
                f"{times:.1f} times as fast with --precision bf16")
    if precision == "bf16" and times <= 1 / CLEARLY:
        why = "" if instructions else "this CPU has no instructions for bfloat16: "
        return f"--precision bf16: {why}a block of this ViT takes {1 / times:.1f} times as long as with fp32"
    return None


def position_note(model: PromptedViT, batches: Batches, scenario: Scenario) -> str | None:
    """A warning where prompts with the cls token's position embedding make the frozen ViT blind before any training.

    That embedding is trained as one sum with the cls token, so both point the same way, and a prompt that has it looks
    to the ViT like another cls token. What that costs depends on the ViT: see docs/results.md.
    """
    if model.prompt_pos_embed == "none" or 0 not in model.prompt.layers or model.backbone_trains:
        return None
    with closing(batches.training(scenario.tasks[0].train, 0, 0, augment=False)) as steps:
        images_BCHW = next(steps).images_BCHW[:4]
    with torch.random.fork_rng(devices=[images_BCHW.device] if images_BCHW.is_cuda else []):
        with_position, without = (model.likeness_behind_prompts(images_BCHW, position) for position in ("cls", "none"))
    if with_position >= BLIND or without < with_position + BLIND / 2:
        return None
    return ("warning: prompts with the cls token's position embedding change what this ViT makes of an image: the "
            f"cosine of its cls output with and without prompts is {with_position:.2f}, and {without:.2f} without that "
            "embedding. Compare with --prompt_pos_embed none, as in cifar100_l2p_nopos.")


BLIND = 0.5
"""A cosine below which little is left: DeiT-Tiny has 0.12 and sees little, the demo's ViT 0.73 and sees as before."""

BFLOAT16_INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "bf16"}  # of x86, and of ARM
CLEARLY = 1.3  # times as fast: less than that may be chance


def cpu_flags() -> set[str]:
    """The instructions that the processor has, as Linux calls them; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split(":")[1].split()}


def seconds_of_block(model: PromptedViT, batch_size: int, most_tokens: int, dtype: torch.dtype) -> float:
    """One way forth and back through a block of the ViT, with part of a batch: the least of a few tries."""
    block = copy.deepcopy(model.backbone.blocks[0]).to(dtype).eval().requires_grad_(False)
    tokens = min(model.backbone.patch_embed.num_patches + 1, most_tokens)
    images = max(1, min(batch_size, most_tokens // tokens))
    found, until = [], time.perf_counter() + 0.5
    while not found or (len(found) < 3 and time.perf_counter() < until):
        x_BND = torch.ones(images, tokens, model.backbone.embed_dim, dtype=dtype, requires_grad=True)
        started = time.perf_counter()
        (run_block(block, x_BND, 0, tokens) if is_plain(block) else block(x_BND)).sum().backward()  # as in `run_trunk`
        found.append(time.perf_counter() - started)
    return min(found)


def read_scenario(options: dict[str, Any], turn_photos: bool = True) -> Scenario:
    return build_scenario(
        options["dataset"], options["data_path"], num_tasks=options["num_tasks"],
        download=options["download"], shuffle=options["shuffle"], seed=options["seed"], subsample=options["subsample"],
        subsample_test=options["subsample_test"], classes_per_task=options["classes_per_task"],
        class_order=options["class_order"], schedule=build_schedule(options), task_inc=options["task_inc"],
        replay_per_class=options["replay_per_class"], all_at_once=options["joint"], turn_photos=turn_photos)


def model_warnings(options: dict[str, Any], given: Collection[str], model: PromptedViT,
                   prompt_methods: Iterable[str]) -> list[str]:
    """Of options that the model does not read, and of features that mean nothing.

    Args:
        given: names of the options that the command line has.
        prompt_methods: the names of all of them.
    """
    found = []
    untaken = untaken_options(options, given, prompt_methods)
    untaken += ["embedding_key"] * ("embedding_key" in given and not model.prompt.needs_query)
    untaken += ["prompt_pos_embed"] * ("prompt_pos_embed" in given and not model.prompt.num_tokens)
    if untaken:
        chosen = f"--prompt_method {options['prompt_method']}"
        if options["prompt_method"] == "l2p" and not options["prompt_pool"]:
            chosen = "--no-prompt_pool"
        elif options["prompt_method"] == "l2p" and untaken == ["embedding_key"]:
            chosen = f"--prompt_choice {options['prompt_choice']}"
        found.append(f"{', '.join(f'--{name}' for name in untaken)}: without effect with {chosen}.")
    frozen = not any(name.startswith("backbone.") for name, _ in model.trained_parameters())
    random = not options["pretrained"] and not options["init_checkpoint"]
    # A model of which timm has no weights to begin from, as the demo's, is meant so.
    if frozen and random and timm.is_model_pretrained(resolve_model_name(options["model"])[0]):
        found.append("--no-pretrained: the ViT's weights are random and stay so, so its features tell little of an "
                     "image; leave it out, or give weights with --init_checkpoint.")
    return found


def scenario_warnings(options: dict[str, Any], given: Collection[str], scenario: Scenario) -> list[str]:
    """Of what is allowed and hardly meant. `given`: names of the options that the command line has."""
    found = []
    if "data_path" in given and reads_nothing(options["dataset"]):
        found.append(f"--data_path: without effect with --dataset {options['dataset']}, whose images are drawn and not "
                     "read.")
    return found + _of_absent_classes(scenario) + _of_classes_alone(options, scenario)


def _of_absent_classes(scenario: Scenario) -> list[str]:
    warnings = []
    for part, what, so in (("train", "training", "it cannot be learned"),
                           ("test", "test", "no accuracy counts it, as if it were not there")):
        there = {int(label) for task in scenario.tested for label in np.unique(getattr(task, part).labels_N)}
        absent = [name for number, name in enumerate(scenario.class_names) if number not in there]
        if absent:
            which = ", ".join(absent[:5] + ["…"] * (len(absent) > 5))
            warnings.append(f"no {what} image of {len(absent)} class(es), {which}: {so}.")
    return warnings


def _of_classes_alone(options: dict[str, Any], scenario: Scenario) -> list[str]:
    alone = [task.index + 1 for task in scenario.tasks if len(task.classes) == 1]
    if not (alone and options["train_mask"] and options["head"] == "linear" and scenario.setting.known_in_training):
        return []
    which = ", ".join(map(str, alone[:5] + ["…"] * (len(alone) > 5)))
    return [f"{scenario.setting.unit} {which}: with one class alone under --train_mask the loss is 0 and the head "
            "learns nothing; use --no-train_mask, or larger tasks (--classes_per_task)."]


def build_schedule(options: dict[str, Any]) -> GaussianSchedule | None:
    if options["schedule"] == "tasks":
        return None
    return GaussianSchedule(options["gaussian_episodes"], options["gaussian_steps"], options["gaussian_width"],
                            options["gaussian_eval_every"])


def build_eval_transform(options: dict[str, Any], model: PromptedViT | None) -> EvalTransform:
    """`model` is asked for what its weights were trained with, by `--input_norm model` alone."""
    mean = std = None
    if options["input_norm"] == "imagenet":
        mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    elif options["input_norm"] == "model":
        mean, std = model_normalisation(model.backbone)
    return EvalTransform(options["input_size"], mean, std, options["crop_pct"])


def build_batches(options: dict[str, Any], model: PromptedViT | None, device: torch.device,
                  processes: Processes) -> Batches:
    eval_transform = build_eval_transform(options, model)
    return Batches(
        TrainTransform(options["input_size"], tuple(options["scale"]), tuple(options["ratio"]), options["hflip"],
                       eval_transform.mean, eval_transform.std),
        eval_transform, batch_size=options["batch_size"], seed=options["seed"],
        device=device, rank=processes.rank, world_size=processes.world_size, prefetch=options["num_workers"],
        pin_memory=options["pin_mem"])


class QuarterCosine(Scheduler):
    """CODA-Prompt's schedule, and OVOR's: lr · cos(99π·(e-1)/(200·(E-1))) in epoch e of E, counted from 0.

    Their code has the first rate in the second epoch, too, and never comes to the last one, of 1.6 %.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, epochs: int):
        super().__init__(optimizer, param_group_field="lr", initialize=True)
        self.epochs = epochs

    def _get_lr(self, t: int) -> list[float]:
        factor = math.cos(99 * math.pi * max(t - 1, 0) / (200 * max(self.epochs - 1, 1)))
        return [value * factor for value in self.base_values]


def build_recipe(options: dict[str, Any]) -> Recipe:
    o = options
    batch = o["batch_size"] * (1 if o["unscale_lr"] else processes_from_environment().world_size)
    lr = o["lr"] * batch / 256

    def make_optimizer(named_parameters):
        matrices, vectors = [], []
        for _, parameter in named_parameters:
            (matrices if parameter.ndim > 1 else vectors).append(parameter)
        groups = [{"params": matrices, "weight_decay": o["weight_decay"]}, {"params": vectors, "weight_decay": 0.0}]
        about = get_optimizer_info(o["opt"])
        # A few optimizers take three betas: those keep their own.
        more = {"betas": tuple(o["opt_betas"])} if about.num_betas == 2 else {}
        if about.opt_class in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD):
            more["fused"] = True  # one kernel for all parameters instead of a dozen each
        return create_optimizer_v2([g for g in groups if g["params"]], opt=o["opt"], lr=lr, momentum=o["momentum"],
                                   weight_decay=o["weight_decay"], eps=o["opt_eps"], **more)

    def make_schedule(optimizer, epochs):
        if o["sched"] == "constant":  # timm's own "constant" warms up; the reference's leaves the rate alone
            return None
        if o["sched"] == "quarter_cosine":
            return QuarterCosine(optimizer, epochs)
        schedule, _ = create_scheduler(SimpleNamespace(**o | {"epochs": epochs}, eval_metric="loss"), optimizer)
        if o["sched"] == "plateau":
            schedule.lr_scheduler.cooldown = o["cooldown_epochs"]  # timm's factory does not pass it on
        return schedule

    return Recipe(epochs=o["epochs"], make_optimizer=make_optimizer, make_schedule=make_schedule,
                  clip_grad=o["clip_grad"], reinit_optimizer=o["reinit_optimizer"], train_mask=o["train_mask"],
                  eval_per_image=o["eval_per_image"], adapt=o["adapt"], follows_drift=o["drift"] == "shift",
                  print_freq=o["print_freq"], seed=o["seed"], lr=lr)


def check_recipe(recipe: Recipe, model: PromptedViT) -> None:
    """Build the optimizer and the schedule once, so that values they refuse are refused before anything is written."""
    parameters = list(model.trained_parameters())
    if not parameters:
        return
    try:
        recipe.make_schedule(recipe.make_optimizer(parameters), recipe.epochs)
    except Exception as error:  # each of timm's optimizers has its own; whatever it is, an option has to change
        raise InputError("--opt or --sched refuses these options: " + " ".join(str(error).split())) from error


def training_example(recipe: Recipe, model: PromptedViT, saved: dict[str, Any] | None = None) -> dict[str, Any]:
    """What optimizer and schedule save after a step, taken with copies of what trains.

    Args:
        saved: `optimizer` and `schedule` of a checkpoint to begin with.

    Raises:
        InputError: no step can be taken with what is saved.
    """
    copies = [(name, torch.nn.Parameter(p.detach().clone())) for name, p in model.trained_parameters()]
    if not copies:
        return {"optimizer": None, "schedule": []}
    device = copies[0][1].device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for _, parameter in copies:
            parameter.grad = torch.randn_like(parameter)
        optimizer = recipe.make_optimizer(copies)
        schedule = recipe.make_schedule(optimizer, recipe.epochs)
        try:
            if saved is not None:
                load_training_state(optimizer, schedule, copy.deepcopy(saved))
            optimizer.step()
            if schedule is not None:
                schedule.step(1, metric=1.0)
        except Exception as error:  # each of timm's optimizers has its own
            raise InputError("no step can be taken with the optimizer and the schedule as they are saved "
                             f"({' '.join(str(error).split())}).") from error
    return training_state(optimizer, schedule)


def check_optimizer(name: str) -> None:
    names = list_optimizers()
    if name.lower() not in names:
        near = difflib.get_close_matches(name, names, n=3)
        raise InputError(f"unknown --opt {name!r}: " + (f"did you mean {' or '.join(near)}?" if near
                                                        else "use any timm optimizer, such as adam, adamw, sgd."))
    if get_optimizer_info(name).second_order:
        raise InputError(f"--opt {name} needs second derivatives, which are not computed here: use another.")
