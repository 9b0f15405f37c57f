"""Where in a folder the classes are: training and test images apart or together, perhaps a level further down.

A folder that is no class must not become one: every number after it would be wrong, without a word.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
                  ".avif", ".jfif", ".jpe", ".mpo", ".jp2", ".j2k", ".jpx", ".apng", ".dib", ".tga")

KINDS = {"train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
         "val": "val", "valid": "val", "validation": "val", "dev": "val"}
PADDING = {"set", "data", "dataset", "images", "image", "imgs", "img", "photos", "pictures", "split", "folder"}

SYSTEM_FOLDERS = {  # in small letters; hidden ones need no name here
    "__macosx", "__pycache__", "network trash folder", "temporary items", "thevolumesettingsfolder",  # of a Mac, Python
    "$recycle.bin", "recycler", "recycled", "system volume information", "msocache",  # of Windows
    "lost+found", "~snapshot", "_gsdata_", "cvs",
    "@eadir", "@tmp", "@recycle", "@recently-snapshot", "@sharebin", "#recycle", "#snapshot",  # of file servers
}
FOUND_BY_CHECKS = re.compile(r"found\.\d{3}")  # what a check of a Windows disk brought back


@dataclass(frozen=True)
class Parts:
    """Where the folders of classes lie: in `train` and `test`, below `root`; or all in `root`, where these are None."""

    root: Path
    train: Path | None = None
    test: Path | None = None
    unused: tuple[str, ...] = ()
    """Folders beside `train` and `test`."""


def is_system_name(name: str) -> bool:
    """Whether a file or folder is there for a system or a program, and not for its user."""
    lower = name.lower()
    return name.startswith(".") or lower in SYSTEM_FOLDERS or bool(FOUND_BY_CHECKS.fullmatch(lower))


def is_image_name(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def kind_of(entry: os.DirEntry) -> str:
    """`folder`, `file`, or `other`: a pipe, a socket, a device, a link to nowhere or to itself."""
    try:
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_file() else "other"
    except OSError:
        return "other"


def folders_in(folder: Path) -> list[Path]:
    """Those that may be a class or a part: not a system's, and not a link that leads back to the folder or above it."""
    with os.scandir(folder) as entries:  # unlike Path.iterdir, it asks the disk for no file
        found = [Path(entry.path) for entry in entries if kind_of(entry) == "folder" and not is_system_name(entry.name)]
    return sorted(path for path in found if not _leads_back(path))


def _leads_back(path: Path) -> bool:
    return path.is_symlink() and Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(path))


def find_parts(data_path: str, root: Path, kinds: tuple[str, ...] = ("test", "val")) -> Parts | None:
    """`train` and `test` directly in `root`, by the usual words, in any case, alike but for these words.

    Args:
        kinds: which words stand for test images, the first first: `test`, `val`.

    Raises:
        InputError: one of them holds images and no folders of classes, or it cannot be told which are meant.
    """
    alike: dict[str, dict[str, list[Path]]] = {}
    for path in folders_in(root):
        if named := _kind_and_rest(path.name):
            alike.setdefault(named[1], {}).setdefault(named[0], []).append(path)
    pairs = [found for found in alike.values() if "train" in found and any(kind in found for kind in kinds)]
    if not pairs:
        return None
    if len(pairs) > 1 or any(len(paths) > 1 for paths in pairs[0].values()):
        names = [path.name for found in pairs for paths in found.values() for path in paths]
        raise InputError(f"--data_path {data_path}: {root} has {', '.join(names)}, and it cannot be told which are the "
                         "training and the test images; give a folder with one train/ and one test/.")
    train = _inmost(pairs[0]["train"][0])
    tests = [_inmost(pairs[0][kind][0]) for kind in kinds if kind in pairs[0]]
    with_classes = [path for path in tests if folders_in(path)]  # test images without labels are often published, too
    for part, good in ((train, bool(folders_in(train))), (tests[0], bool(with_classes))):
        if not good:
            raise InputError(f"--data_path {data_path}: {part} has no folders of classes in it; give each class a "
                             f"folder of its own there, as in {part.name}/CLASS/1.jpg.")
    used = {train.relative_to(root).parts[0], with_classes[0].relative_to(root).parts[0]}
    unused = (path.name for path in sorted(root.iterdir()) if path.is_dir() and path.name not in used)
    return Parts(root, train, with_classes[0], tuple(unused))


def find_classes(data_path: str, root: Path, kinds: tuple[str, ...] = ("test", "val")) -> Parts:
    """The parts in `root`, or in the one folder that it holds, and so on; else the folder whose folders are classes.

    Raises:
        InputError: as `find_parts`; or one of two parts lacks.
    """
    if parts := find_parts(data_path, root, kinds):
        return parts
    folders = folders_in(root)
    if len(folders) == 1 and not _holds_images(root) and folders_in(folders[0]):
        if not _kind_and_rest(folders[0].name):
            return find_classes(data_path, folders[0], kinds)
        if parts := find_parts(data_path, folders[0], kinds):
            return parts
    named = [(path, *found) for path in folders if (found := _kind_and_rest(path.name))]
    for path, kind, rest in named:
        # `train` may be a class, and so may `valid`, beside other classes; a folder of test images hardly.
        looks_like_a_part = kind == "test" or bool(folders_in(path))
        if len(named) == len(folders) or (looks_like_a_part and not rest):
            lacking = "test" if kind == "train" else "train"
            raise InputError(f"--data_path {data_path}: {root} has {path.name}/ but no {lacking}/ beside it; give "
                             "both, or only folders of classes, which are split 80/20.")
    return Parts(root)


def holds_parts(folder: Path) -> bool:
    """Whether training and test images are apart in it, with or without folders of classes."""
    kinds = {named[0] for path in folders_in(folder) if (named := _kind_and_rest(path.name)) and not named[1]}
    return "train" in kinds and len(kinds) > 1


def _kind_and_rest(name: str) -> tuple[str, str] | None:
    """`seg_train` and `train_seg` -> ("train", "seg"); `Training set` -> ("train", ""); None for any other name."""
    words = [word for word in re.findall(r"[^\W\d_]+|\d+", name.lower()) if word not in PADDING]
    while words and words[-1].isdecimal():  # train2017
        words.pop()
    for place in (-1, 0):
        if words and words[place] in KINDS:
            kind = KINDS[words.pop(place)]
            return kind, " ".join(words)
    return None


def _inmost(part: Path) -> Path:
    """`seg_train/seg_train/` and the like: down to the folder that holds more than one, or images."""
    folders = folders_in(part)
    if len(folders) == 1 and not _holds_images(part) and folders_in(folders[0]) and not _holds_images(folders[0]):
        return _inmost(folders[0])
    return part


def _holds_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(is_image_name(entry.name) and not is_system_name(entry.name) and kind_of(entry) != "folder"
                   for entry in entries)
