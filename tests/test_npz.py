"""The reader of .npz files."""

import io
from pathlib import Path

import numpy as np
import pytest
from fixtures import write_npz
from test_data import scenario_of

from continual_datasets.npz import read_npz
from errors import InputError


def test_an_npz_holds_what_was_written(tmp_path):
    path = write_npz(tmp_path / "data.npz", size=20, class_names=np.array(["ant", "bee", "cat", "dog"]))
    data, written = read_npz(str(path)), np.load(path)
    for part, images in (("train", data.train), ("test", data.test)):
        np.testing.assert_array_equal(images.pixels_NHWC, written[f"x_{part}"])
        np.testing.assert_array_equal(images.labels_N, written[f"y_{part}"])
        assert (images.pixels_NHWC.dtype, images.labels_N.dtype) == (np.uint8, np.int64)
    assert data.class_names == ("ant", "bee", "cat", "dog")
    assert scenario_of(path).class_names == data.class_names


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64])
def test_an_npz_may_hold_labels_of_any_whole_type_and_need_no_names(tmp_path, dtype):
    path = write_npz(tmp_path / "data.npz", y_train=np.tile(np.arange(4), 6).astype(dtype))
    data = read_npz(str(path))
    assert data.train.labels_N.dtype == np.int64
    assert data.class_names == ("0", "1", "2", "3")


def test_names_written_as_bytes_are_read_as_text(tmp_path):
    path = write_npz(tmp_path / "data.npz", class_names=np.array([b"ant", b"bee", b"cat", b"dog"]))
    assert read_npz(str(path)).class_names == ("ant", "bee", "cat", "dog")


