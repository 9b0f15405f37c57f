"""Reading folders of images, a folder for each class: the user's own, and the data sets that are published so.

Files stay where they are; only their names are read here.
"""

import hashlib
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from continual_datasets.archives import archive_of, is_archive, unpacked
from continual_datasets.class_files import files_by_class
from continual_datasets.images import LabelledImages, images_in_files, images_in_memory
from continual_datasets.large_images import read_picture
from continual_datasets.parts import Parts, find_classes, find_parts
from continual_datasets.scenario import Dataset, Sessions
from continual_datasets.split_lists import Listed, ListReader
from errors import InputError
from paths import outside_path

TEST_SHARE = 0.2

NOTMNIST_PAGE = "https://github.com/facebookresearch/Adversarial-Continual-Learning/raw/main/data/notMNIST.zip"

# Draws the test of a folder without one, and the order of all test images: the same for every --seed, so that runs of
# several compare.
SPLIT_SEED = 42
CORE50_TRAIN, CORE50_TEST = (1, 2, 4, 5, 6, 8, 9, 11), (3, 7, 10)
CORE50_OBJECTS = 50


def read_folder(data_path: str, download: bool = False, *, names: tuple[str, ...] = (),
                layout: str = "train/CLASS/ and test/CLASS/ (or val/CLASS/), or CLASS/", page: str = "",
                test_kinds: tuple[str, ...] = ("test", "val"), inner: str = "",
                read_lists: ListReader | None = None) -> Dataset:
    """Images in `train/<class>/` and `test/<class>/` (or `val/`), or in `<class>/`, split 80/20.

    Args:
        data_path: the folder, or an archive of it; with `names`, also the folder that holds one of these.
        names: what the folder is called where the data set is published.
        layout, page: what to say when it is not there.
        test_kinds: which of `test` and `val` hold test images, the first first.
        inner: the folder in it that holds the folders of classes, where it has no train/ and test/.
        read_lists: reads the published lists of training and test images, by which it is split then if they are there.

    Raises:
        InputError: no such folder, no images, images in no class's folder, or classes that differ between training
            and test.
    """
    with _readable(data_path):
        root = _locate(data_path, download, names, layout, page, test_kinds)
        parts = find_parts(data_path, root, test_kinds)
        listed = read_lists(data_path, root) if read_lists and not parts else None
        if not parts and inner and (root / inner).is_dir():
            root = root / inner
        parts = parts or find_classes(data_path, root, test_kinds)
        if parts.train:
            data = _read_parts(data_path, parts)
        else:
            data = _read_listed(data_path, parts.root, listed) if listed else _read_and_split(data_path, parts.root)
    if len(data.class_names) == 1:
        raise InputError(f"--data_path {data_path}: {parts.train or parts.root} holds one class alone, "
                         f"{data.class_names[0]}/; give each class a folder of its own there.")
    # Published data sets have files beside the images, which are no news.
    return replace(data, test=_mixed(data.test), notes=() if names and not listed else data.notes)


def read_notmnist(data_path: str, download: bool = False) -> Dataset:
    """notMNIST, its unreadable images left out and counted.

    As the PyTorch re-implementation has it, `Train/` and `Test/`; or one folder split 80/20, which is another test.
    """
    data = read_folder(data_path, download, names=("notMNIST", "notMNIST_small", "notMNIST_large"),
                       page=NOTMNIST_PAGE,
                       layout="notMNIST.zip, or notMNIST/Train/A/ … and notMNIST/Test/A/ … from it (or "
                              "notMNIST_small/A/ … J/, which is split 80/20 and has another test)")
    (train, bad_train), (test, bad_test) = (_in_memory(images) for images in (data.train, data.test))
    notes = data.notes
    if bad := bad_train + bad_test:
        notes += (f"notMNIST: {len(bad)} of {len(data.train) + len(data.test)} images cannot be read and are left out, "
                  f"{bad[0]} first.",)
    if train.pixels_NHWC.shape[1:] != test.pixels_NHWC.shape[1:]:
        raise InputError(f"--data_path {data_path}: notMNIST's training and test images differ in size.")
    return Dataset(train, test, data.class_names, notes, data.split)


