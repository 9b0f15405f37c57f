"""Unpacking what data sets are published as: whole or not at all, and never outside the folder meant for it."""

import gzip
import math
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath

from continual_datasets.parts import is_system_name
from errors import InputError
from output_lock import OutputLock

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVE_SUFFIXES) and path.is_file()


def archive_of(folder: Path) -> Path | None:
    """The archive beside `folder` that bears its name, if there is one."""
    candidates = (folder.with_name(folder.name + suffix) for suffix in ARCHIVE_SUFFIXES)
    return next((path for path in candidates if is_archive(path)), None)


def _stem(archive: Path) -> str:
    """Its name without the ending that says what it is."""
    suffix = next(s for s in sorted(ARCHIVE_SUFFIXES, key=len, reverse=True) if archive.name.lower().endswith(s))
    return archive.name[:-len(suffix)]


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Keep other runs from fetching and unpacking into `folder`: those of an array all begin at the same time."""
    with ExitStack() as held:
        with suppress(OSError):  # where nothing can be written, what writes says so
            folder.mkdir(parents=True, exist_ok=True)
            held.callback(OutputLock(str(folder), patience=math.inf).release)
        yield


def unpacked(archive: Path) -> Path:
    """The folder beside `archive` that bears its name, made from it unless it is there.

    An archive with one folder at its top, or one of that name, gives that folder. Raises InputError for a damaged
    archive, one with entries that would lie elsewhere, or a place that cannot be written.
    """
    stem = _stem(archive)
    if not stem.strip("."):
        raise InputError(f"--data_path: {archive} has nothing before its ending, and so no name for the folder that it "
                         "is unpacked to; rename it.")
    folder = archive.with_name(stem)
    if folder.is_dir():
        return folder
    with one_at_a_time(archive.parent):
        if folder.is_dir():  # made by another run meanwhile
            return folder
        with _extracted(archive) as made:
            inside = {path.name: path for path in made.iterdir()
                      if path.is_dir() and not is_system_name(path.name)}
            only = next(iter(inside.values())) if len(inside) == 1 else made
            os.replace(inside.get(folder.name, only), folder)
    return folder


def unpack_into(archive: Path, folder: Path, holding: Sequence[str] = ()) -> None:
    """The content of `archive` in `folder`, each of its top folders at once.

    Raises InputError as `unpacked`, and for an archive without the files or folders `holding`.
    """
    with _extracted(archive) as made:
        if lacking := [name for name in holding if not (made / name).exists()]:
            raise _Refused(f"it lacks {', '.join(lacking[:3])}")
        _move_into(made, folder)


def unpack_gz(archive: Path, target: Path) -> None:
    """The one file in a .gz that is no .tar.gz. Raises InputError as `unpacked`."""
    with _refusals(archive), temporary(target) as made:
        if _kind(archive) != "gz":
            raise _Refused("it is no .gz by its first bytes")
        with gzip.open(archive) as packed, open(made, "wb") as file:
            shutil.copyfileobj(packed, file)
        os.replace(made, target)


def _move_into(made: Path, folder: Path) -> None:
    for path in made.iterdir():
        target = folder / path.name
        if path.is_dir() and target.is_dir():  # left by an archive that lacked something: filled up
            _move_into(path, target)
        else:
            os.replace(path, target)


@contextmanager
def _extracted(archive: Path) -> Iterator[Path]:
    """A temporary folder beside `archive` with its content, removed afterwards unless it was moved."""
    with _refusals(archive), temporary(archive) as made:
        kind = _kind(archive)
        made.mkdir()
        if kind == "zip":
            with zipfile.ZipFile(archive) as packed:
                for name in packed.namelist():
                    if any(path.anchor or ".." in path.parts for path in (PurePosixPath(name), PureWindowsPath(name))):
                        raise _Refused(f"its entry {name} would lie outside the folder")
                packed.extractall(made)
        else:
            with tarfile.open(archive, "r:" if kind == "tar" else f"r:{kind}") as packed:
                packed.extractall(made, filter="data")  # refuses paths and links that lead outside, and devices
        yield made


FIRST_BYTES = {b"PK\x03\x04": "zip", b"PK\x05\x06": "zip", b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\0": "xz"}


def _kind(archive: Path) -> str:
    """`zip`, `tar`, or how a tar is packed, `gz`, `bz2` or `xz`: by its first bytes, whatever its name."""
    with open(archive, "rb") as file:
        begin = file.read(tarfile.BLOCKSIZE)
    for first, kind in FIRST_BYTES.items():
        if begin.startswith(first):
            return kind
    if _begins_tar(begin):
        return "tar"
    if zipfile.is_zipfile(archive):  # with a program before it
        return "zip"
    raise _Refused("it is no archive by its first bytes" if begin else "it is empty")


def _begins_tar(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape")
        return True
    except tarfile.HeaderError:
        return block[257:262] == b"ustar"


class _Refused(Exception):
    """What is wrong with an archive, in words of our own."""


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A name beside `path` for what is not whole yet; what is still there in the end is removed."""
    made = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield made
    finally:
        if made.is_dir():
            shutil.rmtree(made)
        made.unlink(missing_ok=True)


@contextmanager
def _refusals(archive: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each format has its own for damaged bytes, and some have several
        why = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, OSError) and error.errno:
            raise InputError(f"--data_path: {archive} cannot be unpacked here ({why}); see that there is room beside "
                             "it and that its folder can be written, or unpack it by hand.") from error
        if not isinstance(error, _Refused):
            why = f"a .{_kind(archive)} by its first bytes, but damaged or cut short: {why}"
        raise InputError(f"--data_path: {archive} cannot be unpacked ({why}); copy it anew, or unpack it by hand."
                         ) from error
