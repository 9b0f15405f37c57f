"""Batches on the device: which images, in which order, cut how. Every draw is a function of its position in the run.

Shapes: B images in a batch, N in a task, U uniform numbers that an image's augmentation takes.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from continual_datasets.images import ImageFiles, Images, LabelledImages
from continual_datasets.large_images import Decoder
from continual_datasets.transforms import EvalTransform, TrainTransform
from utils import random_generator

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    images_BCHW: Tensor
    labels_B: Tensor
    index: int
    """Number of the batch in its epoch or test set, counted over all processes."""
    share: float = 1.0
    """This process's images as a multiple of the mean over processes: the weight of its loss in a sum over them."""


class Batches:
    """Turns tasks into batches for one process of several.

    Args:
        train_transform, eval_transform: what is done to the uint8 images, on `device`.
        batch_size: images per process.
        seed: seed of order and augmentation.
        rank, world_size: this process's number and how many there are.
        prefetch: batches prepared ahead by a thread, or processes that decode image files; 0 prepares each batch when
            it is asked for.
        pin_memory: copy to a GPU from pinned memory.
    """

    def __init__(self, train_transform: TrainTransform, eval_transform: EvalTransform, *, batch_size: int, seed: int,
                 device: torch.device, rank: int = 0, world_size: int = 1, prefetch: int = 0,
                 pin_memory: bool = False):
        self.train_transform, self.eval_transform = train_transform, eval_transform
        self.batch_size, self.seed, self.device = batch_size, seed, device
        self.rank, self.world_size = rank, world_size
        self.prefetch, self.pin_memory = prefetch, pin_memory and device.type == "cuda"

    def steps_per_epoch(self, images: LabelledImages) -> int:
        return -(-len(images) // (self.batch_size * self.world_size))

    def training(self, images: LabelledImages, task: int, epoch: int, augment: bool = True,
                 first_step: int = 0) -> Iterator[Batch]:
        """One epoch in an order drawn by (seed, task, epoch), each image cut by a draw of its own, from a step on.

        The global batch is shared out in consecutive runs, so what is trained on does not depend on the number of
        processes. With fewer images than processes in the last batch, a process without any repeats one at weight 0.
        """
        n = len(images)
        order_N = torch.randperm(n, generator=random_generator(self.seed, "order", task, epoch))
        draws_NU = torch.rand(n, self.train_transform.num_uniforms,
                              generator=random_generator(self.seed, "augmentation", task, epoch))
        if isinstance(images, ImageFiles):
            yield from self._training_from_files(images, order_N, draws_NU if augment else None, first_step)
            return
        pixels_NHWC, labels_N = self._on_device(images)
        order_N, draws_NU = self._copy(order_N), self._copy(draws_NU)  # once: a step waits for no copy

        def prepare(step: int) -> Batch:
            index_B, share = self._share_of_step(order_N, step)
            pixels_BHWC = pixels_NHWC[index_B]
            cut = self.train_transform(pixels_BHWC, draws_NU[index_B]) if augment else self.eval_transform(pixels_BHWC)
            return Batch(cut, labels_N[index_B], step, share)

        yield from self._ahead(prepare, range(first_step, self.steps_per_epoch(images)))

    def evaluation(self, images: LabelledImages) -> Iterator[Batch]:
        """The test images in file order. Whole batches go round the processes, so a batch's vote is the same for any
        number of them and each image is seen once."""
        if isinstance(images, ImageFiles):
            yield from self._evaluation_from_files(images)
            return
        pixels_NHWC, labels_N = self._on_device(images)

        def prepare(index: int) -> Batch:
            here = slice(index * self.batch_size, (index + 1) * self.batch_size)
            return Batch(self.eval_transform(pixels_NHWC[here]), labels_N[here], index)

        yield from self._ahead(prepare, self._evaluation_batches(images))

    def _share_of_step(self, order_N: Tensor, step: int) -> tuple[Tensor, float]:
        """Positions of this process's images in one step of an epoch, at least one, and `Batch.share`."""
        whole = order_N[step * self.batch_size * self.world_size:(step + 1) * self.batch_size * self.world_size]
        mine_B = whole.tensor_split(self.world_size)[self.rank]
        return (mine_B if len(mine_B) else whole[:1]), len(mine_B) * self.world_size / len(whole)

    def _evaluation_batches(self, images: LabelledImages) -> range:
        return range(self.rank, -(-len(images) // self.batch_size), self.world_size)

    # ---- images in files ----
    def _training_from_files(self, images: ImageFiles, order_N: Tensor, draws_NU: Tensor | None,
                             first_step: int) -> Iterator[Batch]:
        steps = [self._share_of_step(order_N, step) for step in range(first_step, self.steps_per_epoch(images))]
        positions = [index_B for index_B, _ in steps]
        transform = self.eval_transform if draws_NU is None else self.train_transform
        made = self._decoder.batches(images, positions, draws_NU)
        for step, ((index_B, share), pieces) in enumerate(zip(steps, made, strict=True), start=first_step):
            yield Batch(transform.normalised(self._joined(pieces)), self._labels(images, index_B), step, share)

    def _evaluation_from_files(self, images: ImageFiles) -> Iterator[Batch]:
        indices = self._evaluation_batches(images)
        positions = [torch.arange(len(images))[i * self.batch_size:(i + 1) * self.batch_size] for i in indices]
        made = self._decoder.batches(images, positions, None)
        for index, index_B, pieces in zip(indices, positions, made, strict=True):
            yield Batch(self.eval_transform.normalised(self._joined(pieces)), self._labels(images, index_B), index)

    @cached_property
    def _decoder(self) -> Decoder:
        return Decoder(self.train_transform, self.eval_transform, self.prefetch, self.pin_memory)

    def _joined(self, pieces: list[Tensor]) -> Tensor:
        return torch.cat([piece.to(self.device, non_blocking=True) for piece in pieces]).float()

    def _labels(self, images: ImageFiles, index_B: Tensor) -> Tensor:
        return self._copy(torch.from_numpy(images.labels_N[index_B.numpy()]))

    # ---- images in memory ----
    def _on_device(self, images: Images) -> tuple[Tensor, Tensor]:
        return self._copy(torch.from_numpy(images.pixels_NHWC)), self._copy(torch.from_numpy(images.labels_N))

    def _copy(self, tensor: Tensor) -> Tensor:
        return (tensor.pin_memory() if self.pin_memory else tensor).to(self.device, non_blocking=True)

    def _ahead(self, prepare: Callable[[int], T], positions: range) -> Iterator[T]:
        # A thread begins on GPU 0, whichever this process works on.
        on_gpu = torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

        def prepare_here(position: int) -> T:
            with on_gpu:
                return prepare(position)

        produced = map(prepare_here, positions)
        yield from prefetched(produced, self.prefetch) if self.prefetch else produced


def prefetched(items: Iterator[T], depth: int) -> Iterator[T]:
    """The same items in the same order, up to `depth` of them made ahead by a thread. Its errors are raised here."""
    ready: queue.Queue = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(entry: tuple) -> bool:
        while not stop.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((None, StopIteration()))
        except Exception as error:  # handed to the consumer, which raises it
            put((None, error))

    thread = threading.Thread(target=produce, name="batches", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stop.set()
        thread.join()  # a thread inside torch when the interpreter ends would take the process down with it
