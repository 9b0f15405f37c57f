"""Data: options in, a `Scenario` of tasks out, then batches on the device."""

from dataclasses import replace
from typing import Any

from continual_datasets.batches import Batch, Batches
from continual_datasets.class_orders import is_drawn, read_class_order
from continual_datasets.images import LabelledImages, images_in_files, images_in_memory
from continual_datasets.manifest import manifest_bytes
from continual_datasets.readers import CATALOGUE, OWN_FOLDER, names_of
from continual_datasets.replay import with_replay
from continual_datasets.scenario import (
    CLASS_INCREMENTAL,
    TASK_INCREMENTAL,
    Dataset,
    Scenario,
    Sessions,
    Setting,
    Task,
    domain_incremental,
    joint,
    one_task_each,
    split_by_class,
)
from continual_datasets.scenario import class_order as drawn_order
from continual_datasets.streams import GaussianSchedule, gaussian_stream
from errors import InputError

__all__ = ["Batch", "Batches", "GaussianSchedule", "LabelledImages", "Scenario", "Setting", "Task", "build_scenario",
           "images_in_files", "images_in_memory", "manifest_bytes"]


def build_scenario(dataset: str, data_path: str, *, download: bool, num_tasks: int | None, shuffle: bool, seed: int,
                   subsample: int | None, subsample_test: int | None, classes_per_task: int | None = None,
                   class_order: str | None = None, schedule: GaussianSchedule | None = None, task_inc: bool = False,
                   replay_per_class: int = 0, all_at_once: bool = False, turn_photos: bool = True) -> Scenario:
    """Read `dataset` from `data_path` and make its tasks, sessions or episodes.

    A list of data sets gives a task for each; one with sessions, a task for each session; any other is split by class,
    or, with a `schedule`, becomes a stream without tasks.

    Args:
        shuffle: draw the order of the classes by `seed`, or, of a list, that of the data sets.
        turn_photos: stand the photos of one's own folder upright, as their EXIF says. Published data sets are read as
            torchvision does, which turns none.

    Raises:
        InputError: an unknown data set, missing or unusable files, classes that cannot be shared out as asked.
    """
    names = names_of(dataset)
    if len(names) > 1:
        names = [names[place] for place in drawn_order(len(names), shuffle, seed)]
    data = [CATALOGUE[name](data_path, download) for name in names]
    for name, each in zip(names, data, strict=True):
        if name == OWN_FOLDER:
            each.train.store.turned = each.test.store.turned = turn_photos
    data = [_subsampled(each, subsample, subsample_test) for each in data]
    if len(data) == 1 and isinstance(data[0], Dataset):
        order = read_class_order(class_order, data[0].class_names, shuffle, seed)
        if schedule:
            scenario = gaussian_stream(data[0], order, schedule, seed)
        else:
            scenario = split_by_class(data[0], num_tasks, order, classes_per_task)
    elif schedule:
        raise InputError(f"--schedule gaussian mixes the classes of one data set: --dataset {dataset} has tasks of "
                         "its own.")
    elif len(data) == 1:
        scenario = domain_incremental(data[0])
        _refuse_options_of_classes(f"{dataset} has one task for each session", scenario, num_tasks, shuffle,
                                   classes_per_task, class_order)
    else:
        if mixed := [name for name, each in zip(names, data, strict=True) if isinstance(each, Sessions)]:
            raise InputError(f"--dataset {dataset}: {mixed[0]} has sessions and cannot be one task of a list.")
        scenario = one_task_each(data, [name.removeprefix("Split-") for name in names])
        _refuse_options_of_classes(f"--dataset {dataset} has one task for each data set", scenario, num_tasks, False,
                                   classes_per_task, class_order)
    if all_at_once:
        if scenario.setting is not CLASS_INCREMENTAL or len(data) > 1:
            raise InputError("--joint trains on all tasks of one data set that is split by class, and --dataset "
                             f"{dataset} is none: leave it out.")
        scenario = joint(scenario)
    if task_inc:
        if scenario.setting is not CLASS_INCREMENTAL:
            raise InputError(f"--task_inc: in a {scenario.setting.name} scenario all {scenario.setting.unit}s are "
                             "tested on the same images and classes; leave it out.")
        scenario = replace(scenario, setting=TASK_INCREMENTAL)
    if replay_per_class:
        scenario = replace(scenario, tasks=with_replay(scenario.tasks, replay_per_class, seed))
    record = _record(names, data)
    if class_order is not None and not is_drawn(class_order):
        record["class_order"] = [scenario.class_names[c] for c in order]
    return replace(scenario, record=record, turn_photos=turn_photos)


def _subsampled(data: Dataset | Sessions, train: int | None, test: int | None) -> Dataset | Sessions:
    if isinstance(data, Sessions):
        return replace(data, train=tuple(images.first_per_class(train) for images in data.train),
                       test=data.test.first_per_class(test))
    return replace(data, train=data.train.first_per_class(train), test=data.test.first_per_class(test))


def _refuse_options_of_classes(why: str, scenario: Scenario, num_tasks: int | None, shuffle: bool,
                               classes_per_task: int | None, class_order: str | None) -> None:
    given = {"--shuffle": shuffle, "--class_order": class_order, "--classes_per_task": classes_per_task,
             f"--num_tasks {num_tasks}": num_tasks not in (None, len(scenario.tasks))}
    for option, is_given in given.items():
        if is_given:
            raise InputError(f"{why}, {len(scenario.tasks)} in all: leave {option} out.")


def _record(names: list[str], data: list[Dataset | Sessions]) -> dict[str, Any]:
    """What depends on files that can change: which images were drawn for the test."""
    splits = {name: each.split for name, each in zip(names, data, strict=True)
              if isinstance(each, Dataset) and each.split is not None}
    return {"splits": splits} if splits else {}
