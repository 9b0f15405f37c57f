"""Batches on the device: which images, in which order, cut how. Every draw is a function of its position in the run.

Shapes: B images in a batch, N in a task, U uniform numbers that an image's augmentation takes.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from continual_datasets.scenario import Images
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
        prefetch: batches prepared ahead by a thread; 0 prepares each when it is asked for.
        pin_memory: copy to a GPU from pinned memory.
    """

    def __init__(self, train_transform: TrainTransform, eval_transform: EvalTransform, *, batch_size: int, seed: int,
                 device: torch.device, rank: int = 0, world_size: int = 1, prefetch: int = 0,
                 pin_memory: bool = False):
        self.train_transform, self.eval_transform = train_transform, eval_transform
        self.batch_size, self.seed, self.device = batch_size, seed, device
        self.rank, self.world_size = rank, world_size
        self.prefetch, self.pin_memory = prefetch, pin_memory and device.type == "cuda"

    def steps_per_epoch(self, images: Images) -> int:
        return -(-len(images) // (self.batch_size * self.world_size))

    def training(self, images: Images, task: int, epoch: int, augment: bool = True) -> Iterator[Batch]:
        """One epoch in an order drawn by (seed, task, epoch), each image cut by a draw of its own.

        The global batch is shared out in consecutive runs, so what is trained on does not depend on the number of
        processes. With fewer images than processes in the last batch, a process without any repeats one at weight 0.
        """
        n = len(images)
        order_N = torch.randperm(n, generator=random_generator(self.seed, "order", task, epoch))
        draws_NU = torch.rand(n, self.train_transform.num_uniforms,
                              generator=random_generator(self.seed, "augmentation", task, epoch))
        pixels_NHWC, labels_N = self._on_device(images)
        order_N, draws_NU = self._copy(order_N), self._copy(draws_NU)  # once: a step waits for no copy

        def prepare(step: int) -> Batch:
            whole = order_N[step * self.batch_size * self.world_size:(step + 1) * self.batch_size * self.world_size]
            mine = whole.tensor_split(self.world_size)[self.rank]
            share = len(mine) * self.world_size / len(whole)
            index_B = mine if len(mine) else whole[:1]
            pixels_BHWC = pixels_NHWC[index_B]
            cut = self.train_transform(pixels_BHWC, draws_NU[index_B]) if augment else self.eval_transform(pixels_BHWC)
            return Batch(cut, labels_N[index_B], step, share)

        yield from self._ahead(prepare, range(self.steps_per_epoch(images)))

    def evaluation(self, images: Images) -> Iterator[Batch]:
        """The test images in file order. Whole batches go round the processes, so a batch's vote is the same for any
        number of them and each image is seen once."""
        pixels_NHWC, labels_N = self._on_device(images)

        def prepare(index: int) -> Batch:
            here = slice(index * self.batch_size, (index + 1) * self.batch_size)
            return Batch(self.eval_transform(pixels_NHWC[here]), labels_N[here], index)

        yield from self._ahead(prepare, range(self.rank, -(-len(images) // self.batch_size), self.world_size))

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
