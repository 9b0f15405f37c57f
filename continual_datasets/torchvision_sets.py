"""Data sets that torchvision reads: fetched and checked as it does, then read by its own classes."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from continual_datasets.archives import one_at_a_time, temporary, unpack_gz, unpack_into
from continual_datasets.images import LabelledImages, images_in_files, images_in_memory
from continual_datasets.scenario import Dataset
from errors import InputError
from paths import outside_path

TAR_SUFFIXES = (".tar.gz", ".tgz")
SUFFIXES = (*TAR_SUFFIXES, ".gz", ".mat")  # of all that is published
NO_DATA_HINT = "or run `python main.py demo_l2p`, which needs no files."


@dataclass(frozen=True)
class Source:
    """One file that a data set is published as, and the files that it gives."""

    path: Path
    md5: str
    urls: tuple[str, ...]
    gives: tuple[Path, ...]
    """The file itself, or what it is unpacked to."""


@dataclass(frozen=True)
class Published:
    """A data set of torchvision."""

    class_name: str
    """In `torchvision.datasets`."""
    title: str
    layout: str
    """What --data_path holds."""
    sources: Callable[[type, Path], Iterator[Source]]
    """(the class, data_path) -> its files."""
    parts: tuple[dict[str, Any], dict[str, Any]] = ({"split": "train"}, {"split": "test"})
    """What the class takes to read the training and the test images."""
    also_called: str = ""
    """Another program's class of the same files: torchvision calls the folder of some as their class."""


def read(data_path: str, download: bool, *, of: Published) -> Dataset:
    """The data set from the folder `data_path`; with `download`, what is missing there is fetched first.

    Raises:
        InputError: missing or damaged files, or a download that fails.
    """
    import torchvision.datasets  # late: only these readers need it

    root = outside_path("--data_path", data_path)
    if root.exists() and not root.is_dir():
        raise InputError(f"--data_path {data_path} is no folder; give the one that holds {of.layout}.")
    reader = getattr(torchvision.datasets, of.class_name)
    if of.also_called and (root / of.also_called).is_dir() and not (root / of.class_name).is_dir():
        reader = type(of.also_called, (reader,), {})
    sources = list(of.sources(reader, root))
    _obtain(data_path, download, of, root, sources)
    folder = sources[0].gives[0].parent
    try:
        train, test = (reader(str(root), **part) for part in of.parts)
        names = getattr(train, "classes", None) or range(int(np.max(train.labels)) + 1)  # SVHN has none
        data = Dataset(_images(root, train), _images(root, test), tuple(map(str, names)))
    except ImportError as error:
        raise InputError(f"--dataset: {of.title} is read with {error.name}: pip install {error.name}.") from error
    except FileNotFoundError as error:
        raise _incomplete(data_path, of, folder, error.filename) from error
    except Exception as error:  # whatever a damaged file makes of torchvision, scipy or pickle
        how = "its checksum differs" if "corrupted" in str(error) else "it cannot be read"
        raise InputError(f"--data_path {data_path}: a file in {folder} is damaged ({how}); remove the folder and use "
                         "--download, or copy it anew.") from error
    for images in (data.train, data.test):
        if missing := images.in_files and _first_missing(images):
            raise _incomplete(data_path, of, folder, missing)
    return data


def _incomplete(data_path: str, of: Published, folder: Path, missing: str) -> InputError:
    return InputError(f"--data_path {data_path}: {of.title} in {folder} is not complete, {missing} is missing; remove "
                      "the folder and use --download, or copy it anew.")


