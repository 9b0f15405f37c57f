"""Images in files: the same batches as from memory, whatever the workers and processes, and damaged files named."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import write_npz
from PIL import Image

from continual_datasets import Batches, LabelledImages, images_in_files, images_in_memory
from continual_datasets.large_images import PIECE
from continual_datasets.npz import read_npz
from continual_datasets.transforms import EvalTransform, TrainTransform
from errors import InputError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def memory(tmp_path_factory) -> LabelledImages:
    """42 images of 32 × 32 pixels: three pieces of a batch, the last one short."""
    path = write_npz(tmp_path_factory.mktemp("data") / "data.npz", classes=6, train_per_class=7)
    return read_npz(str(path)).train


@pytest.fixture(scope="module")
def files(memory, tmp_path_factory) -> LabelledImages:
    return save(memory.pixels_NHWC, memory.labels_N, tmp_path_factory.mktemp("files"))


def save(pictures, labels, folder: Path) -> LabelledImages:
    """Each image a PNG in the folder of its class."""
    names = [f"class {label}/{number:03d}.png" for number, label in enumerate(labels)]
    for name, pixels_HWC in zip(names, pictures, strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels_HWC).save(folder / name)
    return images_in_files(str(folder), np.array(names), np.asarray(labels, np.int64))


def make(batch_size: int = 20, rank: int = 0, world_size: int = 1, workers: int = 0, size: int = 48) -> Batches:
    return Batches(TrainTransform(size, mean=MEAN, std=STD), EvalTransform(size, MEAN, STD), batch_size=batch_size,
                   seed=3, device=torch.device("cpu"), rank=rank, world_size=world_size, prefetch=workers)


def assert_equal(one, other) -> None:
    one, other = list(one), list(other)
    assert [(b.index, b.share) for b in one] == [(b.index, b.share) for b in other]
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.labels_B, b.labels_B)
        assert a.images_BCHW.dtype == b.images_BCHW.dtype == torch.float32
        assert torch.equal(a.images_BCHW, b.images_BCHW)


def everything(batches: Batches, images) -> list:
    """Training, training without augmentation, and evaluation."""
    return [*batches.training(images, 1, 2), *batches.training(images, 1, 2, augment=False),
            *batches.evaluation(images)]


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_files_give_the_batches_of_the_same_pixels_in_memory(workers, files, memory):
    assert_equal(everything(make(workers=workers), files), everything(make(), memory))


@pytest.mark.parametrize(("world_size", "workers"), [(2, 0), (2, 2), (5, 0)])
def test_processes_share_files_as_they_share_images_in_memory(world_size, workers, files, memory):
    """With 5 processes and 4 images each, the last step has two images: three processes repeat one at weight 0."""
    for rank in range(world_size):
        shared = {"batch_size": 20 // world_size, "rank": rank, "world_size": world_size}
        assert_equal(everything(make(**shared, workers=workers), files), everything(make(**shared), memory))


def test_images_of_any_size_are_cut_one_by_one(tmp_path):
    """Wide, tall, small and large pictures in one batch; each as a batch of its own in memory would be."""
    draw = np.random.default_rng(0)
    shapes = [(40, 64), (64, 40), (9, 30), (200, 150), (300, 90), (48, 48), (1, 1), (130, 260)]
    pictures = [draw.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    images = save(pictures, range(len(pictures)), tmp_path)
    evaluation, = make().evaluation(images)
    for picture, cut in zip(pictures, evaluation.images_BCHW, strict=True):
        assert torch.equal(cut, EvalTransform(48, MEAN, STD)(torch.from_numpy(picture)[None])[0])
    batches = make()
    for epoch in range(3):
        training, = batches.training(images, 0, epoch)
        seen = dict(zip(training.labels_B.tolist(), training.images_BCHW, strict=True))
        for label, picture in enumerate(pictures):
            # Alone, an image in memory gets the draw that this label's file got among all.
            draws_NU = _draws(batches, len(pictures), epoch)
            expected = TrainTransform(48, mean=MEAN, std=STD)(torch.from_numpy(picture)[None], draws_NU[label][None])
            assert torch.equal(seen[label], expected[0])


def _draws(batches: Batches, count: int, epoch: int) -> torch.Tensor:
    from utils import random_generator

    return torch.rand(count, TrainTransform.num_uniforms,
                      generator=random_generator(batches.seed, "augmentation", 0, epoch))


def test_grey_palette_and_transparent_pictures_become_rgb(tmp_path):
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey).convert("1").save(tmp_path / "bits.png")
    Image.fromarray(grey).convert("RGB").quantize(64).save(tmp_path / "palette.gif")
    Image.fromarray(np.dstack([grey] * 3 + [np.full_like(grey, 9)])).save(tmp_path / "transparent.png")
    Image.fromarray(grey).convert("CMYK").save(tmp_path / "print.jpg")
    names = ["grey.png", "bits.png", "palette.gif", "transparent.png", "print.jpg"]
    (batch,) = make(size=8).evaluation(images_in_files(str(tmp_path), np.array(names), np.arange(5)))
    assert batch.images_BCHW.shape == (5, 3, 8, 8)
    assert torch.equal(batch.images_BCHW[0], batch.images_BCHW[3])


# ---- workers ----
def test_workers_live_through_epochs_and_evaluations_and_end_with_the_batches(files):
    batches = make(workers=2)
    everything(batches, files)
    children = _children()
    everything(batches, files)
    assert _children() == children
    assert len(children) >= 2
    del batches
    _wait_until(lambda: not children & _children())


def test_an_epoch_left_midway_disturbs_neither_the_next_nor_one_inside_another(files, memory):
    batches, expected = make(5, workers=2), make(5)
    left = batches.training(files, 0, 0)
    next(left)
    left.close()
    outer = batches.training(files, 0, 1)
    first = next(outer)
    assert_equal(batches.evaluation(files), expected.evaluation(memory))
    assert_equal([first, *outer], expected.training(memory, 0, 1))


@pytest.mark.parametrize("workers", [0, 2])
def test_files_that_are_not_needed_are_left_out_among_others(workers, files, memory):
    found = list(make(5, workers=workers).evaluation(files, {1, 2}.__contains__))
    assert [batch.images_BCHW is None for batch in found] == [index in {1, 2} for index in range(len(found))]
    expected = list(make(5).evaluation(memory))
    assert [b.labels_B.tolist() for b in found] == [b.labels_B.tolist() for b in expected]
    assert_equal([b for b in found if b.index not in {1, 2}], [b for b in expected if b.index not in {1, 2}])


def test_decoding_draws_from_no_global_generator(files):
    before = torch.manual_seed(5).get_state()
    everything(make(workers=1), files)
    everything(make(workers=0), files)
    assert torch.equal(torch.get_rng_state(), before)


def _children() -> set[int]:
    here = os.getpid()
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        if int(fields[1]) == here and fields[0] != "Z":
            found.add(int(status.parent.name))
    return found


def _wait_until(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ---- files that cannot be read ----
DAMAGE = {
    "cut short": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "text": lambda whole: b"no picture at all",
    "broken": lambda whole: whole[:60] + bytes(40) + whole[100:],
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_in_one_sentence(damage, workers, memory, tmp_path):
    images = save(memory.pixels_NHWC[:20], memory.labels_N[:20], tmp_path)
    path = tmp_path / images.names_N[PIECE]
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    batches = make(4, workers=workers)
    for run in (batches.training(images, 0, 0), batches.evaluation(images)):
        message = refusal(run)
        assert message.startswith(f"--data_path: {path} cannot be read as an image")
        assert "\n" not in message
        assert "Traceback" not in message


def refusal(run) -> str:
    """What `run` raises; pytest.raises would keep the workers alive with the frames it holds."""
    try:
        list(run)
    except InputError as error:
        return str(error)
    raise AssertionError("not refused")


def test_a_file_that_went_away_is_named(memory, tmp_path):
    images = save(memory.pixels_NHWC[:4], memory.labels_N[:4], tmp_path)
    (tmp_path / images.names_N[2]).unlink()
    assert "002.png cannot be read" in refusal(make(workers=1).evaluation(images))


# ---- parts and fingerprints ----
def test_parts_of_files_are_parts_of_the_same_images_in_memory(files, memory):
    for part in (lambda images: images.of_classes((1, 4)), lambda images: images.first_per_class(2),
                 lambda images: images.take(np.array([3, 1])), lambda images: images.with_labels_from(10)):
        assert_equal(make().evaluation(part(files)), make().evaluation(part(memory)))
        assert part(files).store is files.store


def test_fingerprints_tell_images_apart_and_last(files, memory, tmp_path):
    assert memory.fingerprint == images_in_memory(memory.pixels_NHWC.copy(), memory.labels_N.copy()).fingerprint
    again = save(memory.pixels_NHWC, memory.labels_N, tmp_path)
    assert again.fingerprint == files.fingerprint  # wherever the folder lies
    assert int(files.fingerprint, 16) != int(memory.fingerprint, 16)
    changed = memory.pixels_NHWC.copy()
    changed[-1, -1, -1, -1] ^= 1
    renamed_N = np.where(np.arange(42) == 0, "other.png", again.names_N)
    others = [images_in_memory(changed, memory.labels_N), memory.with_labels_from(1), memory.take(np.arange(41)),
              images_in_memory(memory.pixels_NHWC.reshape(42, 16, 64, 3), memory.labels_N), files.with_labels_from(1),
              files.take(np.arange(41)), images_in_files(again.store.root, renamed_N, again.labels_N)]
    assert len({images.fingerprint for images in [memory, files, *others]}) == 9
