"""Learning to Prompt for continual learning: parse, build, run. The only file that assembles.

    python main.py [EXPERIMENT] [--option value ...]      python main.py --list      python main.py --help
"""

import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from configs import experiment_names, load_experiment
from configs.base import OPTIONS
from configs.checks import check, check_places
from configs.command import Command, build_parser, parse
from distributed import Processes, end_with_launcher, processes_from_environment, speaks_for_its_machine, warn
from errors import DamagedFileError, InputError
from resuming import check_what_is_evaluated, find_where_to_go_on, mend_checkpoints, with_saved_options

if TYPE_CHECKING:  # loaded late, so that a mistyped option is answered at once
    import torch

    from continual_datasets import Scenario
    from engine import Continual
    from evaluation import Reporter, RunState
    from models import PromptedViT
    from run_folder import Checkpoints
    from training import Recipe


def main(argv: Sequence[str] | None = None, stop_signals: Sequence[int] = ()) -> int:
    """Run one command line.

    Args:
        stop_signals: signals at which to stop and save, besides SIGTERM, SIGINT, SIGUSR1 and SIGHUP.

    Returns:
        The exit code: 0; 2 for bad input; 1 for a run that had to stop; 128 + the number of a signal that stopped it
        (SIGHUP 129, SIGINT 130, SIGUSR1 138, SIGTERM 143), after which --resume continues at the next step. A launcher
        that ended counts as a SIGTERM; a terminal or a pipe that nobody reads any more as a SIGHUP.
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
        complain(f"error: {error}")
        return 1
    except InputError as error:
        if speaks_for_its_machine():
            complain(f"error: {error}")
        return 2
    except OSError as error:  # a full disk, a closed pipe, a folder that went away
        complain(f"error: {error}; what was saved before is still good.")
        return 1
    except KeyboardInterrupt:
        complain("interrupted; the same command with --resume continues from the last checkpoint, if there is one.")
        return 130
    except RuntimeError as error:
        from utils import tells_of_a_lost_process, tells_of_a_lost_worker, without_places

        if tells_of_a_lost_worker(error):
            complain("error: a process that decodes images has ended, as for lack of memory "
                     f"({str(error).splitlines()[0].strip()}); the same command with --resume continues from the last "
                     "checkpoint, with fewer --num_workers, or with --num_workers 0, which needs none.")
            return 1
        if not tells_of_a_lost_process(error):
            raise
        complain("error: another process of this run has ended, or did not answer within --dist_timeout "
                 f"({without_places(error)}); the same command with --resume continues from the last checkpoint.")
        return 1


def complain(text: str) -> None:
    with suppress(OSError):  # a terminal that was closed hears nothing
        print(f"main.py: {text}", file=sys.stderr)


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
        RunStoppedError: the loss is not finite, a signal came, such as that of Ctrl-C, or the run is finished and
            checkpoints that --eval needs are missing or damaged.
    """
    outcome = run(parse(argv))
    if outcome.exit_code:
        raise RunStoppedError(f"the run stopped with exit code {outcome.exit_code}; what it printed says why.")
    return outcome.found or {}


def run(command: Command, stop_signals: Sequence[int] = ()) -> Outcome:
    """Check everything that can be wrong, then build, then train or evaluate."""
    started = time.monotonic()
    check_places(command.options)  # the others may be taken from a run
    end_with_launcher()
    if processes_from_environment().world_size > 1:
        # Before torch is loaded: else its C++ prints stacks for every process that is gone, beside our sentence.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    command = with_saved_options(command)
    options = command.options
    warnings = command.warnings + check(options)

    processes = processes_from_environment(options["world_size"])

    import torch  # late, so that a mistyped option is answered at once

    from build import choose_device, choose_precision, device_warning
    from utils import init_distributed, one_sentence_for_too_little_memory

    device = choose_device(options["device"], processes)
    precision = choose_precision(options["precision"], device)
    check_output_dir(options)
    for warning in filter(None, [*warnings, device_warning(device)]):
        warn(processes, warning)
    init_distributed(processes, device, options["dist_url"], timedelta(seconds=options["dist_timeout"]))
    with one_sentence_for_too_little_memory():
        outcome = build_and_run(command, processes, device, precision, stop_signals, started)
    if processes.world_size > 1:  # not after an error: it would wait for processes that may never come
        torch.distributed.destroy_process_group()
    return outcome


def check_output_dir(options: dict[str, Any]) -> None:
    """Refuse to write over a run, or where nothing can be written; makes nothing."""
    import run_folder

    folder = options["output_dir"]
    if not folder:
        return
    if options["eval"]:
        run_folder.check_writable(folder, run_folder.EVALUATION_FILES)
    elif options["speed_test_only"]:
        run_folder.check_writable(folder, ["speed.json"])
    else:
        run_folder.check_writable(folder)
    modes = ("resume", "overwrite", "eval", "speed_test_only")
    if run_folder.holds_run(folder) and not any(options[mode] for mode in modes):
        run_folder.read_config(folder)
        raise InputError(f"--output_dir {folder} already holds a run: add --resume to continue it, --eval to evaluate "
                         "it, --overwrite to remove it, or name another folder.")


