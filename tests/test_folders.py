"""Folders of classes that are the user's own."""

import json
import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from published import class_folders, encoded, pictures, under, write_files, write_tar

from continual_datasets.folders import read_folder
from continual_datasets.large_images import read_picture
from continual_datasets.readers import CATALOGUE
from errors import InputError

CLASSES = ["ant", "bee", "cat"]


def read(data_path, name: str = "Split-Folder"):
    return CATALOGUE[name](str(data_path), False)


def before_and_after(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in root.rglob("*")}


@pytest.mark.parametrize("test", ["test", "val", "Test"])
def test_train_and_test_folders_with_uneven_classes(test, tmp_path):
    write_files(tmp_path / "train", class_folders(CLASSES, 3) | class_folders(["bee"], 5))
    write_files(tmp_path / test, class_folders(CLASSES, 2))
    files = before_and_after(tmp_path)
    data = read(tmp_path)
    assert data.class_names == ("ant", "bee", "cat")
    assert data.train.labels_N.tolist() == [0] * 3 + [1] * 5 + [2] * 3
    assert data.train.names_N[3] == "train/bee/bee_00.png"
    assert sorted(data.test.names_N) == [f"{test}/{c}/{c}_{n:02d}.png" for c in CLASSES for n in range(2)]
    assert [CLASSES[label] for label in data.test.labels_N] == [name.split("/")[1] for name in data.test.names_N]
    assert data.split is None
    assert before_and_after(tmp_path) == files, "files stay where they are"


def test_one_folder_of_classes_is_split_lastingly(tmp_path):
    write_files(tmp_path, class_folders(CLASSES, 10) | class_folders(["two"], 2))
    data = read(tmp_path)
    again = read(f"{tmp_path}/")
    assert data.split == again.split == {"seed": 42, "train": data.train.names_N.tolist(),
                                         "test": sorted(data.test.names_N)}
    assert np.bincount(data.test.labels_N).tolist() == [2, 2, 2, 1]
    assert np.bincount(data.train.labels_N).tolist() == [8, 8, 8, 1]
    assert sorted([*data.train.names_N, *data.test.names_N]) == sorted(
        [f"{c}/{c}_{n:02d}.png" for c in CLASSES for n in range(10)] + ["two/two_00.png", "two/two_01.png"])

    write_files(tmp_path, class_folders(["ant"], 11))  # one image more moves at most one other
    assert len(set(read(tmp_path).test.names_N) ^ set(data.test.names_N)) <= 2


@pytest.mark.parametrize("parts", [True, False])
def test_a_test_batch_holds_several_classes(parts, tmp_path):
    """The prompts that most images of a batch choose would be those of its class, if it held one alone."""
    write_files(tmp_path / "train" if parts else tmp_path, class_folders(CLASSES, 40, (8, 8)))
    if parts:
        write_files(tmp_path / "test", class_folders(CLASSES, 8, (8, 8)))
    data = read(tmp_path)
    assert len(data.test) == 24
    for start in range(0, 24, 8):
        assert len(set(data.test.labels_N[start:start + 8])) > 1
    assert read(tmp_path).test.names_N.tolist() == data.test.names_N.tolist()
    assert data.train.labels_N.tolist() == sorted(data.train.labels_N), "training draws an order of its own"
    before = data.test.names_N.tolist()
    if parts:  # else a fifth of those that are left is drawn
        (tmp_path / before[3]).unlink()
        assert read(tmp_path).test.names_N.tolist() == before[:3] + before[4:], "one image less moves no other"


def test_folders_inside_classes_and_names_in_any_script(tmp_path):
    image = encoded(pictures(1, 8, 8)[0], "PNG")
    write_files(tmp_path, {"Bär/2024/été/1.PNG": image, "Bär/2.png": image, "犬/1.png": image, "犬/2.png": image})
    data = read(tmp_path)
    assert data.class_names == ("Bär", "犬")
    found = sorted([*data.train.names_N, *data.test.names_N])
    assert found == ["Bär/2.png", "Bär/2024/été/1.PNG", "犬/1.png", "犬/2.png"]


@pytest.mark.parametrize("classes", [["car", "plane", "train"], ["invalid", "valid"], ["bullet_train", "dog"],
                                     ["test_tube", "train_station", "zoo"]])
def test_a_class_may_be_called_as_a_part_is(classes, tmp_path):
    write_files(tmp_path / "together", class_folders(classes, 2))
    assert read(tmp_path / "together").class_names == tuple(classes)
    for part in ("train", "test"):
        write_files(tmp_path / "apart" / part, class_folders(classes, 2))
    assert read(tmp_path / "apart").class_names == tuple(classes)


