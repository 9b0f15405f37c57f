"""Photos of one's own are stood upright by their EXIF, wherever a run reads them; older runs go on as they began.

Phones store most photos lying, with a note that says how to turn them.
"""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import TINY, write_npz
from lab import Interrupting, call, learned_in
from PIL import Image, ImageOps

from continual_datasets import build_scenario
from continual_datasets.large_images import read_picture
from loading import PictureTransform

ORIENTATION = 0x0112
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 3), dtype=np.uint8)
# How an upright picture has to be stored so that its note turns it back.
STORED = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
          5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
          8: Image.Transpose.ROTATE_270}


def note(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def lying(picture: Image.Image, path: Path, orientation: int, **options: object) -> Path:
    stored = picture.transpose(STORED[orientation]) if orientation in STORED else picture
    stored.save(path, exif=note(orientation), **options)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "webp", "tif", "jpg"])
def test_every_orientation(kind, orientation, tmp_path):
    upright = Image.fromarray(PIXELS)
    path = lying(upright, tmp_path / f"a.{kind}", orientation, **({"lossless": True} if kind == "webp" else {}))
    turned = read_picture(str(path), turned=True)
    with Image.open(path) as image:
        assert np.array_equal(turned, ImageOps.exif_transpose(image).convert("RGB")), "as Pillow turns it"
        image.load()
        assert np.array_equal(read_picture(str(path)), image.convert("RGB")), "as it is stored"
    if kind != "jpg":
        assert np.array_equal(turned, upright)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_a_note_that_says_nothing(orientation, tmp_path):
    path = lying(Image.fromarray(PIXELS), tmp_path / "a.png", orientation)
    assert np.array_equal(read_picture(str(path), turned=True), PIXELS)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("damaged", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff",
                                     b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_a_damaged_note_costs_no_photo(damaged, tmp_path):
    for name in ("a.webp", "a.jpg"):
        Image.fromarray(PIXELS).save(tmp_path / name, lossless=True, exif=damaged)
    assert np.array_equal(read_picture(str(tmp_path / "a.webp"), turned=True), PIXELS)
    assert np.array_equal(read_picture(str(tmp_path / "a.jpg"), turned=True), read_picture(str(tmp_path / "a.jpg")))


def test_one_damaged_entry_beside_the_note_keeps_no_photo_lying(tmp_path):
    """Pillow's own turning writes the other entries anew, and fails with a resolution that is text."""
    resolution = struct.pack(">HHL4s", 0x011A, 2, 4, b"fine")
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\2" + struct.pack(">HHLHH", ORIENTATION, 3, 1, 6, 0) + resolution + bytes(4)
    path = tmp_path / "a.webp"
    Image.fromarray(PIXELS).transpose(STORED[6]).save(path, lossless=True, exif=exif)
    with pytest.raises(TypeError):
        ImageOps.exif_transpose(Image.open(path))
    assert np.array_equal(read_picture(str(path), turned=True), PIXELS)


def test_sixteen_bits_are_turned_too(tmp_path):
    grey = (PIXELS[..., 0].astype(np.uint16) << 8).T.copy()  # orientation 5
    Image.fromarray(grey).save(tmp_path / "a.png", exif=note(5))
    assert np.array_equal(np.array(read_picture(str(tmp_path / "a.png"), turned=True))[..., 0], PIXELS[..., 0])


# ---- runs ----
SETTINGS = ("--dataset", "Split-Folder", "--num_tasks", 2, "--device", "cpu", *TINY, "--embedding_key", "mean",
            "--eval_per_image", "never", "--lr", 1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> dict[str, Path]:
    """The same photos upright, lying with a note, and lying without."""
    folder = tmp_path_factory.mktemp("photos")
    arrays = np.load(write_npz(folder / "data.npz"))
    found = {name: folder / name for name in ("upright", "noted", "bare")}
    for part in ("train", "test"):
        for number, (pixels, label) in enumerate(zip(arrays[f"x_{part}"], arrays[f"y_{part}"], strict=True)):
            name = f"{part}/class {label}/{number:02d}.png"
            for root in found.values():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
            upright, orientation = Image.fromarray(pixels), number % 8 + 1
            upright.save(found["upright"] / name)
            lying(upright, found["noted"] / name, orientation)
            Image.open(found["noted"] / name).save(found["bare"] / name, exif=b"")
    return found


def train(data: Path, folder: Path, stop: str = "\nafter ") -> Path:
    code, _, errors = call(*SETTINGS, "--data-path", data, "--output_dir", folder, out=Interrupting(stop))
    assert code == 130, errors
    return folder


@pytest.fixture(scope="module")
def runs(photos, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {name: train(data, folder / name) for name, data in photos.items()}


def learned(run: Path) -> list[dict[str, bytes]]:
    return [{name: tensor.numpy().tobytes() for name, tensor in state.items()} for state in learned_in(run)]


def evaluation(run: Path, data: Path) -> float:
    code, _, errors = call("--eval", "--output_dir", run, "--data-path", data)
    assert code == 0, errors
    return json.loads((run / "eval_summary.json").read_text())["loss"]


def make_old(run: Path) -> Path:
    """As an older version wrote it, which turned no photo and did not speak of it."""
    config = json.loads((run / "config.json").read_text())
    del config["turn_photos"], config["tasks"]
    (run / "config.json").write_text(json.dumps(config))
    return run


def test_training_turns_photos(runs):
    assert learned(runs["noted"]) == learned(runs["upright"])
    assert learned(runs["noted"]) != learned(runs["bare"])


def test_an_older_run_is_evaluated_as_it_was_trained(runs, photos, tmp_path):
    run = shutil.copytree(runs["bare"], tmp_path / "run")
    as_stored, turned = evaluation(run, photos["bare"]), evaluation(run, photos["noted"])
    assert as_stored != turned
    assert evaluation(make_old(run), photos["noted"]) == as_stored


def test_an_older_run_goes_on_as_it_began(runs, photos, tmp_path):
    data = shutil.copytree(photos["bare"], tmp_path / "data")
    run = make_old(train(data, tmp_path / "run", stop="task 2/2 epoch"))
    shutil.rmtree(data)
    shutil.copytree(photos["noted"], data)
    words = *SETTINGS, "--data-path", data, "--output_dir", run, "--resume"
    code, _, errors = call(*words, out=Interrupting("\nafter "))
    assert code == 130, errors
    assert learned(run) == learned(runs["bare"])


def test_published_sets_are_read_as_torchvision_does(photos, tmp_path):
    shutil.copytree(photos["noted"], tmp_path / "imagenet-r")
    for dataset, path, turned in (("Split-ImageNet-R", tmp_path, False), ("Split-Folder", photos["noted"], True)):
        scenario = build_scenario(dataset, str(path), download=False, num_tasks=2, shuffle=False, seed=0,
                                  subsample=None, subsample_test=None)
        for task in scenario.tasks:
            assert {part.store.turned for part in (task.train, task.test)} == {turned}


def test_a_picture_in_memory_is_as_good_as_its_file(tmp_path):
    from continual_datasets.transforms import EvalTransform

    path = lying(Image.fromarray(PIXELS), tmp_path / "a.png", 6)
    transform = PictureTransform(EvalTransform(16), turned=True)
    assert torch.equal(transform(Image.open(path)), transform(path))
    assert torch.equal(transform(str(path)), transform(Image.fromarray(PIXELS)))
    assert not torch.equal(transform(path), PictureTransform(EvalTransform(16), turned=False)(path))
