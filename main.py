"""Learning to Prompt for continual learning: parse, build, run. The only file that assembles.

    python main.py [EXPERIMENT] [--option value ...]      python main.py --list      python main.py --help
"""

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from configs import experiment_names, load_experiment
from configs.base import OPTIONS, Command, build_parser, check_saved, default_options, parse
from configs.checks import check
from distributed import Processes, processes_from_environment, speaks_for_its_machine
from errors import DamagedFileError, InputError


def main(argv: Sequence[str] | None = None, stop_signals: Sequence[int] = ()) -> int:
    """Run one command line.

    Args:
        stop_signals: signals at which to stop and save, besides SIGTERM, SIGINT and SIGUSR1.

    Returns:
        The exit code: 0; 2 for bad input; 1 for a run that had to stop; 128 + the number of a signal that stopped it
        (SIGINT 130, SIGUSR1 138, SIGTERM 143), after which --resume continues at the next step.
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
        return run(parse(argv), stop_signals).exit_code
    except DamagedFileError as error:
        print(f"main.py: error: {error}", file=sys.stderr)
        return 1
    except InputError as error:
        if speaks_for_its_machine():
            print(f"main.py: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a closed pipe, a folder that went away
        print(f"main.py: error: {error}; what was saved before is still good.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("main.py: interrupted; the same command with --resume continues from the last checkpoint.",
              file=sys.stderr)
        return 130
    except RuntimeError as error:
        from utils import tells_of_a_lost_process, tells_of_a_lost_worker

        if tells_of_a_lost_worker(error):
            print("main.py: error: a process that decodes images has ended, as for lack of memory "
                  f"({str(error).splitlines()[0].strip()}); the same command with --resume continues from the last "
                  "checkpoint, with fewer --num_workers, or with --num_workers 0, which needs none.", file=sys.stderr)
            return 1
        if not tells_of_a_lost_process(error):
            raise
        print("main.py: error: another process of this run has ended, or did not answer within --dist_timeout "
              f"({str(error).splitlines()[0]}); the same command with --resume continues from the last checkpoint.",
              file=sys.stderr)
        return 1


class RunStoppedError(Exception):
    """A run had to stop; what it saved before is good."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    exit_code: int = 0
    found: dict[str, Any] | None = None
    """The content of summary.json, eval_summary.json or speed.json; None in all processes but the main one."""


def run_experiment(argv: Sequence[str]) -> dict[str, Any]:
    """Run one command line from Python.

    Returns:
        The content of summary.json, of eval_summary.json with `--eval`, of speed.json with `--speed_test_only`; in
        all processes but the main one nothing.

    Raises:
        InputError: bad input.
        RunStoppedError: the loss is not finite, or a signal came, such as that of Ctrl-C.
    """
    outcome = run(parse(argv))
    if outcome.exit_code:
        raise RunStoppedError(f"the run stopped with exit code {outcome.exit_code}; what it printed says why.")
    return outcome.found or {}


def run(command: Command, stop_signals: Sequence[int] = ()) -> Outcome:
    """Check everything that can be wrong, then build, then train or evaluate."""
    check(command.options)
    command = with_saved_options(command)
    options = command.options
    warnings = command.warnings + check(options)

    processes = processes_from_environment(options["world_size"])

    import torch  # late, so that a mistyped option is answered at once

    from build import choose_device, choose_precision
    from utils import init_distributed

    device = choose_device(options["device"], processes)
    precision = choose_precision(options["precision"], device)
    check_output_dir(options)
    for warning in warnings:
        warn(processes, warning)
    init_distributed(processes, device, options["dist_url"], timedelta(seconds=options["dist_timeout"]))
    outcome = build_and_run(command, processes, device, precision, stop_signals)
    if processes.world_size > 1:  # not after an error: it would wait for processes that may never come
        torch.distributed.destroy_process_group()
    return outcome


