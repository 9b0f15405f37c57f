"""Data sets that are published as folders: each as its page gives it, or as people unpack it."""

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from published import class_folders, encoded, pictures, under, write_files, write_tar

from continual_datasets import build_scenario
from continual_datasets.readers import CATALOGUE
from continual_datasets.scenario import domain_incremental
from errors import InputError

CLASSES = ["ant", "bee", "cat"]


def read(data_path, name: str):
    return CATALOGUE[name](str(data_path), False)


NAMED = ["Split-ImageNet-R", "Split-CUB200", "Split-Cars196", "Split-Scene67", "Split-TinyImagenet", "Split-NotMNIST",
         "CORe50"]


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("download", [False, True])
def test_what_is_not_downloaded_gets_the_page_and_the_layout(name, download, tmp_path):
    write_files(tmp_path, class_folders(CLASSES, 2))  # some folder: not to be taken for the data set
    with pytest.raises(InputError, match=r"^--data_path .*give the folder that holds .*/.* see https?://") as caught:
        CATALOGUE[name](str(tmp_path), download)
    assert ("--download" in str(caught.value)) == download
    assert "\n" not in str(caught.value)


WNIDS = ["n01443537", "n01484850", "n02086240"]


@pytest.mark.parametrize("where", ["folder", "parent", "archive", "archive in parent"])
def test_imagenet_r_as_published(where, tmp_path):
    files = under("imagenet-r", class_folders(list(reversed(WNIDS)), 5, (40, 30), "JPEG") | {"README.txt": b"about"})
    if "archive" in where:
        write_tar(tmp_path / "imagenet-r.tar", files)
        before = (tmp_path / "imagenet-r.tar").read_bytes()
    else:
        write_files(tmp_path, files)
    path = {"folder": tmp_path / "imagenet-r", "archive": tmp_path / "imagenet-r.tar"}.get(where, tmp_path)
    data = read(path, "Split-ImageNet-R")
    assert data.class_names == tuple(WNIDS)
    assert (len(data.train), len(data.test)) == (12, 3)
    assert Path(data.train.store.root) == tmp_path / "imagenet-r"
    assert data.split["seed"] == 42
    if "archive" in where:
        assert (tmp_path / "imagenet-r.tar").read_bytes() == before
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()} - {"imagenet-r.tar"} == set(
        files), "files are never moved"


def test_imagenet_r_with_the_users_own_parts(tmp_path):
    write_files(tmp_path / "imagenet-r", under("train", class_folders(WNIDS, 4, kind="JPEG"))
                | under("test", class_folders(WNIDS, 2, kind="JPEG", seed=1)))
    data = read(tmp_path, "Split-ImageNet-R")
    assert (len(data.train), len(data.test), data.split) == (12, 6, None)


def test_cub200_and_scene67_find_the_folder_of_classes(tmp_path):
    write_files(tmp_path, under("CUB_200_2011/images", class_folders(["001.Albatross", "002.Auklet"], 5))
                | under("CUB_200_2011/parts", class_folders(["x"], 2))
                | under("indoorCVPR_09/Images", class_folders(["airport", "bar"], 5)))
    assert read(tmp_path, "Split-CUB200").class_names == ("001.Albatross", "002.Auklet")
    assert read(tmp_path / "CUB_200_2011", "Split-CUB200").class_names == ("001.Albatross", "002.Auklet")
    assert read(tmp_path, "Split-Scene67").class_names == ("airport", "bar")


CUB = class_folders(["001.Albatross", "002.Auklet"], 4)
CUB_NAMES = tuple(sorted(CUB))
CUB_TEST = CUB_NAMES[1::2]
SCENES = class_folders(["airport", "bar"], 5, kind="JPEG")
SCENES_TRAIN = ["airport/airport_04.jpg", "airport/airport_01.jpg", "bar/bar_00.jpg"]
SCENES_TEST = ["bar/bar_03.jpg", "airport/airport_00.jpg"]


def numbered(values: Sequence[object]) -> bytes:
    return "".join(f"{number} {value}\n" for number, value in enumerate(values, start=1)).encode()


def lines(names: list[str]) -> bytes:
    return "\r\n".join(names).encode()


def cub_lists(names: Sequence[str] = CUB_NAMES, parts: list[object] | None = None) -> dict[str, bytes]:
    """In another order than the images are numbered, as the numbers say which is which."""
    said = [int(name not in CUB_TEST) for name in names] if parts is None else parts
    backwards = b"\n".join(reversed(numbered(said).splitlines()))
    return {"images.txt": numbered(names), "train_test_split.txt": backwards}