def read_core50(data_path: str, download: bool = False) -> Sessions:
    """CORe50's `core50_128x128/s1 … s11/o1 … o50/`: eight sessions to train on, three to test on, 50 objects."""
    with _readable(data_path):
        return _read_core50(data_path, _locate(
            data_path, download, ("core50_128x128",), "core50_128x128/s1 … s11/o1 … o50/*.png",
            "https://vlomonaco.github.io/core50/", ()))


def _read_core50(data_path: str, root: Path) -> Sessions:
    wanted = tuple(f"o{number}" for number in range(1, CORE50_OBJECTS + 1))

    def session(number: int) -> tuple[list[str], list[int]]:
        by_class, _ = files_by_class(data_path, root / f"s{number}")
        if lacking := [name for name in wanted if name not in by_class]:
            raise InputError(f"--data_path {data_path}: no images in {root / f's{number}' / lacking[0]}; CORe50 has "
                             "o1 … o50 in each of s1 … s11.")
        names = [f"s{number}/{name}" for wanted_name in wanted for name in by_class[wanted_name]]
        return names, [label for label, wanted_name in enumerate(wanted) for _ in by_class[wanted_name]]

    train = tuple(_image_files(root, *session(number)) for number in CORE50_TRAIN)
    in_test = [session(number) for number in CORE50_TEST]
    test = _image_files(root, *([each for part in parts for each in part] for parts in zip(*in_test, strict=True)))
    return Sessions(train, _mixed(test), wanted)


# ---- finding ----
def _locate(data_path: str, download: bool, names: tuple[str, ...], layout: str, page: str,
            test_kinds: tuple[str, ...]) -> Path:
    """The folder of the data set, unpacked beside its archive where need be."""
    path = outside_path("--data_path", data_path)
    if is_archive(path):
        path = unpacked(path)
    if path.is_dir():
        if not names or path.absolute().name in names:
            return path
        candidates = [path / name for name in names]
        for folder in candidates:
            if folder.is_dir():
                return folder
        if find_parts(data_path, path, test_kinds):
            return path
        for folder in candidates:
            if archive := archive_of(folder):
                return unpacked(archive)
    where = f"no {' or '.join(names)} in it"
    if not path.is_dir():
        where = "it is neither a folder nor an archive" if path.exists() else "there is no such folder"
    fetch = f", which is not downloaded by {'--download' if download else 'this program'}: see {page}" if page else ""
    raise InputError(f"--data_path {data_path}: {where}; give the folder that holds {layout}{fetch}.")


@contextmanager
def _readable(data_path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"--data_path {data_path}: {error.filename or 'a folder in it'} cannot be read "
                         f"({error.strerror or error}).") from error


# ---- training and test ----
def _read_parts(data_path: str, parts: Parts) -> Dataset:
    (in_train, notes), (in_test, more_notes) = (files_by_class(data_path, part) for part in (parts.train, parts.test))
    _check_same_classes(data_path, parts, set(in_train), set(in_test))
    if parts.unused:
        notes = (f"{', '.join(parts.unused[:5])} in {parts.root}: left out, because only {parts.train.name} and "
                 f"{parts.test.name} are read.", *notes)
    train, test = ({name: [f"{folder.relative_to(parts.root).as_posix()}/{file}" for file in by_class[name]]
                    for name in in_train} for folder, by_class in ((parts.train, in_train), (parts.test, in_test)))
    return Dataset(_of_classes(parts.root, train), _of_classes(parts.root, test), tuple(in_train), notes + more_notes)


