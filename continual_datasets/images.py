"""Labelled images, in memory or in files, which tasks and batches handle alike.

A data set is read once; tasks, sessions and episodes are parts of it that hold positions and labels, not copies.
Shapes: S images of a whole data set, N images of a part of it, H×W pixels, 3 channels. Labels are class ids in
0 … num_classes-1.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np


class Store(ABC):
    """All images of a data set, which its parts share."""

    def __init__(self) -> None:
        self._known_digests: dict[int, bytes] = {}

    @abstractmethod
    def digest(self, position: int) -> bytes:
        """32 bytes that differ where images (or the names of their files) do, in this process and any other."""

    @abstractmethod
    def size(self, position: int) -> int:
        """Bytes of one image, in memory or of its file."""

    def digests(self, positions_N: np.ndarray) -> bytes:
        """Those of several images, one after another; each is computed once."""
        known = self._known_digests
        for position in positions_N.tolist():
            if position not in known:
                known[position] = self.digest(position)
        return b"".join(known[position] for position in positions_N.tolist())


class Pixels(Store):
    """Images of one size, in memory."""

    def __init__(self, pixels_SHWC: np.ndarray):
        """`pixels_SHWC`: uint8."""
        super().__init__()
        self.pixels_SHWC = pixels_SHWC

    def size(self, position: int) -> int:
        return self.pixels_SHWC[position].nbytes

    def digest(self, position: int) -> bytes:
        found = hashlib.sha256(repr(self.pixels_SHWC.shape[1:]).encode())
        found.update(np.ascontiguousarray(self.pixels_SHWC[position]))
        return found.digest()


class Files(Store):
    """Images of any sizes, in files that are read when a batch needs them."""

    def __init__(self, root: str, names_S: np.ndarray, turned: bool = False):
        """`root`: the folder that `names_S` start from; str, with `/` between folders on every system.

        `turned`: pictures are stood upright, as their EXIF says.
        """
        super().__init__()
        self.root, self.names_S, self.turned = root, names_S, turned

    def path(self, position: int) -> str:
        return os.path.join(self.root, str(self.names_S[position]))

    def size(self, position: int) -> int:
        return Path(self.path(position)).stat().st_size

    def digest(self, position: int) -> bytes:
        """Of the name: reading every pixel would take as long as an epoch, and a photo that was found damaged in the
        middle of a run may be put back whole."""
        return hashlib.sha256(str(self.names_S[position]).encode(errors="surrogateescape")).digest()


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Some images of a store, in an order of their own."""

    store: Store
    positions_N: np.ndarray
    """int64: where they are in the store."""
    labels_N: np.ndarray
    """int64."""

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def in_files(self) -> bool:
        return isinstance(self.store, Files)

    @property
    def pixels_NHWC(self) -> np.ndarray:
        """The pixels of images that lie in memory, uint8; a copy."""
        return self.store.pixels_SHWC[self.positions_N]

    def paths(self, chosen_M: np.ndarray) -> list[str]:
        """The files of the images at these positions of this part."""
        return [self.store.path(position) for position in self.positions_N[chosen_M].tolist()]

    @property
    def names_N(self) -> np.ndarray:
        """The names of images that lie in files."""
        return self.store.names_S[self.positions_N]

    def take(self, chosen_M: np.ndarray) -> "LabelledImages":
        """The images at these positions of this part, or where this [N] mask is true."""
        return LabelledImages(self.store, self.positions_N[chosen_M], self.labels_N[chosen_M])

    def of_classes(self, classes: tuple[int, ...]) -> "LabelledImages":
        return self.take(np.isin(self.labels_N, classes))

    def first_per_class(self, limit: int | None) -> "LabelledImages":
        """The first `limit` images of every class, in their order; all of them when `limit` is None."""
        if limit is None:
            return self
        first = [np.flatnonzero(self.labels_N == c)[:limit] for c in np.unique(self.labels_N)]
        return self.take(np.sort(np.concatenate(first)))

    def with_labels_from(self, first: int) -> "LabelledImages":
        """The same images as classes `first`, `first` + 1 …, for several data sets in one scenario."""
        return replace(self, labels_N=self.labels_N + first)

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels in memory, or of the files."""
        return sum(self.store.size(position) for position in self.positions_N.tolist())

    @cached_property
    def fingerprint(self) -> str:
        """A hex string that differs where images, their order or their labels do, in this process and any other."""
        found = hashlib.sha256(self.store.digests(self.positions_N))
        found.update(np.ascontiguousarray(self.labels_N))
        return found.hexdigest()


def images_in_memory(pixels_NHWC: np.ndarray, labels_N: np.ndarray) -> LabelledImages:
    """Labelled images of one size: uint8 pixels, int64 labels."""
    return LabelledImages(Pixels(pixels_NHWC), np.arange(len(labels_N)), labels_N)


def images_in_files(root: str, names_N: np.ndarray, labels_N: np.ndarray, turned: bool = False) -> LabelledImages:
    """Labelled images in the files `names_N` of the folder `root`; `turned`: stood upright, as their EXIF says."""
    return LabelledImages(Files(root, names_N, turned), np.arange(len(labels_N)), labels_N)
