"""Going on with a run, or evaluating it again: which options hold, where it goes on, and what is still good.

Nothing here loads torch before it has to: a mistyped option is answered at once.
"""

from dataclasses import replace
from typing import Any

from configs import load_experiment
from configs.base import OPTIONS
from configs.command import Command, default_options
from distributed import Processes, warn
from errors import InputError


def with_saved_options(command: Command) -> Command:
    """For --eval and --resume: the options saved with the run, where the command line does not change them.

    Raises:
        InputError: no run to evaluate, or an option given that would make it another run; each is named.
    """
    import run_folder

    options, given = command.options, dict(command.given)
    warnings = list(command.warnings)
    if "output_dir" not in given and (options["eval"] or options["resume"]):
        found, warning = run_folder.find_run(command.experiment, command.named, options["eval"])
        options = options | {"output_dir": found}
        warnings += [warning] if warning else []
    folder = options["output_dir"]
    goes_on = options["resume"] and folder and run_folder.holds_run(folder)
    if not (options["eval"] or goes_on):
        return replace(command, options=options, warnings=warnings)
    config = run_folder.read_config(folder)
    defaults = default_options(load_experiment(config["experiment"]))
    saved = defaults | config["options"]
    if goes_on:  # go on as `auto` was understood, and let `auto` stand in the command line
        saved["precision"] = config.get("precision", "fp32")
        if given.get("precision") == "auto":
            del given["precision"]

    free = free_to_change(options["eval"], saved, given)
    changed = [f"--{name} {value}" for name, value in given.items() if name not in free and value != saved[name]]
    if command.named and command.experiment != config["experiment"]:
        changed.insert(0, command.experiment)
    if changed:
        raise InputError(f"{'--resume' if goes_on else '--eval'}: the run in {folder} was made by "
                         f"{config['experiment']} with other values than {', '.join(changed)}; leave these out, or "
                         "name another --output_dir.")
    own = {name: value for name, value in defaults.items() if OPTIONS[name].run_only} | {"output_dir": folder}
    return Command(config["experiment"], saved | own | given, given, warnings, command.named,
                   turn_photos=config.get("turn_photos", False))


def free_to_change(evaluates: bool, saved: dict[str, Any], given: dict[str, Any]) -> set[str]:
    """The options that may differ from those saved with a run, when it is evaluated or goes on."""
    from continual_datasets.class_orders import is_drawn

    free = {name for name, option in OPTIONS.items() if option.run_only}
    free |= {"device", "data_path", "init_checkpoint"}
    if evaluates:  # what is measured may change, what was trained may not
        free |= {"batch_size", "batchwise_prompt", "compile", "eval_per_image", "precision", "task_inc", "world_size"}
        if saved["head"] == "linear" and not saved["align"]:  # other heads have learned from images cut like the test
            free.add("crop_pct")
    orders = [options.get("class_order") or "seed" for options in (saved, given)]
    if not any(map(is_drawn, orders)):  # a file that was moved: its content is compared with scenario.json
        free.add("class_order")
    return free


def find_where_to_go_on(checkpoints, model, recipe, scenario, processes: Processes) -> dict[str, Any] | None:
    """The content of the last checkpoint, in every process; None where the run has saved nothing yet."""
    import run_folder
    from build import training_example
    from saved_files import Run
    from utils import from_main_process

    state = Run(scenario.evaluated_after, len(scenario.tasks), recipe.epochs, scenario.num_shared_tests,
                model.prompt.top_k, model.backbone.embed_dim if recipe.follows_drift else None)

    def find() -> tuple[dict[str, Any] | None, str | None]:
        content, warning = checkpoints.last(state, training_example(recipe, model))
        if content is not None:
            training_example(recipe, model, content)
            content["statistics"] = checkpoints.statistics(content, model.head.statistics())
        return content, warning

    content, warning = from_main_process(processes, find)
    if warning:
        warn(processes, warning)
    if content is not None:
        began = run_folder.read_config(str(checkpoints.folder))
        commit = checkpoints.config["commit"]
        if None not in (commit, began.get("commit")) and commit != began["commit"]:
            warn(processes, f"the run began with another version of this program ({began['commit']}) and goes on with "
                            f"{commit}: look in CHANGELOG.md whether what it computes has changed.")
        before, now = began.get("hardware", {}).get("device"), checkpoints.config["hardware"]["device"]
        if before != now:
            warn(processes, f"the run began on {before} and goes on on {now}: its numbers will differ in their last "
                            "bits from those of a run on one of them.")
    return content


def check_what_is_evaluated(checkpoints, processes: Processes) -> None:
    """Look at the data and at every checkpoint, before anything is evaluated. Raises InputError."""
    import run_folder

    if warning := run_folder.other_data(str(checkpoints.folder), checkpoints.config):
        warn(processes, warning)
    for _ in checkpoints.of_all_tasks():
        pass  # read and found in order


def mend_checkpoints(checkpoints, resume_from: dict[str, Any], reporter) -> None:
    """Say which checkpoints of the tasks that are done are unusable; the newest is written again from last.pth."""
    run = resume_from["run"]
    newest = run["task"] - 1
    for task, (name, fault) in checkpoints.unusable(run["task"]).items():
        if task == newest and run["epoch"] == run["step"] == 0:
            reporter.save(name, {"model": resume_from["model"], "task": task})
            reporter.warn(f"{fault.rstrip('.')}. It was written again from last.pth.")
        else:
            reporter.warn(f"{fault.rstrip('.')}. The run goes on, but --eval needs this checkpoint.")
