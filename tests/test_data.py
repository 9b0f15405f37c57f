"""Data: readers of the true file formats, scenarios, and batches whose every draw depends on its position alone."""

import functools
import hashlib
import http.server
import importlib.util
import io
import pickle
import socket
import tarfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fixtures import ROOT, write_cifar100, write_npz

from continual_datasets import Batches, LabelledImages, build_scenario, images_in_memory
from continual_datasets.batches import prefetched
from continual_datasets.readers import CATALOGUE, read_npz
from continual_datasets.scenario import Dataset, class_order, split_by_class
from continual_datasets.transforms import EvalTransform, TrainTransform
from errors import InputError

read_cifar100 = CATALOGUE["Split-CIFAR100"]


def scenario_of(data_path, dataset: str = "Split-CIFAR100", **changed):
    options = {"num_tasks": 2, "download": False, "shuffle": False, "seed": 0, "subsample": None,
               "subsample_test": None}
    return build_scenario(dataset, str(data_path), **options | changed)


# ---- scenarios ----
def numbered(labels) -> LabelledImages:
    """Images of one pixel, which holds the image's number in its file."""
    labels = np.asarray(labels, np.int64)
    return images_in_memory(np.arange(len(labels), dtype=np.uint8)[:, None, None, None].repeat(3, -1), labels)


def numbers(images: LabelledImages) -> list[int]:
    return images.pixels_NHWC[:, 0, 0, 0].tolist()


def dataset(classes: int) -> Dataset:
    return Dataset(numbered(np.tile(np.arange(classes), 3)), numbered(np.tile(np.arange(classes), 2)),
                   tuple(f"name {c}" for c in range(classes)))


def test_tasks_are_consecutive_runs_of_the_class_order():
    scenario = split_by_class(dataset(6), 3, class_order(6, shuffle=False, seed=0))
    assert [task.classes for task in scenario.tasks] == [(0, 1), (2, 3), (4, 5)]
    assert [task.index for task in scenario.tasks] == [0, 1, 2]
    assert scenario.num_classes == 6
    task = scenario.tasks[1]
    assert numbers(task.train) == [2, 3, 8, 9, 14, 15]
    assert numbers(task.test) == [2, 3, 8, 9]
    assert scenario.class_mask(1).tolist() == [False, False, True, True, False, False]
    assert sum(scenario.class_mask(t).int() for t in range(3)).tolist() == [1] * 6