def with_saved_options(command: Command) -> Command:
    """For --eval and --resume: the options saved with the run, where the command line does not change them.

    Raises:
        InputError: no run to evaluate, or an option given that would make it another run; each is named.
    """
    import run_folder

    folder = command.options["output_dir"]
    if not folder or not (command.options["eval"] or (command.options["resume"] and run_folder.holds_run(folder))):
        return command
    mode = "--eval" if command.options["eval"] else "--resume"
    config = run_folder.read_config(folder)
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
    orders = [values.get("class_order") or "seed" for values in (saved, command.given)]
    if not any(order.startswith("seed") for order in orders):
        free.add("class_order")  # a file that was moved: its content is compared with scenario.json
    changed = [f"--{name} {value}" for name, value in command.given.items()
               if name not in free and value != saved[name]]
    if command.named and command.experiment != config["experiment"]:
        changed.insert(0, command.experiment)
    if changed:
        raise InputError(f"{mode}: the run in {folder} was made by {config['experiment']} with other values than "
                         f"{', '.join(changed)}; leave these out, or name another --output_dir.")
    own = {name: command.options[name] for name, option in OPTIONS.items() if option.run_only}
    return Command(config["experiment"], saved | own | command.given, command.given, command.warnings, command.named,
                   turn_photos=config.get("turn_photos", False))


def check_output_dir(options: dict[str, Any]) -> None:
    """Refuse to write over a run, or where nothing can be written; makes nothing."""
    import run_folder

    folder = options["output_dir"]
    if not folder:
        return
    run_folder.check_writable(folder)
    modes = ("resume", "overwrite", "eval", "speed_test_only")
    if run_folder.holds_run(folder) and not any(options[mode] for mode in modes):
        run_folder.read_config(folder)
        raise InputError(f"--output_dir {folder} already holds a run: add --resume to continue it, --eval to evaluate "
                         "it, --overwrite to remove it, or name another folder.")


def build_and_run(command: Command, processes, device, precision: str, stop_signals: Sequence[int]) -> Outcome:
    import outputs
    import run_folder
    from build import build_batches, build_recipe, check_optimizer, check_recipe, read_scenario, scenario_warnings
    from engine import Continual
    from interruption import STOP_SIGNALS, StopRequest
    from models import QueryCache, build_model, resolve_model_name
    from records import describe_run, opening_lines
    from utils import from_main_process, main_process_first

    options = command.options
    check_optimizer(options["opt"])
    warning = resolve_model_name(options["model"])[1]
    if warning and options["pretrained"] and not options["init_checkpoint"]:
        warn(processes, warning)
    with main_process_first(processes):
        scenario = read_scenario(options, processes, command.turn_photos)
    for note in (*scenario.notes, *scenario_warnings(options, scenario)):
        warn(processes, note)
    if options["eval"] or options["resume"]:
        run_folder.check_scenario(options["output_dir"], scenario.record)
    with main_process_first(processes):  # one process fetches weights, the others find them
        model = build_model(options, scenario.num_classes, scenario.tasks_known_in_training)
    config = describe_run(command.experiment, options, model, scenario, processes, device, precision)

    recipe = build_recipe(options)
    check_recipe(recipe, model)
    if model.backbone.left_out:
        warn(processes, model.backbone.left_out)
    model.to(device)
    if precision == "bf16":
        model.use_bfloat16()
    if options["compile"]:
        model.compile(options["batch_size"])

    folder = Path(options["output_dir"] or os.devnull)
    trains = not (options["eval"] or options["speed_test_only"])
    with ExitStack() as claims:
        if trains and options["output_dir"]:
            from_main_process(processes, lambda: claim(options, claims))
        resume_from = None
        if options["resume"]:
            resume_from, warning = from_main_process(processes, lambda: run_folder.load_last_checkpoint(folder, config))
            if warning:
                warn(processes, warning)
            if resume_from:
                resume_from["statistics"] = run_folder.load_statistics(folder, resume_from)
                before, now = (c.get("hardware", {}).get("device") for c in (
                    run_folder.read_config(str(folder)), config))
                if before != now:
                    warn(processes, f"the run began on {before} and goes on on {now}: its numbers will differ in "
                                    "their last bits from those of a run on one of them.")
        if options["eval"]:
            if warning := run_folder.other_data(options["output_dir"], config):
                warn(processes, warning)
            for content in run_folder.load_task_checkpoints(folder, checkpoint_names(scenario), config):
                model.load_learned_state(content["model"])  # every one fits, before anything is evaluated
        if processes.is_main and options["overwrite"]:
            run_folder.remove_run(options["output_dir"])
        reporter = outputs.Silent()
        if processes.is_main and options["speed_test_only"]:
            reporter = outputs.SpeedReporter(options["output_dir"], config)
        elif processes.is_main:
            reporter = outputs.Reporter(
                options["output_dir"], scenario=scenario, epochs=options["epochs"], config=config,
                top_k=model.prompt.top_k, keep_log=resume_from and resume_from["log_bytes"],
                evaluation=options["eval"])
        for line in opening_lines(config, scenario, model.head.note):
            reporter.say(line)
        if processes.is_main and trains:
            outputs.write_scenario(options["output_dir"], scenario.record)
            if scenario.stream:
                outputs.plot_stream(options["output_dir"], scenario.stream)

        stop = StopRequest(processes.world_size, {*STOP_SIGNALS, *stop_signals})
        continual = Continual(model, scenario, build_batches(options, model, device, processes), recipe, processes,
                              reporter, device, QueryCache(), stop)
        return carry_out(continual, options, folder, config, resume_from)


