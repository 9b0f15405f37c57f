"""Data: scenarios, and readers of CIFAR-100's own files and of generated glyphs."""

import functools
import hashlib
import http.server
import importlib.util
import io
import pickle
import socket
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fixtures import ROOT, write_cifar100, write_npz

from continual_datasets import LabelledImages, build_scenario, images_in_memory
from continual_datasets.readers import CATALOGUE
from continual_datasets.scenario import Dataset, class_order, split_by_class
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
    assert scenario.class_mask(scenario.tasks[1].classes).tolist() == [False, False, True, True, False, False]
    assert sum(scenario.class_mask(scenario.tasks[t].classes).int() for t in range(3)).tolist() == [1] * 6


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
        assert scenario.class_mask(task.classes).nonzero().flatten().tolist() == sorted(task.classes)


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


def test_runs_that_begin_at_the_same_time_fetch_once(archive_server, tmp_path):
    """As those of an array do: each waits for the one that fetches, then finds what it made."""
    with ThreadPoolExecutor(3) as pool:
        found = [future.result() for future in [pool.submit(read_cifar100, str(tmp_path / "data"), True)
                                                for _ in range(3)]]
    for data in found:
        assert_holds_what_was_written(data, archive_server.source)
    alone = len(archive_server.requests)
    read_cifar100(str(tmp_path / "other"), True)
    assert len(archive_server.requests) == 2 * alone


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


# ---- glyphs ----
@pytest.mark.parametrize("name", ["Split-Glyphs", "Split-HardGlyphs"])
def test_glyphs_need_no_files_and_their_test_images_are_not_training_images(name, tmp_path):
    scenario = scenario_of(tmp_path / "nowhere", dataset=name, num_tasks=5, subsample=20, subsample_test=10)
    assert all((len(task.train), len(task.test), len(task.classes)) == (80, 40, 4) for task in scenario.tasks)
    training, test = ({image.tobytes() for task in scenario.tasks for image in getattr(task, part).pixels_NHWC}
                      for part in ("train", "test"))
    assert (len(training), len(test)) == (400, 200)
    assert not training & test
