"""Learning to Prompt for continual learning: parse, build, run. The only file that assembles.

    python main.py [EXPERIMENT] [--option value ...]      python main.py --list      python main.py --help
"""

import difflib
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from configs import experiment_names, load_experiment
from configs.base import OPTIONS, Command, build_parser, check_saved, default_options, parse
from configs.checks import check
from distributed import Processes, processes_from_environment, speaks_for_its_machine
from errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Returns the exit code: 0; 2 for bad input; 1 for a run that had to stop; 130 for one that was interrupted.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        if "--list" in argv:
            names = experiment_names()
            print("\n".join(f"{name:{max(map(len, names))}}  {load_experiment(name).summary}" for name in names))
            return 0
        if "-h" in argv or "--help" in argv:
            named = not argv[0].startswith("-")
            build_parser(load_experiment(parse(argv[:1]).experiment) if named else None).print_help()
            return 0
        return run(parse(argv))
    except InputError as error:
        if speaks_for_its_machine():
            print(f"main.py: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a closed pipe, a folder that went away
        print(f"main.py: error: {error}; what was saved before is still good.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("main.py: interrupted; the same command with --resume continues from the last whole epoch.",
              file=sys.stderr)
        return 130


def run(command: Command) -> int:
    """Check everything that can be wrong, then build, then train or evaluate."""
    check(command.options)
    command = with_saved_options(command)
    options = command.options
    warnings = command.warnings + check(options)

    processes = processes_from_environment(options["world_size"])

    import torch  # late, so that a mistyped option is answered at once

    from utils import init_distributed

    device = choose_device(options["device"], processes)
    precision = choose_precision(options["precision"], device)
    check_output_dir(options)
    if processes.is_main:
        for warning in warnings:
            print(f"main.py: warning: {warning}", file=sys.stderr)
    init_distributed(processes, device, options["dist_url"], timedelta(seconds=options["dist_timeout"]))
    code = build_and_run(command, processes, device, precision)
    if processes.world_size > 1:  # not after an error: it would wait for processes that may never come
        torch.distributed.destroy_process_group()
    return code


def with_saved_options(command: Command) -> Command:
    """For --eval and --resume: the options saved with the run, where the command line does not change them.

    Raises:
        InputError: no run to evaluate, or an option given that would make it another run; each is named.
    """
    import outputs

    folder = command.options["output_dir"]
    if not folder or not (command.options["eval"] or (command.options["resume"] and outputs.holds_run(folder))):
        return command
    mode = "--eval" if command.options["eval"] else "--resume"
    config = outputs.read_config(folder)
    check_saved(config, f"{folder}/config.json")
    free = {name for name, option in OPTIONS.items() if option.run_only}
    free |= {"device", "data_path", "init_checkpoint"}
    if mode == "--eval":  # what is measured may change, what was trained may not
        free |= {"batch_size", "batchwise_prompt", "compile", "eval_per_image", "precision", "task_inc", "world_size"}
    saved = default_options(load_experiment(config["experiment"])) | config["options"]
    if mode == "--resume":  # go on as `auto` was understood, and let `auto` stand in the command line
        saved["precision"] = config.get("precision", "fp32")
        if command.options["precision"] == "auto":
            command.given.pop("precision", None)
    changed = [f"--{name} {value}" for name, value in command.given.items()
               if name not in free and value != saved[name]]
    if command.named and command.experiment != config["experiment"]:
        changed.insert(0, command.experiment)
    if changed:
        raise InputError(f"{mode}: the run in {folder} was made by {config['experiment']} with other values than "
                         f"{', '.join(changed)}; leave these out, or name another --output_dir.")
    own = {name: command.options[name] for name, option in OPTIONS.items() if option.run_only}
    return Command(config["experiment"], saved | own | command.given, command.given, command.warnings, command.named)


def choose_device(name: str, processes: Processes):
    """The torch device of this process. Raises InputError for a device that is not there."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name}: there is no such device; use auto, cpu, cuda or cuda:N.") from error
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
    elif device.type != "cpu":
        raise InputError(f"--device {name}: use auto, cpu, cuda or cuda:N.")
    return device


def choose_precision(name: str, device) -> str:
    """`fp32`, `tf32` or `bf16`, set for this process. Raises InputError for one that the device has not."""
    import torch

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


def check_output_dir(options: dict[str, Any]) -> None:
    """Refuse to write over a run, or where nothing can be written; makes nothing."""
    import outputs

    folder = options["output_dir"]
    if not folder:
        return
    outputs.check_writable(folder)
    if outputs.holds_run(folder) and not (options["resume"] or options["overwrite"] or options["eval"]):
        raise InputError(f"--output_dir {folder} already holds a run: add --resume to continue it, --eval to evaluate "
                         "it, --overwrite to remove it, or name another folder.")


def build_and_run(command: Command, processes, device, precision: str) -> int:
    import outputs
    from continual_datasets import build_scenario
    from engine import Continual, NonFiniteLossError, RunState
    from metrics import AccuracyMatrix
    from models import QueryCache, build_model, resolve_model_name
    from records import describe_run, opening_lines
    from utils import main_process_first

    options = command.options
    check_optimizer(options["opt"])
    warning = resolve_model_name(options["model"])[1]
    if warning and processes.is_main and options["pretrained"] and not options["init_checkpoint"]:
        print(f"main.py: warning: {warning}", file=sys.stderr)
    with main_process_first(processes):
        scenario = build_scenario(options["dataset"], options["data_path"], num_tasks=options["num_tasks"],
                                  download=options["download"] and processes.is_main, shuffle=options["shuffle"],
                                  seed=options["seed"], subsample=options["subsample"],
                                  subsample_test=options["subsample_test"],
                                  classes_per_task=options["classes_per_task"], class_order=options["class_order"])
    if processes.is_main:
        for note in scenario.notes:
            print(f"main.py: warning: {note}", file=sys.stderr)
    if options["eval"] or options["resume"]:
        outputs.check_scenario(options["output_dir"], scenario.record)
    with main_process_first(processes):  # one process fetches weights, the others find them
        model = build_model(options, scenario.num_classes)
    config = describe_run(command.experiment, options, model, processes, device, precision)

    recipe = build_recipe(options)
    check_recipe(recipe, model)
    model.to(device)
    if precision == "bf16":
        model.use_bfloat16()
    if options["compile"]:
        model.compile(options["batch_size"])

    folder = Path(options["output_dir"] or os.devnull)
    resume_from = outputs.load_last_checkpoint(folder, config) if options["resume"] else None
    if options["eval"]:
        for content in outputs.load_task_checkpoints(folder, len(scenario.tasks), config):
            model.load_learned_state(content["model"])  # every one fits, before anything is evaluated
    if processes.is_main and options["overwrite"]:
        outputs.remove_run(options["output_dir"])
    reporter = outputs.Silent()
    if processes.is_main and options["speed_test_only"]:
        reporter = outputs.SpeedReporter(options["output_dir"], config)
    elif processes.is_main:
        reporter = outputs.Reporter(
            options["output_dir"], num_tasks=len(scenario.tasks), epochs=options["epochs"], config=config,
            top_k=getattr(model.prompt, "top_k", 0), keep_log=resume_from is not None, evaluation=options["eval"])
    for line in opening_lines(config, scenario):
        reporter.say(line)
    if processes.is_main and not (options["eval"] or options["speed_test_only"]):
        outputs.write_scenario(options["output_dir"], scenario.record)

    continual = Continual(model, scenario, build_batches(options, model, device, processes),
                          recipe, processes, reporter, device, QueryCache())
    if options["speed_test"] or options["speed_test_only"]:
        from speed_test import format_speed, measure_speed

        found = measure_speed(continual, QueryCache)
        reporter.speed(found)
        reporter.say(format_speed(found))
        if options["speed_test_only"]:
            return 0
    try:
        if options["eval"]:
            run = RunState(AccuracyMatrix(len(scenario.tasks)), AccuracyMatrix(len(scenario.tasks)))
            for task, content in enumerate(outputs.load_task_checkpoints(folder, len(scenario.tasks), config)):
                model.load_learned_state(content["model"])
                continual.evaluate_till_now(task, run)
        else:
            run = continual.run(resume_from)
    except NonFiniteLossError as error:
        reporter.say(f"main.py: error: {error}")
        return 1
    if processes.is_main:
        reporter.finish(run)
    return 0


# ---- parts: options in, objects out ----
def build_batches(options: dict[str, Any], model, device, processes):
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    from continual_datasets import Batches
    from continual_datasets.transforms import EvalTransform, TrainTransform
    from models import model_normalisation

    mean, std = {"none": lambda: (None, None), "imagenet": lambda: (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
                 "model": lambda: model_normalisation(model.backbone)}[options["input_norm"]]()
    return Batches(
        TrainTransform(options["input_size"], tuple(options["scale"]), tuple(options["ratio"]), options["hflip"],
                       mean, std),
        EvalTransform(options["input_size"], mean, std), batch_size=options["batch_size"], seed=options["seed"],
        device=device, rank=processes.rank, world_size=processes.world_size, prefetch=options["num_workers"],
        pin_memory=options["pin_mem"])


def build_recipe(options: dict[str, Any]):
    from engine import Recipe

    o = options
    batch = o["batch_size"] * (1 if o["unscale_lr"] else processes_from_environment().world_size)
    lr = o["lr"] * batch / 256

    def make_optimizer(named_parameters):
        import torch
        from timm.optim import create_optimizer_v2, get_optimizer_info

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

    def make_schedule(optimizer):
        from timm.scheduler import create_scheduler

        if o["sched"] == "constant":  # timm's own "constant" warms up; the reference's leaves the rate alone
            return None
        schedule, _ = create_scheduler(SimpleNamespace(**o, eval_metric="loss"), optimizer)
        if o["sched"] == "plateau":
            schedule.lr_scheduler.cooldown = o["cooldown_epochs"]  # timm's factory does not pass it on
        return schedule

    return Recipe(epochs=o["epochs"], make_optimizer=make_optimizer, make_schedule=make_schedule,
                  clip_grad=o["clip_grad"], reinit_optimizer=o["reinit_optimizer"], train_mask=o["train_mask"],
                  task_inc=o["task_inc"], eval_per_image=o["eval_per_image"], print_freq=o["print_freq"],
                  seed=o["seed"])


def check_recipe(recipe, model) -> None:
    """Build the optimizer and the schedule once, so that values they refuse are refused before anything is written."""
    parameters = list(model.trained_parameters())
    if not parameters:
        return
    try:
        recipe.make_schedule(recipe.make_optimizer(parameters))
    except Exception as error:  # each of timm's optimizers has its own; whatever it is, an option has to change
        raise InputError("--opt or --sched refuses these options: " + " ".join(str(error).split())) from error


def check_optimizer(name: str) -> None:
    from timm.optim import get_optimizer_info, list_optimizers

    names = list_optimizers()
    if name.lower() not in names:
        near = difflib.get_close_matches(name, names, n=3)
        raise InputError(f"unknown --opt {name!r}: " + (f"did you mean {' or '.join(near)}?" if near
                                                        else "use any timm optimizer, such as adam, adamw, sgd."))
    if get_optimizer_info(name).second_order:
        raise InputError(f"--opt {name} needs second derivatives, which are not computed here: use another.")


if __name__ == "__main__" or sys.argv[0] == "-m":  # `python -m main.py`, as the official README writes it
    sys.exit(main())