@dataclass(frozen=True)
class Parts:
    """What a run is made of, before it is known where it begins."""

    scenario: "Scenario"
    model: "PromptedViT"
    recipe: "Recipe"
    config: dict[str, Any]
    """What config.json will hold."""


def build_parts(command: Command, processes: Processes, device: "torch.device", precision: str) -> Parts:
    """Read the data, build the model and bring it to the device; warn of what a user should know of them."""
    from build import build_recipe, check_optimizer, check_recipe, model_warnings, read_scenario, scenario_warnings
    from models import build_model, resolve_model_name
    from records import describe_run
    from run_folder import check_scenario
    from utils import main_process_first

    options = command.options
    check_optimizer(options["opt"])
    warning = resolve_model_name(options["model"])[1]
    if warning and options["pretrained"] and not options["init_checkpoint"]:
        warn(processes, warning)
    with main_process_first(processes):  # where the disk is a node's own, the others fetch for themselves
        scenario = read_scenario(options, command.turn_photos)
    for note in (*scenario.notes, *scenario_warnings(options, command.given, scenario)):
        warn(processes, note)
    if options["eval"] or options["resume"]:
        check_scenario(options["output_dir"], scenario.record)
    with main_process_first(processes):  # one process fetches weights, the others find them
        model = build_model(options, scenario.num_classes, scenario.tasks_known_in_training)
    config = describe_run(command.experiment, options, model, scenario, processes, device, precision)

    recipe = build_recipe(options)
    check_recipe(recipe, model)
    for note in (model.backbone.left_out, *model_warnings(options, command.given, model,
                                                          OPTIONS["prompt_method"].choices)):
        if note:
            warn(processes, note)
    model.to(device)
    if precision == "bf16":
        model.use_bfloat16()
    if options["compile"]:
        if processes.is_main:
            print(compilation_note(options["batch_size"]), flush=True)
        model.compile(options["batch_size"])
    return Parts(scenario, model, recipe, config)


def build_and_run(command: Command, processes: Processes, device: "torch.device", precision: str,
                  stop_signals: Sequence[int], started: float) -> Outcome:
    """Build everything, find where the run goes on, say what it is, and carry it out."""
    from build import build_batches
    from engine import Continual
    from interruption import STOP_SIGNALS, StopRequest
    from models import QueryCache
    from records import opening_lines
    from run_folder import Checkpoints
    from utils import from_main_process

    options = command.options
    parts = build_parts(command, processes, device, precision)
    scenario, model, recipe = parts.scenario, parts.model, parts.recipe
    names = {task: scenario.name_of(task) for task in scenario.evaluated_after}
    checkpoints = Checkpoints(Path(options["output_dir"] or os.devnull), names, parts.config, model.learned_state())
    with ExitStack() as claims:
        if trains(options) and options["output_dir"]:
            from_main_process(processes, lambda: claim(options, claims))
        resume_from = None
        if options["resume"]:
            resume_from = find_where_to_go_on(checkpoints, model, recipe, scenario, processes)
        if options["eval"]:
            check_what_is_evaluated(checkpoints, processes)
        reporter = build_reporter(options, parts, processes, resume_from, device, started)
        stop = StopRequest(processes.world_size, {*STOP_SIGNALS, *stop_signals})
        continual = Continual(model, scenario, build_batches(options, model, device, processes), recipe, processes,
                              reporter, device, QueryCache(), stop)
        begins = trains(options) and not resume_from
        for line in opening_lines(parts.config, scenario, notes(continual, options, precision, begins),
                                  recipe.lr if list(model.trained_parameters()) else None):
            reporter.say(line)
        if resume_from and processes.is_main:
            mend_checkpoints(checkpoints, resume_from, reporter)
        return carry_out(continual, options, checkpoints, resume_from)


def notes(continual: "Continual", options: dict[str, Any], precision: str, begins: bool) -> list[str | None]:
    """What the main process has to say of the head, of this CPU, and of the prompts of a run that begins."""
    from build import position_note, precision_note

    model = continual.model
    if not continual.processes.is_main:
        return []
    said = [model.head.note, precision_note(precision, model, continual.device, options["batch_size"])]
    return [*said, position_note(model, continual.batches, continual.scenario)] if begins else said


def trains(options: dict[str, Any]) -> bool:
    return not (options["eval"] or options["speed_test_only"])


