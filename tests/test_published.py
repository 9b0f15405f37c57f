"""torchvision's data sets, in the files they are published as, read by its own classes with other md5 lists only."""

import functools
import gzip
import importlib.util
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import published
import pytest
import torchvision.datasets
from fixtures import ROOT

from continual_datasets.large_images import read_picture
from continual_datasets.readers import CATALOGUE
from errors import InputError


@functools.cache
def site():
    spec = importlib.util.spec_from_file_location("l2p_tests_site", ROOT / "tests" / "site" / "sitecustomize.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def accept(monkeypatch, root: Path) -> None:
    """torchvision's classes expect the md5 sums of the files in `root` until the test ends."""
    for (name, attribute), value in site().md5_lists(torchvision.datasets, root).items():
        monkeypatch.setattr(getattr(torchvision.datasets, name), attribute, value)


SETS = {  # catalogue name: what writes it, number of classes, a name that one of them has, what a message says it lacks
    "Split-CIFAR10": (published.write_cifar10, 10, "thing 3", "data_batch_1, data_batch_2"),
    "Split-MNIST": (published.write_mnist, 10, "3 - three", "train-images-idx3-ubyte"),
    "Split-FashionMNIST": (functools.partial(published.write_mnist, name="FashionMNIST"), 10, "Sneaker",
                           "t10k-labels-idx1-ubyte"),
    "Split-SVHN": (published.write_svhn, 10, "3", "train_32x32.mat, test_32x32.mat"),
    "Split-Flowers102": (published.write_flowers102, 102, "sunflower", "jpg, imagelabels.mat, setid.mat"),
    "Split-Food101": (published.write_food101, 3, "pizza", "meta, images"),
    "Split-DTD": (published.write_dtd, 5, "grid", "dtd"),
}


@pytest.mark.parametrize("name", SETS)
def test_a_set_holds_what_its_files_hold(name, monkeypatch, tmp_path):
    """Twice: archives are unpacked by the first reading, and not needed by the second."""
    write, num_classes, class_name, _ = SETS[name]
    written = write(tmp_path)
    accept(monkeypatch, tmp_path)
    for _ in range(2):
        data = CATALOGUE[name](str(tmp_path), False)
        assert len(data.class_names) == num_classes
        assert class_name in data.class_names
        for part, images in (("train", data.train), ("test", data.test)):
            expected, labels = written[part]
            assert images.labels_N.dtype == np.int64
            assert images.labels_N.tolist() == list(labels)
            if not images.in_files:
                np.testing.assert_array_equal(images.pixels_NHWC, expected)
                assert images.pixels_NHWC.dtype == np.uint8
            else:
                assert images.names_N.tolist() == expected.tolist()
                assert read_picture(images.paths(np.array([0]))[0]).size in ((26, 20), (24, 30), (28, 22))
        for archive in [*tmp_path.rglob("*.gz"), *tmp_path.rglob("*.tgz")]:
            archive.unlink()
    assert not list(tmp_path.rglob(".*")), "nothing temporary is left"


def test_mnist_in_the_folder_of_the_pytorch_reimplementation(monkeypatch, tmp_path):
    """Its class is called MNIST_RGB, and so is the folder that torchvision makes for it."""
    written = published.write_mnist(tmp_path)
    accept(monkeypatch, tmp_path)
    (tmp_path / "MNIST").rename(tmp_path / "MNIST_RGB")
    data = CATALOGUE["Split-MNIST"](str(tmp_path), False)
    np.testing.assert_array_equal(data.test.pixels_NHWC, written["test"][0])
    assert data.class_names[3] == "3 - three"
    assert [path.name for path in tmp_path.iterdir()] == ["MNIST_RGB"]
    (tmp_path / "MNIST_RGB" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    (tmp_path / "MNIST_RGB" / "raw" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError, match=r"no t10k-labels-idx1-ubyte in .*MNIST_RGB/raw; give the folder that holds"):
        CATALOGUE["Split-MNIST"](str(tmp_path), False)
    (tmp_path / "MNIST").mkdir()  # its own folder is looked into first
    with pytest.raises(InputError, match=r"in .*/MNIST/raw; give the folder that holds"):
        CATALOGUE["Split-MNIST"](str(tmp_path), False)


@pytest.mark.parametrize("name", SETS)
def test_what_is_missing_is_named_with_the_ways_out(name, tmp_path):
    *_, lacking = SETS[name]
    with pytest.raises(InputError) as caught:
        CATALOGUE[name](str(tmp_path / "nowhere"), False)
    message = str(caught.value)
    assert lacking in message
    assert all(words in message for words in ("--data_path", "give the folder that holds", "--download", "demo_l2p"))
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", SETS)
def test_a_download_that_cannot_be_had_is_one_sentence(name, monkeypatch, tmp_path):
    """Every address that a class would ask leads to a port of this machine where nobody answers."""
    accept(monkeypatch, tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    nowhere = "http://127.0.0.1:9/"
    for cls, attribute, value in (("CIFAR10", "url", f"{nowhere}a"), ("MNIST", "mirrors", [nowhere]),
                                  ("FashionMNIST", "mirrors", [nowhere]), ("Food101", "_URL", f"{nowhere}a"),
                                  ("Flowers102", "_download_url_prefix", nowhere), ("DTD", "_URL", f"{nowhere}a")):
        monkeypatch.setattr(getattr(torchvision.datasets, cls), attribute, value)
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", {
        part: [nowhere + file, file, md5] for part, (_, file, md5) in torchvision.datasets.SVHN.split_list.items()})
    with pytest.raises(InputError, match=r"^--download could not fetch .* by hand, or run") as caught:
        CATALOGUE[name](str(tmp_path / "data"), True)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_being_fetched_is_not_there_yet(monkeypatch, tmp_path):
    """A second process of a node comes when half of the last file has arrived: it waits, and fetches nothing."""
    written = published.write_svhn(tmp_path / "source")
    accept(monkeypatch, tmp_path / "source")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    arrived, go_on = threading.Event(), threading.Event()

    def halfway(name: str) -> None:
        if name == "test_32x32.mat":
            arrived.set()
            go_on.wait(60)

    with published.served(tmp_path / "source", halfway) as (url, fetched), ThreadPoolExecutor(2) as pool:
        site().fetch_svhn_from(torchvision.datasets.SVHN, url)
        read = functools.partial(CATALOGUE["Split-SVHN"], str(tmp_path / "data"), True)
        first = pool.submit(read)
        assert arrived.wait(60)
        second = pool.submit(read)
        try:
            with pytest.raises(TimeoutError):
                second.result(0.5)
        finally:
            go_on.set()
        for data in (first.result(), second.result()):
            np.testing.assert_array_equal(data.test.pixels_NHWC, written["test"][0])
    assert fetched == ["train_32x32.mat", "test_32x32.mat"]
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["test_32x32.mat", "train_32x32.mat"]


@pytest.mark.parametrize(("name", "file"), [
    ("Split-CIFAR10", "cifar-10-batches-py/data_batch_2"), ("Split-SVHN", "test_32x32.mat"),
    ("Split-Flowers102", "flowers-102/setid.mat"), ("Split-MNIST", "MNIST/raw/t10k-images-idx3-ubyte")])
def test_a_damaged_file_is_refused(name, file, monkeypatch, tmp_path):
    SETS[name][0](tmp_path)
    accept(monkeypatch, tmp_path)
    CATALOGUE[name](str(tmp_path), False)
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"^--data_path .* is damaged .* copy it anew"):
        CATALOGUE[name](str(tmp_path), False)


