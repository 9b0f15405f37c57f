"""Batches on the device: which images, in which order, cut how. Every draw is a function of its position in the run.

Shapes: B images in a batch, N in a task, I in an epoch, M in a process's part of it, S in a data set; U uniform numbers
that an image's augmentation takes.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from continual_datasets.images import LabelledImages, Pixels
from continual_datasets.large_images import Decoder
from continual_datasets.transforms import EvalTransform, TrainTransform
from utils import random_generator

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    images_BCHW: Tensor | None
    """None where the caller said that it needs none."""
    labels_B: Tensor
    index: int
    """Number of the batch in its epoch or test set, counted over all processes."""
    share: float = 1.0
    """This process's images as a multiple of the mean over processes: the weight of its loss in a sum over them."""
    num_replayed: int = 0
    """How many of the images, the last ones, are of tasks before."""

    @property
    def num_new(self) -> int:
        return len(self.labels_B) - self.num_replayed


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
        self._on_gpu: dict[Pixels, Tensor] = {}

    @property
    def global_batch_size(self) -> int:
        """Images of one training step, over all processes."""
        return self.batch_size * self.world_size

    def images_per_epoch(self, images: LabelledImages, steps: int | None = None) -> int:
        return len(images) if steps is None else steps * self.global_batch_size

    def steps_per_epoch(self, images: LabelledImages, steps: int | None = None) -> int:
        return -(-self.images_per_epoch(images, steps) // self.global_batch_size)

    def steps_per_test(self, images: LabelledImages) -> int:
        """Batches of a test set, over all processes."""
        return -(-len(images) // self.batch_size)

    def training(self, images: LabelledImages, task: int, epoch: int, augment: bool = True, first_step: int = 0,
                 steps: int | None = None, replay: Sequence[LabelledImages] = ()) -> Iterator[Batch]:
        """One epoch in an order drawn by (seed, task, epoch), each image cut by a draw of its own, from a step on.

        The global batch is shared out in consecutive runs, so what is trained on does not depend on the number of
        processes. With fewer images than processes in the last batch, a process without any repeats one at weight 0.

        Args:
            steps: so many whole batches instead of each image once; where there are too few images, they come again
                in another order, cut otherwise.
            replay: images of tasks so far, of which every batch has as many as it has new ones.
        """
        count = self.images_per_epoch(images, steps)
        shares = [self._share_of_step(count, step) for step in range(first_step, self.steps_per_epoch(images, steps))]
        places = [place_B for place_B, _ in shares]
        sources = [self._drawn([images], places, count, (task, epoch), augment)]
        if replay:
            sources.append(self._drawn(replay, places, count, ("replay", task, epoch), augment))
        for step, ((_, share), *cut) in enumerate(zip(shares, *sources, strict=True), start=first_step):
            images_BCHW, labels_B = cut[0] if len(cut) == 1 else map(torch.cat, zip(*cut, strict=True))
            yield Batch(images_BCHW, labels_B, step, share, len(labels_B) // 2 if replay else 0)

    def evaluation(self, images: LabelledImages, needs_no_images: Callable[[int], bool] = lambda index: False,
                   shared_out: bool = True) -> Iterator[Batch]:
        """The test images in their order. Whole batches go round the processes, so a batch's vote is the same for any
        number of them and each image is seen once.

        Args:
            needs_no_images: whether the labels of a batch are enough: then its images are not read or cut.
            shared_out: False gives every process all batches. Shared out, fewer batches than processes leave some
                processes without any.
        """
        steps = self.steps_per_test(images)
        indices = range(self.rank, steps, self.world_size) if shared_out else range(steps)
        places = [slice(i * self.batch_size, (i + 1) * self.batch_size) for i in indices]
        without = [needs_no_images(i) for i in indices]
        everywhere_N = torch.arange(len(images))
        wanted = [everywhere_N[place] for place, labels_alone in zip(places, without, strict=True) if not labels_alone]
        with closing(self._cut(images, wanted, None)) as cut:
            for index, place, labels_alone in zip(indices, places, without, strict=True):
                if labels_alone:
                    yield Batch(None, self._copy(torch.from_numpy(images.labels_N[place])), index)
                else:
                    yield Batch(*next(cut), index)

    def _drawn(self, parts: Sequence[LabelledImages], places: list[Tensor], count: int,
               position: tuple[int | str, ...], augment: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Of `count` images drawn from all parts, each once before any comes again, those at each of `places`."""
        order, draws, n = [], [], sum(map(len, parts))
        for again in range(-(-count // n)):
            where = position if again == 0 else (*position, again)
            order_N = torch.randperm(n, generator=random_generator(self.seed, "order", *where))
            draws_NU = torch.rand(n, self.train_transform.num_uniforms,
                                  generator=random_generator(self.seed, "augmentation", *where))
            order.append(order_N)
            draws.append(draws_NU[order_N])
        order_I, draws_IU = torch.cat(order), torch.cat(draws)
        return self._cut_from(parts, [order_I[place_B] for place_B in places],
                              [draws_IU[place_B] for place_B in places] if augment else None)

    def _share_of_step(self, count: int, step: int) -> tuple[Tensor, float]:
        """Which of an epoch's `count` images this process has in one step, at least one, and `Batch.share`."""
        first = step * self.global_batch_size
        whole = torch.arange(first, min(first + self.global_batch_size, count))
        mine_B = whole.tensor_split(self.world_size)[self.rank]
        return (mine_B if len(mine_B) else whole[:1]), len(mine_B) * self.world_size / len(whole)

    # ---- positions to pixels ----
    def _cut_from(self, parts: Sequence[LabelledImages], positions: list[Tensor],
                  draws: list[Tensor] | None) -> Iterator[tuple[Tensor, Tensor]]:
        """As `_cut`, with positions that count through all parts; a batch has those of the first part first."""
        if len(parts) == 1:
            yield from self._cut(parts[0], positions, draws)
            return
        cuts, first = [], 0
        for part in parts:
            here = [(index_B >= first) & (index_B < first + len(part)) for index_B in positions]
            filled = [number for number, here_B in enumerate(here) if here_B.any()]
            cut = self._cut(part, [positions[number][here[number]] - first for number in filled],
                            None if draws is None else [draws[number][here[number]] for number in filled])
            cuts.append((set(filled), cut))
            first += len(part)
        for number in range(len(positions)):
            pieces = [next(cut) for filled, cut in cuts if number in filled]
            images_BCHW, labels_B = map(torch.cat, zip(*pieces, strict=True))
            yield images_BCHW, labels_B

    def _cut(self, images: LabelledImages, positions: list[Tensor],
             draws: list[Tensor] | None) -> Iterator[tuple[Tensor, Tensor]]:
        """For each of `positions` (int64 [B], on the CPU) its images [B, 3, S, S] and labels [B], on the device.

        Cut for training by `draws` (float32 [B, U] for each), or for evaluation without.
        """
        if not positions:
            return
        sizes = [len(index_B) for index_B in positions]
        index_M = torch.cat(positions)
        labels = self._copy(torch.from_numpy(images.labels_N)[index_M]).split(sizes)
        pixels = (self._from_files if images.in_files else self._from_memory)(images, index_M, sizes, draws)
        yield from zip(pixels, labels, strict=True)

    def _from_files(self, images: LabelledImages, index_M: Tensor, sizes: list[int],
                    draws: list[Tensor] | None) -> Iterator[Tensor]:
        transform = self.eval_transform if draws is None else self.train_transform
        for pieces in self._decoder.batches(images, index_M.split(sizes), draws):
            yield transform.normalised(torch.cat([self._copy(p) for p in pieces]).float())

    @cached_property
    def _decoder(self) -> Decoder:
        return Decoder(self.train_transform, self.eval_transform, self.prefetch, self.pin_memory)

    def _from_memory(self, images: LabelledImages, index_M: Tensor, sizes: list[int],
                     draws: list[Tensor] | None) -> Iterator[Tensor]:
        store_SHWC = self._resident(images.store)
        place_M = torch.from_numpy(images.positions_N)[index_M]
        if store_SHWC.device.type == self.device.type:
            place_M = self._copy(place_M)  # once: a step waits for no copy
        places = place_M.split(sizes)

        def prepare(number: int) -> Tensor:
            pixels_BHWC = self._copy(store_SHWC[places[number]])
            return (self.eval_transform(pixels_BHWC) if draws is None
                    else self.train_transform(pixels_BHWC, draws[number], self._copy))

        yield from self._ahead(prepare, range(len(sizes)))

    def _resident(self, store: Pixels) -> Tensor:
        """The pixels of a whole data set: on the GPU from their first use on, if they leave most of it free."""
        pixels_SHWC = torch.from_numpy(store.pixels_SHWC)
        if self.device.type != "cuda":
            return pixels_SHWC
        if store not in self._on_gpu:
            room = torch.cuda.get_device_properties(self.device).total_memory // 8
            kept = sum(pixels.nbytes for pixels in self._on_gpu.values() if pixels.is_cuda)
            fits = kept + pixels_SHWC.nbytes <= room
            self._on_gpu[store] = pixels_SHWC.to(self.device) if fits else pixels_SHWC
        return self._on_gpu[store]

    def _copy(self, tensor: Tensor) -> Tensor:
        if tensor.device.type == self.device.type:
            return tensor
        if not self.pin_memory:  # a copy that nobody waits for reads memory that may be used anew
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

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