def test_shuffling_changes_which_classes_share_a_task_but_not_what_a_class_is_called():
    data = dataset(20)
    orders = {seed: class_order(20, shuffle=True, seed=seed) for seed in range(5)}
    assert all(sorted(order) == list(range(20)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 5
    torch.manual_seed(99)  # other draws of the program change nothing
    assert class_order(20, shuffle=True, seed=3) == orders[3]

    scenario = split_by_class(data, 4, orders[3])
    assert scenario.class_names == data.class_names
    assert [c for task in scenario.tasks for c in task.classes] == orders[3]
    for task in scenario.tasks:
        assert set(task.train.labels_N) == set(task.test.labels_N) == set(task.classes)
        assert task.train.labels_N.tolist() == [data.train.labels_N[n] for n in numbers(task.train)]
        assert scenario.class_mask(task.index).nonzero().flatten().tolist() == sorted(task.classes)


@pytest.mark.parametrize("num_tasks", [4, 7, 20])
def test_tasks_that_do_not_divide_the_classes_are_refused_with_those_that_do(num_tasks):
    with pytest.raises(InputError, match=rf"--num_tasks {num_tasks} .*\b10 classes.*\b1, 2, 5, 10 would"):
        split_by_class(dataset(10), num_tasks, list(range(10)))


def test_a_task_without_images_is_refused():
    data = dataset(4)
    no_test = Dataset(data.train, data.test.of_classes((0, 1)), data.class_names)
    with pytest.raises(InputError, match="no test images of task 2, classes name 2, name 3"):
        split_by_class(no_test, 2, [0, 1, 2, 3])


def test_subsample_takes_the_first_of_each_class_in_file_order():
    images = numbered([2, 0, 0, 1, 2, 0, 1, 2, 1, 1])
    assert numbers(images.first_per_class(2)) == [0, 1, 2, 3, 4, 6]
    assert images.first_per_class(2).labels_N.tolist() == [2, 0, 0, 1, 2, 1]
    assert numbers(images.first_per_class(3)) == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert numbers(images.first_per_class(None)) == list(range(10))
    assert numbers(images.first_per_class(99)) == list(range(10))


def test_subsample_of_training_and_test_images_are_two_options(tmp_path):
    path = write_npz(tmp_path / "data.npz", classes=4, train_per_class=6, test_per_class=3)
    whole, some = scenario_of(path), scenario_of(path, subsample=2, subsample_test=1)
    for all_of, few in zip(whole.tasks, some.tasks, strict=True):
        assert (len(all_of.train), len(all_of.test)) == (12, 6)
        assert (len(few.train), len(few.test)) == (4, 2)
        np.testing.assert_array_equal(few.train.pixels_NHWC, all_of.train.pixels_NHWC[:4])
        np.testing.assert_array_equal(few.test.pixels_NHWC, all_of.test.pixels_NHWC[:2])


def test_an_unknown_data_set_is_refused_with_those_there_are():
    with pytest.raises(InputError, match=r"--dataset 'Split-CIFAR101': did you mean Split-CIFAR10.*Split-Glyphs"):
        scenario_of("anywhere", dataset="Split-CIFAR101")


# ---- CIFAR-100's own files ----
@functools.cache
def site():
    spec = importlib.util.spec_from_file_location("l2p_tests_site", ROOT / "tests" / "site" / "sitecustomize.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def accept_small_files(monkeypatch, folder: Path) -> type:
    """torchvision's reader, expecting the md5 sums of the files in `folder` until the test ends."""
    from torchvision.datasets import CIFAR100

    replaced = SimpleNamespace(meta=CIFAR100.meta)
    site().replace_md5_list(replaced, folder)
    for name, value in vars(replaced).items():
        monkeypatch.setattr(CIFAR100, name, value)
    return CIFAR100


def assert_holds_what_was_written(data: Dataset, folder: Path) -> None:
    for part, images in (("train", data.train), ("test", data.test)):
        written = pickle.loads((folder / part).read_bytes(), encoding="latin1")
        planes_NCHW = written["data"].reshape(-1, 3, 32, 32)
        np.testing.assert_array_equal(images.pixels_NHWC.transpose(0, 3, 1, 2), planes_NCHW)
        assert images.pixels_NHWC.dtype == np.uint8
        assert images.labels_N.dtype == np.int64
        assert images.labels_N.tolist() == written["fine_labels"]
    assert data.class_names == tuple(f"fine_{c:02d}" for c in range(100))


def test_cifar100_holds_what_its_files_hold(monkeypatch, tmp_path):
    folder = write_cifar100(tmp_path, train_per_class=2, test_per_class=1)
    accept_small_files(monkeypatch, folder)
    assert_holds_what_was_written(read_cifar100(str(tmp_path), False), folder)
    scenario = scenario_of(tmp_path, num_tasks=10)
    assert [task.classes[0] for task in scenario.tasks] == list(range(0, 100, 10))
    assert all((len(task.train), len(task.test)) == (20, 10) for task in scenario.tasks)


@pytest.mark.parametrize("lacking", [("train",), ("test", "meta"), ("train", "test", "meta")])
def test_missing_files_are_named_with_the_three_ways_out(tmp_path, lacking):
    folder = write_cifar100(tmp_path, train_per_class=1, test_per_class=1)
    for name in lacking:
        (folder / name).unlink()
    with pytest.raises(InputError) as caught:
        read_cifar100(str(tmp_path), False)
    message = str(caught.value)
    assert f"no {', '.join(lacking)} in {folder};" in message
    assert all(words in message for words in ("--data_path", "--download", "main.py demo_l2p"))


def test_a_data_path_that_does_not_exist_is_named_and_not_made(tmp_path):
    with pytest.raises(InputError, match=r"no train, test, meta in .*nowhere/cifar-100-python.*--download"):
        scenario_of(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_data_path_that_is_another_file_is_refused(tmp_path):
    (tmp_path / "data.zip").write_bytes(b"")
    with pytest.raises(InputError, match=r"data\.zip is neither a folder nor an \.npz"):
        scenario_of(tmp_path / "data.zip")


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_a_damaged_file_is_refused_by_its_checksum(monkeypatch, tmp_path, name):
    folder = write_cifar100(tmp_path, train_per_class=1, test_per_class=1)
    accept_small_files(monkeypatch, folder)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_cifar100(str(tmp_path), False)
    assert all(words in str(caught.value) for words in ("--data_path", str(folder), "damaged", "checksum"))


def test_a_home_folder_in_the_data_path_is_found(monkeypatch, tmp_path):
    folder = write_cifar100(tmp_path / "data", train_per_class=1, test_per_class=1)
    accept_small_files(monkeypatch, folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(read_cifar100("~/data", False).test) == 100  # a shell leaves ~ alone in --data-path=~/data


@pytest.fixture
def archive_server(monkeypatch, tmp_path):
    """A server on this machine with CIFAR-100's archive in the true layout, where torchvision's reader will look."""
    source = write_cifar100(tmp_path / "source", train_per_class=2, test_per_class=1)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.add(source, arcname="cifar-100-python")
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(archive.getvalue())))
            self.end_headers()
            self.wfile.write(archive.getvalue())

        def log_message(self, *_):
            pass

    reader = accept_small_files(monkeypatch, source)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    monkeypatch.setattr(reader, "url", f"http://127.0.0.1:{server.server_port}/{reader.filename}")
    monkeypatch.setattr(reader, "tgz_md5", hashlib.md5(archive.getvalue()).hexdigest())
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield SimpleNamespace(requests=requests, source=source, reader=reader)
    server.shutdown()
    thread.join()
    server.server_close()


def test_download_fetches_unpacks_and_checks_and_then_never_again(archive_server, tmp_path):
    data = read_cifar100(str(tmp_path / "data"), True)
    assert_holds_what_was_written(data, archive_server.source)
    asked = len(archive_server.requests)
    assert asked >= 1
    for download in (True, False):
        assert_holds_what_was_written(read_cifar100(str(tmp_path / "data"), download), archive_server.source)
    assert len(archive_server.requests) == asked


def test_an_archive_with_another_checksum_is_refused(archive_server, monkeypatch, tmp_path):
    monkeypatch.setattr(archive_server.reader, "tgz_md5", "0" * 32)
    with pytest.raises(InputError, match=r"^--download .*checksum"):
        read_cifar100(str(tmp_path / "data"), True)
    assert not (tmp_path / "data" / "cifar-100-python").exists()


def test_download_without_a_network_gives_one_clear_sentence(monkeypatch, tmp_path):
    from torchvision.datasets import CIFAR100

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setattr(CIFAR100, "url", f"http://127.0.0.1:{port}/{CIFAR100.filename}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(InputError, match=r"^--download could not fetch CIFAR-100 into .*100-python by hand.*demo_l2p"):
        read_cifar100(str(tmp_path), True)


# ---- .npz ----
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
    "grey images": ({"x_train": PIXELS[..., 0]}, r"x_train has shape \(24, 32, 32\).*\(N, height, width, 3\)"),
    "channels first": ({"x_train": PIXELS.transpose(0, 3, 1, 2)}, r"x_train has shape \(24, 3, 32, 32\)"),
    "two sizes": ({"x_train": PIXELS[:, :16]}, "x_train and x_test hold images of different sizes"),
    "no images": ({"x_train": PIXELS[:0], "y_train": LABELS[:0]}, "x_train holds no image"),
    "no test images": ({"x_test": PIXELS[:0], "y_test": LABELS[:0]}, "x_test holds no image"),
    "too few labels": ({"y_train": LABELS[:-1]}, r"y_train has shape \(23,\).*24 images"),
    "one-hot labels": ({"y_train": np.eye(4, dtype=np.int64)[LABELS]}, r"y_train has shape \(24, 4\)"),
    "one label": ({"y_train": np.array(3)}, r"y_train has shape \(\)"),
    "float labels": ({"y_train": LABELS.astype(float)}, "y_train is float64.*whole numbers"),
    "NaN labels": ({"y_train": np.full(24, np.nan)}, "y_train is float64.*whole numbers"),
    "words for labels": ({"y_train": np.array(["ant", "bee", "cat", "dog"] * 6)}, "y_train is <U3.*whole numbers"),
    "negative labels": ({"y_train": LABELS - 1}, "y_train holds labels from -1 to 2.*from 0"),
    "unseen test label": ({"y_test": np.tile([0, 1, 2, 4], 3)}, "y_test holds labels from 0 to 4.*from 0 to 3"),
    "label beyond the names": ({"class_names": np.array(["ant", "bee", "cat"])}, "y_train holds labels from 0 to 3"),
    "a label far out": ({"y_train": np.where(np.arange(24) == 5, 10**6, LABELS)}, "y_train.*1000000"),
    "one name": ({"class_names": np.array("ant")}, "class_names has shape"),
    "tables of names": ({"class_names": np.array([["ant", "a"]] * 4)}, "class_names has shape"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_refused_by_name(tmp_path, case):
    replaced, says = BAD_ARRAYS[case]
    path = write_npz(tmp_path / "data.npz", **replaced)
    with pytest.raises(InputError, match=f"^--data_path {path}.*{says}"):
        read_npz(str(path))


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


# ---- glyphs ----
def test_glyphs_need_no_files_and_their_test_images_are_not_training_images(tmp_path):
    scenario = scenario_of(tmp_path / "nowhere", dataset="Split-Glyphs", num_tasks=5, subsample=20, subsample_test=10)
    assert all((len(task.train), len(task.test), len(task.classes)) == (80, 40, 4) for task in scenario.tasks)
    training, test = ({image.tobytes() for task in scenario.tasks for image in getattr(task, part).pixels_NHWC}
                      for part in ("train", "test"))
    assert (len(training), len(test)) == (400, 200)
    assert not training & test


# ---- batches ----
def images(count: int) -> LabelledImages:
    """Images of noise, each with a label of its own, so that a batch's labels say which images it holds."""
    pixels = np.random.default_rng(count).integers(0, 256, (count, 12, 12, 3), dtype=np.uint8)
    return images_in_memory(pixels, np.arange(count))


def make_batches(batch_size: int = 4, seed: int = 3, rank: int = 0, world_size: int = 1, prefetch: int = 0) -> Batches:
    return Batches(TrainTransform(8), EvalTransform(8), batch_size=batch_size, seed=seed, device=torch.device("cpu"),
                   rank=rank, world_size=world_size, prefetch=prefetch)


def order_of(count: int, task: int = 0, epoch: int = 0, **changed) -> list[int]:
    return [label for batch in make_batches(**changed).training(images(count), task, epoch)
            for label in batch.labels_B.tolist()]


def pixels_of(count: int, task: int = 0, epoch: int = 0, **changed) -> dict[int, torch.Tensor]:
    return {label: pixels for batch in make_batches(**changed).training(images(count), task, epoch)
            for label, pixels in zip(batch.labels_B.tolist(), batch.images_BCHW, strict=True)}


def alike(one: dict[int, torch.Tensor], other: dict[int, torch.Tensor]) -> list[bool]:
    assert one.keys() == other.keys()
    return [torch.equal(one[label], other[label]) for label in one]


def test_an_epoch_is_a_permutation_drawn_by_seed_task_and_epoch_alone():
    first = order_of(23, task=1, epoch=2)
    assert sorted(first) == list(range(23))
    before = torch.manual_seed(99).get_state()
    assert order_of(23, task=1, epoch=2) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert order_of(23, task=1, epoch=2, batch_size=7) == first
    others = [order_of(23, task=0, epoch=2), order_of(23, task=1, epoch=0), order_of(23, task=2, epoch=1),
              order_of(23, task=1, epoch=2, seed=4)]
    assert len({tuple(order) for order in [first, *others]}) == 5


def test_batches_are_float_pixels_numbered_from_0_and_the_last_one_may_be_short():
    made = list(make_batches(batch_size=5).training(images(12), 0, 0))
    assert [batch.index for batch in made] == [0, 1, 2]
    assert [len(batch.labels_B) for batch in made] == [5, 5, 2]
    assert make_batches(batch_size=5).steps_per_epoch(images(12)) == 3
    assert all(batch.share == 1 for batch in made)
    for batch in made:
        assert batch.images_BCHW.shape == (len(batch.labels_B), 3, 8, 8)
        assert batch.images_BCHW.dtype == torch.float32
        assert batch.images_BCHW.min() >= 0
        assert batch.images_BCHW.max() <= 1


def test_an_image_is_augmented_alike_in_batches_of_any_size():
    single = pixels_of(23, batch_size=1)
    assert all(alike(single, pixels_of(23, batch_size=5)))
    assert all(alike(single, pixels_of(23, batch_size=64)))


def test_every_epoch_task_and_seed_augments_anew():
    first = pixels_of(23)
    for changed in ({"epoch": 1}, {"task": 1}, {"seed": 4}):
        assert sum(alike(first, pixels_of(23, **changed))) <= 2


def test_each_image_has_a_draw_of_its_own():
    same = images_in_memory(np.broadcast_to(images(1).pixels_NHWC, (16, 12, 12, 3)).copy(), np.arange(16))
    (batch,) = make_batches(batch_size=16).training(same, 0, 0)
    assert len({pixels.numpy().tobytes() for pixels in batch.images_BCHW}) >= 14


def test_without_augmentation_an_epoch_holds_the_images_as_evaluation_sees_them():
    plain = {label: pixels for batch in make_batches().training(images(10), 0, 0, augment=False)
             for label, pixels in zip(batch.labels_B.tolist(), batch.images_BCHW, strict=True)}
    expected = EvalTransform(8)(torch.from_numpy(images(10).pixels_NHWC))
    assert all(torch.equal(plain[label], expected[label]) for label in range(10))


@pytest.mark.parametrize("count", [5, 24, 25, 35])
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_processes_share_the_batches_that_one_process_would_have(world_size, count):
    single = list(make_batches(batch_size=12).training(images(count), 1, 2))
    ranks = [list(make_batches(batch_size=12 // world_size, rank=rank, world_size=world_size)
                  .training(images(count), 1, 2)) for rank in range(world_size)]
    for whole, *parts in zip(single, *ranks, strict=True):
        assert {part.index for part in parts} == {whole.index}
        counted = [part for part in parts if part.share > 0]
        assert torch.equal(torch.cat([part.labels_B for part in counted]), whole.labels_B)
        assert torch.equal(torch.cat([part.images_BCHW for part in counted]), whole.images_BCHW)
        assert all(len(part.labels_B) >= 1 for part in parts)  # a process must take its step for the others' sake


@pytest.mark.parametrize(("count", "world_size", "batch_size"), [(24, 3, 4), (25, 3, 4), (11, 2, 3), (7, 4, 2)])
def test_shares_make_the_mean_of_the_processes_losses_the_loss_of_the_whole_batch(count, world_size, batch_size):
    ranks = [list(make_batches(batch_size, rank=rank, world_size=world_size).training(images(count), 0, 0))
             for rank in range(world_size)]
    single = list(make_batches(batch_size * world_size).training(images(count), 0, 0))
    for whole, *parts in zip(single, *ranks, strict=True):
        assert sum(part.share for part in parts) == pytest.approx(world_size)
        mean = sum(part.share * part.labels_B.double().mean().item() for part in parts) / world_size
        assert mean == pytest.approx(whole.labels_B.double().mean().item())


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_evaluation_sees_each_image_once_in_the_same_batches_whatever_the_processes(world_size):
    made = [batch for rank in range(world_size)
            for batch in make_batches(rank=rank, world_size=world_size).evaluation(images(14))]
    made.sort(key=lambda batch: batch.index)
    assert [batch.index for batch in made] == [0, 1, 2, 3]
    assert [batch.labels_B.tolist() for batch in made] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13]]
    expected = EvalTransform(8)(torch.from_numpy(images(14).pixels_NHWC))
    assert torch.equal(torch.cat([batch.images_BCHW for batch in made]), expected)


# ---- batches prepared ahead ----
@pytest.mark.parametrize("prefetch", [1, 4])
def test_preparing_ahead_changes_nothing(prefetch):
    for run in (lambda made: made.training(images(23), 1, 2), lambda made: made.evaluation(images(23))):
        here, ahead = list(run(make_batches())), list(run(make_batches(prefetch=prefetch)))
        assert [batch.index for batch in ahead] == [batch.index for batch in here]
        for one, other in zip(here, ahead, strict=True):
            assert torch.equal(one.labels_B, other.labels_B)
            assert torch.equal(one.images_BCHW, other.images_BCHW)


def count_with_threads(end: int, made: list):
    """0 … end − 1, noting for each which thread asked for it."""
    for number in range(end):
        made.append(threading.current_thread())
        yield number


def wait_until(condition, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_preparing_ahead_happens_in_another_thread_and_not_further_than_asked():
    made: list[threading.Thread] = []
    ahead = prefetched(count_with_threads(100, made), 3)
    assert next(ahead) == 0
    assert wait_until(lambda: len(made) == 5)  # one taken, three waiting, one in the thread's hands
    assert not wait_until(lambda: len(made) > 5, seconds=0.3)
    assert threading.current_thread() not in made
    assert list(ahead) == list(range(1, 100))
    assert wait_until(lambda: not made[0].is_alive())


def test_errors_of_the_thread_are_raised_where_batches_are_taken():
    def broken():
        yield 1
        yield 2
        raise ZeroDivisionError("the third one")

    ahead = prefetched(broken(), 4)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(ZeroDivisionError, match="the third one"):
        next(ahead)
    grey = images_in_memory(np.zeros((9, 12, 12, 1), np.uint8), np.arange(9))
    with pytest.raises(ValueError, match="expected uint8 images"):
        list(make_batches(prefetch=2).training(grey, 0, 0))


@pytest.mark.parametrize("taken", [1, 3])
def test_batches_left_midway_end_their_thread(taken):
    before = set(threading.enumerate())
    iterator = make_batches(prefetch=2).training(images(60), 0, 0)
    for _ in range(taken):
        next(iterator)
    started = set(threading.enumerate()) - before
    assert len(started) == 1
    iterator.close()
    assert wait_until(lambda: not any(thread.is_alive() for thread in started))