def _first_missing(images: LabelledImages) -> str | None:
    """The first file that is not there; every folder is looked into once."""
    there: dict[str, set[str]] = {}
    for path in images.paths(np.arange(len(images))):
        folder, name = os.path.split(path)
        if folder not in there:
            there[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in there[folder]:
            return path
    return None


def _images(root: Path, data: Any) -> LabelledImages:
    """What a torchvision data set holds: pixels under one of the names it uses, or paths."""
    if hasattr(data, "_image_files"):
        names = [Path(path).relative_to(root).as_posix() for path in data._image_files]
        return images_in_files(str(root), np.array(names), np.array(data._labels, dtype=np.int64))
    pixels = np.asarray(data.data)
    if pixels.ndim == 3:  # grey
        pixels = pixels[..., None].repeat(3, axis=-1)
    elif pixels.shape[-1] != 3:  # SVHN's come with the colours first
        pixels = pixels.transpose(0, 2, 3, 1)
    labels = data.targets if hasattr(data, "targets") else data.labels
    return images_in_memory(np.ascontiguousarray(pixels), np.asarray(labels, dtype=np.int64))


# ---- files ----
def _obtain(data_path: str, download: bool, of: Published, root: Path, sources: list[Source]) -> None:
    """Unpack what is there, fetch what is not."""
    wanted, absent, _ = _look(sources, root)
    folder = sources[0].gives[0].parent
    if absent and not download:
        missing = [path for source in absent for path in source.gives if not path.exists()]
        others = [f", and {path} is not {source.path.name} as it is published (its checksum differs: it is damaged, "
                  "cut short, or packed anew)" for source in absent for path in _copies(source, root)]
        raise InputError(f"--data_path {data_path}: no {', '.join(path.name for path in missing)} in "
                         f"{missing[0].parent}{''.join(others[:1])}; give the folder that holds {of.layout}, add "
                         f"--download to fetch {of.title} into it, {NO_DATA_HINT}")
    if not wanted:
        return
    with one_at_a_time(root):
        wanted, absent, found = _look(sources, root)  # another run may have done some of it meanwhile
        for source in absent:
            _fetch(data_path, of.title, folder, source)
            found[source.path] = source.path
        for source in wanted:
            _unpack(data_path, source, found[source.path])


def _look(sources: list[Source], root: Path) -> tuple[list[Source], list[Source], dict[Path, Path | None]]:
    """The sources whose files are not all there; those of them that have to be fetched; and where each one lies."""
    wanted = [source for source in sources if not all(path.exists() for path in source.gives)]
    found = {source.path: _find(source, root) for source in wanted}
    return wanted, [source for source in wanted if found[source.path] is None], found


def _unpack(data_path: str, source: Source, found: Path) -> None:
    above = source.path.parent
    if source.path in source.gives:  # it is read as it is, and files stay as their owner called them
        if found != source.path:
            raise InputError(f"--data_path {data_path}: {found} is {source.path.name} by its checksum; call it "
                             f"{source.path}.")
    elif source.path.name.endswith(TAR_SUFFIXES):
        above.mkdir(parents=True, exist_ok=True)
        unpack_into(found, above, holding=[path.relative_to(above).as_posix() for path in source.gives])
    else:
        above.mkdir(parents=True, exist_ok=True)
        unpack_gz(found, source.gives[0])


def _find(source: Source, root: Path) -> Path | None:
    """The file itself, by its checksum, whatever it is called; or the .tar of a .tar.gz, which has none of its own but
    is used only if all that it gives is in it."""
    from torchvision.datasets.utils import check_integrity

    copies = _copies(source, root)
    for path in copies:
        if check_integrity(str(path), source.md5):
            return path
    if source.path.name.endswith(TAR_SUFFIXES):
        return next((path for path in copies if path.suffix == ".tar"), None)
    return None


def _copies(source: Source, root: Path) -> list[Path]:
    """Files that may be it, the one of its name first: browsers call a second one `name (1).gz`."""
    stem = source.path.name
    for suffix in SUFFIXES:
        stem = stem.removesuffix(suffix)
    folders = [folder for folder in dict.fromkeys((source.path.parent, root)) if folder.is_dir()]
    there = [path for folder in folders for path in sorted(folder.iterdir())
             if path.name.startswith(stem) and path.is_file() and path not in source.gives]
    return sorted(there, key=lambda path: path != source.path)


def _fetch(data_path: str, title: str, folder: Path, source: Source) -> None:
    from torchvision.datasets.utils import download_url

    for url in source.urls:
        try:
            with temporary(source.path) as made:  # or another process would take a part of the file for the whole
                download_url(url, str(made.parent), made.name, source.md5)
                os.replace(made, source.path)
            return
        except OSError as error:  # urllib's errors are OSErrors too
            refusal = InputError(f"--download could not fetch {title} into {data_path} ({error}); put the files into "
                                 f"{folder} by hand, {NO_DATA_HINT}")
        except RuntimeError:
            refusal = InputError(f"--download fetched {source.path.name} into {data_path}, which is not {title}'s (its "
                                 f"checksum differs); try again, or put the files into {folder} by hand.")
    raise refusal


def _cifar(reader: type, root: Path) -> Iterator[Source]:
    names = [name for name, _ in [*reader.train_list, *reader.test_list]] + [reader.meta["filename"]]
    folder = root / reader.base_folder
    yield Source(root / reader.filename, reader.tgz_md5, (reader.url,), tuple(folder / name for name in names))


def _mnist(reader: type, root: Path) -> Iterator[Source]:
    folder = root / reader.__name__ / "raw"
    for name, md5 in reader.resources:
        urls = tuple(mirror + name for mirror in reader.mirrors)
        yield Source(folder / name, md5, urls, (folder / name.removesuffix(".gz"),))


def _svhn(reader: type, root: Path) -> Iterator[Source]:
    for url, name, md5 in (reader.split_list[part] for part in ("train", "test")):
        yield Source(root / name, md5, (url,), (root / name,))


def _flowers(reader: type, root: Path) -> Iterator[Source]:
    folder = root / "flowers-102"
    for kind, (name, md5) in reader._file_dict.items():
        gives = folder / ("jpg" if kind == "image" else name)
        yield Source(folder / name, md5, (reader._download_url_prefix + name,), (gives,))


def _food(reader: type, root: Path) -> Iterator[Source]:
    gives = root / "food-101" / "meta", root / "food-101" / "images"
    yield Source(root / "food-101.tar.gz", reader._MD5, (reader._URL,), gives)


def _dtd(reader: type, root: Path) -> Iterator[Source]:
    folder = root / "dtd"
    yield Source(folder / "dtd-r1.0.1.tar.gz", reader._MD5, (reader._URL,), (folder / "dtd",))


_TRAIN_OR_NOT = {"train": True}, {"train": False}
CIFAR10 = Published("CIFAR10", "CIFAR-10", "cifar-10-batches-py/", _cifar, _TRAIN_OR_NOT)
CIFAR100 = Published("CIFAR100", "CIFAR-100", "cifar-100-python/", _cifar, _TRAIN_OR_NOT)
MNIST = Published("MNIST", "MNIST", "MNIST/raw/", _mnist, _TRAIN_OR_NOT, "MNIST_RGB")
FASHION_MNIST = Published("FashionMNIST", "Fashion-MNIST", "FashionMNIST/raw/", _mnist, _TRAIN_OR_NOT)
SVHN = Published("SVHN", "SVHN", "train_32x32.mat and test_32x32.mat", _svhn)
FLOWERS102 = Published("Flowers102", "Flowers102", "flowers-102/", _flowers)
FOOD101 = Published("Food101", "Food-101", "food-101/", _food)
DTD = Published("DTD", "DTD", "dtd/dtd/", _dtd)
