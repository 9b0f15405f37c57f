"""The Gaussian stream without tasks: peaks, widths, draws, each class's share, and a run that never sees a task."""

import itertools
import json

import numpy as np
import pytest
from fixtures import TINY, write_npz
from test_bad_input import run
from test_scenarios import build, dataset

import engine
from continual_datasets import GaussianSchedule
from continual_datasets.class_orders import read_class_order
from continual_datasets.scenario import TASK_AGNOSTIC
from continual_datasets.streams import gaussian_stream
from errors import InputError
from models.prompted_vit import PromptedViT
from prompt import PromptPool

pytestmark = pytest.mark.pictures

PAPER = GaussianSchedule()


# ---- probabilities ----
def test_the_default_is_the_published_schedule():
    assert (PAPER.episodes, PAPER.steps, PAPER.width, PAPER.evaluate_every) == (200, 5, 50.0, 10)
    assert PAPER.batches == 1000
    assert PAPER.starts_E.tolist() == list(range(0, 1000, 5))


@pytest.mark.parametrize("schedule", [PAPER, GaussianSchedule(30, 4, 7.0)])
@pytest.mark.parametrize("classes", [4, 100])
def test_peaks_and_widths(schedule, classes):
    """Class j peaks at S/(2K) + j·S/K with certainty, and falls off as a Gaussian of the given width."""
    length = schedule.batches
    for j in range(0, classes, 3):
        peak = length / (2 * classes) + j * length / classes
        at = np.array([peak, peak - schedule.width, peak + schedule.width, peak + 2 * schedule.width])
        assert schedule.probability(classes, at)[:, j] == pytest.approx(np.exp([0, -0.5, -0.5, -2.0]))
    fine = np.linspace(0, length, 20_001)
    highest = fine[schedule.probability(classes, fine).argmax(axis=0)]
    assert highest == pytest.approx(length * (np.arange(classes) + 0.5) / classes, abs=length / 20_000)


# ---- draws ----
def test_the_draws_are_a_function_of_the_seed():
    first = PAPER.draw(100, seed=3)
    assert first.shape == (200, 100)
    assert (PAPER.draw(100, seed=3) == first).all()
    assert (PAPER.draw(100, seed=4) != first).any()


@pytest.mark.parametrize("width", [0.75, 2.0, 50.0])
def test_no_episode_is_empty(width):
    """Also with peaks so narrow that most draws have no class at all."""
    schedule = GaussianSchedule(40, 3, width)
    for seed in range(5):
        assert schedule.draw(30, seed).any(axis=1).all()
    assert schedule.probability(30, schedule.starts_E).max(axis=1).min() < 1


def test_peaks_too_narrow_to_draw_anything_are_refused():
    with pytest.raises(InputError, match=r"--gaussian_width 0\.5 leaves no class to be active in episode 1: the 10 "):
        GaussianSchedule(10, 5, 0.5).draw(10, 0)


def test_classes_are_active_as_often_as_their_probability_says():
    schedule, seeds = GaussianSchedule(25, 2, 6.0), 400
    drawn = np.mean([schedule.draw(8, seed) for seed in range(seeds)], axis=0)
    probability = schedule.probability(8, schedule.starts_E)
    some = 1 - np.prod(1 - probability, axis=1, keepdims=True)  # an episode with none is drawn again
    expected = probability / some
    error = np.sqrt(expected * (1 - expected) / seeds)
    assert (np.abs(drawn - expected) < 5 * error + 2 / seeds).all()  # or two draws, where hardly any are expected


def test_each_class_has_the_share_of_the_stream_that_the_schedule_gives_it():
    """The mean over many streams, against the sum over all sets of active classes; classes in the middle are alike."""
    schedule, classes, seeds = GaussianSchedule(60, 1, 5.0), 6, 300
    probability = schedule.probability(classes, schedule.starts_E)
    share = np.zeros(classes)
    for active in map(np.array, itertools.product([False, True], repeat=classes)):
        if active.any():
            share += (np.where(active, probability, 1 - probability).prod(axis=1, keepdims=True)
                      * (active / active.sum())).sum(axis=0) / schedule.episodes
    share /= share.sum()  # redrawn episodes: hardly any here
    drawn = [schedule.draw(classes, seed) for seed in range(seeds)]
    found = np.mean([(active / active.sum(axis=1, keepdims=True)).mean(axis=0) for active in drawn], axis=0)
    assert found == pytest.approx(share, abs=0.01)
    assert share == pytest.approx(1 / classes, abs=0.02)
    assert found.sum() == pytest.approx(1)


# ---- the scenario ----
def test_an_episode_has_the_images_of_its_classes_and_the_test_is_whole():
    data, order, schedule = dataset(6), [3, 1, 5, 0, 2, 4], GaussianSchedule(12, 5, 8.0, 5)
    scenario = gaussian_stream(data, order, schedule, seed=2)
    active = schedule.draw(6, 2)
    assert scenario.setting is TASK_AGNOSTIC
    assert scenario.steps == 5
    assert scenario.evaluated_after == (4, 9, 11)
    assert [scenario.name_of(task) for task in (0, 11)] == ["episode01", "episode12"]
    for episode, task in enumerate(scenario.tasks):
        assert sorted(task.classes) == sorted(order[j] for j in np.flatnonzero(active[episode]))
        assert set(task.train.labels_N.tolist()) == set(task.classes)
        assert len(task.train) == 3 * len(task.classes)
        assert task.test is data.test
        assert list(scenario.tests_after(episode)) == [0]
    assert scenario.tasks[0].classes[0] == order[np.flatnonzero(active[0])[0]]
    assert scenario.num_images("train") == 18
    assert scenario.num_images("test") == 12