def scene_lists(train: list[str] = SCENES_TRAIN, test: list[str] = SCENES_TEST) -> dict[str, bytes]:
    return {"TrainImages.txt": lines(train), "TestImages.txt": lines(test)}


def test_cub200_with_its_published_test(tmp_path):
    write_files(tmp_path / "CUB_200_2011", under("images", CUB) | cub_lists() | {"classes.txt": b"1 001.Albatross\n"})
    data = read(tmp_path, "Split-CUB200")
    assert sorted(data.test.names_N) == list(CUB_TEST)
    assert sorted(data.train.names_N) == sorted(CUB.keys() - CUB_TEST)
    assert data.class_names == ("001.Albatross", "002.Auklet")
    for images in (data.train, data.test):
        assert [data.class_names[label] for label in images.labels_N] == [n.split("/")[0] for n in images.names_N]
        assert all(Path(path).is_file() for path in images.paths(np.arange(len(images))))
    assert data.split is None


@pytest.mark.parametrize("where", ["in it", "beside it", "beside its archive"])
def test_scene67_with_its_published_test(where, tmp_path):
    """What is in neither list is left out. Its archive has one folder at its top, Images/."""
    if where == "beside its archive":
        write_tar(tmp_path / "indoorCVPR_09.tar", under("Images", SCENES))
    else:
        write_files(tmp_path / "indoorCVPR_09" / "Images", SCENES)
    write_files(tmp_path / "indoorCVPR_09" if where == "in it" else tmp_path, scene_lists())
    data = read(tmp_path, "Split-Scene67")
    assert sorted(data.train.names_N) == sorted(SCENES_TRAIN)
    assert sorted(data.test.names_N) == sorted(SCENES_TEST)
    assert (data.class_names, data.split) == (("airport", "bar"), None)
    for images in (data.train, data.test):
        assert [data.class_names[label] for label in images.labels_N] == [n.split("/")[0] for n in images.names_N]


LISTS = {
    "an image that is not there": ("Split-CUB200", cub_lists([*CUB_NAMES, "002.Auklet/x.png"]),
                                   "images name 002.Auklet/x.png, which is not there .1 in all.; copy the images"),
    "no images.txt": ("Split-CUB200", {"train_test_split.txt": numbered([1, 0])}, "images.txt is missing; put it"),
    "cut short": ("Split-CUB200", cub_lists() | {"train_test_split.txt": numbered([1, 0])}, "does not say 0 or 1 of"),
    "other words": ("Split-CUB200", cub_lists(parts=["yes"] * 8), "train_test_split.txt does not say 0 or 1 of each"),
    "no text": ("Split-CUB200", cub_lists() | {"images.txt": b"\xff\xfe"}, "images.txt is no UTF-8 text"),
    "all for training": ("Split-CUB200", cub_lists(parts=[1] * 8), "001.Albatross for one of the two only .2 such"),
    "one list": ("Split-Scene67", {"TestImages.txt": lines(SCENES_TEST)}, "has TestImages.txt but not the other"),
    "in both": ("Split-Scene67", scene_lists(test=[*SCENES_TEST, SCENES_TRAIN[0]]), "airport/airport_04.* in both .1"),
}


def test_a_part_of_the_classes_keeps_its_published_test(tmp_path):
    """The lists name all of them. What they name and is not there is told."""
    some = {name: content for name, content in CUB.items() if name.startswith("002.")}
    more = {f"003.Tern/{number}.png": content for number, content in enumerate([*CUB.values()][:2])}
    write_files(tmp_path / "CUB_200_2011", under("images", some | more) | cub_lists(
        [*CUB_NAMES, *more], [*(int(name not in CUB_TEST) for name in CUB_NAMES), 1, 0]))
    data = read(tmp_path, "Split-CUB200")
    assert data.class_names == ("002.Auklet", "003.Tern")
    assert sorted(data.test.names_N) == [*sorted(name for name in CUB_TEST if name in some), "003.Tern/1.png"]
    assert data.notes == (f"1 class(es) of the lists are not in {tmp_path}/CUB_200_2011/images: 001.Albatross.",)


@pytest.mark.parametrize("case", LISTS)
def test_lists_that_cannot_be_used(case, tmp_path):
    name, files, message = LISTS[case]
    write_files(tmp_path / "CUB_200_2011" / "images", CUB)
    write_files(tmp_path / "indoorCVPR_09" / "Images", SCENES)
    write_files(tmp_path / ("CUB_200_2011" if "CUB" in name else "indoorCVPR_09"), files)
    with pytest.raises(InputError, match=f"^--data_path {tmp_path}: .*{message}") as caught:
        read(tmp_path, name)
    assert "\n" not in str(caught.value)


