"""The catalogue of data sets, and readers of what lies in memory.

A reader takes (data_path, download, seed) and returns a `Dataset`, or `Sessions`. A new data set is one line in
`CATALOGUE`, where it is a folder of classes or one that torchvision reads; else a function, too.
"""

import difflib
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

import continual_datasets.torchvision_sets as published
from continual_datasets.folders import read_core50, read_folder, read_notmnist
from continual_datasets.glyphs import DEMO_CLASSES, glyph_images
from continual_datasets.images import LabelledImages, images_in_memory
from continual_datasets.scenario import Dataset, Sessions
from errors import InputError

Reader = Callable[[str, bool, int], Dataset | Sessions]
GLYPH_DATA_SEED = 2022  # the demo's images are one fixed data set, whatever the seed of a run
GLYPH_CLASSES = DEMO_CLASSES[:20]
GLYPH_TRAIN, GLYPH_TEST = 200, 50  # images per class


def read_cifar100(data_path: str, download: bool = False, seed: int = 0) -> Dataset:
    """CIFAR-100 from torchvision's files in `data_path`, or from an .npz."""
    if data_path.lower().endswith(".npz"):
        return read_npz(data_path)
    if Path(data_path).is_file():
        raise InputError(f"--data_path {data_path} is neither a folder nor an .npz file.")
    return published.read(data_path, download, of=published.CIFAR100)


def read_npz(data_path: str, download: bool = False, seed: int = 0) -> Dataset:
    """An .npz with x_train, y_train, x_test, y_test (uint8 NHWC, integer labels from 0) and maybe class_names."""
    path = Path(data_path).expanduser()
    if not path.is_file():
        raise InputError(f"--data_path {data_path}: there is no such file; give an .npz, which is never downloaded, "
                         f"{published.NO_DATA_HINT}")
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
        try:
            names = np.char.decode(names, "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"--data_path {data_path}: class_names holds bytes that are no UTF-8; store text."
                             ) from error
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


def read_glyphs(data_path: str, download: bool = False, seed: int = 0) -> Dataset:
    """The demo's images, generated; nothing is read from disk."""
    pixels, labels = glyph_images(GLYPH_CLASSES, GLYPH_TRAIN + GLYPH_TEST, seed=GLYPH_DATA_SEED)
    is_train = np.arange(len(labels)) % (GLYPH_TRAIN + GLYPH_TEST) < GLYPH_TRAIN
    return Dataset(_images(pixels[is_train], labels[is_train]), _images(pixels[~is_train], labels[~is_train]),
                   tuple(f"glyph {class_id}" for class_id in GLYPH_CLASSES))


OWN_FOLDER = "Split-Folder"
CATALOGUE: dict[str, Reader] = {
    "Split-CIFAR100": read_cifar100,
    "Split-Glyphs": read_glyphs,
    "Split-CIFAR10": partial(published.read, of=published.CIFAR10),
    "Split-MNIST": partial(published.read, of=published.MNIST),
    "Split-FashionMNIST": partial(published.read, of=published.FASHION_MNIST),
    "Split-SVHN": partial(published.read, of=published.SVHN),
    "Split-Flowers102": partial(published.read, of=published.FLOWERS102),
    "Split-Food101": partial(published.read, of=published.FOOD101),
    "Split-DTD": partial(published.read, of=published.DTD),
    "Split-NotMNIST": read_notmnist,
    "Split-ImageNet-R": partial(
        read_folder, names=("imagenet-r",), page="https://github.com/hendrycks/imagenet-r",
        layout="imagenet-r/WNID/*.jpg, imagenet-r.tar, or imagenet-r/train/ and imagenet-r/test/"),
    "Split-CUB200": partial(
        read_folder, names=("CUB_200_2011",), inner="images",
        page="https://www.vision.caltech.edu/datasets/cub_200_2011/",
        layout="CUB_200_2011/images/CLASS/*.jpg (split 80/20), or CUB_200_2011/train/CLASS/ and test/CLASS/"),
    "Split-Cars196": partial(
        read_folder, names=("cars196", "Cars196"), page="https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        layout="cars196/train/CLASS/*.jpg and cars196/test/CLASS/*.jpg"),
    "Split-Scene67": partial(
        read_folder, names=("indoorCVPR_09", "Scene67"), inner="Images",
        page="https://web.mit.edu/torralba/www/indoor.html",
        layout="indoorCVPR_09/Images/CLASS/*.jpg (split 80/20), or Scene67/train/CLASS/ and Scene67/test/CLASS/"),
    "Split-TinyImagenet": partial(
        read_folder, names=("tiny-imagenet-200",), test_kinds=("val",),
        page="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        layout="tiny-imagenet-200/train/WNID/images/*.JPEG and tiny-imagenet-200/val/ as published"),
    OWN_FOLDER: read_folder,
    "Split-NPZ": read_npz,
    "CORe50": read_core50,
}
FIVE_DATASETS = "SVHN,MNIST,CIFAR10,NotMNIST,FashionMNIST"  # in the PyTorch re-implementation's order


def names_of(dataset: str) -> list[str]:
    """The catalogue's names in --dataset: one, or several with commas between them, where `Split-` may be left out.

    Raises:
        InputError: a name that the catalogue lacks, with one that it has.
    """
    words = [word.strip() for word in (FIVE_DATASETS if dataset == "5-datasets" else dataset).split(",")]
    names = []
    for word in words:
        name = word if word in CATALOGUE or len(words) == 1 else f"Split-{word}"
        if name not in CATALOGUE:
            near = difflib.get_close_matches(word, CATALOGUE, n=1, cutoff=0.4)
            raise InputError(f"unknown --dataset {word!r}: " + (f"did you mean {near[0]}? " if near else "")
                             + f"There are {', '.join(CATALOGUE)}, 5-datasets, and lists of them with commas.")
        names.append(name)
    return names


def _images(pixels: np.ndarray, labels) -> LabelledImages:
    return images_in_memory(np.ascontiguousarray(pixels), np.asarray(labels, dtype=np.int64))


def _checked(data_path: str, part: str, pixels: np.ndarray, labels: np.ndarray,
             num_classes: int | None) -> LabelledImages:
    where = f"--data_path {data_path}: "
    if pixels.dtype != np.uint8:
        raise InputError(f"{where}x_{part} is {pixels.dtype}; pixels must be uint8 from 0 to 255.")
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or 0 in pixels.shape[1:]:
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