PARTS = {  # where the training and the test images of each class lie
    "capitals": ("TRAIN", "TEST"), "other words": ("Training", "Testing"), "sets": ("Training Set", "Test-Set"),
    "prefixes": ("seg_train", "seg_test"), "suffixes": ("train_seg", "val_seg"), "years": ("train2017", "val2017"),
    "dev": ("train", "dev"), "valid": ("Train", "valid"), "evaluation": ("training", "evaluation"),
    "one level more": ("archive/train", "archive/test"), "their names twice": ("x_train/x_train", "x_test/x_test"),
    "all of it": ("archive/x_train/x_train", "archive/x_test/x_test"), "images": ("train/images", "test/images"),
    "uneven": ("train/images", "test"),
}


@pytest.mark.parametrize("case", PARTS)
def test_parts_are_found_by_the_usual_words(case, tmp_path):
    train, test = PARTS[case]
    write_files(tmp_path, under(train, class_folders(CLASSES, 3)) | under(test, class_folders(CLASSES, 1))
                | {"about.txt": b"", "sample.jpg": b"", ".git/x/1.png": b""})
    (tmp_path / "sample.jpg").unlink(missing_ok=case in ("one level more", "all of it"))
    data = read(tmp_path)
    assert data.class_names == tuple(CLASSES)
    assert (len(data.train), len(data.test), data.split) == (9, 3, None)
    assert all(Path(path).is_file() for images in (data.train, data.test) for path in images.paths(np.arange(3)))


def test_the_part_with_labels_is_taken_and_what_is_unused_is_named(tmp_path):
    """The test images of many data sets are published without their classes."""
    write_files(tmp_path, under("train", class_folders(CLASSES, 2)) | under("val", class_folders(CLASSES, 1))
                | {"test/1.png": b"", "pred/1.png": b""})
    data = read(tmp_path)
    assert (len(data.train), len(data.test)) == (6, 3)
    assert data.notes == (f"pred, test in {tmp_path}: left out, because only train and val are read.",)
    (tmp_path / "test" / "1.png").unlink()
    write_files(tmp_path / "test", class_folders(CLASSES, 4))
    assert len(read(tmp_path).test) == 12


SYSTEM = ["$RECYCLE.BIN", "@eaDir", "lost+found", ".@__thumb", "__MACOSX", "System Volume Information", ".git",
          "FOUND.000", ".ipynb_checkpoints", "#recycle", "@Recycle"]


@pytest.mark.parametrize("name", SYSTEM)
def test_folders_of_systems_are_no_classes_and_add_no_image_to_one(name, tmp_path):
    for root in (tmp_path, tmp_path / "parts" / "train", tmp_path / "parts" / "test"):
        write_files(root, class_folders(CLASSES, 2) | {f"{name}/1.png": b"", f"bee/{name}/deep/2.png": b""})
    write_files(tmp_path / "parts", {f"{name}/train/1.png": b""})
    left_out = "are left out, because they are hidden or made by an operating system, such as "
    for root, parts in ((tmp_path / "parts", ["train", "test"]), (tmp_path, [""])):
        notes = [f"{name} in {root}: left out, because only train and test are read."] if parts[0] else []
        notes += [f"2 folder(s) in {root / part} {left_out}" for part in parts]
        data = read(root)
        shutil.rmtree(tmp_path / "parts", ignore_errors=True)
        assert data.class_names == tuple(CLASSES)
        assert not any(name in file for images in (data.train, data.test) for file in images.names_N)
        for note, begins in zip(data.notes, notes, strict=True):
            assert note.startswith(begins)
            assert name in note


def test_files_that_are_no_images_are_counted_and_hidden_ones_are_not(tmp_path):
    write_files(tmp_path, class_folders(CLASSES, 2) | {
        "ant/IMG_1.HEIC": b"", "ant/notes.txt": b"", "bee/.DS_Store": b"", "bee/._1.png": b"", "readme.txt": b"",
        ".hidden.png": b"", "empty/note.txt": b""})
    data = read(tmp_path)
    assert data.class_names == tuple(CLASSES)
    note, classless = data.notes
    assert note.startswith(f"3 file(s) in {tmp_path} are left out, because their names do not end as an image's does, ")
    assert classless == f"empty in {tmp_path}: no file's name ends as an image's does, so this is no class."


