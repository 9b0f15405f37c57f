"""Labelled images, in memory or in files, which tasks and batches handle alike.

Shapes: N images, H×W pixels, 3 channels. Labels are class ids in 0 … num_classes-1.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np


class LabelledImages(ABC):
    """What both kinds have: labels, and parts of themselves."""

    labels_N: np.ndarray
    """int64."""

    def __len__(self) -> int:
        return len(self.labels_N)

    @abstractmethod
    def take(self, chosen_M: np.ndarray) -> Self:
        """The images at these positions, or where this [N] mask is true."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A hex string that differs where images, their order or their labels do, in this process and any other."""

    def of_classes(self, classes: tuple[int, ...]) -> Self:
        return self.take(np.isin(self.labels_N, classes))

    def first_per_class(self, limit: int | None) -> Self:
        """The first `limit` images of every class, in their order in the file; all of them when `limit` is None."""
        if limit is None:
            return self
        first = [np.flatnonzero(self.labels_N == c)[:limit] for c in np.unique(self.labels_N)]
        return self.take(np.sort(np.concatenate(first)))

    def with_labels_from(self, first: int) -> Self:
        """The same images as classes `first`, `first` + 1 …, for several data sets in one scenario."""
        return replace(self, labels_N=self.labels_N + first)


@dataclass(frozen=True, eq=False)
class Images(LabelledImages):
    """Labelled images of one size, in memory."""

    pixels_NHWC: np.ndarray
    """uint8."""
    labels_N: np.ndarray

    def take(self, chosen_M: np.ndarray) -> "Images":
        return Images(self.pixels_NHWC[chosen_M], self.labels_N[chosen_M])

    @cached_property
    def fingerprint(self) -> str:
        found = hashlib.sha256(repr(self.pixels_NHWC.shape).encode())
        found.update(np.ascontiguousarray(self.pixels_NHWC))
        found.update(np.ascontiguousarray(self.labels_N))
        return found.hexdigest()


@dataclass(frozen=True, eq=False)
class ImageFiles(LabelledImages):
    """Labelled images of any sizes, in files that are read when a batch needs them."""

    root: str
    """The folder that `names_N` start from."""
    names_N: np.ndarray
    """str, with `/` between folders on every system."""
    labels_N: np.ndarray

    def take(self, chosen_M: np.ndarray) -> "ImageFiles":
        return ImageFiles(self.root, self.names_N[chosen_M], self.labels_N[chosen_M])

    def paths(self, chosen_M: np.ndarray) -> list[str]:
        """The files of the images at these positions."""
        return [os.path.join(self.root, name) for name in self.names_N[chosen_M].tolist()]

    @cached_property
    def fingerprint(self) -> str:
        """Of names, labels and the files' sizes: reading every pixel would take as long as an epoch."""
        found = hashlib.sha256()
        for name, label in zip(self.names_N.tolist(), self.labels_N.tolist(), strict=True):
            found.update(f"{label} {(Path(self.root) / name).stat().st_size} {name}\n".encode(errors="surrogateescape"))
        return found.hexdigest()
