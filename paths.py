"""Paths that come from outside: of the command line, and of a folder that others write to.

Nothing here needs torch. Only regular files are opened: a named pipe would be waited for without end, and a device
such as /dev/zero never ends.
"""

import errno
import os
import stat
from pathlib import Path

from errors import InputError

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR)
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket",
          stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def expanded(text: str) -> str:
    """`text` with the home folder in the place of a leading `~` or `~name`; the disk is not looked at.

    Raises:
        ValueError: no path of any system, or the home of a user that there is not; its text says which.
    """
    if "\0" in text:
        raise ValueError(f"{text!r} is no path: it has a NUL character in it")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{text!r} is no UTF-8 text: rename it, or give a link to it") from None
    full = os.path.expanduser(text)
    if full.startswith("~"):
        raise ValueError(f"{text!r}: this machine knows no home folder of {text.split('/')[0]}; write it out, or ./"
                         f"{text.split('/')[0]} for a file of that name")
    return full


def outside_path(option: str, text: str) -> Path:
    """The path that `option` gives, `~` expanded. It need not exist; where it does, it is a file or a folder.

    Raises:
        InputError: what `expanded` refuses, a pipe, socket or device, or a place that cannot be looked at.
    """
    try:
        path = Path(expanded(text))
    except ValueError as error:
        raise InputError(f"{option}: {error}.") from error
    kind = _kind(path, f"{option} {text}")
    if kind not in (None, stat.S_IFREG, stat.S_IFDIR):
        raise InputError(f"{option} {text} is {_KINDS.get(kind, 'a special file')}, and neither a file nor a folder.")
    return path


def check_file(path: Path, name: str) -> bool:
    """Whether there is a file at `path`; a link counts as what it leads to.

    Args:
        name: what the user knows it as, such as `--class_order order.txt`.

    Raises:
        InputError: there is something else, or the place cannot be looked at.
    """
    kind = _kind(path, name)
    if kind not in (None, stat.S_IFREG):
        raise InputError(f"{name} is {_KINDS.get(kind, 'a special file')}, and must be a file.")
    return kind is not None


def read_bytes(path: Path, name: str, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Args:
        name: as in `check_file`.

    Raises:
        FileNotFoundError: there is none.
        InputError: it is no regular file, is longer, or cannot be read.
    """
    if not check_file(path, name):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(size) if size <= limit else None  # not `limit`: as much memory is taken as asked for
            while content is not None and len(content) <= limit and (more := file.read(2**20)):
                content += more  # it grows, or did not say its size
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}).") from error
    if content is None or len(content) > limit:
        raise InputError(f"{name} is longer than {limit / 2**20:g} MiB, too long for what it should be.")
    return content


def read_text(path: Path, name: str, limit: int) -> str:
    """The same as text, without the mark with which some editors begin UTF-8. Raises InputError for what is none."""
    try:
        return read_bytes(path, name, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is no UTF-8 text; save it as UTF-8.") from error


def _kind(path: Path, name: str) -> int | None:
    """The file type as `stat` numbers it; None where there is nothing."""
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except OSError as error:
        if error.errno in _NOT_THERE:
            return None
        raise InputError(f"{name} cannot be looked at ({error.strerror}).") from error
