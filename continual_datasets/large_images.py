"""Images in files, decoded and cut by worker processes while the model works.

Each image is cut to the model's input in the worker, by numbers drawn before, and travels as 8-bit pixels; how many
workers there are changes nothing but the time. Shapes as in `batches`.
"""

import multiprocessing
import os
import stat
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import repeat

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from continual_datasets.images import LabelledImages
from continual_datasets.transforms import EvalTransform, TrainTransform
from errors import DamagedFileError, InputError
from utils import serve

PIECE = 16  # images that one worker makes at a time: all workers join in the first batch, which the model waits for
PIECES_AHEAD = 4  # of each worker


def read_picture(path: str) -> Image.Image:
    """An image file in RGB, not turned by what its EXIF says and without its transparency, as torchvision reads it.

    16-bit grey is scaled to 8 bits, which Pillow itself would cut off at 255.

    Raises:
        InputError: there is no such file, it cannot be decoded, or its pixels are not 8-bit or 16-bit numbers.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("it is a named pipe, a device or the like, and no file")  # to open it may wait for ever
        with Image.open(path) as image:
            # Of a PGM with more than 8 bits, Pillow makes 32-bit numbers from 0 to 65535, whatever its own white is.
            if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
                image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
            if image.mode in ("I", "F"):
                raise ValueError("its pixels are 32-bit numbers, of which nobody knows the white: save it with 8 bits")
            return image.convert("RGB")
    except Exception as error:  # each of Pillow's decoders has its own for damaged bytes
        raise InputError(f"--data_path: {path} cannot be read as an image ({' '.join(str(error).split())}); copy it "
                         "anew and go on with --resume, or remove it and begin anew.") from error


class Decoder:
    """Worker processes that turn image files into the pixels of batches.

    Args:
        train_transform, eval_transform: what is done to each image.
        num_workers: processes; 0 decodes in this one.
        pin_memory: return pixels in pinned memory.
    """

    def __init__(self, train_transform: TrainTransform, eval_transform: EvalTransform, num_workers: int = 0,
                 pin_memory: bool = False):
        self._cutter = _Cutter(train_transform, eval_transform)
        self._num_workers, self._pin_memory = num_workers, pin_memory
        self._idle: list[DataLoader] = []  # their processes live on: to start them takes as long as a small epoch

    def batches(self, images: LabelledImages, positions: Sequence[Tensor],
                draws: Sequence[Tensor] | None) -> Iterator[list[Tensor]]:
        """For each of `positions` (int64 `[B]`, a batch) its pixels, in pieces that are to be joined: uint8
        `[<= PIECE, 3, S, S]` on the CPU. Cut for training by `draws` (`[B, U]` for each batch), or for evaluation.

        Raises:
            InputError: a file cannot be read; the text names it.
        """
        loader = self._idle.pop() if self._idle else self._start()
        cuts = [None] * len(positions) if draws is None else draws
        loader.sampler.orders = (
            (images.paths(piece_B.numpy()), None if piece_BU is None else piece_BU.numpy())
            for index_B, draws_BU in zip(positions, cuts, strict=True)
            for piece_B, piece_BU in zip(index_B.split(PIECE), repeat(None) if draws_BU is None
                                         else draws_BU.split(PIECE), strict=False))
        try:
            made = self._began(loader)
            for index_B in positions:
                yield [_raised(next(made)) for _ in index_B.split(PIECE)]
        finally:
            self._idle.append(loader)

    def _began(self, loader: DataLoader) -> Iterator:
        """The first time that it is asked, a loader starts its processes."""
        try:
            if self._num_workers:
                multiprocessing.Lock()  # a full /dev/shm has no room for one: a loader would stop half made, noisily
            with _any_number_of_workers():
                return iter(loader)
        except OSError as error:
            raise DamagedFileError(f"--num_workers {self._num_workers}: the processes that decode images cannot be "
                                   f"started ({error}); make room in /dev/shm, give fewer, or --num_workers 0, and go "
                                   "on with --resume.") from error

    def _start(self) -> DataLoader:
        workers: dict = {}
        if self._num_workers:
            workers = {"num_workers": self._num_workers, "prefetch_factor": PIECES_AHEAD, "persistent_workers": True,
                       "worker_init_fn": partial(_begin_work, os.getpid())}
            if sys.platform == "linux":  # started in no time, and main.py is not imported again
                workers["multiprocessing_context"] = "fork"
        with _any_number_of_workers():
            # A generator of its own, for torch's would be drawn from; what it draws is used by nothing.
            return DataLoader(self._cutter, batch_size=None, sampler=_Orders(), collate_fn=_as_it_is,
                              pin_memory=self._pin_memory, generator=torch.Generator(), **workers)


@contextmanager
def _any_number_of_workers() -> Iterator[None]:
    """Without torch's warning of more workers than cores: some wait for the disk, and the default must fit many."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*worker processes in total")
        yield


def _begin_work(trainer: int, worker: int) -> None:
    serve(trainer)


class _Orders:
    """What the workers are to make next."""

    orders: Iterator = iter(())

    def __iter__(self) -> Iterator:
        return self.orders


class _Cutter(TorchDataset):
    """Runs in the workers: (paths, uniform numbers or None) -> pixels, or what is wrong with a file."""

    def __init__(self, train_transform: TrainTransform, eval_transform: EvalTransform):
        self.train_transform, self.eval_transform = train_transform, eval_transform

    def __getitem__(self, order: tuple[list[str], np.ndarray | None]) -> "_Piece | str":
        paths, draws_BU = order
        try:
            pictures = map(read_picture, paths)
            if draws_BU is None:
                cut = [self.eval_transform.of_picture(picture) for picture in pictures]
            else:
                cut = [self.train_transform.of_picture(picture, draws_U)
                       for picture, draws_U in zip(pictures, torch.from_numpy(draws_BU), strict=True)]
            return _Piece(torch.stack(cut).numpy())
        except InputError as error:
            return str(error)  # an exception would come out with the worker's stack in its text


@dataclass(frozen=True)
class _Piece:
    """Pixels on their way from a worker, through a pipe: torch would send a tensor through /dev/shm, which in a
    container is often smaller than a few batches, and then nobody tells the program that waits."""

    pixels_BCHW: np.ndarray

    def tensor(self) -> Tensor:
        return torch.from_numpy(self.pixels_BCHW)

    def pin_memory(self) -> Tensor:
        """Called by the DataLoader's thread, where `pin_memory` is set."""
        return self.tensor().pin_memory()


def _as_it_is(made: _Piece | str) -> _Piece | str:
    return made


def _raised(made: Tensor | _Piece | str) -> Tensor:
    if isinstance(made, str):
        raise DamagedFileError(made)
    return made.tensor() if isinstance(made, _Piece) else made
