"""From data sets to tasks: uneven ones, class orders, several data sets, and what depends on files is written down."""

import io
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import write_npz
from published import class_folders, write_files

from build import scenario_warnings
from configs import load_experiment
from configs.command import default_options
from continual_datasets import LabelledImages, build_scenario, images_in_memory
from continual_datasets.class_orders import read_class_order
from continual_datasets.readers import CATALOGUE, FIVE_DATASETS, names_of
from continual_datasets.scenario import Dataset, Scenario, class_order, one_task_each, split_by_class
from errors import InputError
from records import opening_lines


def dataset(classes: int, size: int = 4, name: str = "name") -> Dataset:
    def images(per_class: int) -> LabelledImages:
        labels = np.tile(np.arange(classes), per_class)
        return images_in_memory(np.zeros((len(labels), size, size, 3), np.uint8), labels)

    return Dataset(images(3), images(2), tuple(f"{name} {c}" for c in range(classes)), (f"note of {name}",))


def build(data_path, dataset: str = "Split-NPZ", **changed):
    options = {"download": False, "num_tasks": None, "shuffle": False, "seed": 0, "subsample": None,
               "subsample_test": None}
    return build_scenario(dataset, str(data_path), **options | changed)


# ---- uneven tasks ----
@pytest.mark.parametrize(("classes", "per_task", "sizes"), [
    (101, 10, [10] * 10 + [1]), (47, 5, [5] * 9 + [2]), (6, 4, [4, 2]), (6, 6, [6]), (6, 1, [1] * 6)])
def test_classes_per_task_with_a_smaller_last_task(classes, per_task, sizes):
    order = class_order(classes, shuffle=True, seed=1)
    scenario = split_by_class(dataset(classes), None, order, per_task)
    assert [len(task.classes) for task in scenario.tasks] == sizes
    assert [c for task in scenario.tasks for c in task.classes] == order
    assert sum(scenario.class_mask(task.classes).int() for task in scenario.tasks).tolist() == [1] * classes
    assert scenario.tasks[-1].train.labels_N.tolist() == sorted(scenario.tasks[-1].classes) * 3
    assert split_by_class(dataset(classes), len(sizes), order, per_task).tasks[-1].classes == scenario.tasks[-1].classes


def test_without_either_there_are_ten_tasks():
    assert len(split_by_class(dataset(20), None, list(range(20))).tasks) == 10


@pytest.mark.parametrize(("classes", "num_tasks", "per_task", "message"), [
    (47, None, None, "--num_tasks 10 does not divide 47 classes equally; one of 1, 47 would, or give --classes_per"),
    (47, 10, 4, "--classes_per_task 4 makes 12 tasks of 47 classes, not --num_tasks 10: give one of the two"),
    (4, None, 5, "--classes_per_task 5 is more than the 4 classes there are"),
])
def test_classes_that_cannot_be_shared_out_so(classes, num_tasks, per_task, message):
    with pytest.raises(InputError, match=message):
        split_by_class(dataset(classes), num_tasks, list(range(classes)), per_task)


# ---- class orders ----
NAMES = ("ant", "bee", "cat", "2", "ox")


def order_of(text: str | None, shuffle: bool = False, seed: int = 7) -> list[int]:
    return read_class_order(text, NAMES, shuffle, seed)


def test_orders_by_seed():
    assert order_of(None) == [0, 1, 2, 3, 4]
    assert order_of("seed") == order_of(None, shuffle=True) == class_order(5, shuffle=True, seed=7)
    assert order_of("seed:3") == class_order(5, shuffle=True, seed=3) == order_of("seed:3", seed=8)
    assert order_of("seed:3") != order_of("seed:4")
    assert order_of("numpy:3") == np.random.RandomState(3).permutation(5).tolist()


def test_the_order_that_other_programs_draw_with_numpy():
    """What numpy.random.seed(1993); numpy.random.permutation(100) gives, in every version of numpy."""
    order = read_class_order("numpy:1993", tuple(map(str, range(100))), False, 0)
    assert order[:10] == [68, 56, 78, 8, 23, 84, 90, 65, 74, 76]
    assert sorted(order) == list(range(100))


@pytest.mark.parametrize("text", ["seed:9223372036854775808", "numpy:4294967296", "seed:" + 5000 * "9"])
def test_seeds_that_are_too_large(text):
    with pytest.raises(InputError, match="the seed must be below") as caught:
        order_of(text)
    assert len(str(caught.value)) < 120


def test_an_order_from_a_file_by_name_or_number(tmp_path):
    (tmp_path / "order.txt").write_text("ox\n\n 2 \ncat\n1\n0\n")
    assert order_of(str(tmp_path / "order.txt")) == [4, 3, 2, 1, 0]  # "2" is a name here, so it means that class


