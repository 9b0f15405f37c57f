"""When a number of ours is called the same as a reported one."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from run_folders import write_run
from test_reproduce import rows

from configs.command import parse
from reproducing.compared import measured, reported_table
from reproducing.published import IN1K, IN21K, SOME_IN21K, Published
from reproducing.runs import Run


@pytest.mark.parametrize(("entry", "changes", "difference", "mark", "why"), [
    (Published("x", "L2P paper", 82.5, 6.9), {}, "+0.50 / -0.90", "✓", ""),
    (Published("x", "L2P paper", 82.5, 7.1), {}, "+0.50 / -1.10", "", ""),
    (Published("x", "L2P paper", 81.9), {}, "+1.10", "", ""),
    (Published("x", "L2P paper", 82.9, None, 0.1), {}, "+0.10", "✓", ""),
    (Published("x", "L2P paper", 82.8, None, 0.1), {}, "+0.20", "", ""),
    (Published("x", "L2P paper", 83.0, weights=IN1K), {}, "not compared", "", "then ImageNet-1k weights"),
    (Published("x", "L2P paper", 83.0, weights=SOME_IN21K), {}, "+0.00", "✓", "ImageNet-21k"),
    (Published("x", "L2P paper", 83.0, more="reported with outliers"), {}, "not compared", "", "with outliers"),
    (Published("x", "L2P paper", 83.0), {"epochs": 3}, "not compared", "", "--epochs differs"),
    (Published("x", "L2P paper", 83.0), {"subsample": 50}, "not compared", "", "--subsample differs"),
    (Published("x", "L2P paper", 83.0), {"pretrained": False}, "not compared", "", "with ImageNet-21k weights"),
    (Published("x", "L2P paper", 83.0), {"init_checkpoint": "a/ViT-B_16.npz"}, "+0.00", "",
     "from ViT-B_16.npz; order natural; batch vote over 16, class-incremental; reported with ImageNet-21k weights"),
    (Published("x", "L2P paper", 83.0), {"class_order": "numpy:1993"}, "+0.00", "✓", "order numpy:1993"),
])
def test_a_tick_stands_only_where_numbers_compare(entry, changes, difference, mark, why, tmp_path):
    text = table_of(entry, "vit_base_patch16_224.orig_in21k", tmp_path, changes)
    row = rows(text)[2]
    assert (row[3], row[4]) == (difference, mark)
    assert why in row[5]


@pytest.mark.parametrize(("tag", "weights", "compared"), [
    ("augreg_in21k_ft_in1k", IN1K, True), ("augreg_in1k", IN1K, False), ("orig_in21k_ft_in1k", IN1K, False),
    ("orig_in21k", IN21K, True), ("augreg_in21k", IN21K, False), ("augreg_in21k_ft_in1k", IN21K, False),
    ("augreg_in21k", SOME_IN21K, True), ("augreg_in21k_ft_in1k", SOME_IN21K, False), ("dino", SOME_IN21K, False)])
def test_weights_of_another_training_do_not_compare(tag, weights, compared, tmp_path):
    entry = Published("x", "L2P paper", 83.0, weights=weights)
    assert (rows(table_of(entry, f"vit_base_patch16_224.{tag}", tmp_path))[2][3] == "+0.00") == compared


def table_of(entry: Published, model: str, folder: Path, changes: Mapping[str, Any] = MappingProxyType({})) -> str:
    """The table of one run as main.py writes it, with Acc@1 83.0 and forgetting 6.0."""
    options = parse(["cifar100_l2p"]).options | changes
    summary = {"acc@1": 83.0, "forgetting": 6.0, "replay_bytes": 0, "train_seconds": 1.0, "eval_seconds": 1.0,
               "trainable_parameters": 1, "protocol": "batch vote over 16, class-incremental",
               "config": {"options": options, "experiment": "cifar100_l2p",
                          "model": {"name": model, "backbone_sha256": "0"}}}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "accuracy_matrix.csv").write_text("task,after_task_1,after_task_2\n1,86.0,80.0\n2,,86.0\n")
    return reported_table([entry], {"x": [Run("x", folder, ())]}, {"x": "cifar100_l2p"})


def test_the_checkpoint_of_a_stream_is_that_of_its_last_episode(tmp_path):
    folder = write_run(tmp_path / "run", setting="task-agnostic")
    for name, size in (("episode010", 5), ("episode200", 7), ("last", 99)):
        (folder / "checkpoint" / f"{name}.pth").write_bytes(b"0" * size)
    assert measured(folder)["checkpoint"] == 7
