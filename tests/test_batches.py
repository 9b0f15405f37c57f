"""Batches whose every draw depends on its position alone: order, cuts, processes, streams, replay, prefetching."""

import threading
import time

import numpy as np
import pytest
import torch

from continual_datasets import Batches, LabelledImages, images_in_memory
from continual_datasets.batches import prefetched
from continual_datasets.transforms import EvalTransform, TrainTransform


def images(count: int) -> LabelledImages:
    """Images of noise, each with a label of its own, so that a batch's labels say which images it holds."""
    pixels = np.random.default_rng(count).integers(0, 256, (count, 12, 12, 3), dtype=np.uint8)
    return images_in_memory(pixels, np.arange(count))


def make_batches(batch_size: int = 4, seed: int = 3, rank: int = 0, world_size: int = 1, prefetch: int = 0) -> Batches:
    return Batches(TrainTransform(8), EvalTransform(8), batch_size=batch_size, seed=seed, device=torch.device("cpu"),
                   rank=rank, world_size=world_size, prefetch=prefetch)


def order_of(count: int, task: int = 0, epoch: int = 0, **changed) -> list[int]:
    return [label for batch in make_batches(**changed).training(images(count), task, epoch)
            for label in batch.labels_B.tolist()]


def pixels_of(count: int, task: int = 0, epoch: int = 0, **changed) -> dict[int, torch.Tensor]:
    return {label: pixels for batch in make_batches(**changed).training(images(count), task, epoch)
            for label, pixels in zip(batch.labels_B.tolist(), batch.images_BCHW, strict=True)}


def alike(one: dict[int, torch.Tensor], other: dict[int, torch.Tensor]) -> list[bool]:
    assert one.keys() == other.keys()
    return [torch.equal(one[label], other[label]) for label in one]


def test_an_epoch_is_a_permutation_drawn_by_seed_task_and_epoch_alone():
    first = order_of(23, task=1, epoch=2)
    assert sorted(first) == list(range(23))
    before = torch.manual_seed(99).get_state()
    assert order_of(23, task=1, epoch=2) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert order_of(23, task=1, epoch=2, batch_size=7) == first
    others = [order_of(23, task=0, epoch=2), order_of(23, task=1, epoch=0), order_of(23, task=2, epoch=1),
              order_of(23, task=1, epoch=2, seed=4)]
    assert len({tuple(order) for order in [first, *others]}) == 5


def test_batches_are_float_pixels_numbered_from_0_and_the_last_one_may_be_short():
    made = list(make_batches(batch_size=5).training(images(12), 0, 0))
    assert [batch.index for batch in made] == [0, 1, 2]
    assert [len(batch.labels_B) for batch in made] == [5, 5, 2]
    assert make_batches(batch_size=5).steps_per_epoch(images(12)) == 3
    assert all(batch.share == 1 for batch in made)
    for batch in made:
        assert batch.images_BCHW.shape == (len(batch.labels_B), 3, 8, 8)
        assert batch.images_BCHW.dtype == torch.float32
        assert batch.images_BCHW.min() >= 0
        assert batch.images_BCHW.max() <= 1


def test_an_image_is_augmented_alike_in_batches_of_any_size():
    single = pixels_of(23, batch_size=1)
    assert all(alike(single, pixels_of(23, batch_size=5)))
    assert all(alike(single, pixels_of(23, batch_size=64)))


def test_every_epoch_task_and_seed_augments_anew():
    first = pixels_of(23)
    for changed in ({"epoch": 1}, {"task": 1}, {"seed": 4}):
        assert sum(alike(first, pixels_of(23, **changed))) <= 2


def test_each_image_has_a_draw_of_its_own():
    same = images_in_memory(np.broadcast_to(images(1).pixels_NHWC, (16, 12, 12, 3)).copy(), np.arange(16))
    (batch,) = make_batches(batch_size=16).training(same, 0, 0)
    assert len({pixels.numpy().tobytes() for pixels in batch.images_BCHW}) >= 14


def test_without_augmentation_an_epoch_holds_the_images_as_evaluation_sees_them():
    plain = {label: pixels for batch in make_batches().training(images(10), 0, 0, augment=False)
             for label, pixels in zip(batch.labels_B.tolist(), batch.images_BCHW, strict=True)}
    expected = EvalTransform(8)(torch.from_numpy(images(10).pixels_NHWC))
    assert all(torch.equal(plain[label], expected[label]) for label in range(10))


