"""Splitting a labelled data set into a sequence of tasks: pure functions of their arguments.

Labels are class ids in 0 … num_classes-1 and keep their meaning throughout: a shuffled class order changes which
classes share a task, not what a class is called.
"""

from dataclasses import dataclass, field
from typing import Any

import torch

from continual_datasets.images import LabelledImages
from errors import InputError
from utils import random_generator

DEFAULT_TASKS = 10


@dataclass(frozen=True)
class Dataset:
    """What a reader gives: everything there is, before it is split into tasks."""

    train: LabelledImages
    test: LabelledImages
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """Sentences for the user: what was left out."""
    split: dict[str, Any] | None = None
    """Where one folder was split: `seed`, and the names in `train` and `test`."""


@dataclass(frozen=True)
class Sessions:
    """What a reader of a domain-incremental data set gives: all classes in every session, one test set for all."""

    train: tuple[LabelledImages, ...]
    test: LabelledImages
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    index: int
    classes: tuple[int, ...]
    train: LabelledImages
    test: LabelledImages


@dataclass(frozen=True)
class Scenario:
    tasks: tuple[Task, ...]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """Sentences for the user: what was left out of the data."""
    record: dict[str, Any] = field(default_factory=dict)
    """What of the scenario no option tells, for those who want it again: plain values."""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def class_mask(self, task: int) -> torch.Tensor:
        """[K] bool: the classes of one task."""
        mask_K = torch.zeros(self.num_classes, dtype=torch.bool)
        mask_K[list(self.tasks[task].classes)] = True
        return mask_K


def class_order(num_classes: int, shuffle: bool, seed: int) -> list[int]:
    """0, 1, 2 … or a permutation of them drawn by `seed`."""
    if not shuffle:
        return list(range(num_classes))
    return torch.randperm(num_classes, generator=random_generator(seed, "class order")).tolist()


def split_by_class(data: Dataset, num_tasks: int | None, order: list[int],
                   classes_per_task: int | None = None) -> Scenario:
    """Class-incremental tasks: consecutive runs of `order`.

    Equally long, in `num_tasks` (10 when None), or of `classes_per_task` each with the last one perhaps shorter.

    Raises:
        InputError: the classes cannot be shared out so, or a task would have no images.
    """
    num_classes = len(data.class_names)
    size = classes_per_task or _equal_size(num_classes, num_tasks or DEFAULT_TASKS)
    if classes_per_task is not None and classes_per_task > num_classes:
        raise InputError(f"--classes_per_task {classes_per_task} is more than the {num_classes} classes there are.")
    if num_tasks not in (None, -(-num_classes // size)):
        raise InputError(f"--classes_per_task {size} makes {-(-num_classes // size)} tasks of {num_classes} classes, "
                         f"not --num_tasks {num_tasks}: give one of the two (--num_tasks none).")
    runs = [tuple(order[start:start + size]) for start in range(0, num_classes, size)]
    return Scenario(tuple(_task(data, index, classes) for index, classes in enumerate(runs)), data.class_names,
                    data.notes)


def one_task_each(data: list[Dataset], names: list[str]) -> Scenario:
    """A task for each data set; the classes of a later one are numbered after those of the earlier."""
    class_names: list[str] = []
    tasks, notes = [], []
    for index, (part, name) in enumerate(zip(data, names, strict=True)):
        first = len(class_names)
        class_names += [f"{name}: {class_name}" for class_name in part.class_names]
        tasks.append(Task(index, tuple(range(first, len(class_names))), part.train.with_labels_from(first),
                          part.test.with_labels_from(first)))
        notes += part.notes
    return Scenario(tuple(tasks), tuple(class_names), tuple(notes))


def domain_incremental(data: Sessions) -> Scenario:
    """A task for each session: every one holds all classes, and all share one test set (the same object)."""
    classes = tuple(range(len(data.class_names)))
    return Scenario(tuple(Task(index, classes, train, data.test) for index, train in enumerate(data.train)),
                    data.class_names)


def _equal_size(num_classes: int, num_tasks: int) -> int:
    if num_classes % num_tasks:
        divisors = [n for n in range(1, num_classes + 1) if num_classes % n == 0]
        raise InputError(f"--num_tasks {num_tasks} does not divide {num_classes} classes equally; "
                         f"one of {', '.join(map(str, divisors))} would, or give --classes_per_task, which lets the "
                         "last task be smaller.")
    return num_classes // num_tasks


def _task(data: Dataset, index: int, classes: tuple[int, ...]) -> Task:
    task = Task(index, classes, data.train.of_classes(classes), data.test.of_classes(classes))
    for part, images in (("training", task.train), ("test", task.test)):
        if not len(images):
            raise InputError(f"--data_path has no {part} images of task {index + 1}, classes "
                             f"{', '.join(data.class_names[c] for c in classes[:5])}.")
    return task