@pytest.mark.parametrize(("text", "message"), [
    ("ant\nbee\ncatt\n2\nox\n", "line 3, 'catt', is no class of the data; did you mean cat?"),
    ("ant\nbee\ncat\n2\n9\n", "line 5, '9', is no class of the data and no number from 0 to 4"),
    ("ant\nbee\ncat\n2\n", "must name each of the 5 classes once, but ox is missing"),
    ("ant\nbee\ncat\n2\nox\nbee\n", "must name each of the 5 classes once, but bee is there 2 times"),
    ("", "but ant, bee, cat, 2, ox are missing"),
    ("9" * 5000, "is no class of the data and no number from 0 to 4"),
    ("ant\n" * 100_000, "but ant is there 100000 times"),
])
def test_files_that_are_no_order(text, message, tmp_path):
    (tmp_path / "order.txt").write_text(text)
    with pytest.raises(InputError) as caught:
        order_of(str(tmp_path / "order.txt"))
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["nowhere.txt", "seeds:3"])
def test_what_is_neither_a_file_nor_a_seed(text):
    with pytest.raises(InputError, match=r"^--class_order .*: there is no such file; give a file .*, or numpy:N"):
        order_of(text)


@pytest.mark.parametrize("text", ["seed:x", "seed:-1", "seed:", "numpy:", "numpy:x", "numpy"])
def test_what_comes_behind_the_colon_is_told(text):
    how = text.partition(":")[0]
    said = f"--class_order {text}: behind {how}: comes the seed of the shuffle, a whole number from 0, as in "
    with pytest.raises(InputError, match=rf"^{said}--class_order {how}:1993\.$"):
        order_of(text)


