"""Reading folders of images, a folder for each class: the user's own, and the data sets that are published so.

Files stay where they are; only their names are read here.
"""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from continual_datasets.archives import archive_of, is_archive, unpacked
from continual_datasets.images import LabelledImages, images_in_files, images_in_memory
from continual_datasets.large_images import read_picture
from continual_datasets.scenario import Dataset, Sessions
from errors import InputError
from paths import outside_path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
TRAIN_FOLDERS, TEST_FOLDERS = ("train", "Train", "training"), ("test", "Test", "val", "valid", "validation")
TEST_SHARE = 0.2

CORE50_TRAIN, CORE50_TEST = (1, 2, 4, 5, 6, 8, 9, 11), (3, 7, 10)
CORE50_OBJECTS = 50


def read_folder(data_path: str, download: bool = False, seed: int = 0, *, names: tuple[str, ...] = (),
                layout: str = "train/CLASS/ and test/CLASS/ (or val/CLASS/), or CLASS/", page: str = "",
                test_folders: tuple[str, ...] = TEST_FOLDERS, inner: str = "") -> Dataset:
    """Images in `train/<class>/` and `test/<class>/` (or `val/`), or in `<class>/`, split 80/20 by `seed`.

    Args:
        data_path: the folder, or an archive of it; with `names`, also the folder that holds one of these.
        names: what the folder is called where the data set is published.
        layout, page: what to say when it is not there.
        inner: the folder in it that holds the folders of classes, where it has no train/ and test/.

    Raises:
        InputError: no such folder, no images, or classes that differ between training and test.
    """
    data = _read_located(data_path, _locate(data_path, download, names, layout, page, test_folders), seed,
                         test_folders, inner)
    return replace(data, notes=()) if names else data  # published data sets have files beside the images


def _read_located(data_path: str, root: Path, seed: int, test_folders: tuple[str, ...], inner: str) -> Dataset:
    train, test = _part(root, TRAIN_FOLDERS), _part(root, test_folders)
    if train and test:
        return _read_parts(data_path, root, train, test)
    if train or test:
        raise InputError(f"--data_path {data_path}: {root} has {(train or test).name}/ but no "
                         f"{(test_folders if train else TRAIN_FOLDERS)[0]}/ beside it; give both, or only "
                         "folders of classes, which are split 80/20.")
    if inner and (root / inner).is_dir():
        root = root / inner
    by_class, notes = _files_by_class(data_path, root)
    return _split(data_path, root, by_class, seed, notes)


def read_notmnist(data_path: str, download: bool = False, seed: int = 0) -> Dataset:
    """notMNIST, `Train/` and `Test/` or one folder split 80/20; its unreadable images are left out and counted."""
    data = read_folder(data_path, download, seed, names=("notMNIST", "notMNIST_small", "notMNIST_large"),
                       layout="notMNIST/Train/A/ … and notMNIST/Test/A/ …, or notMNIST_small/A/ … J/, or their archive",
                       page="http://yaroslavvb.blogspot.com/2011/09/notmnist-dataset.html")
    (train, bad_train), (test, bad_test) = (_in_memory(images) for images in (data.train, data.test))
    notes = data.notes
    if bad := bad_train + bad_test:
        notes += (f"notMNIST: {len(bad)} of {len(data.train) + len(data.test)} images cannot be read and are left out, "
                  f"{bad[0]} first.",)
    if train.pixels_NHWC.shape[1:] != test.pixels_NHWC.shape[1:]:
        raise InputError(f"--data_path {data_path}: notMNIST's training and test images differ in size.")
    return Dataset(train, test, data.class_names, notes, data.split)


def read_core50(data_path: str, download: bool = False, seed: int = 0) -> Sessions:
    """CORe50's `core50_128x128/s1 … s11/o1 … o50/`: eight sessions to train on, three to test on, 50 objects."""
    root = _locate(data_path, download, ("core50_128x128",), "core50_128x128/s1 … s11/o1 … o50/*.png",
                   "https://vlomonaco.github.io/core50/", ())
    wanted = tuple(f"o{number}" for number in range(1, CORE50_OBJECTS + 1))

    def session(number: int) -> tuple[list[str], list[int]]:
        by_class, _ = _files_by_class(data_path, root / f"s{number}")
        if lacking := [name for name in wanted if name not in by_class]:
            raise InputError(f"--data_path {data_path}: no images in {root / f's{number}' / lacking[0]}; CORe50 has "
                             "o1 … o50 in each of s1 … s11.")
        names = [f"s{number}/{name}" for wanted_name in wanted for name in by_class[wanted_name]]
        return names, [label for label, wanted_name in enumerate(wanted) for _ in by_class[wanted_name]]

    train = tuple(_image_files(root, *session(number)) for number in CORE50_TRAIN)
    in_test = [session(number) for number in CORE50_TEST]
    test = _image_files(root, *([each for part in parts for each in part] for parts in zip(*in_test, strict=True)))
    return Sessions(train, test, wanted)


# ---- finding ----
def _locate(data_path: str, download: bool, names: tuple[str, ...], layout: str, page: str,
            test_folders: tuple[str, ...]) -> Path:
    """The folder of the data set, unpacked beside its archive where need be."""
    path = outside_path("--data_path", data_path)
    if is_archive(path):
        path = unpacked(path)
    if path.is_dir():
        if not names or path.absolute().name in names:
            return path
        candidates = [path / name for name in names]
        found = [folder for folder in candidates if folder.is_dir()]
        if _part(path, TRAIN_FOLDERS) and _part(path, test_folders):
            found.append(path)
        if found:
            return found[0]
        for folder in candidates:
            if archive := archive_of(folder):
                return unpacked(archive)
    where = "there is no such folder" if not path.is_dir() else f"no {' or '.join(names)} in it"
    fetch = f", which is not downloaded by {'--download' if download else 'this program'}: see {page}" if page else ""
    raise InputError(f"--data_path {data_path}: {where}; give the folder that holds {layout}{fetch}.")


