"""Reading data sets from disk, as they are published, into memory.

A reader takes (data_path, download) and returns a `Dataset`. A new data set is one function here and one line in
`CATALOGUE`.
"""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from continual_datasets.glyphs import DEMO_CLASSES, glyph_images
from continual_datasets.images import Images
from continual_datasets.scenario import Dataset
from errors import InputError

NO_DATA_HINT = "or run `python main.py demo_l2p`, which needs no files."
GLYPH_DATA_SEED = 2022  # the demo's images are one fixed data set, whatever the seed of a run
GLYPH_CLASSES = DEMO_CLASSES[:20]
GLYPH_TRAIN, GLYPH_TEST = 200, 50  # images per class


def read_cifar100(data_path: str, download: bool) -> Dataset:
    """CIFAR-100 from torchvision's files in `data_path`, or from an .npz."""
    if data_path.endswith(".npz"):
        return read_npz(data_path, download)
    from torchvision.datasets import CIFAR100  # imported late: only this reader needs torchvision's data sets

    data_path = os.path.expanduser(data_path)
    folder = Path(data_path) / CIFAR100.base_folder
    files = [name for name, _ in [*CIFAR100.train_list, *CIFAR100.test_list]] + [CIFAR100.meta["filename"]]
    missing = [name for name in files if not (folder / name).is_file()]
    if missing and not download:
        raise InputError(f"--data_path {data_path}: no {', '.join(missing)} in {folder}; give the folder that holds "
                         f"{CIFAR100.base_folder}/, add --download to fetch CIFAR-100 into it, {NO_DATA_HINT}")
    try:
        train = CIFAR100(data_path, train=True, download=download)
        test = CIFAR100(data_path, train=False)
    except OSError as error:  # urllib's errors are OSErrors too
        raise InputError(f"--download could not fetch CIFAR-100 into {data_path} ({error}); put the files into "
                         f"{folder} by hand, {NO_DATA_HINT}") from error
    except RuntimeError as error:
        if not folder.exists():
            raise InputError(f"--download fetched an archive into {data_path} that is not CIFAR-100's (its checksum "
                             f"differs); try again, or put the files into {folder} by hand.") from error
        raise InputError(f"--data_path {data_path}: a file in {folder} is damaged (its checksum differs); remove the "
                         "folder and use --download, or copy it anew.") from error
    return Dataset(_images(train.data, train.targets), _images(test.data, test.targets), tuple(train.classes))


def read_npz(data_path: str, download: bool = False) -> Dataset:
    """An .npz with x_train, y_train, x_test, y_test (uint8 NHWC, integer labels from 0) and maybe class_names."""
    path = Path(data_path)
    if not path.is_file():
        raise InputError(f"--data_path {data_path}: there is no such file, {NO_DATA_HINT}")
    try:
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # numpy, zipfile, zlib and tokenize each have their own for damaged bytes
        raise InputError(f"--data_path {data_path} cannot be read as an .npz of plain arrays (no Python objects); "
                         "make it anew with numpy.savez.") from error
    absent = [name for name in ("x_train", "y_train", "x_test", "y_test") if name not in arrays]
    if absent:
        raise InputError(f"--data_path {data_path} has no {', '.join(absent)}; an .npz data set has x_train, y_train, "
                         "x_test, y_test.")
    names = arrays.get("class_names")
    if names is not None and names.ndim != 1:
        raise InputError(f"--data_path {data_path}: class_names has shape {names.shape}; give one name per class.")
    if names is not None and names.dtype.kind == "S":
        names = np.char.decode(names, "utf-8")
    num_classes = None if names is None else len(names)
    train = _checked(data_path, "train", arrays["x_train"], arrays["y_train"], num_classes)
    if num_classes is None:
        num_classes = len(np.unique(train.labels_N))
        if train.labels_N.max() >= num_classes:
            raise InputError(f"--data_path {data_path}: y_train holds {num_classes} different labels up to "
                             f"{train.labels_N.max()}; number the classes from 0 without gaps, or give class_names.")
    parts = [train, _checked(data_path, "test", arrays["x_test"], arrays["y_test"], num_classes)]
    if parts[0].pixels_NHWC.shape[1:] != parts[1].pixels_NHWC.shape[1:]:
        raise InputError(f"--data_path {data_path}: x_train and x_test hold images of different sizes.")
    return Dataset(*parts, tuple(map(str, names)) if names is not None else tuple(map(str, range(num_classes))))


def read_glyphs(data_path: str, download: bool = False) -> Dataset:
    """The demo's images, generated; nothing is read from disk."""
    pixels, labels = glyph_images(GLYPH_CLASSES, GLYPH_TRAIN + GLYPH_TEST, seed=GLYPH_DATA_SEED)
    is_train = np.arange(len(labels)) % (GLYPH_TRAIN + GLYPH_TEST) < GLYPH_TRAIN
    return Dataset(_images(pixels[is_train], labels[is_train]), _images(pixels[~is_train], labels[~is_train]),
                   tuple(f"glyph {class_id}" for class_id in GLYPH_CLASSES))


CATALOGUE: dict[str, Callable[[str, bool], Dataset]] = {
    "Split-CIFAR100": read_cifar100,
    "Split-Glyphs": read_glyphs,
}


def check_data_path(dataset: str, data_path: str) -> None:
    """Refuse, before anything slow, a path that cannot hold the data."""
    if dataset == "Split-Glyphs" or data_path.endswith(".npz"):
        return
    if os.path.exists(data_path) and not os.path.isdir(data_path):
        raise InputError(f"--data_path {data_path} is neither a folder nor an .npz file.")


def _images(pixels: np.ndarray, labels) -> Images:
    return Images(np.ascontiguousarray(pixels), np.asarray(labels, dtype=np.int64))


def _checked(data_path: str, part: str, pixels: np.ndarray, labels: np.ndarray, num_classes: int | None) -> Images:
    where = f"--data_path {data_path}: "
    if pixels.dtype != np.uint8:
        raise InputError(f"{where}x_{part} is {pixels.dtype}; pixels must be uint8 from 0 to 255.")
    if pixels.ndim != 4 or pixels.shape[-1] != 3:
        raise InputError(f"{where}x_{part} has shape {pixels.shape}; images must be (N, height, width, 3).")
    if labels.ndim != 1 or len(labels) != len(pixels):
        raise InputError(f"{where}y_{part} has shape {labels.shape}; there must be one label for each of the "
                         f"{len(pixels)} images of x_{part}.")
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{where}y_{part} is {labels.dtype}; labels must be whole numbers.")
    if not len(labels):
        raise InputError(f"{where}x_{part} holds no image.")
    if labels.min() < 0 or (num_classes is not None and labels.max() >= num_classes):
        limit = "from 0" if num_classes is None else f"from 0 to {num_classes - 1}, with {num_classes} classes"
        raise InputError(f"{where}y_{part} holds labels from {labels.min()} to {labels.max()}; they must lie {limit}.")
    return _images(pixels, labels)
