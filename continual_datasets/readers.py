"""The catalogue of data sets, and readers of what lies in memory.

A reader takes (data_path, download) and returns a `Dataset`, or `Sessions`. A new data set is one line in `CATALOGUE`,
if it is a folder of classes or torchvision reads it; else a function, too.
"""

import difflib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

import continual_datasets.torchvision_sets as published
from continual_datasets.folders import read_core50, read_folder, read_notmnist
from continual_datasets.glyphs import CHALK, CHALK_AND_INK, DEMO_CLASSES, Style, glyph_images
from continual_datasets.images import LabelledImages, images_in_memory
from continual_datasets.npz import read_npz
from continual_datasets.scenario import Dataset, Sessions
from continual_datasets.split_lists import read_cub200_lists, read_scene67_lists
from errors import InputError

Reader = Callable[[str, bool], Dataset | Sessions]
GLYPH_DATA_SEED = 2022  # the demo's images are one fixed data set, whatever the seed of a run
GLYPH_CLASSES = DEMO_CLASSES[:20]
GLYPH_TRAIN, GLYPH_TEST = 200, 50  # images per class


def read_cifar100(data_path: str, download: bool = False) -> Dataset:
    """CIFAR-100 from torchvision's files in `data_path`, or from an .npz."""
    if data_path.lower().endswith(".npz"):
        return read_npz(data_path)
    if Path(data_path).is_file():
        raise InputError(f"--data_path {data_path} is neither a folder nor an .npz file.")
    return published.read(data_path, download, of=published.CIFAR100)


def read_glyphs(data_path: str, download: bool = False, *, style: Style) -> Dataset:
    """The demo's images, generated; nothing is read from disk."""
    pixels, labels = glyph_images(GLYPH_CLASSES, GLYPH_TRAIN + GLYPH_TEST, GLYPH_DATA_SEED, style)
    is_train = np.arange(len(labels)) % (GLYPH_TRAIN + GLYPH_TEST) < GLYPH_TRAIN
    return Dataset(_images(pixels[is_train], labels[is_train]), _images(pixels[~is_train], labels[~is_train]),
                   tuple(f"glyph {class_id}" for class_id in GLYPH_CLASSES))


OWN_FOLDER = "Split-Folder"
CATALOGUE: dict[str, Reader] = {
    "Split-CIFAR100": read_cifar100,
    "Split-Glyphs": partial(read_glyphs, style=CHALK),
    "Split-HardGlyphs": partial(read_glyphs, style=CHALK_AND_INK),
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
        read_folder, names=("CUB_200_2011",), inner="images", read_lists=read_cub200_lists,
        page="https://www.vision.caltech.edu/datasets/cub_200_2011/",
        layout="CUB_200_2011/ as published (images/CLASS/*.jpg, images.txt and train_test_split.txt), or "
               "CUB_200_2011/train/CLASS/ and test/CLASS/"),
    "Split-Cars196": partial(
        read_folder, names=("cars196", "Cars196"), page="https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        layout="cars196/train/CLASS/*.jpg and cars196/test/CLASS/*.jpg"),
    "Split-Scene67": partial(
        read_folder, names=("indoorCVPR_09", "Scene67"), inner="Images", read_lists=read_scene67_lists,
        page="https://web.mit.edu/torralba/www/indoor.html",
        layout="indoorCVPR_09/Images/CLASS/*.jpg, TrainImages.txt and TestImages.txt, or Scene67/train/CLASS/ and "
               "Scene67/test/CLASS/"),
    "Split-TinyImagenet": partial(
        read_folder, names=("tiny-imagenet-200",), test_kinds=("val", "test"),  # as published, test/ has no labels
        page="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        layout="tiny-imagenet-200/train/WNID/images/*.JPEG and tiny-imagenet-200/val/ as published, or test/WNID/"),
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


def reads_nothing(dataset: str) -> bool:
    """Whether all images of --dataset are drawn, so that no --data_path is read."""
    return all(getattr(CATALOGUE[name], "func", None) is read_glyphs for name in names_of(dataset))


def _images(pixels: np.ndarray, labels) -> LabelledImages:
    return images_in_memory(np.ascontiguousarray(pixels), np.asarray(labels, dtype=np.int64))