def _part(root: Path, names: tuple[str, ...]) -> Path | None:
    """The folder of training or test images: one with folders in it, for a class may be called `train`, too."""
    found = (root / name for name in names if (root / name).is_dir())
    return next((part for part in found if any(path.is_dir() for path in part.iterdir())), None)


def _files_by_class(data_path: str, folder: Path) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """Class -> its images' names from `folder` on, both sorted; and a note about files that are no images."""
    annotations = folder / "val_annotations.txt"
    if annotations.is_file():  # TinyImagenet's val/images/ is one folder of all classes
        lines = [line.split("\t") for line in annotations.read_text().splitlines() if "\t" in line]
        return {name: sorted(f"images/{line[0]}" for line in lines if line[1] == name)
                for name in sorted({line[1] for line in lines})}, ()
    by_class: dict[str, list[str]] = {}
    others: list[str] = []
    empty: list[str] = []
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in entries:
        if path.name.startswith((".", "__MACOSX")):
            continue
        if not path.is_dir():
            others += [str(path)] * path.name.lower().endswith(IMAGE_SUFFIXES)
            continue
        if _part(path, TRAIN_FOLDERS) and _part(path, TEST_FOLDERS):
            raise InputError(f"--data_path {data_path}: {path} holds training and test images of its own; give that "
                             "folder.")
        found = _files_below(path)
        images = [file for file in found if file.lower().endswith(IMAGE_SUFFIXES)]
        others += [file for file in found if not file.lower().endswith(IMAGE_SUFFIXES)]
        if images:
            by_class[path.name] = sorted(Path(file).relative_to(folder).as_posix() for file in images)
        else:
            empty.append(path.name)
    if not by_class:
        raise InputError(f"--data_path {data_path}: no folder of images (*{' *'.join(IMAGE_SUFFIXES)}) in {folder}; "
                         "give each class a folder of its own.")
    notes = []
    if others:
        notes.append(f"{len(others)} file(s) in {folder} are no images by their ending, or in no class's folder, and "
                     f"are left out, {min(others)} first.")
    if empty:
        notes.append(f"{', '.join(empty[:5])} in {folder}: no images by their ending, and so no class.")
    return by_class, tuple(notes)


def _files_below(folder: Path) -> list[str]:
    """All files in it and its folders, also those that links lead to; of a circle of links, each folder once."""
    seen, found = set(), []
    for where, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in seen or os.path.realpath(folder).startswith(real + os.sep):
            folders.clear()
            continue
        seen.add(real)
        found += [os.path.join(where, file) for file in files if not file.startswith(".")]
    return found


# ---- training and test ----
def _read_parts(data_path: str, root: Path, train: Path, test: Path) -> Dataset:
    (in_train, notes), (in_test, more_notes) = (_files_by_class(data_path, part) for part in (train, test))
    if differing := sorted(in_train.keys() ^ in_test.keys()):
        raise InputError(f"--data_path {data_path}: {train.name}/ and {test.name}/ of {root} do not hold the same "
                         f"classes: only one of them has images of {', '.join(differing[:5])}.")
    names = tuple(in_train)
    parts = []
    for folder, by_class in ((train, in_train), (test, in_test)):
        parts.append(_image_files(root, [f"{folder.name}/{file}" for name in names for file in by_class[name]],
                                  [label for label, name in enumerate(names) for _ in by_class[name]]))
    return Dataset(*parts, names, notes + more_notes)


def _split(data_path: str, root: Path, by_class: dict[str, list[str]], seed: int, notes: tuple[str, ...]) -> Dataset:
    """A fifth of each class for the test, chosen by (seed, file name) alone: a file more or less moves few others."""
    parts: dict[str, list[str]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    for label, (name, files) in enumerate(by_class.items()):
        if len(files) < 2:
            raise InputError(f"--data_path {data_path}: {root / name} holds one image; a class needs one to train on "
                             "and one to test on.")
        drawn = sorted(files, key=lambda file: _drawn(seed, file))
        chosen = set(drawn[:max(1, round(TEST_SHARE * len(files)))])
        for file in files:
            part = "test" if file in chosen else "train"
            parts[part].append(file)
            labels[part].append(label)
    images = (_image_files(root, parts[part], labels[part]) for part in ("train", "test"))
    return Dataset(*images, tuple(by_class), notes, {"seed": seed, **parts})


def _drawn(seed: int, file: str) -> bytes:
    return hashlib.sha256(f"{seed} {file}".encode(errors="surrogateescape")).digest()


# ---- names to images ----
def _image_files(root: Path, names: list[str], labels: list[int]) -> LabelledImages:
    return images_in_files(str(root), np.array(names, dtype=str), np.array(labels, dtype=np.int64))


def _in_memory(images: LabelledImages) -> tuple[LabelledImages, list[str]]:
    """Small images of one size, decoded once; and the names of those that cannot be."""
    pixels, labels, bad = [], [], []
    for path, label in zip(images.paths(np.arange(len(images))), images.labels_N, strict=True):
        try:
            pixels.append(np.array(read_picture(path)))
            labels.append(label)
        except InputError:
            bad.append(path)
    if len({picture.shape for picture in pixels}) != 1:
        raise InputError(f"--data_path: the images in {images.store.root} are not of one size, or none can be read.")
    return images_in_memory(np.stack(pixels), np.array(labels, dtype=np.int64)), bad
