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
from PIL import ExifTags, Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from continual_datasets.images import LabelledImages
from continual_datasets.transforms import EvalTransform, TrainTransform
from errors import DamagedFileError, InputError
from utils import serve

PIECE = 16  # images that one worker makes at a time: all workers join in the first batch, which the model waits for
PIECES_AHEAD = 4  # of each worker


class UnreadableImageError(InputError):
    """A file that is no image; `what` names it and says why, without what to do about it in a run."""

    def __init__(self, what: str):
        super().__init__(f"--data_path: {what}; copy it anew and go on with --resume, or remove it and begin anew.")
        self.what = what


def read_picture(path: str, turned: bool = False) -> Image.Image:
    """An image file as `in_rgb` makes it.

    Raises:
        UnreadableImageError: there is no such file, it cannot be decoded, or its pixels are 32-bit numbers.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("it is a named pipe, a device or the like, and no file")  # to open it may wait for ever
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Corrupt EXIF data")  # the picture itself is good
            with Image.open(path) as image:
                return in_rgb(image, turned)
    except MemoryError as error:  # which says nothing
        raise UnreadableImageError(f"{path} cannot be read as an image (there is too little memory for its "
                                   "pixels)") from error
    except Exception as error:  # each of Pillow's decoders has its own for damaged bytes
        raise UnreadableImageError(f"{path} cannot be read as an image ({' '.join(str(error).split())})") from error


def in_rgb(image: Image.Image, turned: bool) -> Image.Image:
    """A picture in RGB, without its transparency. 16-bit grey is scaled to 8 bits, which Pillow would cut off at 255.

    Args:
        turned: stand it upright, as its EXIF says (phones store most photos lying); otherwise it stays as it is
            stored, which is how torchvision reads it.

    Raises:
        ValueError: its pixels are 32-bit numbers.
    """
    image.load()  # before its EXIF is looked at: a TIFF is turned by Pillow itself, which then takes the note out
    turn = _turn(image) if turned else None
    # Of a PGM with more than 8 bits, Pillow makes 32-bit numbers from 0 to 65535, whatever its own white is.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are 32-bit numbers, of which nobody knows the white: save it with 8 bits")
    image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


_TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
          5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
          8: Image.Transpose.ROTATE_90}


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What stands the picture upright; None where its EXIF says nothing, or is damaged."""
    try:
        # Not ImageOps.exif_transpose: that writes the EXIF anew, which fails where another entry of it is damaged.
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # whatever damaged bytes make of Pillow: the picture itself is good
        return None


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
        for pieces in self._pieces(images, positions, draws):
            yield [_whole(piece) for piece in pieces]

    def readable(self, images: LabelledImages, positions: Sequence[Tensor]) -> Iterator[tuple[Tensor, dict[int, str]]]:
        """As `batches`, cut for evaluation, but without the files that cannot be read: pixels `[<= B, 3, S, S]`, and
        for each other position in the batch which file it is and why."""
        for pieces in self._pieces(images, positions, None):
            unreadable = {number * PIECE + place: what for number, piece in enumerate(pieces)
                          for place, what in piece.unreadable.items()}
            yield torch.cat([piece.tensor() for piece in pieces]), unreadable

    def _pieces(self, images: LabelledImages, positions: Sequence[Tensor],
                draws: Sequence[Tensor] | None) -> Iterator[list["_Piece"]]:
        loader = self._idle.pop() if self._idle else self._start()
        cuts = [None] * len(positions) if draws is None else draws
        loader.sampler.orders = (
            (images.paths(piece_B.numpy()), images.store.turned, None if piece_BU is None else piece_BU.numpy())
            for index_B, draws_BU in zip(positions, cuts, strict=True)
            for piece_B, piece_BU in zip(index_B.split(PIECE), repeat(None) if draws_BU is None
                                         else draws_BU.split(PIECE), strict=False))
        try:
            made = self._began(loader)
            for index_B in positions:
                yield [next(made) for _ in index_B.split(PIECE)]
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
    """Runs in the workers: (paths, whether to turn them, uniform numbers or None) -> pixels, and what is wrong."""

    def __init__(self, train_transform: TrainTransform, eval_transform: EvalTransform):
        self.train_transform, self.eval_transform = train_transform, eval_transform

    def __getitem__(self, order: tuple[list[str], bool, np.ndarray | None]) -> "_Piece":
        paths, turned, draws_BU = order
        cut, unreadable = [], {}
        for place, path in enumerate(paths):
            try:
                picture = read_picture(path, turned)
            except UnreadableImageError as error:
                unreadable[place] = error.what  # an exception would come out with the worker's stack in its text
                continue
            if draws_BU is None:
                cut.append(self.eval_transform.of_picture(picture))
            else:
                cut.append(self.train_transform.of_picture(picture, torch.from_numpy(draws_BU[place])))
        side = self.eval_transform.input_size
        return _Piece(torch.stack(cut).numpy() if cut else np.empty((0, 3, side, side), np.uint8), unreadable)


@dataclass(frozen=True)
class _Piece:
    """Pixels on their way from a worker, through a pipe: torch would send a tensor through /dev/shm, which in a
    container is often smaller than a few batches, and then nobody tells the program that waits."""

    pixels_BCHW: np.ndarray | Tensor
    unreadable: dict[int, str]
    """Of the files that are left out: place in the piece -> which it is, and why."""

    def tensor(self) -> Tensor:
        return torch.as_tensor(self.pixels_BCHW)

    def pin_memory(self) -> "_Piece":
        """Called by the DataLoader's thread, where `pin_memory` is set."""
        return _Piece(self.tensor().pin_memory(), self.unreadable)


def _as_it_is(made: _Piece) -> _Piece:
    return made


def _whole(piece: _Piece) -> Tensor:
    for what in piece.unreadable.values():
        raise DamagedFileError(str(UnreadableImageError(what)))
    return piece.tensor()