def damaged(content: bytes) -> bytes:
    return content[:500] + bytes([content[500] ^ 1]) + content[501:] if len(content) > 500 else content + b"\0"


@pytest.mark.parametrize("change", [damaged, lambda content: content[:len(content) // 2], lambda content: b""],
                         ids=["damaged", "cut short", "empty"])
@pytest.mark.parametrize("archive", ["cifar-10-python.tar.gz", "MNIST/raw/train-labels-idx1-ubyte.gz"])
@pytest.mark.parametrize("renamed", [False, True])
def test_an_archive_with_another_checksum_is_named_and_not_unpacked(renamed, archive, change, monkeypatch, tmp_path):
    published.write_cifar10(tmp_path, archive=True)
    published.write_mnist(tmp_path)
    accept(monkeypatch, tmp_path)
    path = tmp_path / archive
    path.write_bytes(change(path.read_bytes()))
    if renamed:
        path = path.rename(path.with_name(path.name.replace(".", " (1).", 1)))
    name = "Split-MNIST" if "MNIST" in archive else "Split-CIFAR10"
    with pytest.raises(InputError) as caught:
        CATALOGUE[name](str(tmp_path), False)
    message = str(caught.value)
    assert f", and {path} is not {Path(archive).name} as it is published (its checksum differs" in message
    assert "add --download to fetch" in message
    assert not list(tmp_path.rglob("data_batch_1")) + list(tmp_path.rglob("train-labels-idx1-ubyte"))


PACKED = {  # catalogue name -> what writes it, the file that it is published as
    "Split-CIFAR10": (functools.partial(published.write_cifar10, archive=True), "cifar-10-python.tar.gz"),
    "Split-MNIST": (published.write_mnist, "MNIST/raw/t10k-labels-idx1-ubyte.gz"),
    "Split-Flowers102": (published.write_flowers102, "flowers-102/102flowers.tgz"),
    "Split-Food101": (published.write_food101, "food-101.tar.gz"),
    "Split-DTD": (published.write_dtd, "dtd/dtd-r1.0.1.tar.gz"),
}


def write_packed(name: str, monkeypatch, root: Path) -> Path:
    PACKED[name][0](root)
    accept(monkeypatch, root)
    if name == "Split-CIFAR10":  # the sums of the files in the archive
        published.write_cifar10(root.with_name("unpacked"))
        lists = site().md5_lists(torchvision.datasets, root.with_name("unpacked"))
        for attribute in ("train_list", "test_list", "meta"):
            monkeypatch.setattr(torchvision.datasets.CIFAR10, attribute, lists["CIFAR10", attribute])
    return root / PACKED[name][1]


WAYS = {
    "renamed by a browser": lambda path, root: path.rename(path.with_name(f"{path.stem} (1){path.suffix}")),
    "renamed by another": lambda path, root: path.rename(
        path.with_name(path.name.replace(".tar.gz", " (1).tar.gz").replace("ubyte.gz", "ubyte-2.gz"))),
    "in the folder above": lambda path, root: path.rename(root / path.name),
    "its .gz undone": lambda path, root: gunzipped(path),
}


def gunzipped(path: Path) -> None:
    target = path.with_name(path.name.removesuffix(".gz").replace(".tgz", ".tar"))
    target.write_bytes(gzip.decompress(path.read_bytes()))
    path.unlink()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", PACKED)
def test_an_archive_is_used_where_that_is_safe(name, way, monkeypatch, tmp_path):
    archive = write_packed(name, monkeypatch, tmp_path / "data")
    WAYS[way](archive, tmp_path / "data")
    before = {path for path in (tmp_path / "data").rglob("*") if path.is_file()}
    data = CATALOGUE[name](str(tmp_path / "data"), False)
    assert len(data.train) > 0
    assert before <= set((tmp_path / "data").rglob("*")), "files stay where they are"


def test_a_file_that_is_read_as_it_is_has_to_be_called_so(monkeypatch, tmp_path):
    published.write_svhn(tmp_path)
    accept(monkeypatch, tmp_path)
    (tmp_path / "test_32x32.mat").rename(tmp_path / "test_32x32 (1).mat")
    with pytest.raises(InputError, match=r"test_32x32 \(1\).mat is test_32x32.mat by its checksum; call it .*32.mat"):
        CATALOGUE["Split-SVHN"](str(tmp_path), False)


@pytest.mark.parametrize("name", ["Split-CIFAR10", "Split-DTD", "Split-Food101", "Split-Flowers102"])
def test_a_tar_that_lacks_something_is_not_used(name, monkeypatch, tmp_path):
    """Half of a .tar, ending where an entry ends, looks whole."""
    archive = write_packed(name, monkeypatch, tmp_path / "data")
    gunzipped(archive)
    (path,) = (tmp_path / "data").rglob("*.tar")
    with tarfile.open(path) as tar:
        entries = tar.getmembers()
    path.write_bytes(path.read_bytes()[:entries[len(entries) * 2 // 3].offset])
    with pytest.raises(InputError, match=r"^--data_path.*(it lacks|is not complete, .* is missing)"):
        CATALOGUE[name](str(tmp_path / "data"), False)


def test_cifar10_is_read_from_its_archive(monkeypatch, tmp_path):
    written = published.write_cifar10(tmp_path, archive=True)
    source = tmp_path / "source"
    published.write_cifar10(source)
    accept(monkeypatch, source)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", site().md5(tmp_path / "cifar-10-python.tar.gz"))
    data = CATALOGUE["Split-CIFAR10"](str(tmp_path), False)
    np.testing.assert_array_equal(data.train.pixels_NHWC, written["train"][0])


def test_large_sets_stay_in_their_files(monkeypatch, tmp_path):
    published.write_dtd(tmp_path)
    accept(monkeypatch, tmp_path)
    data = CATALOGUE["Split-DTD"](str(tmp_path), False)
    assert data.train.in_files
    assert data.train.store.root == str(tmp_path)
