"""Which images are for training and which for the test, where a list says so that is published with them.

A reader takes (data_path, the folder of the data set) and returns the names of both, from the folder of classes on, or
None where there is no list. It raises InputError for one that cannot be used.
"""

from collections.abc import Callable
from pathlib import Path

from errors import InputError
from paths import read_text

Listed = tuple[list[str], list[str]]
ListReader = Callable[[str, Path], Listed | None]

LONGEST = 16 * 2**20  # bytes of a list; the longest that is published has less than one MiB


def read_cub200_lists(data_path: str, root: Path) -> Listed | None:
    """`images.txt` gives each image a number, `train_test_split.txt` each number 1 for training, 0 for the test."""
    split = root / "train_test_split.txt"
    if not split.is_file():
        return None
    name_of, part_of = _numbered(data_path, root / "images.txt"), _numbered(data_path, split)
    if name_of.keys() != part_of.keys() or not set(part_of.values()) <= {"0", "1"}:
        raise InputError(f"--data_path {data_path}: {split} does not say 0 or 1 of each image in images.txt beside it; "
                         "copy both anew.")
    train, test = ([name_of[number] for number, said in part_of.items() if said == part] for part in "10")
    return train, test


def read_scene67_lists(data_path: str, root: Path) -> Listed | None:
    """`TrainImages.txt` and `TestImages.txt`, an image on each line: in the folder, or beside it, as they are published
    beside its archive."""
    for folder in (root, root.parent):
        paths = folder / "TrainImages.txt", folder / "TestImages.txt"
        there = [path for path in paths if path.is_file()]
        if len(there) == 1:
            raise InputError(f"--data_path {data_path}: {folder} has {there[0].name} but not the other one of "
                             "TrainImages.txt and TestImages.txt; give both, or none for a split of 80/20.")
        if there:
            train, test = (_lines(data_path, path) for path in paths)
            return train, test
    return None


def _numbered(data_path: str, path: Path) -> dict[str, str]:
    """The first word of each line -> the rest."""
    return {number: rest for number, _, rest in (line.partition(" ") for line in _lines(data_path, path))}


def _lines(data_path: str, path: Path) -> list[str]:
    name = f"--data_path {data_path}: {path}"
    try:
        lines = read_text(path, name, LONGEST).splitlines()
    except FileNotFoundError as error:
        raise InputError(f"{name} is missing; put it there, as it is published.") from error
    return [line.strip() for line in lines if line.strip()]
