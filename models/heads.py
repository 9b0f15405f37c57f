"""Heads: features [B, D] in, logits [B, K] out. Some learn by gradient, some from what they observe of a task's images.

Shapes: B batch, D width, K classes.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Head(Protocol):
    """What the model and the engine need of a head, which is a torch module besides.

    A task has three phases: learn (by gradient), observe, settle. What is observed is only remembered until `settle`
    takes it over, so that a phase that was interrupted can be begun anew.

    Parameters train. Persistent buffers are what a test needs besides: they go into every task's checkpoint.
    """

    observes: bool
    """Whether, after a task was learned, its training images are shown once, cut as for a test."""
    learns_by_gradient: bool
    """Whether a task can be learned by gradient alone."""
    note: str
    """What to tell at the start: what it keeps, and how much memory that takes; often nothing."""

    def __call__(self, features_BD: Tensor) -> Tensor: ...

    def observe(self, features_BD: Tensor, labels_B: Tensor) -> None:
        """Remember a batch, without gradient. Every process is shown all images, in the same order."""
        ...

    def settle(self, task: int) -> None:
        """Learn from what was observed of task `task` (0-based): a function of that, of the state and of the seed."""
        ...

    def move(self, shift_D: Tensor) -> None:
        """Take it that all features of the tasks that have settled would now be larger by `shift_D` [D]."""
        ...

    def statistics(self) -> dict[str, Tensor]:
        """What only later tasks need, and a test does not: kept for a resumed run, in a file of its own. May be empty.

        The tensors themselves, into which a resumed run writes.
        """
        ...


class LearnsByGradient(nn.Module):
    """What holds for every head that only trains."""

    learns_by_gradient, observes, note = True, False, ""

    def observe(self, features_BD: Tensor, labels_B: Tensor) -> None:
        raise NotImplementedError("this head observes nothing")

    def settle(self, task: int) -> None:
        """Everything was learned by gradient."""

    def move(self, shift_D: Tensor) -> None:
        """Nothing is remembered that could move."""

    def statistics(self) -> dict[str, Tensor]:
        return {}


class LinearHead(nn.Linear, LearnsByGradient):
    """Weights and biases that train."""


class ClosedFormHead(nn.Module):
    """What holds for every head that learns from what it observes, in closed form.

    Args:
        classifier: a linear head that takes its place while something is trained by gradient; a test does not use
            it. None where nothing is.
    """

    learns_by_gradient, observes, note = False, True, ""

    def __init__(self, classifier: LinearHead | None):
        super().__init__()
        self.classifier = classifier

    def forward(self, features_BD: Tensor) -> Tensor:
        if self.training and self.classifier is not None:
            return self.classifier(features_BD)
        return self.logits(features_BD)

    def move(self, shift_D: Tensor) -> None:
        raise NotImplementedError

    def logits(self, features_BD: Tensor) -> Tensor:
        raise NotImplementedError

    def statistics(self) -> dict[str, Tensor]:
        return {}  # the test needs all of it


class NearestMeanHead(ClosedFormHead):
    """Nearest class mean: logits are cosines to the mean feature of each class."""

    def __init__(self, dim: int, num_classes: int, classifier: LinearHead | None = None):
        super().__init__(classifier)
        self.register_buffer("sums_KD", torch.zeros(num_classes, dim))
        self.register_buffer("counts_K", torch.zeros(num_classes, dtype=torch.long))
        self._new_sums_KD: Tensor | None = None
        self._new_counts_K: Tensor | None = None

    def observe(self, features_BD: Tensor, labels_B: Tensor) -> None:
        if self._new_sums_KD is None:
            self._new_sums_KD, self._new_counts_K = torch.zeros_like(self.sums_KD), torch.zeros_like(self.counts_K)
        self._new_sums_KD.index_add_(0, labels_B, features_BD.to(self.sums_KD.dtype))
        self._new_counts_K.index_add_(0, labels_B, torch.ones_like(labels_B))

    def settle(self, task: int) -> None:
        self.sums_KD += self._new_sums_KD
        self.counts_K += self._new_counts_K
        self._new_sums_KD = self._new_counts_K = None

    def move(self, shift_D: Tensor) -> None:
        self.sums_KD += self.counts_K[:, None] * shift_D

    def logits(self, features_BD: Tensor) -> Tensor:
        means_KD = F.normalize(self.sums_KD, dim=1).to(features_BD.dtype)
        logits_BK = F.normalize(features_BD, dim=1) @ means_KD.T
        return logits_BK.masked_fill(self.counts_K == 0, -1.0)  # the lowest cosine: a class never seen


def in_float64(values: Tensor) -> Tensor:
    """The same values in float64: on their device, or on the CPU where theirs has none, as Apple's `mps`."""
    return (values if values.device.type in ("cpu", "cuda") else values.cpu()).double()