@pytest.mark.parametrize("count", [5, 24, 25, 35])
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_processes_share_the_batches_that_one_process_would_have(world_size, count):
    single = list(make_batches(batch_size=12).training(images(count), 1, 2))
    ranks = [list(make_batches(batch_size=12 // world_size, rank=rank, world_size=world_size)
                  .training(images(count), 1, 2)) for rank in range(world_size)]
    for whole, *parts in zip(single, *ranks, strict=True):
        assert {part.index for part in parts} == {whole.index}
        counted = [part for part in parts if part.share > 0]
        assert torch.equal(torch.cat([part.labels_B for part in counted]), whole.labels_B)
        assert torch.equal(torch.cat([part.images_BCHW for part in counted]), whole.images_BCHW)
        assert all(len(part.labels_B) >= 1 for part in parts)  # a process must take its step for the others' sake


@pytest.mark.parametrize(("count", "world_size", "batch_size"), [(24, 3, 4), (25, 3, 4), (11, 2, 3), (7, 4, 2)])
def test_shares_make_the_mean_of_the_processes_losses_the_loss_of_the_whole_batch(count, world_size, batch_size):
    ranks = [list(make_batches(batch_size, rank=rank, world_size=world_size).training(images(count), 0, 0))
             for rank in range(world_size)]
    single = list(make_batches(batch_size * world_size).training(images(count), 0, 0))
    for whole, *parts in zip(single, *ranks, strict=True):
        assert sum(part.share for part in parts) == pytest.approx(world_size)
        mean = sum(part.share * part.labels_B.double().mean().item() for part in parts) / world_size
        assert mean == pytest.approx(whole.labels_B.double().mean().item())


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_evaluation_sees_each_image_once_in_the_same_batches_whatever_the_processes(world_size):
    made = [batch for rank in range(world_size)
            for batch in make_batches(rank=rank, world_size=world_size).evaluation(images(14))]
    made.sort(key=lambda batch: batch.index)
    assert [batch.index for batch in made] == [0, 1, 2, 3]
    assert [batch.labels_B.tolist() for batch in made] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13]]
    expected = EvalTransform(8)(torch.from_numpy(images(14).pixels_NHWC))
    assert torch.equal(torch.cat([batch.images_BCHW for batch in made]), expected)


def test_evaluation_that_is_not_shared_out_gives_every_process_all_batches():
    for rank in range(3):
        made = list(make_batches(rank=rank, world_size=3).evaluation(images(6), shared_out=False))
        assert [batch.labels_B.tolist() for batch in made] == [[0, 1, 2, 3], [4, 5]]


@pytest.mark.parametrize("known", [{0}, {1, 2}, {0, 3}, {0, 1, 2, 3}])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_batches_whose_images_are_not_needed_have_their_labels_and_the_others_their_own_images(known, prefetch):
    whole = list(make_batches().evaluation(images(14)))
    made = list(make_batches(prefetch=prefetch).evaluation(images(14), known.__contains__))
    assert [batch.index for batch in made] == [0, 1, 2, 3]
    for one, other in zip(made, whole, strict=True):
        assert torch.equal(one.labels_B, other.labels_B)
        if one.index in known:
            assert one.images_BCHW is None
        else:
            assert torch.equal(one.images_BCHW, other.images_BCHW)


# ---- a fixed number of steps ----
def stream_of(count: int, steps: int, first_step: int = 0, **changed) -> list:
    return list(make_batches(**changed).training(images(count), 7, 1, first_step=first_step, steps=steps))


def test_whole_batches_where_there_are_more_images_than_are_asked_for():
    made = stream_of(23, steps=3)
    assert [len(batch.labels_B) for batch in made] == [4, 4, 4]
    assert [label for batch in made for label in batch.labels_B.tolist()] == order_of(23, task=7, epoch=1)[:12]
    batches = make_batches()
    assert batches.steps_per_epoch(images(23), 3) == 3
    assert batches.images_per_epoch(images(23), 3) == 12


def test_too_few_images_come_again_in_another_order_and_cut_otherwise():
    made = stream_of(5, steps=4)
    labels = torch.cat([batch.labels_B for batch in made]).tolist()
    pixels = torch.cat([batch.images_BCHW for batch in made])
    assert len(labels) == 16
    for start in (0, 5, 10):
        assert sorted(labels[start:start + 5]) == list(range(5))
    assert labels[:5] == order_of(5, task=7, epoch=1)
    assert len({tuple(labels[start:start + 5]) for start in (0, 5, 10)}) > 1
    assert len({cut.numpy().tobytes() for cut in pixels}) == 16


