"""What a run has still to do: where it goes on, and the passes over images that are left of it."""

from collections.abc import Iterator

from engine import Continual
from evaluation import RunState
from progress import Pass


def passes_left(continual: Continual, run: RunState, evaluates_only: bool = False) -> Iterator[Pass]:
    """Every pass from where `run` stands to its end, in order.

    Args:
        evaluates_only: the run is evaluated again, after each of its tasks, and not trained.
    """
    scenario, epoch, step = continual.scenario, run.epoch, run.step
    seen: set[object] = set()

    def is_known(*images: object) -> bool:
        known = images in seen
        seen.add(images)
        return known

    for task in range(run.task, len(scenario.tasks)):
        if not evaluates_only:
            if continual.trains_on(task):
                if continual.looks_before(task) and epoch == step == 0:
                    yield continual.observing_pass(task, before=True)
                for number in range(epoch, continual.recipe.epochs):
                    yield continual.training_pass(task, number, step if number == epoch else 0)
            if continual.model.head.observes:
                yield continual.observing_pass(task)
        if task in scenario.evaluated_after:
            yield from continual.test_passes(task, is_known, is_known)
        epoch = step = 0


def describe_position(continual: Continual, run: RunState) -> str:
    """Where a resumed run goes on: `task 2, epoch 2, step 7 of 20`, counted from 1."""
    unit = continual.scenario.setting.unit
    if run.task == len(continual.scenario.tasks):
        return f"the end: all {run.task} {unit}s are done"
    if not continual.trains_on(run.task):
        return f"{unit} {run.task + 1}"
    if run.epoch == continual.recipe.epochs:
        return f"{unit} {run.task + 1}, after its {run.epoch} epochs"
    total = continual.training_pass(run.task, run.epoch, 0).total
    return f"{unit} {run.task + 1}, epoch {run.epoch + 1}, step {run.step + 1} of {total}"
