"""Whole runs on files as they are published: two tasks and more of them, through the program as a user starts it."""

import json
import os
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import published
import pytest
from fixtures import ROOT, TINY, run_program, write_npz
from published import class_folders, pictures, under, write_files, write_tar

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
QUICK = [*TINY, "--device", "cpu", "--eval_per_image", "never"]


def run(*words: object, root: Path | None = None, **options) -> str:
    environment = {"PYTHONPATH": f"{ROOT / 'tests' / 'site'}:{ROOT}", "TEST_DATA_ROOT": str(root)} if root else {}
    done = run_program(*words, *QUICK, **options, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def results(folder: Path) -> dict:
    """What does not depend on the clock, nor on options that change no number."""
    return {key: value for key, value in summary(folder).items() if "second" not in key and key != "config"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Five classes of photos, uneven ones, of sizes that differ from class to class."""
    folder = tmp_path_factory.mktemp("photos")
    for number, name in enumerate(["ant", "bee", "cat", "dog", "elk"]):
        write_files(folder, class_folders([name], 5 + 3 * number, (40 + 8 * number, 64), "JPEG"))
    return folder


@pytest.mark.long
def test_a_folder_of_photos(photos, tmp_path):
    """Uneven classes, a smaller last task, an order from a file; evaluated, and the same whatever the workers."""
    (tmp_path / "order.txt").write_text("elk\nant\nbee\ndog\ncat\n")
    words = ["--dataset", "Split-Folder", "--data-path", photos, "--classes_per_task", 2, "--class_order",
             tmp_path / "order.txt"]
    out = run(*words, "--output_dir", tmp_path / "a")
    assert "3 tasks, 5 classes, 44 training and 11 test images" in out
    assert "after task 3/3" in out
    record = json.loads((tmp_path / "a" / "scenario.json").read_text())
    assert record["class_order"] == ["elk", "ant", "bee", "dog", "cat"]
    assert len(record["splits"]["Split-Folder"]["test"]) == 11
    run(*words, "--output_dir", tmp_path / "b", "--num-workers", 2)
    assert results(tmp_path / "a") == results(tmp_path / "b")

    done = run_program("--eval", "--output_dir", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "b" / "eval_summary.json").read_text())["acc@1"] == summary(tmp_path / "b")["acc@1"]

    (tmp_path / "order.txt").write_text("ant\nelk\nbee\ndog\ncat\n")
    done = run_program("--eval", "--output_dir", tmp_path / "b")
    assert done.returncode == 2
    assert "the data are not those of the run: its class_order in " in done.stderr


@pytest.mark.long
def test_a_damaged_photo_ends_the_run_with_its_name(tmp_path):
    """Put back whole, it lets the run go on, although its file may have another size now."""
    write_files(tmp_path / "data", class_folders(["ant", "bee", "cat", "dog"], 5))
    path = tmp_path / "data" / "dog" / "dog_03.png"
    whole = path.read_bytes()
    for workers in (0, 2):
        path.write_bytes(whole[:len(whole) // 2])
        words = ["--dataset", "Split-Folder", "--data-path", tmp_path / "data", "--num_tasks", 2, *QUICK,
                 "--num-workers", workers, "--output_dir", tmp_path / f"output{workers}"]
        done = run_program(*words)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"main.py: error: --data_path: {path} cannot be read as an image")
        assert "copy it anew and go on with --resume" in line
        path.write_bytes(whole)
        done = run_program(*words, "--resume")
        assert done.returncode == 0, done.stderr
        assert "task 1/2 epoch" not in done.stdout, "what was done is not done again"


@pytest.mark.long
def test_other_classes_at_an_evaluation(tmp_path):
    """Labels are numbers: a class under another name would move all behind it."""
    files = class_folders(["ant", "bee", "cat"], 3)
    write_files(tmp_path / "data", under("train", files) | under("val", files))
    done = run_program("--dataset", "Split-Folder", "--classes_per_task", 2, "--data-path", tmp_path / "data", *QUICK,
                       "--output_dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "warning: task 2: with one class alone under --train_mask the loss is 0" in done.stderr
    assert json.loads((tmp_path / "run" / "config.json").read_text())["class_names"] == ["ant", "bee", "cat"]
    other = shutil.copytree(tmp_path / "data", tmp_path / "other")
    for part in ("train", "val"):
        (other / part / "cat").rename(other / part / "aardvark")
    words = ["--eval", "--output_dir", tmp_path / "run", "--data-path"]
    done = run_program(*words, other)
    assert done.returncode == 2
    assert "has the classes ant, bee, cat, and the data aardvark, ant, bee in their place" in done.stderr
    assert not (tmp_path / "run" / "eval_summary.json").exists()
    done = run_program(*words, tmp_path / "data")
    assert (done.returncode, "warning: the images" in done.stderr) == (0, False)


@pytest.mark.long
def test_other_images_at_an_evaluation(tmp_path):
    """Allowed, and said."""
    data = write_npz(tmp_path / "data.npz")
    words = ["--data-path", data, "--num-tasks", 2, *QUICK, "--output_dir", tmp_path / "run"]
    assert run_program(*words).returncode == 0
    other = write_npz(tmp_path / "other.npz", test_per_class=4)
    done = run_program("--eval", "--output_dir", tmp_path / "run", "--data-path", other)
    assert done.returncode == 0, done.stderr
    assert "warning: the images or their order are not those of the run (their checksum differs)" in done.stderr


@pytest.mark.long
def test_an_order_file_may_move(photos, tmp_path):
    (tmp_path / "order.txt").write_text("\ufeffelk\nant\nbee\ndog\ncat\n", encoding="utf-8")
    run("--dataset", "Split-Folder", "--data-path", photos, "--classes_per_task", 3, "--class_order",
        tmp_path / "order.txt", "--output_dir", tmp_path / "run")
    (tmp_path / "order.txt").rename(tmp_path / "moved.txt")
    words = ["--eval", "--output_dir", tmp_path / "run"]
    assert run_program(*words, "--class_order", tmp_path / "moved.txt").returncode == 0
    assert f"--class_order {tmp_path / 'order.txt'}: there is no such file" in run_program(*words).stderr


@pytest.mark.long
def test_imagenet_r_from_its_archive_with_two_processes(tmp_path):
    """The archive is unpacked by one process, the split written beside the results, nothing moved."""
    wnids = [f"n0{n}" for n in range(4)]
    write_tar(tmp_path / "data" / "imagenet-r.tar", under("imagenet-r", class_folders(wnids, 5, (60, 48), "JPEG")))
    words = ["imagenet_r_l2p", "--data-path", tmp_path / "data", "--num_tasks", 2]
    out = run(*words, "--output_dir", tmp_path / "two", "--num-workers", 1, "--batch-size", 4, launcher=TORCHRUN)
    assert "2 tasks, 4 classes, 16 training and 4 test images" in out
    split = json.loads((tmp_path / "two" / "scenario.json").read_text())["splits"]["Split-ImageNet-R"]
    found = {path.relative_to(tmp_path / "data" / "imagenet-r").as_posix()
             for path in (tmp_path / "data" / "imagenet-r").rglob("*.jpg")}
    assert found == {*split["train"], *split["test"]}
    assert sorted(os.listdir(tmp_path / "data")) == ["imagenet-r", "imagenet-r.tar"]


@pytest.mark.long
def test_a_download_on_two_nodes_whose_disks_are_their_own(tmp_path):
    """Two processes on each; a node's folder is where they run. Each node fetches every file once."""
    published.write_svhn(tmp_path / "source")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    nodes = [tmp_path / "a", tmp_path / "b"]
    for node in nodes:
        node.mkdir()

    def process(rank: int):
        node, local_rank = divmod(rank, 2)
        return run_program("--dataset", "Split-SVHN", "--data-path", "disk", "--download", "--num_tasks", 2, *QUICK,
                           "--dist_timeout", 60, "--output_dir", tmp_path / "output", cwd=nodes[node], **place,
                           RANK=str(rank), LOCAL_RANK=str(local_rank), WORLD_SIZE="4", LOCAL_WORLD_SIZE="2",
                           PYTHONPATH=f"{ROOT / 'tests' / 'site'}:{ROOT}", TEST_DATA_ROOT=str(tmp_path / "source"),
                           TEST_SVHN_URL=url, no_proxy="127.0.0.1")

    with published.served(tmp_path / "source") as (url, fetched), ThreadPoolExecutor(4) as pool:
        for done in pool.map(process, range(4)):
            assert done.returncode == 0, done.stderr
    assert fetched == ["train_32x32.mat", "test_32x32.mat"] * 2
    assert len(summary(tmp_path / "output")["per_task"]) == 2
    for node in nodes:
        assert sorted(path.name for path in (node / "disk").iterdir()) == ["test_32x32.mat", "train_32x32.mat"]


def write_five(root: Path) -> None:
    published.write_svhn(root)
    published.write_mnist(root)
    published.write_cifar10(root)
    published.write_mnist(root, "FashionMNIST")
    letters = {f"{letter}/{n}.png": published.encoded(pixels, "PNG") for letter in "ABCDEFGHIJ"
               for n, pixels in enumerate(pictures(3, 28, 28, 1, seed=ord(letter))[..., 0])}
    write_tar(root / "notMNIST_small.tar.gz", under("notMNIST_small", letters | {"A/RGVtb.png": b""}))


def test_five_datasets(tmp_path):
    write_five(tmp_path / "data")
    done = run_program("five_datasets_l2p", "--data-path", tmp_path / "data", "--output_dir", tmp_path / "output",
                       *QUICK, PYTHONPATH=f"{ROOT / 'tests' / 'site'}:{ROOT}", TEST_DATA_ROOT=str(tmp_path / "data"))
    assert done.returncode == 0, done.stderr
    assert "5 tasks, 50 classes" in done.stdout
    assert "after task 5/5" in done.stdout
    assert "warning: notMNIST: 1 of 31 images cannot be read and are left out" in done.stderr
    assert len(summary(tmp_path / "output")["per_task"]) == 5


@pytest.mark.long
def test_a_list_of_two_in_the_order_given(tmp_path):
    write_five(tmp_path / "data")
    out = run("--dataset", "FashionMNIST,NotMNIST", "--data-path", tmp_path / "data", "--output_dir", "",
              root=tmp_path / "data")
    assert "2 tasks, 20 classes" in out
    assert "after task 2/2" in out


@pytest.mark.long
def test_uneven_classes_of_a_published_set(tmp_path):
    published.write_dtd(tmp_path / "data")
    out = run("--dataset", "Split-DTD", "--data-path", tmp_path / "data", "--output_dir", "", "--classes_per_task", 3,
              root=tmp_path / "data")
    assert "2 tasks, 5 classes, 10 training and 10 test images" in out
