"""Data: options in, a `Scenario` of tasks out, then batches on the device."""

import difflib

from continual_datasets.batches import Batch, Batches
from continual_datasets.images import ImageFiles, Images, LabelledImages
from continual_datasets.readers import CATALOGUE, check_data_path
from continual_datasets.scenario import Dataset, Scenario, Task, class_order, split_by_class
from errors import InputError

__all__ = ["Batch", "Batches", "ImageFiles", "Images", "LabelledImages", "Scenario", "Task", "build_scenario"]


def build_scenario(dataset: str, data_path: str, *, download: bool, num_tasks: int, shuffle: bool, seed: int,
                   subsample: int | None, subsample_test: int | None) -> Scenario:
    """Read `dataset` from `data_path` and split it into tasks.

    Raises:
        InputError: an unknown data set, missing or unusable files, classes that num_tasks does not divide.
    """
    if dataset not in CATALOGUE:
        near = difflib.get_close_matches(dataset, CATALOGUE, n=1, cutoff=0.4)
        raise InputError(f"unknown --dataset {dataset!r}: " + (f"did you mean {near[0]}? " if near else "")
                         + f"There are {', '.join(CATALOGUE)}.")
    check_data_path(dataset, data_path)
    data = CATALOGUE[dataset](data_path, download)
    data = Dataset(data.train.first_per_class(subsample), data.test.first_per_class(subsample_test), data.class_names)
    return split_by_class(data, num_tasks, class_order(len(data.class_names), shuffle, seed))
