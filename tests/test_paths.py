"""Paths from outside: what is opened, and what is named instead of waited for."""

import os
import re
import socket
from pathlib import Path

import pytest

from errors import InputError
from paths import check_file, expanded, outside_path, read_bytes, read_text

NO_PATHS = {  # what no disk is asked for
    "nobody's home": ("~nosuchuser/x", "knows no home folder of ~nosuchuser"),
    "NUL": ("a\0b", "NUL"),
    "half a character": ("a\ud800b", "no UTF-8 text"),
    "bytes of another encoding": (os.fsdecode(b"caf\xe9"), "no UTF-8 text"),
}


@pytest.mark.parametrize(("text", "message"), NO_PATHS.values(), ids=NO_PATHS)
def test_what_is_no_path(text, message):
    with pytest.raises(InputError, match=f"^--data_path: .*{message}") as refusal:
        outside_path("--data_path", text)
    str(refusal.value).encode()  # can be printed anywhere


def test_home_and_text_as_typed(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert outside_path("--data_path", "~/x") == Path("/home/me/x")
    assert expanded("~") == "/home/me"
    for text in ("", "./x/", "x//y", "a~b", "./~nosuchuser"):
        assert expanded(text) == text


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def make_link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


SPECIAL = {"a named pipe": make_pipe, "a socket": make_socket, "a device": make_link_to_device, "a folder": Path.mkdir}


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("kind", "make"), SPECIAL.items(), ids=SPECIAL)
def test_what_is_no_file_is_named_and_not_opened(kind, make, tmp_path):
    path = tmp_path / "it"
    make(path)
    for read in (check_file, lambda *a: read_bytes(*a, 10), lambda *a: read_text(*a, 10)):
        with pytest.raises(InputError, match=f"^--class_order it is {kind}, and must be a file"):
            read(path, "--class_order it")
    if kind == "a folder":
        assert outside_path("--data_path", str(path)) == path
    else:
        with pytest.raises(InputError, match=f"^--data_path {re.escape(str(path))} is {kind}; give a file or a folder"):
            outside_path("--data_path", str(path))


def test_files_and_links_to_them(tmp_path):
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9")
    link.symlink_to(path)
    for each in (path, link):
        assert check_file(each, "it")
        assert read_bytes(each, "it", 8) == path.read_bytes()
        assert read_text(each, "it", 8) == "café"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="it is no UTF-8 text"):
        read_text(path, "it", 8)


@pytest.mark.parametrize("name", ["absent", "file/absent"])
def test_what_is_not_there(name, tmp_path):
    (tmp_path / "file").write_text("x")
    assert not check_file(tmp_path / name, "it")
    assert outside_path("--data_path", str(tmp_path / name)) == tmp_path / name
    with pytest.raises(FileNotFoundError, match="absent"):
        read_bytes(tmp_path / name, "it", 8)


def test_files_that_are_too_long(tmp_path):
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 2**40)  # occupies nothing, and would take all memory
    with pytest.raises(InputError, match="it is longer than 1 MiB"):
        read_bytes(path, "it", 2**20)
    with pytest.raises(InputError, match="it is longer than"):  # the kernel says 0 bytes, and has more
        read_bytes(Path("/proc/self/maps"), "it", 100)


@pytest.mark.parametrize(("name", "reason"), [("x" * 300, "File name too long"), ("loop", "symbolic links")])
def test_places_that_cannot_be_looked_at(name, reason, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for look in (lambda path: outside_path("--data_path", str(path)), lambda path: check_file(path, "--data_path x")):
        with pytest.raises(InputError, match=f"^--data_path .* cannot be looked at .*{reason}"):
            look(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_that_may_not_be_read(tmp_path):
    path = tmp_path / "secret"
    path.write_text("x")
    path.chmod(0)
    with pytest.raises(InputError, match="it cannot be read"):
        read_bytes(path, "it", 8)
