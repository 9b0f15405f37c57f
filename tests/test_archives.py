"""Archives: unpacked whole or not at all, and never outside their folder."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from published import write_tar

from continual_datasets.archives import archive_of, is_archive, unpack_into, unpacked
from errors import InputError

FILES = {"photos/ant/1.png": b"one", "photos/bee/2.png": b"two"}


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz", ".zip"])
@pytest.mark.parametrize("files", [FILES, {name.removeprefix("photos/"): c for name, c in FILES.items()}])
def test_an_archive_gives_the_folder_of_its_name(suffix, files, tmp_path):
    archive = tmp_path / f"photos{suffix}"
    (write_zip if suffix == ".zip" else write_tar)(archive, files)
    assert is_archive(archive)
    assert archive_of(tmp_path / "photos") == archive
    before = archive.read_bytes()
    for _ in range(2):
        assert unpacked(archive) == tmp_path / "photos"
        assert contents(tmp_path / "photos") == {"ant/1.png": b"one", "bee/2.png": b"two"}
        assert archive.read_bytes() == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", archive.name]


def test_what_computers_add_to_archives_does_not_count(tmp_path):
    write_zip(tmp_path / "photos.zip", FILES | {"__MACOSX/photos/ant/._1.png": b"", ".DS_Store": b""})
    assert contents(unpacked(tmp_path / "photos.zip")) == {"ant/1.png": b"one", "bee/2.png": b"two"}


def entry(name: str, **fields) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(made, field, value)
    return made


OUTSIDE = {
    "above": [entry("../evil")],
    "absolute": [entry("photos/../../evil")],
    "link": [entry("photos/link", type=tarfile.SYMTYPE, linkname="../../evil")],
    "through a link": [entry("photos/link", type=tarfile.SYMTYPE, linkname=".."), entry("photos/link/../evil")],
    "hard link": [entry("photos/link", type=tarfile.LNKTYPE, linkname="../../evil")],
    "device": [entry("photos/device", type=tarfile.CHRTYPE)],
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_a_tar_that_leads_outside_is_refused_and_leaves_nothing(case, tmp_path):
    archive = tmp_path / "inner" / "photos.tar"
    archive.parent.mkdir()
    with tarfile.open(archive, "w") as tar:
        tar.addfile(entry("photos/first", size=1), io.BytesIO(b"1"))
        for each in OUTSIDE[case]:
            tar.addfile(each)
    with pytest.raises(InputError, match=f"^--data_path: {archive} cannot be unpacked"):
        unpacked(archive)
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]
    assert list(archive.parent.iterdir()) == [archive]


@pytest.mark.parametrize("name", ["../evil", "/evil", "photos/../../evil", "C:\\evil", "..\\evil"])
def test_a_zip_that_leads_outside_is_refused_and_leaves_nothing(name, tmp_path):
    archive = tmp_path / "inner" / "photos.zip"
    archive.parent.mkdir()
    write_zip(archive, FILES | {name: b""})
    with pytest.raises(InputError, match="would lie outside"):
        unpacked(archive)
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]
    assert list(archive.parent.iterdir()) == [archive]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
def test_a_damaged_archive_is_refused_by_its_kind_and_leaves_nothing(suffix, tmp_path):
    archive = tmp_path / f"photos{suffix}"
    (write_zip if suffix == ".zip" else write_tar)(archive, FILES | {"photos/large": bytes(range(256)) * 400})
    archive.write_bytes(archive.read_bytes()[:600])
    kind = suffix.split(".")[-1]
    with pytest.raises(InputError, match=rf"cannot be unpacked \(a \.{kind} by its first bytes, but damaged or cut "
                                         r"short: [^)]{,80}\); copy it anew"):
        unpacked(archive)
    assert list(tmp_path.iterdir()) == [archive]


@pytest.mark.parametrize(("content", "why"), [
    (b"<!DOCTYPE html>" * 100, "it is no archive by its first bytes"), (b"", "it is empty"),
    (b"Rar!\x1a\x07\x01\0" + bytes(900), "it is no archive by its first bytes")])
@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tgz"])
def test_what_is_no_archive_is_called_so(suffix, content, why, tmp_path):
    (tmp_path / f"photos{suffix}").write_bytes(content)
    with pytest.raises(InputError, match=rf"photos{suffix} cannot be unpacked \({why}\)"):
        unpacked(tmp_path / f"photos{suffix}")
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".tar"])
@pytest.mark.parametrize("really", [".zip", ".tar.gz", ".tar"])
def test_an_archive_under_the_ending_of_another(suffix, really, tmp_path):
    """Also a .tar whose last file is a .zip, and so ends as one."""
    write_zip(tmp_path / "inner.zip", {"1": b"one"})
    files = FILES | {"photos/inner.zip": (tmp_path / "inner.zip").read_bytes()}
    (write_zip if really == ".zip" else write_tar)(tmp_path / f"made{really}", files)
    (tmp_path / f"made{really}").rename(tmp_path / f"photos{suffix}")
    assert contents(unpacked(tmp_path / f"photos{suffix}")).keys() == {"ant/1.png", "bee/2.png", "inner.zip"}


@pytest.mark.parametrize("name", [".zip", ".tar.gz", "..zip", "...tar"])
def test_an_archive_without_a_name(name, tmp_path):
    (tmp_path / "in").mkdir()
    write_zip(tmp_path / "in" / name, FILES)
    with pytest.raises(InputError, match=r"has nothing before its ending.*; rename it"):
        unpacked(tmp_path / "in" / name)
    assert [path.name for path in (tmp_path / "in").iterdir()] == [name]


def test_a_hard_link_to_an_entry_that_is_missing(tmp_path):
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.addfile(entry("photos/first", size=1), io.BytesIO(b"1"))
        tar.addfile(entry("photos/link", type=tarfile.LNKTYPE, linkname="photos/missing"))
    with pytest.raises(InputError, match=r"cannot be unpacked \(a \.tar by its first bytes, but damaged .*missing"):
        unpacked(tmp_path / "photos.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["photos.tar"]


def test_a_folder_that_lacks_something_is_filled_up(tmp_path):
    write_tar(tmp_path / "photos.tar", FILES)
    (tmp_path / "photos" / "ant").mkdir(parents=True)
    (tmp_path / "photos" / "mine").write_bytes(b"mine")
    unpack_into(tmp_path / "photos.tar", tmp_path)
    assert contents(tmp_path / "photos") == {"ant/1.png": b"one", "bee/2.png": b"two", "mine": b"mine"}