def test_circles_of_links(tmp_path):
    write_files(tmp_path, class_folders(CLASSES, 3))
    (tmp_path / "ant" / "loop").symlink_to("..")
    (tmp_path / "bee" / "self").symlink_to(".")
    (tmp_path / "cat" / "itself").symlink_to("itself")
    (tmp_path / "all").symlink_to(".")  # no class, and nor is the next
    (tmp_path / "above").symlink_to("..")
    data = read(tmp_path)
    assert data.class_names == tuple(CLASSES)
    assert len(data.train) + len(data.test) == 3 * len(CLASSES)


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the names of sockets are short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


IRREGULAR = {"pipe": make_pipe, "socket": make_socket, "device": lambda path: path.symlink_to("/dev/zero"),
             "link to nowhere": lambda path: path.symlink_to("nowhere.jpg"),
             "link to itself": lambda path: path.symlink_to(path.name)}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", IRREGULAR)
def test_only_files_are_opened(kind, tmp_path):
    """To open a pipe that nobody writes to waits for ever."""
    write_files(tmp_path, class_folders(CLASSES, 3))
    path = tmp_path / "bee" / "x.jpg"
    IRREGULAR[kind](path)
    with pytest.raises(InputError, match=f"^--data_path .*{path} is named as an image and is no file but"):
        read(tmp_path)
    with pytest.raises(InputError, match=f"^--data_path: {path} cannot be read as an image"):
        read_picture(str(path))


def test_a_folder_too_high_is_no_class(tmp_path):
    for name in ("mine", "other"):
        write_files(tmp_path / "above" / name / "train", class_folders(CLASSES, 3))
        write_files(tmp_path / "above" / name / "validation", class_folders(CLASSES, 3))
    with pytest.raises(InputError, match="mine holds training and test images of its own; give that folder"):
        read(tmp_path / "above")
    assert read(tmp_path / "above" / "mine").class_names == tuple(CLASSES)


def test_one_folder_of_classes_is_found_a_level_further_down(tmp_path):
    write_files(tmp_path, under("photos/all", class_folders(CLASSES, 5)))
    assert read(tmp_path).split == read(tmp_path / "photos" / "all").split


def test_an_archive_with_files_beside_its_folder(tmp_path):
    """CUB-200-2011's has one."""
    files = under("CUB_200_2011/images", class_folders(CLASSES, 5)) | {"attributes.txt": b"", "other/1.txt": b""}
    write_tar(tmp_path / "CUB_200_2011.tgz", files)
    assert read(tmp_path, "Split-CUB200").class_names == tuple(CLASSES)


ENDINGS = [".avif", ".jfif", ".mpo", ".jp2", ".JPE", ".pbm", ".dib", ".tga", ".apng"]


def test_images_by_every_ending_that_pillow_reads(tmp_path):
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        for ending in ENDINGS:
            (grey.convert("1") if ending == ".pbm" else grey.convert("RGB")).save(tmp_path / name / f"x{ending}")
    data = read(tmp_path)
    assert len(data.train) + len(data.test) == 2 * len(ENDINGS)
    assert not data.notes
    for images in (data.train, data.test):
        assert {read_picture(path).size for path in images.paths(np.arange(len(images)))} == {(16, 16)}


def test_a_grey_pgm_of_sixteen_bits_is_scaled(tmp_path):
    (tmp_path / "grey.pgm").write_bytes(b"P5 3 1 65535\n" + np.array([255, 30_000, 65_535], ">u2").tobytes())
    assert np.array(read_picture(str(tmp_path / "grey.pgm")))[..., 0].tolist() == [[0, 117, 255]]
    (tmp_path / "grey.pgm").write_bytes(b"P5 3 1 4095\n" + np.array([0, 2048, 4095], ">u2").tobytes())
    assert np.array(read_picture(str(tmp_path / "grey.pgm")))[..., 0].tolist() == [[0, 128, 255]]


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_than_eight_bits(mode, tmp_path):
    """16-bit grey is scaled, not cut off at 255; what has no white is refused."""
    grey = np.array([[0, 255, 256], [30_000, 60_000, 65_535]])
    kinds = {"I;16": (np.uint16, "png"), "I": (np.int32, "tif"), "F": (np.float32, "tif")}
    kind, suffix = kinds[mode]
    path = tmp_path / f"grey.{suffix}"
    Image.fromarray(grey.astype(kind)).save(path)
    if mode == "I;16":
        assert np.array(read_picture(str(path)))[..., 0].tolist() == [[0, 0, 1], [117, 234, 255]]
    else:
        with pytest.raises(InputError, match=r"its pixels are 32-bit numbers.*save it with 8 bits"):
            read_picture(str(path))


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_an_archive_is_as_good_as_the_folder(suffix, tmp_path):
    write_files(tmp_path / "plain", class_folders(CLASSES, 5))
    if suffix == ".zip":
        shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path / "plain")
    else:
        write_tar(tmp_path / "photos.tar.gz", under("photos", class_folders(CLASSES, 5)))
    assert read(tmp_path / f"photos{suffix}").split == read(tmp_path / "plain").split


