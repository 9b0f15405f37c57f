"""Unpacking what data sets are published as: whole or not at all, and never outside the folder meant for it."""

import gzip
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

from errors import InputError

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVE_SUFFIXES) and path.is_file()


def archive_of(folder: Path) -> Path | None:
    """The archive beside `folder` that bears its name, if there is one."""
    candidates = (folder.with_name(folder.name + suffix) for suffix in ARCHIVE_SUFFIXES)
    return next((path for path in candidates if is_archive(path)), None)


def unpacked(archive: Path) -> Path:
    """The folder beside `archive` that bears its name, made from it unless it is there.

    An archive with one folder at its top, or one of that name, gives that folder. Raises InputError for a damaged
    archive, one with entries that would lie elsewhere, or a place that cannot be written.
    """
    suffix = next(s for s in sorted(ARCHIVE_SUFFIXES, key=len, reverse=True) if archive.name.lower().endswith(s))
    folder = archive.with_name(archive.name[:-len(suffix)])
    if not folder.is_dir():
        with _extracted(archive) as made:
            inside = {path.name: path for path in made.iterdir()
                      if path.is_dir() and not path.name.startswith((".", "__MACOSX"))}
            only = next(iter(inside.values())) if len(inside) == 1 else made
            os.replace(inside.get(folder.name, only), folder)
    return folder


def unpack_into(archive: Path, folder: Path) -> None:
    """The content of `archive` in `folder`, each of its top folders at once; a .gz that is no .tar gives one file.

    Raises InputError as `unpacked`.
    """
    if archive.suffix == ".gz" and not archive.name.endswith(".tar.gz"):
        _unpack_gz(archive, folder / archive.stem)
        return
    with _extracted(archive) as made:
        _move_into(made, folder)


def _move_into(made: Path, folder: Path) -> None:
    for path in made.iterdir():
        target = folder / path.name
        if path.is_dir() and target.is_dir():  # left by an archive that lacked something: filled up
            _move_into(path, target)
        else:
            os.replace(path, target)


def _unpack_gz(archive: Path, target: Path) -> None:
    with _refusals(archive), _temporary(target) as made:
        with gzip.open(archive) as packed, open(made, "wb") as file:
            shutil.copyfileobj(packed, file)
        os.replace(made, target)


@contextmanager
def _extracted(archive: Path) -> Iterator[Path]:
    """A temporary folder beside `archive` with its content, removed afterwards unless it was moved."""
    with _refusals(archive), _temporary(archive) as made:
        made.mkdir()
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                for name in packed.namelist():
                    if any(path.anchor or ".." in path.parts for path in (PurePosixPath(name), PureWindowsPath(name))):
                        raise zipfile.BadZipFile(f"its entry {name} would lie outside the folder")
                packed.extractall(made)
        else:
            with tarfile.open(archive) as packed:
                packed.extractall(made, filter="data")  # refuses paths and links that lead outside, and devices
        yield made


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


@contextmanager
def _refusals(archive: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError,
            RuntimeError) as error:  # zipfile raises the last for a password
        raise InputError(f"--data_path: {archive} cannot be unpacked ({' '.join(str(error).split())}); copy it anew, "
                         "or unpack it by hand.") from error
