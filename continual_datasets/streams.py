"""A stream without tasks, in which classes come and go gradually: the Gaussian schedule of arXiv 2105.13327.

Pure functions of their arguments. Shapes: E episodes, K classes in their order, X points of the stream.
"""

from dataclasses import dataclass

import numpy as np
import torch

from continual_datasets.scenario import TASK_AGNOSTIC, Dataset, Scenario, Task
from errors import InputError
from utils import random_generator

LEAST_CHANCE = 1e-3  # of the likeliest class at an episode; with less, episodes would be drawn and drawn again


@dataclass(frozen=True)
class GaussianSchedule:
    """How long a stream is and how much its classes overlap.

    Args:
        episodes: stretches of training with a fixed set of classes.
        steps: batches by which the stream moves on in an episode; each of its epochs trains so many.
        width: standard deviation of a class's probability to be active, in batches.
        evaluate_every: episodes between two evaluations.
    """

    episodes: int = 200
    steps: int = 5
    width: float = 50.0
    evaluate_every: int = 10

    @property
    def batches(self) -> int:
        """S, the length of the stream."""
        return self.episodes * self.steps

    @property
    def starts_E(self) -> np.ndarray:
        """Where in the stream each episode begins."""
        return np.arange(self.episodes) * float(self.steps)

    def probability(self, num_classes: int, at_X: np.ndarray) -> np.ndarray:
        """[X, K]: with which each class is active at points of the stream: exp(−(x − peak)²/(2·width²)).

        The peaks are spread evenly: S/(2K) + j·S/K for class j.
        """
        peaks_K = self.batches * (np.arange(num_classes) + 0.5) / num_classes
        return np.exp(-((at_X[:, None] - peaks_K) ** 2) / (2 * self.width**2))

    def draw(self, num_classes: int, seed: int) -> np.ndarray:
        """[E, K] bool: the classes active in each episode, drawn again while there is none.

        Raises:
            InputError: the width is so small that at some episode hardly any class could be active.
        """
        probability_EK = self.probability(num_classes, self.starts_E)
        likeliest_E = probability_EK.max(axis=1)
        if likeliest_E.min() < LEAST_CHANCE:
            raise InputError(f"--gaussian_width {self.width:g} leaves no class to be active in episode "
                             f"{likeliest_E.argmin() + 1}: the {num_classes} classes have their peaks "
                             f"{self.batches / num_classes:g} batches apart; use a greater width.")
        active_EK = np.zeros(probability_EK.shape, dtype=bool)
        for episode, probability_K in enumerate(torch.from_numpy(probability_EK)):
            generator = random_generator(seed, "active classes", episode)
            while not active_EK[episode].any():
                drawn_K = torch.rand(num_classes, generator=generator, dtype=torch.float64) < probability_K
                active_EK[episode] = drawn_K.numpy()
        return active_EK


@dataclass(frozen=True)
class Stream:
    """What was drawn for a scenario, for who wants to see it."""

    schedule: GaussianSchedule
    active_EK: np.ndarray

    def probability(self, points: int = 500) -> np.ndarray:
        """[points, K], evenly over the stream."""
        at_X = np.linspace(0, self.schedule.batches, points, endpoint=False)
        return self.schedule.probability(self.active_EK.shape[1], at_X)


def gaussian_stream(data: Dataset, order: list[int], schedule: GaussianSchedule, seed: int) -> Scenario:
    """An episode for each of the schedule's, with the images of its active classes; classes peak in `order`."""
    active_EK = schedule.draw(len(order), seed)
    tasks = []
    for episode, active_K in enumerate(active_EK):
        classes = tuple(np.array(order)[active_K].tolist())
        images = data.train.of_classes(classes)
        if not len(images):
            raise InputError(f"--data_path has no training images of {data.class_names[classes[0]]}, the class of "
                             f"episode {episode + 1}.")
        tasks.append(Task(episode, classes, images, data.test))
    return Scenario(tuple(tasks), data.class_names, TASK_AGNOSTIC, steps=schedule.steps,
                    evaluate_every=schedule.evaluate_every, notes=data.notes, stream=Stream(schedule, active_EK))
