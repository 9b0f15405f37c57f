"""Splitting a labelled data set into a sequence of tasks: pure functions of their arguments.

Labels are class ids in 0 … num_classes-1 and keep their meaning throughout: a shuffled class order changes which
classes share a task, not what a class is called.
"""

from dataclasses import dataclass

import torch

from continual_datasets.images import LabelledImages
from errors import InputError
from utils import random_generator


@dataclass(frozen=True)
class Dataset:
    """What a reader gives: everything there is, before it is split into tasks."""

    train: LabelledImages
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


def split_by_class(data: Dataset, num_tasks: int, order: list[int]) -> Scenario:
    """Class-incremental tasks: consecutive runs of `order`, equally long.

    Raises:
        InputError: the classes cannot be shared out equally, or a task would have no images.
    """
    num_classes = len(data.class_names)
    if num_classes % num_tasks:
        divisors = [n for n in range(1, num_classes + 1) if num_classes % n == 0]
        raise InputError(f"--num_tasks {num_tasks} does not divide {num_classes} classes equally; "
                         f"one of {', '.join(map(str, divisors))} would.")
    size = num_classes // num_tasks
    tasks = []
    for index in range(num_tasks):
        classes = tuple(order[index * size:(index + 1) * size])
        task = Task(index, classes, data.train.of_classes(classes), data.test.of_classes(classes))
        for part, images in (("training", task.train), ("test", task.test)):
            if not len(images):
                raise InputError(f"--data_path has no {part} images of task {index + 1}, classes "
                                 f"{', '.join(data.class_names[c] for c in classes[:5])}.")
        tasks.append(task)
    return Scenario(tuple(tasks), data.class_names)
