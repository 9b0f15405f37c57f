"""Class -> the files of its images, in a folder that holds a folder for each class. Only names are read here."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from continual_datasets.parts import IMAGE_SUFFIXES, folders_in, holds_parts, is_image_name, is_system_name, kind_of
from errors import InputError


@dataclass
class FilesBelow:
    """What lies in a folder and the folders in it; paths."""

    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    """Files with other endings."""
    irregular: list[str] = field(default_factory=list)
    """Named as images, and no files."""
    system: list[str] = field(default_factory=list)
    """Folders of systems, not looked into."""


def files_by_class(data_path: str, folder: Path) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """Class -> its images' names from `folder` on, both sorted; and notes about what is left out.

    Raises:
        InputError: no images, images in no class's folder or that are no files, training and test images in a class.
    """
    annotations = folder / "val_annotations.txt"
    if annotations.is_file():
        return _annotated(data_path, folder, annotations), ()
    by_class: dict[str, list[str]] = {}
    left_out, strays, empty = FilesBelow(), [], []
    before = os.path.join(folder, "")
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_dir() and is_system_name(path.name):
            left_out.system.append(str(path))
        elif is_image_name(path.name) and not path.is_dir() and not is_system_name(path.name):
            strays.append(path)
    for path in folders_in(folder) if folder.is_dir() else []:
        if holds_parts(path):
            raise InputError(f"--data_path {data_path}: {path} holds training and test images of its own; give that "
                             "folder, or put train/ and test/ above the folders of classes.")
        found = files_below(path)
        left_out.others += found.others
        left_out.system += found.system
        left_out.irregular += found.irregular
        if found.images:
            by_class[path.name] = sorted(file.removeprefix(before).replace(os.sep, "/") for file in found.images)
        else:
            empty.append(path.name)
    if left_out.irregular:
        raise InputError(f"--data_path {data_path}: {min(left_out.irregular)} is named as an image and is no file but "
                         f"a named pipe, a device, or a link to nowhere ({len(left_out.irregular)} in all); remove it, "
                         "or put the image in its place.")
    if not by_class:
        raise InputError(f"--data_path {data_path}: no folder of images (*{' *'.join(IMAGE_SUFFIXES[:5])} …) in "
                         f"{folder}; give each class a folder of its own.")
    if strays:
        raise InputError(f"--data_path {data_path}: {strays[0]} is an image in no class's folder ({len(strays)} in "
                         "all); put each into the folder of its class, or elsewhere.")
    return by_class, _notes(folder, left_out, empty)


def _notes(folder: Path, left_out: FilesBelow, empty: list[str]) -> tuple[str, ...]:
    notes = []
    if left_out.others:
        notes.append(f"{len(left_out.others)} file(s) in {folder} are left out, because their names do not end as an "
                     f"image's does, such as {min(left_out.others)}.")
    if left_out.system:
        notes.append(f"{len(left_out.system)} folder(s) in {folder} are left out, because they are hidden or made by "
                     f"an operating system, such as {min(left_out.system)}.")
    if empty:
        notes.append(f"{', '.join(empty[:5])} in {folder}: no file's name ends as an image's does, so this is no "
                     "class.")
    return tuple(notes)


def files_below(folder: Path) -> FilesBelow:
    """Those that links lead to as well; of a circle of links, each folder once."""
    found, seen, waiting = FilesBelow(), set(), [str(folder)]
    start = os.path.realpath(folder)
    while waiting:
        where = waiting.pop()
        real = os.path.realpath(where)
        if real in seen or start.startswith(real + os.sep):
            continue
        seen.add(real)
        with os.scandir(where) as entries:
            for entry in entries:
                kind = kind_of(entry)
                if kind == "folder":
                    (found.system if is_system_name(entry.name) else waiting).append(entry.path)
                elif not is_system_name(entry.name):
                    if not is_image_name(entry.name):
                        found.others.append(entry.path)
                    else:
                        (found.images if kind == "file" else found.irregular).append(entry.path)
    return found


def _annotated(data_path: str, folder: Path, annotations: Path) -> dict[str, list[str]]:
    """TinyImagenet's val/images/ is one folder of all classes; a list says which is which."""
    try:
        text = annotations.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--data_path {data_path}: {annotations} cannot be read as a text file ({error}); copy it "
                         "anew.") from error
    class_of = dict(line.split("\t")[:2] for line in text.splitlines() if "\t" in line)
    images = folder / "images"
    there = {name for name in os.listdir(images) if is_image_name(name)} if images.is_dir() else set()
    if differing := sorted(class_of.keys() ^ there):
        raise InputError(f"--data_path {data_path}: {annotations} and the images in {images} do not belong together: "
                         f"only one of them has {differing[0]} ({len(differing)} in all); copy both anew.")
    by_class: dict[str, list[str]] = {}
    for file, name in sorted(class_of.items()):
        by_class.setdefault(name, []).append(f"images/{file}")
    return dict(sorted(by_class.items()))
