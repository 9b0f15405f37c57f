"""Replay (L2P-R in the paper's tables): a few images of each class seen so far, kept as they are.

Which ones is a function of (seed, task) alone. An image is kept while its draw is among the lowest of its class, so a
task adds its own and drops others without looking at what was forgotten: a class that comes again in a later session
keeps as many as one that does not.

A task replays its own kept images as well, as the official code does (`include_new_task`). The class mask concerns the
other half of a batch only; without them, nothing would weigh new classes against old ones but images of the old ones.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from continual_datasets.images import LabelledImages, Store
from continual_datasets.scenario import Task
from utils import random_generator


def with_replay(tasks: Sequence[Task], per_class: int, seed: int) -> tuple[Task, ...]:
    """The tasks, each but the first with `per_class` images of every class of its own and of the tasks before."""
    kept: dict[int, list[tuple[float, Store, int]]] = {}
    remembering = []
    for task in tasks:
        draws_N = torch.rand(len(task.train), generator=random_generator(seed, "replay", task.index),
                             dtype=torch.float64).numpy()
        for label in np.unique(task.train.labels_N).tolist():
            here_M = np.flatnonzero(task.train.labels_N == label)
            lowest_M = here_M[np.argsort(draws_N[here_M])[:per_class]]
            found = [(draws_N[i], task.train.store, int(task.train.positions_N[i])) for i in lowest_M]
            kept[label] = sorted(kept.get(label, []) + found, key=lambda image: image[0])[:per_class]
        remembering.append(replace(task, replay=_parts(kept) if remembering else ()))
    return tuple(remembering)


def _parts(kept: dict[int, list[tuple[float, Store, int]]]) -> tuple[LabelledImages, ...]:
    """What is kept as one part for each store."""
    by_store: dict[Store, list[tuple[int, int]]] = {}
    for label, images in kept.items():
        for _, store, position in images:
            by_store.setdefault(store, []).append((position, label))
    return tuple(LabelledImages(store, *np.array(images, dtype=np.int64).T) for store, images in by_store.items())