def build_reporter(options: dict[str, Any], parts: Parts, processes: Processes, resume_from: dict[str, Any] | None,
                   device: "torch.device", started: float) -> "Reporter":
    import outputs
    import run_folder
    from continual_datasets import manifest_bytes
    from utils import peak_memory

    if not processes.is_main:
        return outputs.Silent()
    if options["overwrite"]:
        run_folder.remove_run(options["output_dir"])
    if options["speed_test_only"]:
        return outputs.SpeedReporter(options["output_dir"], parts.config)
    return outputs.Reporter(
        options["output_dir"], scenario=parts.scenario, epochs=options["epochs"], config=parts.config,
        top_k=parts.model.prompt.top_k, keep_log=resume_from["log_bytes"] if resume_from else None,
        evaluation=options["eval"], manifest=manifest_bytes(parts.scenario), peak_memory=lambda: peak_memory(device),
        started=started)


def carry_out(continual: "Continual", options: dict[str, Any], checkpoints: "Checkpoints",
              resume_from: dict[str, Any] | None) -> Outcome:
    """Measure, train or evaluate, as the options say."""
    from evaluation import NonFiniteLossError, RunState
    from interruption import Interrupted
    from models import QueryCache
    from plan import describe_position, passes_left

    reporter = continual.reporter
    if options["speed_test"] or options["speed_test_only"]:
        from speed_test import format_speed, measure_speed

        found = measure_speed(continual, QueryCache)
        reporter.speed(found)
        reporter.say(format_speed(found))
        if options["speed_test_only"]:
            return Outcome(found=found)
    run = RunState.from_state(resume_from["run"]) if resume_from else continual.new_run()
    reporter.expect(passes_left(continual, run, evaluates_only=options["eval"]))
    if resume_from:
        reporter.say(f"resuming at {describe_position(continual, run)}")
    elif options["resume"]:
        reporter.say(f"nothing to resume in {options['output_dir']}: the run begins")
    try:
        with continual.stop:  # until all is said: a terminal that was closed counts as a signal, and must not kill
            try:
                run = evaluate_again(continual, checkpoints, run) if options["eval"] else continual.run(resume_from)
            except Interrupted as error:
                reporter.say(f"main.py: stopped by {error}" + (
                    "." if options["eval"] or not options["output_dir"] else
                    "; everything done is saved, and the same command with --resume continues there."))
                return Outcome(128 + error.signal_number)
    except NonFiniteLossError as error:
        reporter.say(f"main.py: error: {error}")
        return Outcome(1)
    finally:
        reporter.close()
    return conclude(continual, options, checkpoints, run) if continual.processes.is_main else Outcome()


def evaluate_again(continual: "Continual", checkpoints: "Checkpoints", run: "RunState") -> "RunState":
    """Evaluate the checkpoints of all tasks into `run`."""
    for content in checkpoints.of_all_tasks():
        continual.model.load_learned_state(content["model"])
        continual.evaluate_till_now(content["task"], run)
    return run


def conclude(continual: "Continual", options: dict[str, Any], checkpoints: "Checkpoints", run: "RunState") -> Outcome:
    """Print and write what came out; say so where --eval could not repeat it."""
    import run_folder

    unusable = {}
    if trains(options) and options["output_dir"]:
        unusable = checkpoints.unusable(len(continual.scenario.tasks))
    summary = continual.reporter.finish(run, [f"{name}.pth" for name, _ in unusable.values()])
    if options["eval"]:
        run_folder.take_as_result(checkpoints.folder)
    if not unusable:
        return Outcome(found=summary)
    faults = " ".join(fault for _, fault in unusable.values())
    complain(f"error: the run is finished and its numbers are good, but --eval cannot repeat them: {faults} Put back a "
             "copy of what is missing or damaged; without one, only --overwrite, which trains anew, makes it again.")
    return Outcome(1, summary)


def compilation_note(batch_size: int) -> str:
    """What to say before silences of a minute."""
    from models.prompted_vit import compilation_cache

    return (f"--compile: torch makes kernels for batches of {batch_size} now; this takes minutes once, and later runs "
            f"find them in {compilation_cache()}")


def claim(options: dict[str, Any], claims: ExitStack) -> None:
    """Keep other runs out of output_dir, and look again, now that nobody else can begin one."""
    from output_lock import OutputLock

    lock = OutputLock(options["output_dir"], patience=5.0 if options["resume"] else 0.0)
    claims.callback(lock.release)
    check_output_dir(options)


def leave(code: int) -> NoReturn:
    """End the program with an exit code.

    Where an error left the process group standing, nothing is taken down: that would wait once more for processes that
    are gone, and print what came of it.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:  # nobody reads it any more, which Python would tell as an error of its own
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    torch = sys.modules.get("torch")
    if code and torch and torch.distributed.is_available() and torch.distributed.is_initialized():
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__" or sys.argv[0] == "-m":  # `python -m main.py`, as the official README writes it
    leave(main())
