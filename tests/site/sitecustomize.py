"""Put on PYTHONPATH, lets torchvision's readers accept the tests' small files: their md5 lists are replaced.

Python imports this module at start-up; it acts when the readers are imported. TEST_CIFAR100_FOLDER names a folder of
CIFAR-100's unpacked files, TEST_DATA_ROOT one in which any of the data sets lie as they are published; with
TEST_SVHN_URL, SVHN's files are fetched from there.
"""

import hashlib
import importlib.abc
import importlib.util
import os
import sys
from pathlib import Path


def replace_md5_list(reader, folder: Path) -> None:
    reader.train_list = [["train", md5(folder / "train")]]
    reader.test_list = [["test", md5(folder / "test")]]
    reader.meta = reader.meta | {"md5": md5(folder / "meta")}


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest() if path.is_file() else "0" * 32


def md5_lists(datasets, root: Path) -> dict[tuple[str, str], object]:
    """(class, attribute) -> the class's own value, with the sums of the files that lie in `root`."""
    found: dict[tuple[str, str], object] = {}
    for name in ("CIFAR10", "CIFAR100"):
        reader = getattr(datasets, name)
        folder = root / reader.base_folder
        found[name, "tgz_md5"] = md5(root / reader.filename)
        for attribute in ("train_list", "test_list"):
            found[name, attribute] = [[file, md5(folder / file)] for file, _ in getattr(reader, attribute)]
        found[name, "meta"] = reader.meta | {"md5": md5(folder / reader.meta["filename"])}
    for name in ("MNIST", "FashionMNIST"):
        found[name, "resources"] = [(file, md5(root / name / "raw" / file))
                                    for file, _ in getattr(datasets, name).resources]
    found["SVHN", "split_list"] = {part: [url, file, md5(root / file)]
                                   for part, (url, file, _) in datasets.SVHN.split_list.items()}
    found["Flowers102", "_file_dict"] = {kind: (file, md5(root / "flowers-102" / file))
                                         for kind, (file, _) in datasets.Flowers102._file_dict.items()}
    found["Food101", "_MD5"] = md5(root / "food-101.tar.gz")
    found["DTD", "_MD5"] = md5(root / "dtd" / "dtd-r1.0.1.tar.gz")
    return found


def replace_md5_lists(datasets, root: Path) -> None:
    for (name, attribute), value in md5_lists(datasets, root).items():
        setattr(getattr(datasets, name), attribute, value)
    if "TEST_SVHN_URL" in os.environ:
        fetch_svhn_from(datasets.SVHN, os.environ["TEST_SVHN_URL"])


def fetch_svhn_from(reader, url: str) -> None:
    reader.split_list = {part: [f"{url}/{file}", file, md5] for part, (_, file, md5) in reader.split_list.items()}


class _OnImport(importlib.abc.MetaPathFinder):
    """Calls `act` with the module called `name` once it has been imported."""

    def __init__(self, name, act):
        self.name, self.act = name, act

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            self.act(module)

        spec.loader.exec_module = exec_module
        return spec


if "TEST_CIFAR100_FOLDER" in os.environ:
    sys.meta_path.insert(0, _OnImport("torchvision.datasets.cifar", lambda module: replace_md5_list(
        module.CIFAR100, Path(os.environ["TEST_CIFAR100_FOLDER"]))))
if "TEST_DATA_ROOT" in os.environ:
    sys.meta_path.insert(0, _OnImport("torchvision.datasets", lambda module: replace_md5_lists(
        module, Path(os.environ["TEST_DATA_ROOT"]))))