@pytest.mark.parametrize("replayed", [0, 7])
def test_a_stream_goes_on_in_its_middle_and_is_shared_out_as_any_epoch(replayed):
    replay = [images(40).take(np.arange(33, 33 + replayed))] if replayed else []

    def made(first_step: int = 0, **changed) -> list:
        return list(make_batches(**changed).training(images(9), 7, 1, first_step=first_step, steps=5, replay=replay))

    whole = made(batch_size=12)
    for one, other in zip(whole[2:], made(first_step=2, batch_size=12), strict=True):
        assert torch.equal(one.images_BCHW, other.images_BCHW)
        assert torch.equal(one.labels_B, other.labels_B)
    ranks = [made(batch_size=4, rank=rank, world_size=3) for rank in range(3)]
    for one, *parts in zip(whole, *ranks, strict=True):
        for new in (True, False):
            def half(batch, new=new):
                return slice(batch.num_new) if new else slice(batch.num_new, None)
            assert torch.equal(torch.cat([part.labels_B[half(part)] for part in parts]), one.labels_B[half(one)])
            assert torch.equal(torch.cat([part.images_BCHW[half(part)] for part in parts]),
                               one.images_BCHW[half(one)])


# ---- replay ----
def test_every_batch_is_joined_by_as_many_replayed_images():
    """The new half is bit for bit what it is without replay; the other is drawn from what is kept, each as often."""
    kept = images(40).take(np.array([30, 35, 39]))
    plain = list(make_batches().training(images(10), 2, 1))
    made = list(make_batches().training(images(10), 2, 1, replay=[kept]))
    assert [(batch.num_new, batch.num_replayed) for batch in made] == [(4, 4), (4, 4), (2, 2)]
    assert [batch.num_replayed for batch in plain] == [0, 0, 0]
    for one, other in zip(plain, made, strict=True):
        assert torch.equal(one.images_BCHW, other.images_BCHW[:other.num_new])
        assert torch.equal(one.labels_B, other.labels_B[:other.num_new])
    replayed = torch.cat([batch.labels_B[batch.num_new:] for batch in made]).tolist()
    assert all(sorted(replayed[start:start + 3]) == [30, 35, 39] for start in (0, 3, 6))


def test_what_is_kept_may_lie_in_several_stores_of_other_sizes():
    small = images_in_memory(np.full((4, 9, 9, 3), 50, np.uint8), np.arange(100, 104))
    large = images_in_memory(np.full((3, 20, 30, 3), 200, np.uint8), np.arange(200, 203))
    for prefetch in (0, 2):
        made = list(make_batches(prefetch=prefetch).training(images(14), 0, 0, replay=[small, large]))
        labels = torch.cat([batch.labels_B[batch.num_new:] for batch in made]).tolist()
        assert sorted(labels) == sorted([*range(100, 104), *range(200, 203)] * 2)
        for batch in made:
            for label, pixels in zip(batch.labels_B.tolist(), batch.images_BCHW, strict=True):
                if label >= 100:
                    assert torch.allclose(pixels, torch.tensor((50 if label < 200 else 200) / 255))


# ---- batches prepared ahead ----
@pytest.mark.parametrize("prefetch", [1, 4])
def test_preparing_ahead_changes_nothing(prefetch):
    for run in (lambda made: made.training(images(23), 1, 2), lambda made: made.evaluation(images(23))):
        here, ahead = list(run(make_batches())), list(run(make_batches(prefetch=prefetch)))
        assert [batch.index for batch in ahead] == [batch.index for batch in here]
        for one, other in zip(here, ahead, strict=True):
            assert torch.equal(one.labels_B, other.labels_B)
            assert torch.equal(one.images_BCHW, other.images_BCHW)


def count_with_threads(end: int, made: list):
    """0 … end − 1, noting for each which thread asked for it."""
    for number in range(end):
        made.append(threading.current_thread())
        yield number


def wait_until(condition, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_preparing_ahead_happens_in_another_thread_and_not_further_than_asked():
    made: list[threading.Thread] = []
    ahead = prefetched(count_with_threads(100, made), 3)
    assert next(ahead) == 0
    assert wait_until(lambda: len(made) == 5)  # one taken, three waiting, one in the thread's hands
    assert not wait_until(lambda: len(made) > 5, seconds=0.3)
    assert threading.current_thread() not in made
    assert list(ahead) == list(range(1, 100))
    assert wait_until(lambda: not made[0].is_alive())


def test_errors_of_the_thread_are_raised_where_batches_are_taken():
    def broken():
        yield 1
        yield 2
        raise ZeroDivisionError("the third one")

    ahead = prefetched(broken(), 4)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(ZeroDivisionError, match="the third one"):
        next(ahead)
    grey = images_in_memory(np.zeros((9, 12, 12, 1), np.uint8), np.arange(9))
    with pytest.raises(ValueError, match="expected uint8 images"):
        list(make_batches(prefetch=2).training(grey, 0, 0))


@pytest.mark.parametrize("taken", [1, 3])
def test_batches_left_midway_end_their_thread(taken):
    before = set(threading.enumerate())
    iterator = make_batches(prefetch=2).training(images(60), 0, 0)
    for _ in range(taken):
        next(iterator)
    started = set(threading.enumerate()) - before
    assert len(started) == 1
    iterator.close()
    assert wait_until(lambda: not any(thread.is_alive() for thread in started))
