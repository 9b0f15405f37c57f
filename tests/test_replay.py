"""Replay: which images are kept, what the loss makes of them, and that nothing else changes."""

import json

import naive_l2p as naive
import numpy as np
import pytest
import torch
from fixtures import TINY, write_npz
from test_against_naive import CLASSES, build, naive_forward, trained
from test_bad_input import run, tiny
from tiny_vits import images_for

from continual_datasets import Batch, images_in_memory
from continual_datasets.replay import with_replay
from continual_datasets.scenario import Dataset, Sessions, domain_incremental, one_task_each, split_by_class
from training import train_step


def numbered(classes: list[int], per_class: int, size: int = 4, first: int = 0):
    """Images that hold their own number in the store."""
    labels = np.tile(classes, per_class)
    numbers = np.arange(first, first + len(labels), dtype=np.uint8)
    return images_in_memory(np.broadcast_to(numbers[:, None, None, None], (len(labels), size, size, 3)), labels)


def data(classes: int = 6, per_class: int = 9) -> Dataset:
    return Dataset(numbered(list(range(classes)), per_class), numbered(list(range(classes)), 2),
                   tuple(map(str, range(classes))))


def kept(task) -> dict[int, set[int]]:
    """Label -> numbers of the images that the task replays."""
    found: dict[int, set[int]] = {}
    for part in task.replay:
        for label, pixels in zip(part.labels_N.tolist(), part.pixels_NHWC, strict=True):
            found.setdefault(label, set()).add(int(pixels[0, 0, 0]))
    return found


# ---- what is kept ----
def test_as_many_of_each_class_so_far_and_none_of_those_to_come():
    """The official code replays what it keeps of the task at hand, too, but nothing in the first task."""
    tasks = with_replay(split_by_class(data(), 3, [4, 1, 0, 2, 5, 3]).tasks, 3, seed=1)
    assert kept(tasks[0]) == {}
    assert {label: len(numbers) for label, numbers in kept(tasks[1]).items()} == {4: 3, 1: 3, 0: 3, 2: 3}
    assert {label: len(numbers) for label, numbers in kept(tasks[2]).items()} == dict.fromkeys(range(6), 3)
    for label, numbers in kept(tasks[1]).items():
        assert kept(tasks[2])[label] == numbers, "what was kept stays"
        assert all(number % 6 == label for number in numbers)


def test_the_seed_chooses():
    scenario = split_by_class(data(), 3, list(range(6)))
    one, same, other = (kept(with_replay(scenario.tasks, 3, seed)[2]) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_more_than_there_are_keeps_all():
    tasks = with_replay(split_by_class(data(), 3, list(range(6))).tasks, 50, seed=1)
    assert {label: len(numbers) for label, numbers in kept(tasks[2]).items()} == dict.fromkeys(range(6), 9)


def test_classes_that_come_again_keep_as_many_and_nothing_forgotten_returns():
    sessions = tuple(numbered([0, 1, 2], 5, first=20 * s) for s in range(4))
    scenario = domain_incremental(Sessions(sessions, numbered([0, 1, 2], 1), ("a", "b", "c")))
    tasks = with_replay(scenario.tasks, 4, seed=1)
    before: dict[int, set[int]] = {}
    for s in (1, 2, 3):
        now = kept(tasks[s])
        assert {label: len(numbers) for label, numbers in now.items()} == {0: 4, 1: 4, 2: 4}
        for label, numbers in now.items():
            assert s == 1 or all(number in before[label] or number >= 20 * s for number in numbers)
        before = now
    assert {number // 20 for numbers in before.values() for number in numbers} == {0, 1, 2, 3}, "of all sessions"


def test_several_data_sets_are_kept_apart():
    parts = [Dataset(numbered([0, 1], 5, size), numbered([0, 1], 1, size), ("a", "b")) for size in (4, 8, 6)]
    tasks = with_replay(one_task_each(parts, ["x", "y", "z"]).tasks, 2, seed=1)
    assert [part.store.pixels_SHWC.shape[1] for part in tasks[2].replay] == [4, 8, 6]
    assert [sorted(part.labels_N.tolist()) for part in tasks[2].replay] == [
        [0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5]]


# ---- the loss ----
def test_the_class_mask_concerns_the_new_half_only():
    """Loss and gradients of a step against the naive L2P, with new images of three classes and old ones of others."""
    model, twin = build("plain"), build("plain")
    images = images_for(model.backbone, dtype=torch.float64)[[0, 1, 2, 3, 4, 0]]
    labels = torch.tensor([1, 2, 3, 5, 0, 6])
    outside = torch.ones(CLASSES, dtype=torch.bool)
    outside[[1, 2, 3]] = False
    batch = Batch(images, labels, 0, num_replayed=3)
    optimizer = torch.optim.SGD(trained(model), lr=1.0)
    before = [p.detach().clone() for p in trained(model)]
    loss, hits = train_step(model.train(), optimizer, batch, 0, outside, None)

    expected = naive_forward(twin, images)
    new = naive.loss(expected["logits"][:3], labels[:3], [1, 2, 3], 0.0, 0.0)
    old = naive.loss(expected["logits"][3:], labels[3:], None, 0.0, 0.0)
    expected_loss = (new + old) / 2 - 0.5 * expected["pull"]
    torch.testing.assert_close(loss, expected_loss.detach(), atol=1e-5, rtol=0)
    gradients = torch.autograd.grad(expected_loss, trained(twin))
    for was, now, gradient in zip(before, trained(model), gradients, strict=True):
        torch.testing.assert_close(was - now.detach(), gradient, atol=1e-5, rtol=0)
    masked = expected["logits"][:3].masked_fill(outside, float("-inf"))
    assert hits == (masked.argmax(1) == labels[:3]).sum()


# ---- runs ----
def test_a_run_with_replay_tells_what_it_keeps(tmp_path, capsys):
    npz = write_npz(tmp_path / "data.npz", classes=6, train_per_class=9)
    words = tiny(npz, tmp_path / "run", "--num-tasks", 3, "--replay_per_class", 2)
    assert run(*words) == 0
    assert "replay of up to 12 images, 0.04 MB" in capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["replay_images"], summary["replay_bytes"]) == (12, 12 * 32 * 32 * 3)
    plain = tiny(npz, tmp_path / "plain", "--num-tasks", 3)
    assert run(*plain) == 0
    log, other = ([json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()
                   if '"epoch"' in line] for name in ("run", "plain"))
    assert log[0]["loss"] == other[0]["loss"], "the first task has nothing to replay"
    assert log[1]["loss"] != other[1]["loss"]


@pytest.mark.parametrize("words", [["--head", "ncm", "--prompt_method", "none", "--head_type", "token"]])
def test_what_does_not_go_with_replay(words, tmp_path, capsys):
    npz = write_npz(tmp_path / "data.npz")
    assert run("cifar100_l2p", "--data-path", npz, *TINY, "--replay_per_class", 2, *words, "--output-dir", "") == 2
    assert "--replay_per_class: --head ncm forgets no class" in capsys.readouterr().err