def test_bytes_are_no_text(tmp_path):
    (tmp_path / "order.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"^--class_order .*order\.txt is no UTF-8 text"):
        order_of(str(tmp_path / "order.txt"))


@pytest.mark.timeout(20)
def test_what_never_ends(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a named pipe"), ("/dev/zero", "a device"), (tmp_path, "a folder")):
        with pytest.raises(InputError, match=f"^--class_order .* is {kind}"):
            order_of(str(path))


def test_the_order_shares_out_the_classes(tmp_path):
    path = write_npz(tmp_path / "data.npz", classes=5, class_names=np.array(NAMES))
    (tmp_path / "order.txt").write_text("\n".join(["ox", "ant", "2", "bee", "cat"]))
    scenario = build(path, class_order=str(tmp_path / "order.txt"), classes_per_task=2)
    assert [task.classes for task in scenario.tasks] == [(4, 0), (3, 1), (2,)]
    assert scenario.class_names == NAMES
    assert scenario.record == {"class_order": ["ox", "ant", "2", "bee", "cat"]}
    assert build(path, class_order="seed:1", classes_per_task=2).record == {}, "an option tells it"


# ---- several data sets ----
def test_one_task_each_offsets_labels_and_leaves_sizes():
    scenario = one_task_each([dataset(3, 8, "a"), dataset(2, 6, "b"), dataset(3, 8, "c")], ["A", "B", "C"])
    assert [task.classes for task in scenario.tasks] == [(0, 1, 2), (3, 4), (5, 6, 7)]
    assert [task.index for task in scenario.tasks] == [0, 1, 2]
    assert scenario.class_names == ("A: a 0", "A: a 1", "A: a 2", "B: b 0", "B: b 1", "C: c 0", "C: c 1", "C: c 2")
    assert scenario.notes == ("note of a", "note of b", "note of c")
    for task in scenario.tasks:
        assert set(task.train.labels_N) == set(task.test.labels_N) == set(task.classes)
    assert [task.train.pixels_NHWC.shape[1] for task in scenario.tasks] == [8, 6, 8]
    assert torch.equal(scenario.class_mask(scenario.tasks[1].classes), torch.tensor([0, 0, 0, 1, 1, 0, 0, 0]).bool())


def test_names_in_a_list():
    assert names_of("5-datasets") == names_of(FIVE_DATASETS) == [
        "Split-SVHN", "Split-MNIST", "Split-CIFAR10", "Split-NotMNIST", "Split-FashionMNIST"]
    assert names_of("MNIST, Split-SVHN") == ["Split-MNIST", "Split-SVHN"]
    assert names_of("Split-Folder") == ["Split-Folder"]
    assert all(names_of(name) == [name] for name in CATALOGUE)
    for text in ("Split-MNISTT", "MNIST,SVHM", "MNIST,", "MNIST"):
        with pytest.raises(InputError, match=r"^unknown --dataset .*There are Split-CIFAR100, .*, 5-datasets, and li"):
            names_of(text)


def test_options_of_one_data_set_do_not_go_with_several(tmp_path):
    (tmp_path / "x").mkdir()
    assert len(build(tmp_path, "Glyphs,Glyphs", num_tasks=2, subsample=2, subsample_test=1).tasks) == 2
    for option, value in (("num_tasks", 3), ("class_order", "seed"), ("classes_per_task", 2)):
        with pytest.raises(InputError, match=f"one task for each data set, 2 in all: leave --{option}"):
            build(tmp_path, "Glyphs,Glyphs", **{option: value})


def test_shuffle_draws_the_order_of_several_data_sets(tmp_path):
    """Each keeps its own classes and images: a label is the place of the class behind those of the tasks before."""
    folders = {"Cars196": "cars196", "CUB200": "CUB_200_2011", "Scene67": "Scene67"}
    for name, folder in folders.items():
        write_files(tmp_path / folder, class_folders([f"{name} a", f"{name} b"], 2, (8, 8)))
    assert build(tmp_path, ",".join(folders)).class_names[::2] == tuple(f"{name}: {name} a" for name in folders)
    orders = []
    for seed in range(12):
        scenario, again = (build(tmp_path, ",".join(folders), shuffle=True, seed=seed) for _ in range(2))
        assert again.fingerprint == scenario.fingerprint
        assert [task.classes for task in scenario.tasks] == [(0, 1), (2, 3), (4, 5)]
        orders.append(tuple(name.partition(":")[0] for name in scenario.class_names[::2]))
        for task, name in zip(scenario.tasks, orders[-1], strict=True):
            assert task.train.names_N[0].split("/")[0] == f"{name} a"
            assert set(task.train.labels_N) == set(task.test.labels_N) == set(task.classes)
    assert {tuple(sorted(order)) for order in orders} == {tuple(sorted(folders))}
    assert len(set(orders)) > 2


# ---- the record ----
def test_what_a_split_drew_is_in_the_record(tmp_path):
    write_files(tmp_path / "data", class_folders(["ant", "bee"], 5))
    record = build(tmp_path / "data", "Split-Folder", num_tasks=2, seed=4).record
    assert record == build(tmp_path / "data", "Split-Folder", num_tasks=2, seed=5).record, "one split for all seeds"
    assert record["splits"]["Split-Folder"]["seed"] == 42
    assert len(record["splits"]["Split-Folder"]["train"]) == 8
    assert json.loads(json.dumps(record)) == record
    assert build(write_npz(Path(tmp_path / "data.npz")), num_tasks=2).record == {}


# ---- what is said of classes ----
def lacking(part: str, classes: list[int]) -> Dataset:
    data = dataset(12)
    images = getattr(data, part)
    return replace(data, **{part: images.take(~np.isin(images.labels_N, classes))})


@pytest.mark.parametrize(("part", "what"), [("train", "training"), ("test", "test")])
def test_classes_without_images_are_named(part, what):
    """An average over the others would pass for one over all."""
    options = {"train_mask": True, "head": "linear"}
    order = list(range(12))
    assert scenario_warnings(options, (), split_by_class(dataset(12), 3, order)) == []
    (warning,) = scenario_warnings(options, (), split_by_class(lacking(part, [5]), 3, order))
    assert warning.startswith(f"no {what} image of 1 class(es), name 5: ")
    (warning,) = scenario_warnings(options, (), split_by_class(lacking(part, [0, 1, 2, 4, 5, 8]), 3, order))
    assert warning.startswith(f"no {what} image of 6 class(es), name 0, name 1, name 2, name 4, name 5, …: ")


def last_opening_line(names: tuple[str, ...]) -> str:
    options = default_options(load_experiment("cifar100_l2p"))
    config = {"experiment": "any", "options": options, "protocol": "any", "world_size": 1, "device": "cpu",
              "precision": "fp32", "model": {"name": "any", "parameters": 1, "trainable_parameters": 1}}
    return opening_lines(config, Scenario((), names))[-1]


def test_a_run_begins_by_naming_its_classes(monkeypatch):
    assert last_opening_line(("ant", "B\xe4r", "\u72ac")) == "classes: ant, B\xe4r, \u72ac"
    assert last_opening_line(tuple(map(str, range(10)))) == "classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert last_opening_line(tuple(map(str, range(100)))) == "classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 90 more"
    assert last_opening_line(("two\nlines", "\udce9")) == r"classes: two\nlines, \udce9"
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert last_opening_line(("ant", "B\xe4r")) == r"classes: ant, B\xe4r"
