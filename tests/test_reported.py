"""When a number of ours is called the same as a reported one."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from fixtures import ROOT
from run_folders import write_run
from test_reproduce import rows

from configs.command import parse
from reproducing.compared import measured, reported_table, same_order
from reproducing.published import AUGREG_IN21K, IN1K, IN21K, PUBLISHED, SHUFFLED, SOME_IN21K, SOURCES, Published
from reproducing.runs import Run
from reproducing.tables import TABLES


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
     "ViT-B_16.npz, fp32; order natural; batch vote over 16, class-incremental; reported with ImageNet-21k weights"),
    (Published("x", "L2P paper", 83.0), {"class_order": "numpy:1993"}, "+0.00", "",
     "order numpy:1993; batch vote over 16, class-incremental; reported with order natural"),
    (Published("x", "L2P paper", 83.0, order="numpy:1993"), {"class_order": "numpy:1993"}, "+0.00", "✓", "numpy:1993"),
    (Published("x", "L2P paper", 83.0, order="numpy:1993"), {}, "+0.00", "", "reported with order numpy:1993"),
    (Published("x", "L2P paper", 83.0, order=SHUFFLED), {"class_order": "seed:3"}, "+0.00", "✓", "order seed:3"),
    (Published("x", "L2P paper", 83.0, order=SHUFFLED), {}, "+0.00", "", "reported with order shuffled"),
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


@pytest.mark.parametrize(("table", "method", "source"), [
    ("cifar100", "l2p", "L2P PyTorch, first"), ("cifar100", "dualprompt", "DualPrompt PyTorch"),
    ("imagenet_r", "dualprompt", "DualPrompt PyTorch"), ("cifar100", "l2p_replay", "L2P paper"),
    ("core50", "l2p", "L2P paper"), ("cifar100", "oneprompt", "OVOR paper"),
    ("cifar100", "joint_linear", "RanPAC paper")])
def test_what_was_made_otherwise_is_shown_and_not_compared(table, method, source, tmp_path):
    """Other augmentation, another loss, other cuts of test images: our number may agree by chance."""
    entry = next(e for e in PUBLISHED[table] if (e.method, e.source) == (method, source))
    tag = {IN21K: "orig_in21k", IN1K: "augreg_in21k_ft_in1k"}.get(entry.weights, "augreg_in21k")
    row = rows(table_of(replace(entry, method="x"), f"vit_base_patch16_224.{tag}", tmp_path))[2]
    assert (row[3], row[4]) == ("not compared", "")
    assert entry.more in row[5]


@pytest.mark.parametrize(("table", "method", "source", "acc1", "forgetting", "mark"), [
    ("five_datasets", "l2p", "L2P PyTorch", 81.0, 3.0, "✓"), ("five_datasets", "l2p", "L2P PyTorch", 81.4, 3.0, ""),
    ("cifar100", "dualprompt", "DualPrompt paper", 86.80, 5.20, "✓"),
    ("cifar100", "dualprompt", "DualPrompt paper", 86.90, 5.20, ""),
    ("cifar100", "dualprompt", "DualPrompt paper", 86.50, 5.30, ""),
    ("cifar100", "dualprompt", "DualPrompt official, re-run", 86.0, 20.0, ""),
    ("imagenet_r", "l2p", "DualPrompt paper", 62.2, 9.3, "✓"),
    ("imagenet_r", "l2p", "DualPrompt paper", 62.3, 9.3, "")])
def test_the_spread_is_the_reported_one(table, method, source, acc1, forgetting, mark, tmp_path):
    entry = next(e for e in PUBLISHED[table] if (e.method, e.source) == (method, source))
    text = table_of(replace(entry, method="x"), "vit_base_patch16_224.orig_in21k", tmp_path, acc1=acc1,
                    forgetting=forgetting)
    assert rows(text)[2][4] == mark


def test_a_mean_over_orders_is_compared_only_where_all_are_drawn():
    def over(*orders):
        return [{"config": {"options": {"class_order": order}}} for order in orders]
    assert same_order(over("seed:1", "numpy:2"), SHUFFLED)
    assert not same_order(over("seed:1", None), SHUFFLED)
    assert not same_order(over("numpy:1993", None), "numpy:1993")
    assert same_order(over(None, None), "natural")


def test_weights_orders_and_cuts_of_ranpacs_table():
    """Its CIFAR-100 is with AugReg's ImageNet-21k, its ImageNet-R with what was fine-tuned; one order, whole images."""
    for table, weights in (("cifar100", AUGREG_IN21K), ("imagenet_r", IN1K)):
        entries = [entry for entry in PUBLISHED[table] if entry.source == "RanPAC paper"]
        assert {entry.weights for entry in entries} == {weights}
        assert {entry.order for entry in entries if not entry.more} == {"numpy:1993"}
    assert all("--crop_pct 1" in TABLES["cifar100"].methods[method]
               for method in ("nearest_class_mean", "ranpac", "joint_linear", "coda", "oneprompt"))
    assert not any("--crop_pct" in line for line in TABLES["imagenet_r"].methods.values())


def test_what_was_reported_has_a_source_and_stands_in_the_experiment_too():
    assert PUBLISHED.keys() == TABLES.keys()
    for name, entries in PUBLISHED.items():
        for entry in entries:
            assert entry.source in SOURCES
            experiment = parse(TABLES[name].methods[entry.method].split()).experiment
            text = " ".join((ROOT / "configs" / f"{experiment}.py").read_text().split())
            for value in (entry.acc1, entry.forgetting):
                if value is not None and "others" not in entry.source:
                    assert f"{value:g}" in text or f"{value:.2f}" in text, (experiment, value)
            if entry.weights == IN1K:
                assert "ImageNet-1k" in text
    assert {entry.source for entries in PUBLISHED.values() for entry in entries} == SOURCES.keys()


def table_of(entry: Published, model: str, folder: Path, changes: Mapping[str, Any] = MappingProxyType({}),
             acc1: float = 83.0, forgetting: float = 6.0) -> str:
    """The table of one run as main.py writes it."""
    options = parse(["cifar100_l2p"]).options | changes
    del options["crop_pct"]  # as in a run of before it was an option
    summary = {"acc@1": acc1, "forgetting": forgetting, "replay_bytes": 0, "train_seconds": 1.0, "eval_seconds": 1.0,
               "trainable_parameters": 1, "protocol": "batch vote over 16, class-incremental",
               "config": {"options": options, "experiment": "cifar100_l2p",
                          "model": {"name": model, "backbone_sha256": "0"}}}
    (folder / "summary.json").write_text(json.dumps(summary))
    now, best, other = acc1 - forgetting / 2, acc1 + forgetting / 2, acc1 + forgetting / 2
    (folder / "accuracy_matrix.csv").write_text(f"task,after_task_1,after_task_2\n1,{best},{now}\n2,,{other}\n")
    return reported_table([entry], {"x": [Run("x", folder, ())]}, {"x": "cifar100_l2p"})


def test_the_checkpoint_of_a_stream_is_that_of_its_last_episode(tmp_path):
    folder = write_run(tmp_path / "run", setting="task-agnostic")
    for name, size in (("episode010", 5), ("episode200", 7), ("last", 99)):
        (folder / "checkpoint" / f"{name}.pth").write_bytes(b"0" * size)
    assert measured(folder)["checkpoint"] == 7