def _read_listed(data_path: str, root: Path, listed: Listed) -> Dataset:
    """By lists of the training and the test images. An image in neither is left out, and so is a class that is only
    in the lists: people take a part of the classes."""
    by_class, _ = files_by_class(data_path, root)
    everything = {*listed[0], *listed[1]}
    absent = sorted({file.partition("/")[0] for file in everything} - by_class.keys())
    train, test = ({name: [file for file in files if file in part] for name, files in by_class.items()}
                   for part in map(set, listed))
    named = f"--data_path {data_path}: the lists of training and test images beside {root} name"
    missing = sorted(file for file in everything.difference(*by_class.values())
                     if file.partition("/")[0] in by_class)
    if missing:
        raise InputError(f"{named} {missing[0]}, which is not there ({len(missing)} in all); copy the images anew.")
    if twice := sorted({*listed[0]} & {*listed[1]}):
        raise InputError(f"{named} {twice[0]} in both ({len(twice)} in all); copy them anew.")
    names = [name for name in by_class if train[name] or test[name]]
    if lacking := [name for name in names if not (train[name] and test[name])]:
        raise InputError(f"{named} images of {lacking[0]} for one of the two only ({len(lacking)} such class(es)); "
                         "copy them anew, or remove them for a split of 80/20.")
    parts = (_of_classes(root, {name: part[name] for name in names}) for part in (train, test))
    notes = (f"{len(absent)} class(es) of the lists are not in {root}: {', '.join(absent[:5])}"
             f"{' …' * (len(absent) > 5)}.",) if absent else ()
    return Dataset(*parts, tuple(names), notes)


def _check_same_classes(data_path: str, parts: Parts, in_train: set[str], in_test: set[str]) -> None:
    differing = sorted(in_train ^ in_test)
    if not differing:
        return
    where = f"--data_path {data_path}: {parts.train.name}/ and {parts.test.name}/ of {parts.root} "
    others = {_plain(name): name for name in in_test - in_train}
    for name in sorted(in_train - in_test):
        if other := others.get(_plain(name)):
            raise InputError(f"{where}call a class {name!r} and {other!r}, which differ only in upper and lower case, "
                             "blanks, or the way an accent is written; rename one.")
    raise InputError(f"{where}do not hold the same classes: only one of them has images of {', '.join(differing[:5])}.")


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", " ".join(name.split())).casefold()


def _read_and_split(data_path: str, root: Path) -> Dataset:
    """A fifth of each class for the test, chosen by the file's name alone: a file more or less moves few others."""
    by_class, notes = files_by_class(data_path, root)
    train, test = {}, {}
    for name, files in by_class.items():
        if len(files) < 2:
            raise InputError(f"--data_path {data_path}: {root / name} holds one image; a class needs one to train on "
                             "and one to test on.")
        drawn = sorted(files, key=_drawn)
        chosen = set(drawn[:max(1, round(TEST_SHARE * len(files)))])
        train[name] = [file for file in files if file not in chosen]
        test[name] = [file for file in files if file in chosen]
    split = {"seed": SPLIT_SEED, "train": [*chain(*train.values())], "test": [*chain(*test.values())]}
    return Dataset(_of_classes(root, train), _of_classes(root, test), tuple(by_class), notes, split)


def _drawn(file: str) -> bytes:
    return hashlib.sha256(f"{SPLIT_SEED} {file}".encode(errors="surrogateescape")).digest()


# ---- names to images ----
def _mixed(images: LabelledImages) -> LabelledImages:
    """Test images in an order drawn by their names alone: a batch of one class would help the vote on its prompts."""
    drawn = [_drawn(f"order {name}") for name in images.names_N.tolist()]
    return images.take(np.array(sorted(range(len(images)), key=drawn.__getitem__)))


def _of_classes(root: Path, by_class: dict[str, list[str]]) -> LabelledImages:
    return _image_files(root, [*chain(*by_class.values())],
                        [label for label, files in enumerate(by_class.values()) for _ in files])


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
