"""Splitting a labelled data set into a sequence of tasks: pure functions of their arguments.

Labels are class ids in 0 … num_classes-1 and keep their meaning throughout: a shuffled class order changes which
classes share a task, not what a class is called.
"""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
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
class Setting:
    """What is known of tasks, and what is tested: everything in which the settings of continual learning differ."""

    name: str
    unit: str
    """What training goes through one after another: tasks, sessions, or episodes of a stream."""
    known_in_training: bool = True
    """Training is told where a task begins and which it is: the optimizer begins anew, prompts may belong to a task."""
    known_in_test: bool = False
    """The test is told which task an image is from: only that task's classes compete."""
    one_test_set: bool = False
    """All are tested on the same images; otherwise each task has its own, and those seen so far are tested."""


CLASS_INCREMENTAL = Setting("class-incremental", "task")
TASK_INCREMENTAL = Setting("task-incremental", "task", known_in_test=True)
DOMAIN_INCREMENTAL = Setting("domain-incremental", "session", one_test_set=True)
JOINT = Setting("joint", "task", known_in_training=False)
TASK_AGNOSTIC = Setting("task-agnostic", "episode", known_in_training=False, one_test_set=True)


@dataclass(frozen=True)
class Task:
    """One stretch of training: a task, a session, or an episode of a stream, as `Setting.unit` says."""

    index: int
    classes: tuple[int, ...]
    train: LabelledImages
    test: LabelledImages
    replay: tuple[LabelledImages, ...] = ()
    """What is remembered of this task and those before, each part from one store; nothing in the first."""


@dataclass(frozen=True)
class Scenario:
    tasks: tuple[Task, ...]
    class_names: tuple[str, ...]
    setting: Setting = CLASS_INCREMENTAL
    steps: int | None = None
    """Batches of an epoch of a stream; None: every image once."""
    evaluate_every: int = 1
    """Evaluate after so many tasks; and after the last."""
    notes: tuple[str, ...] = ()
    """Sentences for the user: what was left out of the data."""
    record: dict[str, Any] = field(default_factory=dict)
    """What of the scenario no option tells, for those who want it again: plain values."""
    turn_photos: bool = True
    """Whether photos of one's own are stood upright, as their EXIF says."""
    stream: Any = None
    """Of a stream without tasks: what was drawn for it (`streams.Stream`)."""
    joint_of: tuple[Task, ...] = ()
    """Of joint training: the tasks whose images are trained on together, and which are tested one by one."""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def tasks_known_in_training(self) -> int | None:
        """How many tasks there are, where training may know it."""
        return len(self.tasks) if self.setting.known_in_training else None

    @property
    def tested(self) -> tuple[Task, ...]:
        """The tasks whose test sets are the rows of the accuracy matrix."""
        return self.joint_of or self.tasks

    def class_mask(self, classes: tuple[int, ...]) -> torch.Tensor:
        """[K] bool: true for these classes."""
        mask_K = torch.zeros(self.num_classes, dtype=torch.bool)
        mask_K[list(classes)] = True
        return mask_K

    def steps_of_an_epoch(self, batch_size: int) -> int | None:
        """How many batches of `batch_size` images (over all processes) an epoch has; None: each image comes once.

        Joint training takes the steps that its tasks would take one after another.
        """
        if self.joint_of:
            return sum(-(-len(task.train) // batch_size) for task in self.joint_of)
        return self.steps

    @property
    def evaluated_after(self) -> tuple[int, ...]:
        """The tasks after which is evaluated, in order: the columns of the accuracy matrix."""
        last = len(self.tasks) - 1
        return tuple(t for t in range(last + 1) if (t + 1) % self.evaluate_every == 0 or t == last)

    def tests_after(self, task: int) -> range:
        """The tasks whose test sets are evaluated after `task`: the rows of the accuracy matrix."""
        if self.joint_of:
            return range(len(self.joint_of))
        return range(1 if self.setting.one_test_set else task + 1)

    @property
    def num_shared_tests(self) -> int | None:
        """How many test sets are evaluated every time; None where each task adds its own."""
        if self.joint_of or self.setting.one_test_set:
            return len(self.tests_after(0))
        return None

    def name_of(self, task: int) -> str:
        """`task03`, `session03`, `episode030`: what its checkpoint is called."""
        return f"{self.setting.unit}{task + 1:0{max(2, len(str(len(self.tasks))))}d}"

    def num_images(self, part: str) -> int:
        """How many different images there are in the part `train` or `test` of all tasks."""
        places = {}
        for images in (getattr(task, part) for task in self.tested):
            places.setdefault(id(images.store), []).append(images.positions_N)
        return sum(len(np.unique(np.concatenate(positions))) for positions in places.values())

    @property
    def replay_size(self) -> tuple[int, int]:
        """Images that the last task remembers, when there are most, and their bytes in memory or files."""
        parts = self.tasks[-1].replay if self.tasks else ()
        return sum(map(len, parts)), sum(part.nbytes for part in parts)

    @property
    def fingerprint(self) -> str:
        """sha256 over the images and labels of all tasks, in their order."""
        parts = [f"{task.classes} {task.train.fingerprint} {task.test.fingerprint}" for task in self.tested]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


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
                    notes=data.notes)


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
    return Scenario(tuple(tasks), tuple(class_names), notes=tuple(notes))


def domain_incremental(data: Sessions) -> Scenario:
    """A task for each session: every one holds all classes, and all share one test set."""
    classes = tuple(range(len(data.class_names)))
    return Scenario(tuple(Task(index, classes, train, data.test) for index, train in enumerate(data.train)),
                    data.class_names, DOMAIN_INCREMENTAL)


def joint(scenario: Scenario) -> Scenario:
    """The images of all tasks of one data set in one stretch, each task tested: the bound of a sequence."""
    parts = [task.train for task in scenario.tasks]
    images = LabelledImages(parts[0].store, *(np.concatenate([getattr(part, name) for part in parts])
                                              for name in ("positions_N", "labels_N")))
    classes = tuple(c for task in scenario.tasks for c in task.classes)
    stretch = Task(0, classes, images, scenario.tasks[0].test)
    return replace(scenario, tasks=(stretch,), setting=JOINT, joint_of=scenario.tasks)


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
