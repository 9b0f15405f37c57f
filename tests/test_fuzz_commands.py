"""Random command lines end with 0, 1 or 2 within a minute, without a traceback, and touch nothing but output_dir.

A test that fails prints its command line. `make test-long` draws others every day; FUZZ_DAY, which is printed with
them, draws those of another day again: FUZZ_DAY=2026-01-31 pytest -m long "tests/test_fuzz_commands.py::NAME".
"""

import contextlib
import datetime
import io
import os
import random
import shlex
import shutil
from pathlib import Path

import pytest
from fuzz_commands import TINY, command_words, draw_command, draw_values, listing, make_surroundings

import main
from configs.base import OPTIONS
from configs.command import parse
from errors import InputError

pytestmark = pytest.mark.pictures

DAY = os.environ.get("FUZZ_DAY", str(datetime.date.today()))


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    work = make_surroundings(folder)
    values = TINY | {"data_path": str(work / "data.npz"), "output_dir": str(folder / "finished")}
    code, _, err = call(command_words(values))
    assert code == 0, err
    return folder


def call(words: list[str]) -> tuple[int, str, str]:
    """Run the program in this process, behind a terminal that knows UTF-8."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main.main(words)
    out.flush()
    err.flush()
    return code, out.buffer.getvalue().decode(), err.buffer.getvalue().decode()


def check_command(seed: str, surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = draw_command(seed)
    print(ascii(f"seed {seed}: {shlex.join(words)}")[:2000])
    work = surroundings / "work"
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(surroundings / "home"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody answers there
    shutil.rmtree(work / "out", ignore_errors=True)
    about_runs = any(word.lstrip("-").startswith(("resume", "eval", "overwrite")) for word in words)
    if about_runs or sum(seed.encode()) % 20 == 0:
        shutil.copytree(surroundings / "finished", work / "out")
    before = listing(surroundings)
    code, out, err = call(words)
    after = listing(surroundings)
    assert code in (0, 1, 2), err
    assert "Traceback" not in out + err
    if code == 2:
        errors = [line for line in err.splitlines() if "warning" not in line]
        assert [line[:16] for line in errors] == ["main.py: error: "], err
        assert after == before
    written = output_folder(words, work, surroundings)
    for path in sorted(after.keys() | before.keys()):
        if before.get(path) != after.get(path):
            assert written is not None, path
            assert Path(path).is_relative_to(written) or Path(written).is_relative_to(path), path
    remove_new(surroundings, before, after)


def output_folder(words: list[str], work: Path, surroundings: Path) -> Path | None:
    """--output_dir of a command line, from `surroundings` on; None where there is none, or it lies elsewhere."""
    try:
        given = parse(words).options["output_dir"]
    except InputError:
        return None
    if not given:
        return None
    folder = Path(os.path.normpath(work / given))
    return folder.relative_to(surroundings) if folder.is_relative_to(surroundings) else None


def remove_new(folder: Path, before: dict, after: dict) -> None:
    for path in sorted(after.keys() - before.keys()):
        if (folder / path).is_dir():
            shutil.rmtree(folder / path, ignore_errors=True)
        else:
            (folder / path).unlink(missing_ok=True)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_has_values_to_draw(name):
    drawn = [value for seed in range(50) for value in draw_values(random.Random(seed), name)]
    assert len(drawn) >= 30


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", range(40))
def test_command_lines(number, surroundings, monkeypatch):
    check_command(f"{number}", surroundings, monkeypatch)


@pytest.mark.long
@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", range(300))
def test_more_command_lines(number, surroundings, monkeypatch):
    check_command(f"{DAY}-{number}", surroundings, monkeypatch)