def carry_out(continual, options: dict[str, Any], folder: Path, config: dict[str, Any], resume_from) -> Outcome:
    """Measure, train or evaluate, as the options say."""
    import run_folder
    from engine import NonFiniteLossError
    from interruption import Interrupted
    from models import QueryCache

    reporter, names = continual.reporter, checkpoint_names(continual.scenario)
    if options["speed_test"] or options["speed_test_only"]:
        from speed_test import format_speed, measure_speed

        found = measure_speed(continual, QueryCache)
        reporter.speed(found)
        reporter.say(format_speed(found))
        if options["speed_test_only"]:
            return Outcome(found=found)
    try:
        with continual.stop:
            if options["eval"]:
                run = continual.new_run()
                for content in run_folder.load_task_checkpoints(folder, names, config):
                    continual.model.load_learned_state(content["model"])
                    continual.evaluate_till_now(content["task"], run)
            else:
                run = continual.run(resume_from)
    except NonFiniteLossError as error:
        reporter.say(f"main.py: error: {error}")
        return Outcome(1)
    except Interrupted as error:
        reporter.say(f"main.py: stopped by {error}" + (
            "." if options["eval"] or not options["output_dir"] else
            "; everything done is saved, and the same command with --resume continues there."))
        return Outcome(128 + error.signal_number)
    if not continual.processes.is_main:
        return Outcome()
    summary = reporter.finish(run)
    if options["eval"]:
        run_folder.take_as_result(folder)
    return Outcome(found=summary)


def checkpoint_names(scenario) -> dict[int, str]:
    """Task -> the name of its checkpoint, for those after which is evaluated."""
    return {task: scenario.name_of(task) for task in scenario.evaluated_after}


def claim(options: dict[str, Any], claims: ExitStack) -> None:
    """Keep other runs out of output_dir, and look again, now that nobody else can begin one."""
    import run_folder

    lock = run_folder.OutputLock(options["output_dir"], patience=5.0 if options["resume"] else 0.0)
    claims.callback(lock.release)
    check_output_dir(options)


def warn(processes: Processes, text: str) -> None:
    if processes.is_main:
        print(f"main.py: warning: {text}", file=sys.stderr)


if __name__ == "__main__" or sys.argv[0] == "-m":  # `python -m main.py`, as the official README writes it
    sys.exit(main())