def test_cars196_with_train_and_test(tmp_path):
    write_files(tmp_path / "cars196" / "train", class_folders(CLASSES, 2))
    write_files(tmp_path / "cars196" / "test", class_folders(CLASSES, 1))
    data = read(tmp_path, "Split-Cars196")
    assert (len(data.train), len(data.test)) == (6, 3)


def test_tinyimagenet_as_published(tmp_path):
    """`val/images/` holds all classes in one folder, a list says which is which; `test/` has no labels."""
    image = encoded(pictures(1, 64, 64)[0])
    files = {f"train/{wnid}/images/{wnid}_{n}.JPEG": image for wnid in WNIDS for n in range(3)}
    files |= {f"train/{wnid}/{wnid}_boxes.txt": b"" for wnid in WNIDS}
    files |= {f"val/images/val_{n}.JPEG": image for n in range(6)}
    lines = [f"val_{n}.JPEG\t{WNIDS[n % 3]}\t0\t0\t62\t62\n" for n in range(6)]
    files["val/val_annotations.txt"] = "".join(lines).encode()
    files["test/images/test_0.JPEG"] = image
    write_files(tmp_path / "tiny-imagenet-200", files)
    data = read(tmp_path, "Split-TinyImagenet")
    assert data.class_names == tuple(WNIDS)
    assert data.train.labels_N.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    class_of = dict(zip(data.test.names_N.tolist(), data.test.labels_N.tolist(), strict=True))
    assert class_of == {f"val/images/val_{n}.JPEG": n % 3 for n in range(6)}
    assert not data.notes, "its lists of boxes are as published"


def test_tinyimagenet_as_the_pytorch_reimplementation_leaves_it(tmp_path):
    """It moves the images of `val/` into `test/WNID/images/` and removes `val/`."""
    image = encoded(pictures(1, 64, 64)[0])
    write_files(tmp_path / "tiny-imagenet-200", {
        f"{part}/{wnid}/images/{n}.JPEG": image for wnid in WNIDS for part, ns in (("train", "012"), ("test", "3"))
        for n in ns})
    for path in (tmp_path, tmp_path / "tiny-imagenet-200"):
        data = read(path, "Split-TinyImagenet")
        assert data.class_names == tuple(WNIDS)
        assert sorted(data.test.names_N) == [f"test/{wnid}/images/3.JPEG" for wnid in WNIDS]
        assert (len(data.train), data.split) == (9, None)


ANNOTATIONS = {
    "another encoding": ("val_0.JPEG\tn01443537\t\xe9t\xe9\n".encode("latin-1"), "cannot be read as a text file"),
    "cut short": (f"val_0.JPEG\t{WNIDS[0]}\n".encode(), "do not belong together: only one of them has val_1.JPEG"),
    "empty": (b"", "do not belong together"),
    "another folder": (f"../train/1.JPEG\t{WNIDS[0]}\n".encode(), "do not belong together"),
}


@pytest.mark.parametrize("case", ANNOTATIONS)
def test_annotations_that_cannot_be_used(case, tmp_path):
    content, message = ANNOTATIONS[case]
    files = {f"train/{wnid}/images/{wnid}.JPEG": b"" for wnid in WNIDS}
    files |= {f"val/images/val_{n}.JPEG": b"" for n in "01"}
    write_files(tmp_path / "tiny-imagenet-200", files | {"val/val_annotations.txt": content})
    with pytest.raises(InputError, match=f"^--data_path .*val_annotations.txt .*{message}") as caught:
        read(tmp_path, "Split-TinyImagenet")
    assert "\n" not in str(caught.value)


LETTERS = list("ABCDEFGHIJ")


def letters(per_class: int, seed: int = 0) -> dict[str, bytes]:
    """Grey 28 × 28 PNGs, and one that cannot be read in each of A and F, as there are in the real ones."""
    files = {}
    for number, letter in enumerate(LETTERS):
        for image, pixels in enumerate(pictures(per_class, 28, 28, 1, seed=seed + number)[..., 0]):
            files[f"{letter}/{letter}{image}.png"] = encoded(pixels, "PNG")
    return files