LABELS = np.tile(np.arange(4), 6)
PIXELS = np.zeros((24, 32, 32, 3), np.uint8)
BAD_ARRAYS = {  # arrays put in place of good ones, and what the message must say
    "float pixels": ({"x_train": PIXELS / 255}, "x_train is float64.*uint8"),
    "wide pixels": ({"x_test": np.zeros((12, 32, 32, 3), np.int16)}, "x_test is int16.*uint8"),
    "volumes": ({"x_train": PIXELS[..., 0, None].repeat(28, -1)}, r"shape \(24, 32, 32, 28\).*\(N, height, width, 3\)"),
    "flat images": ({"x_train": PIXELS.reshape(24, -1)}, r"x_train has shape \(24, 3072\)"),
    "channels first": ({"x_train": PIXELS.transpose(0, 3, 1, 2)}, r"x_train has shape \(24, 3, 32, 32\)"),
    "two sizes": ({"x_train": PIXELS[:, :16]}, "x_train and x_test hold images of different sizes"),
    "no images": ({"x_train": PIXELS[:0], "y_train": LABELS[:0]}, "x_train holds no image"),
    "no test images": ({"x_test": PIXELS[:0], "y_test": LABELS[:0]}, "x_test holds no image"),
    "too few labels": ({"y_train": LABELS[:-1]}, r"y_train has shape \(23,\).*24 images"),
    "several labels": ({"y_train": np.eye(4, dtype=np.int64)[LABELS] + np.eye(4, dtype=np.int64)[0]},
                       r"y_train has shape \(24, 4\).*one label for each"),
    "no label": ({"y_train": np.zeros((24, 4), int)}, r"y_train has shape \(24, 4\)"),
    "float column": ({"y_train": LABELS[:, None] / 2}, "y_train is float64.*whole numbers"),
    "columns for other classes": ({"y_train": np.eye(4)[LABELS], "y_test": np.eye(5)[LABELS[:12]]},
                                  "y_test has 5 columns, for 4 classes"),
    "a class without a column": ({"y_train": np.eye(4)[LABELS], "class_names": np.array(["ant", "bee", "cat"])},
                                 "y_train has 4 columns, for 3 classes"),
    "one label": ({"y_train": np.array(3)}, r"y_train has shape \(\)"),
    "float labels": ({"y_train": LABELS.astype(float)}, "y_train is float64.*whole numbers"),
    "NaN labels": ({"y_train": np.full(24, np.nan)}, "y_train is float64.*whole numbers"),
    "words for labels": ({"y_train": np.array(["ant", "bee", "cat", "dog"] * 6)}, "y_train is <U3.*whole numbers"),
    "negative labels": ({"y_train": LABELS - 1}, "y_train holds labels from -1 to 2.*from 0"),
    "unseen test label": ({"y_test": np.tile([0, 1, 2, 4], 3)}, "y_test holds labels from 0 to 4.*from 0 to 3"),
    "label beyond the names": ({"class_names": np.array(["ant", "bee", "cat"])}, "y_train holds labels from 0 to 3"),
    "a label far out": ({"y_train": np.where(np.arange(24) == 5, 10**6, LABELS)}, "y_train.*1000000"),
    "a label beyond 63 bits": ({"y_train": np.where(LABELS == 3, 2**64 - 1, LABELS).astype(np.uint64)},
                               "up to 18446744073709551615"),
    "one name": ({"class_names": np.array("ant")}, "class_names has shape"),
    "tables of names": ({"class_names": np.array([["ant", "a"]] * 4)}, "class_names has shape"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_refused_by_name(tmp_path, case):
    replaced, says = BAD_ARRAYS[case]
    path = write_npz(tmp_path / "data.npz", **replaced)
    with pytest.raises(InputError, match=f"^--data_path {path}.*{says}"):
        read_npz(str(path))


GREY = np.random.default_rng(0).integers(0, 256, (24, 32, 32), np.uint8)
OTHER_FORMS = {  # as people have them: arrays put in place of others, and what the training part then holds
    "labels in a column": ({"y_train": LABELS[:, None].astype(np.uint8)}, None, LABELS),
    "one-hot labels": ({"y_train": np.eye(4, dtype=np.float32)[LABELS]}, None, LABELS),
    "one-hot labels of truth": ({"y_train": np.eye(4, dtype=bool)[LABELS]}, None, LABELS),
    "grey images": ({"x_train": GREY}, GREY, LABELS),
    "grey images with a channel": ({"x_train": GREY[..., None]}, GREY, LABELS),
}


@pytest.mark.parametrize("case", OTHER_FORMS)
def test_other_forms_of_images_and_labels(tmp_path, case):
    replaced, grey, labels = OTHER_FORMS[case]
    data = read_npz(str(write_npz(tmp_path / "data.npz", **replaced)))
    np.testing.assert_array_equal(data.train.labels_N, labels)
    assert data.train.labels_N.dtype == np.int64
    assert data.class_names == ("0", "1", "2", "3")
    if grey is not None:
        np.testing.assert_array_equal(data.train.pixels_NHWC, np.stack([grey] * 3, axis=-1))


def test_columns_say_how_many_classes_there_are(tmp_path):
    """Also those of which there is no image: a label alone would say nothing of them."""
    columns = np.eye(6)
    data = read_npz(str(write_npz(tmp_path / "data.npz", y_train=columns[LABELS], y_test=columns[LABELS[:12]])))
    assert data.class_names == ("0", "1", "2", "3", "4", "5")


def test_medmnist(tmp_path, capsys):
    """Grey images and labels in columns, under names of its own; the validation part is left out with a note."""
    arrays = {f"{part}_{kind}": array for part, count in (("train", 24), ("val", 8), ("test", 12))
              for kind, array in (("images", GREY[:count]), ("labels", LABELS[:count, None].astype(np.uint8)))}
    np.savez_compressed(tmp_path / "tinymnist.npz", **arrays)
    data = read_npz(str(tmp_path / "tinymnist.npz"))
    for images, count in ((data.train, 24), (data.test, 12)):
        np.testing.assert_array_equal(images.pixels_NHWC[..., 2], GREY[:count])
        np.testing.assert_array_equal(images.labels_N, LABELS[:count])
    assert data.notes == (
        "tinymnist.npz: val_images is left out; train_images is trained on and test_images tested.",)
    assert scenario_of(tmp_path / "tinymnist.npz", num_tasks=2).notes == data.notes
    del arrays["test_labels"]
    np.savez(tmp_path / "tinymnist.npz", **arrays)
    with pytest.raises(InputError, match=r"has no test_labels; an \.npz data set has train_images"):
        read_npz(str(tmp_path / "tinymnist.npz"))


@pytest.mark.parametrize("absent", [["x_train"], ["y_train", "y_test"]])
def test_missing_arrays_are_named(tmp_path, absent):
    path = write_npz(tmp_path / "data.npz")
    arrays = {name: array for name, array in np.load(path).items() if name not in absent}
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=f"^--data_path {path} has no {', '.join(absent)};"):
        read_npz(str(path))


def test_an_npz_that_is_not_there_is_named_with_the_demo(tmp_path):
    with pytest.raises(InputError, match=r"no.npz: there is no such file.*main.py demo_l2p"):
        scenario_of(tmp_path / "no.npz")


def assert_unreadable(path: Path) -> None:
    with pytest.raises(InputError, match=f"^--data_path {path} cannot be read as an .npz") as caught:
        read_npz(str(path))
    assert "allow_pickle" not in str(caught.value)  # advice about numpy's own options helps nobody here
    assert "\n" not in str(caught.value)


def test_arrays_of_python_objects_are_not_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    pixels = np.empty(24, object)
    pixels[:] = [Trap()] * 24
    assert_unreadable(write_npz(tmp_path / "data.npz", x_train=pixels))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", ["nothing", "text", "half", "a single array"])
def test_files_of_another_kind_are_refused(tmp_path, content):
    path = write_npz(tmp_path / "data.npz")
    whole, single = path.read_bytes(), io.BytesIO()
    np.save(single, PIXELS)
    path.write_bytes({"nothing": b"", "text": b"hello\n", "half": whole[:len(whole) // 2],
                      "a single array": single.getvalue()}[content])
    assert_unreadable(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_byte_changed_anywhere_gives_an_input_error_or_changes_no_value(tmp_path, save):
    path = tmp_path / "data.npz"
    arrays = dict(np.load(write_npz(path, size=8, train_per_class=2, test_per_class=1)))
    save(path, **arrays)
    whole, draw = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for position in np.linspace(0, len(whole) - 1, 150, dtype=int):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ draw.integers(1, 256)]) + whole[position + 1:])
        try:
            data = read_npz(str(path))
        except InputError:
            refused += 1
        else:
            np.testing.assert_array_equal(data.train.pixels_NHWC, arrays["x_train"])
            np.testing.assert_array_equal(data.test.labels_N, arrays["y_test"])
    assert refused > 75