def test_a_stream_of_a_shuffled_order(tmp_path):
    data = write_npz(tmp_path / "data.npz", classes=5)
    schedule = GaussianSchedule(20, 2, 3.0)
    plain, shuffled = (build(data, schedule=schedule, class_order=order) for order in (None, "seed:9"))
    assert [len(task.classes) for task in plain.tasks] == [len(task.classes) for task in shuffled.tasks]
    order = read_class_order("seed:9", tuple("abcde"), False, 0)
    assert order != list(range(5))
    for one, other in zip(plain.tasks, shuffled.tasks, strict=True):
        assert other.classes == tuple(order[c] for c in one.classes)


# ---- a run ----
STREAM = ("--schedule", "gaussian", "--no-reinit_optimizer", "--num-tasks", "none", "--gaussian_episodes", 7,
          "--gaussian_steps", 2, "--gaussian_width", 4, "--gaussian_eval_every", 3)


def test_nothing_sees_a_task_number(tmp_path, monkeypatch, capsys):
    """Not the model, neither in training nor in the test, and not the prompts; one optimizer serves the stream."""
    data = write_npz(tmp_path / "data.npz", classes=5)
    told, begun, optimizers, moved = [], [], [], []
    forward, make = PromptedViT.forward, engine.Continual._optimizer
    monkeypatch.setattr(PromptedViT, "forward", lambda self, images, **more: (
        told.append(more.get("task")), forward(self, images, **more))[1])
    monkeypatch.setattr(PromptPool, "begin_task", lambda self, task: begun.append(task))
    monkeypatch.setattr(engine.Continual, "_optimizer", lambda self: (optimizers.append(make(self)), optimizers[-1])[1])
    assert run("cifar100_l2p", "--data-path", data, *TINY, "--epochs", 2, *STREAM, "--output-dir", tmp_path / "a") == 0
    out = capsys.readouterr().out
    assert set(told) == {None}
    assert told.count(None) > 28
    assert (begun, len(optimizers)) == ([], 1)
    steps = {state["step"].item() for state in optimizers[0][0].state.values()}
    assert steps == {7 * 2 * 2}, "episodes · epochs · steps, without a new beginning"
    moved = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert moved["evaluated_after"] == [3, 6, 7]
    assert len(moved["curve"]) == 3
    assert moved["acc@1"] == moved["curve"][-1]
    assert moved["average_incremental_acc"] == pytest.approx(np.mean(moved["curve"]))
    assert "forgetting" not in moved
    assert "per_task" not in moved
    assert "task-agnostic" in moved["protocol"]
    assert "task 1" not in out
    assert sorted(path.name for path in (tmp_path / "a" / "plots").iterdir()) == [
        "class_probability.png", "over_episodes.png", "prompts_per_task.png"]
    assert sorted(path.name for path in (tmp_path / "a" / "checkpoint").iterdir()) == [
        "episode03.pth", "episode06.pth", "episode07.pth", "last.pth", "previous.pth"]
    rows = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert [row["episode"] for row in rows if row["kind"] == "evaluation"] == [3, 6, 7]

    assert run("--eval", "--output-dir", tmp_path / "a") == 0
    again = json.loads((tmp_path / "a" / "eval_summary.json").read_text())
    assert again["curve"] == moved["curve"]


@pytest.mark.parametrize(("words", "message"), [
    *(([f"--{name}"], f"has no tasks, of which other options need to know: add --no-{name}.") for name in (
        "task_inc", "use_prompt_mask", "shared_prompt_pool", "shared_prompt_key")),
    (["--num_tasks", 2, "--task_inc"], "add --no-task_inc --num_tasks none."),
    (["--classes_per_task", 2], "add --classes_per_task none."),
    (["--replay_per_class", 2], "add --replay_per_class 0."),
    (["--head", "ncm", "--prompt_method", "none", "--head_type", "token"], "add --head linear."),
    (["--schedule", "tasks"], "--gaussian_episodes is of a stream: add --schedule gaussian"),
    (["--dataset", "MNIST,SVHN"], "--dataset MNIST,SVHN has tasks of its own"),
    (["--gaussian_width", 0.01], "--gaussian_width 0.01 leaves no class to be active"),
])
def test_what_does_not_go_with_a_stream(words, message, tmp_path, capsys, monkeypatch):
    if "MNIST,SVHN" in words:  # nothing has to be read to refuse it
        import continual_datasets
        monkeypatch.setattr(continual_datasets, "CATALOGUE", {name: lambda *_: dataset(3) for name in (
            "Split-MNIST", "Split-SVHN")})
    data = write_npz(tmp_path / "data.npz", classes=5)
    words = ["cifar100_l2p", "--data-path", data, *TINY, *STREAM, "--output-dir", tmp_path / "a", *words]
    assert run(*words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[-1]
    assert not (tmp_path / "a").exists()