@pytest.mark.parametrize("layout", ["parts", "one folder", "archive"])
def test_notmnist_in_both_layouts_without_what_cannot_be_read(layout, tmp_path):
    broken = {"A/RGVtb2.png": b"", "F/Q3Jvc3.png": b"\x89PNG broken"}
    if layout == "parts":
        write_files(tmp_path / "notMNIST", under("Train", letters(4) | broken) | under("Test", letters(1, seed=50)))
    elif layout == "one folder":
        write_files(tmp_path / "notMNIST_small", letters(5) | broken)
    else:
        write_tar(tmp_path / "notMNIST_small.tar.gz", under("notMNIST_small", letters(5) | broken))
    data = read(tmp_path, "Split-NotMNIST")
    assert data.class_names == tuple(LETTERS)
    assert len(data.train) + len(data.test) == 50
    assert data.train.pixels_NHWC.shape[1:] == data.test.pixels_NHWC.shape[1:] == (28, 28, 3)
    assert (data.train.pixels_NHWC[..., 0] == data.train.pixels_NHWC[..., 2]).all()
    assert sorted(set(data.train.labels_N)) == list(range(10))
    (note,) = data.notes
    assert note.startswith("notMNIST: 2 of 52 images cannot be read and are left out, ")
    assert (data.split is None) == (layout == "parts")


def test_notmnist_from_the_zip_that_the_message_names(tmp_path):
    with pytest.raises(InputError) as caught:
        read(tmp_path, "Split-NotMNIST")
    page = re.search(r"see (https://\S+)\.$", str(caught.value))[1]
    assert page.endswith("facebookresearch/Adversarial-Continual-Learning/raw/main/data/notMNIST.zip")
    assert "notMNIST_small/A/ … J/, which is split 80/20 and has another test" in str(caught.value)
    write_files(tmp_path / "unpacked" / "notMNIST", under("Train", letters(2)) | under("Test", letters(1, seed=50)))
    shutil.make_archive(str(tmp_path / "data" / Path(page).stem), "zip", tmp_path / "unpacked")
    data = read(tmp_path / "data", "Split-NotMNIST")
    assert (len(data.train), len(data.test), data.split) == (20, 10, None)


def write_core50(root: Path, per_session: int) -> None:
    image = encoded(pictures(1, 16, 16)[0], "PNG")
    write_files(root / "core50_128x128", {f"s{s}/o{o}/C_{s:02d}_{o:02d}_{n:03d}.png": image for s in range(1, 12)
                                          for o in range(1, 51) for n in range(per_session)})


def test_core50_has_eight_sessions_and_one_common_test_set(tmp_path):
    write_core50(tmp_path, per_session=2)
    for path in (tmp_path, tmp_path / "core50_128x128"):
        data = read(path, "CORe50")
        assert [images.names_N[0].split("/")[0] for images in data.train] == ["s1", "s2", "s4", "s5", "s6", "s8", "s9",
                                                                             "s11"]
        assert {name.split("/")[0] for name in data.test.names_N} == {"s3", "s7", "s10"}
        for images in (*data.train, data.test):
            assert [int(name.split("/")[1][1:]) - 1 for name in images.names_N] == images.labels_N.tolist()
        assert (len(data.train[0]), len(data.test), len(data.class_names)) == (100, 300, 50)

    for start in range(0, 300, 16):  # in the order of files, a batch would hold two or three objects of one session
        assert len(set(data.test.labels_N[start:start + 16])) > 6
    assert {name.split("/")[0] for name in data.test.names_N[:16]} == {"s3", "s7", "s10"}
    assert read(tmp_path, "CORe50").test.names_N.tolist() == data.test.names_N.tolist()

    scenario = domain_incremental(data)
    assert len(scenario.tasks) == 8
    assert all(task.classes == tuple(range(50)) for task in scenario.tasks)
    assert all(task.test is data.test for task in scenario.tasks)
    built = build_scenario("CORe50", str(tmp_path), download=False, num_tasks=None, shuffle=False, seed=0, subsample=1,
                           subsample_test=2)
    assert [len(task.train) for task in built.tasks] == [50] * 8
    assert all(task.test is built.tasks[0].test for task in built.tasks)
    assert len(built.tasks[0].test) == 100

    os.remove(tmp_path / "core50_128x128" / "s7" / "o33" / "C_07_33_000.png")
    os.remove(tmp_path / "core50_128x128" / "s7" / "o33" / "C_07_33_001.png")
    with pytest.raises(InputError, match=r"no images in .*s7/o33; CORe50 has o1 … o50 in each of s1 … s11"):
        read(tmp_path, "CORe50")
