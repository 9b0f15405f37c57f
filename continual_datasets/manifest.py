"""Which image is in which task, with hashes: by it two programs can prove that they ran the same split.

`manifest.json.gz` in the output folder of a run is JSON, packed:

    format        "l2p-manifest-1"
    setting       class-incremental, task-incremental, domain-incremental or joint
    class_names   the name of class 0, 1, …
    tasks         for each, in their order (of a joint run, those that it trains on together and tests one by one):
        classes   its class ids, in their order
        train     its training images, three lists of one length:
            images    what each is: its file's name from the data's folder on, with `/` between folders; or, where the
                      data are arrays, its position (from 0) in the training images as they are published
            labels    its class id
            sha256    its digest, in hexadecimal digits (1)
        test      its test images, the same; only the first task has them where all share one test set
        sha256    [that of the training images, that of the test images] (2)
    sha256        of the whole (3), the `data_sha256` of config.json

How to make the hashes, each of them SHA-256:

1. An image in memory: of the text `(height, width, 3)`, such as `(32, 32, 3)`, and behind it the pixels, a byte for
   each of R, G, B, row by row from the top. An image in a file: of its name as above, in UTF-8.
2. Of the images' digests (1), 32 bytes each, in their order; behind them all labels in the same order, as signed
   integers of 64 bits, the lowest byte first.
3. Of one line for each task, with a line feed between two: its classes as Python prints a tuple, `(0, 1, 2)` or
   `(7,)`, a blank, the sha256 (2) of its training images, a blank, that of its test images.

A stream without tasks has no manifest: it trains on a few images of its active classes at a time, drawn by the seed.
"""

import gzip
import json
from typing import Any

from continual_datasets.images import LabelledImages
from continual_datasets.scenario import Scenario

FORMAT = "l2p-manifest-1"


def manifest_bytes(scenario: Scenario) -> bytes | None:
    """The content of manifest.json.gz, which is the same for the same split; None for a stream."""
    if scenario.stream is not None:
        return None
    tasks = []
    for task in scenario.tested:
        parts = {"train": _listed(task.train)}
        if task.index == 0 or not scenario.setting.one_test_set:
            parts["test"] = _listed(task.test)
        tasks.append({"classes": list(task.classes)} | parts
                     | {"sha256": [task.train.fingerprint, task.test.fingerprint]})
    content = {"format": FORMAT, "setting": scenario.setting.name, "class_names": list(scenario.class_names),
               "tasks": tasks, "sha256": scenario.fingerprint}
    return gzip.compress(json.dumps(content).encode(), compresslevel=6, mtime=0)


def _listed(images: LabelledImages) -> dict[str, list[Any]]:
    names = images.names_N if images.in_files else images.positions_N
    digests = images.store.digests(images.positions_N).hex()
    return {"images": names.tolist(), "labels": images.labels_N.tolist(),
            "sha256": [digests[start:start + 64] for start in range(0, len(digests), 64)]}