FLAT = {"1.png": b"", "2.png": b""}
REFUSED = {
    "no classes": ({"1.png": b""}, r"no folder of images \(\*\.jpg .* in .*; give each class a folder of its own"),
    "nothing": ({}, "no folder of images"),
    "no test": (under("train", class_folders(CLASSES, 2)), "has train/ but no test/ beside it"),
    "no train": (under("val", class_folders(CLASSES, 2)), "has val/ but no train/ beside it"),
    "no test, a prefix": (under("seg_train", class_folders(CLASSES, 2)), "has seg_train/ but no test/ beside it"),
    "unlabelled images beside classes": (class_folders(CLASSES, 2) | under("Test", FLAT), "has Test/ but no train/"),
    "parts without classes": (under("train", FLAT) | under("test", FLAT), "train has no folders of classes in it"),
    "capitals without classes": (under("TRAIN", FLAT) | under("TEST", FLAT), "TRAIN has no folders of classes in it"),
    "parts without classes, and classes": (
        class_folders(CLASSES, 2) | under("train", FLAT) | under("test", FLAT), "train has no folders of classes"),
    "test without classes": (under("train", class_folders(CLASSES, 2)) | under("test", FLAT),
                             "test has no folders of classes in it; give each class a folder of its own there"),
    "two of them": (under("train", class_folders(CLASSES, 2)) | under("Train", class_folders(CLASSES, 2))
                    | under("test", class_folders(CLASSES, 2)), "has Train, train, test, and it cannot be told which"),
    "two pairs": (under("a_train", class_folders(CLASSES, 2)) | under("a_test", class_folders(CLASSES, 2))
                  | under("b_train", FLAT) | under("b_test", FLAT), "cannot be told which"),
    "parts in classes": (under("ant/train", FLAT) | under("ant/test", FLAT) | under("bee/train", FLAT)
                         | under("bee/test", FLAT), "ant holds training and test images of its own"),
    "a stray image": (class_folders(CLASSES, 2) | {"stray.JPG": b""}, "stray.JPG is an image in no class's folder"),
    "a stray training image": (
        under("train", class_folders(CLASSES, 2) | {"stray.JPG": b""}) | under("test", class_folders(CLASSES, 2)),
        "stray.JPG is an image in no class's folder"),
    "one class": (under("images", FLAT), "holds one class alone, images/"),
    "one class in parts": (under("train/images", FLAT) | under("test/images", FLAT), "holds one class alone, images/"),
    "other classes": (under("train", class_folders(CLASSES, 2)) | under("test", class_folders(CLASSES[:2], 2)),
                      "do not hold the same classes: only one of them has images of cat"),
    "other capitals": (under("train", class_folders(["Cat", "dog"], 2))
                       | under("test", class_folders(["cat", "dog"], 2)),
                       "call a class 'Cat' and 'cat', which differ only in upper and lower case"),
    "other accents": (under("train", class_folders(["\xe9t\xe9", "dog"], 2))
                      | under("test", class_folders(["e\u0301te\u0301", "dog"], 2)), "the way an accent is written"),
    "one image": (class_folders(CLASSES, 2) | class_folders(["dog"], 1), "dog holds one image; a class needs one to"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_folders_that_cannot_be_used(case, tmp_path):
    files, message = REFUSED[case]
    (tmp_path / "data").mkdir()
    write_files(tmp_path / "data", files)
    with pytest.raises(InputError, match=f"^--data_path {tmp_path / 'data'}: .*{message}") as caught:
        read(tmp_path / "data")
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: there is no such folder; give the folder that holds train/CLASS/"):
        read(tmp_path / "nowhere")


def test_the_split_can_be_written_as_json(tmp_path):
    write_files(tmp_path, class_folders(CLASSES, 3))
    split = read_folder(str(tmp_path)).split
    assert json.loads(json.dumps(split)) == split
