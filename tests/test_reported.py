"""When a number of ours is called the same as a reported one."""

import json

import pytest
from test_reproduce import rows

from configs.command import parse
from reproducing.compared import reported_table
from reproducing.published import IN1K, NOT_TOLD, Published
from reproducing.runs import Run


@pytest.mark.parametrize(("entry", "changes", "difference", "mark", "why"), [
    (Published("x", "L2P paper", 82.5, 6.9), {}, "+0.50 / -0.90", "✓", ""),
    (Published("x", "L2P paper", 82.5, 7.1), {}, "+0.50 / -1.10", "", ""),
    (Published("x", "L2P paper", 81.9), {}, "+1.10", "", ""),
    (Published("x", "L2P paper", 82.9, None, 0.1), {}, "+0.10", "✓", ""),
    (Published("x", "L2P paper", 82.8, None, 0.1), {}, "+0.20", "", ""),
    (Published("x", "L2P paper", 83.0, weights=IN1K), {}, "not compared", "", "reported with ImageNet-1k weights"),
    (Published("x", "L2P paper", 83.0, weights=NOT_TOLD), {}, "not compared", "", "reported weights are not known"),
    (Published("x", "L2P paper", 83.0), {"epochs": 3}, "not compared", "", "--epochs differs"),
    (Published("x", "L2P paper", 83.0), {"subsample": 50}, "not compared", "", "--subsample differs"),
    (Published("x", "L2P paper", 83.0), {"pretrained": False}, "not compared", "", "with ImageNet-21k weights"),
    (Published("x", "L2P paper", 83.0), {"init_checkpoint": "a/ViT-B_16.npz"}, "+0.00", "",
     "from ViT-B_16.npz; order natural; batch vote over 16, class-incremental; reported with ImageNet-21k weights"),
    (Published("x", "L2P paper", 83.0), {"class_order": "numpy:1993"}, "+0.00", "✓", "order numpy:1993"),
])
def test_a_tick_stands_only_where_numbers_compare(entry, changes, difference, mark, why, tmp_path, monkeypatch):
    """A summary as main.py writes it, with the paper's ViT, Acc@1 83.0 and forgetting 6.0."""
    options = parse(["cifar100_l2p"]).options | changes
    summary = {"acc@1": 83.0, "forgetting": 6.0, "replay_bytes": 0, "train_seconds": 1.0, "eval_seconds": 1.0,
               "trainable_parameters": 1, "protocol": "batch vote over 16, class-incremental",
               "config": {"options": options, "model": {"name": "vit_base_patch16_224.orig_in21k"}}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    text = reported_table([entry], {"x": [Run("x", tmp_path, ())]}, {"x": "cifar100_l2p"})
    row = rows(text)[2]
    assert (row[3], row[4]) == (difference, mark)
    assert why in row[5]
