"""CODA-Prompt's components over tasks: orthogonal when drawn, frozen afterwards, not used before; and its schedule."""

import functools
import json
import math

import pytest
import torch
from fixtures import write_npz
from killing import assert_same_results
from methods import WORDS
from test_methods import call
from torch import nn

import outputs
from build import build_recipe
from configs.command import parse
from prompt_methods.coda import CodaPrompt, orthonormal
from utils import load_checkpoint, random_generator

WIDTH, SIZE, TASKS, LAYERS, SHAPE = 24, 10, 4, (0, 2), (3, 8)
BOUNDS = [(0, 2), (2, 5), (5, 7), (7, 10)]  # 10 components of 4 tasks


def coda(seed: int = 1, orthogonality: float = 0.1) -> CodaPrompt:
    return CodaPrompt(WIDTH, SIZE, 4, LAYERS, SHAPE, TASKS, orthogonality=orthogonality,
                      generator=functools.partial(random_generator, seed))


def steps(prompt: CodaPrompt, task: int, count: int = 5, make=torch.optim.Adam) -> None:
    """Training of `task` that ends far from orthogonal: large steps on a loss that reads keys and values."""
    optimizer = make(prompt.parameters(), lr=0.2)
    for number in range(count):
        query_BD = torch.randn(6, WIDTH, generator=random_generator(7, task, number))
        prompts = prompt(query_BD, 6, task=task)
        loss = sum((keys.sin() * values.cos()).sum() for keys, values in prompts.prefixes.values()) + prompts.aux_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def rows(prompt: CodaPrompt):
    """[M, X] of prompts, keys and attention vectors, in each layer."""
    for parameter in (prompt.prompts_YMLD, prompt.keys_YMD, prompt.attention_YMD):
        yield from parameter.detach().flatten(2)


# ---- components over tasks ----
def test_every_component_belongs_to_one_task():
    assert [coda().bounds_of(task) for task in range(TASKS)] == BOUNDS


def test_new_components_are_orthonormal_to_all_earlier_ones_however_these_were_trained():
    prompt = coda()
    for task, (first, end) in enumerate(BOUNDS):
        prompt.begin_task(task)
        assert prompt.bounds.tolist() == [first, end]
        for values_MX in rows(prompt):
            new, before = values_MX[first:end], values_MX[:first]
            torch.testing.assert_close(new @ new.T, torch.eye(end - first), atol=1e-5, rtol=0)
            cosines = new @ nn.functional.normalize(before, dim=1).T
            torch.testing.assert_close(cosines, torch.zeros_like(cosines), atol=1e-5, rtol=0)
        steps(prompt, task)
    for values_MX in rows(prompt):
        cosines = nn.functional.normalize(values_MX, dim=1) @ nn.functional.normalize(values_MX, dim=1).T
        assert (cosines - torch.eye(SIZE)).abs().max() > 0.1, "training should lead away from orthogonal components"


def test_as_many_components_as_the_width_allows():
    """Also after training has made earlier ones alike, the last ones find the directions that are left."""
    known = torch.randn(6, 8, generator=random_generator(1))
    known[3] = known[2]
    new = orthonormal(torch.randn(2, 8, generator=random_generator(2)), known)
    torch.testing.assert_close(new @ new.T, torch.eye(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(new @ known.T, torch.zeros(2, 6), atol=1e-5, rtol=0)


@pytest.mark.parametrize("make", [torch.optim.Adam, functools.partial(torch.optim.Adam, fused=True), torch.optim.AdamW,
                                  functools.partial(torch.optim.SGD, momentum=0.9)],
                         ids=["adam", "fused adam", "adamw", "sgd"])
def test_a_task_moves_its_own_components_and_no_other(make):
    if make is torch.optim.AdamW:
        make = functools.partial(make, weight_decay=0.0)  # with one, --prompt_method coda is refused
    prompt = coda()
    for task, (first, end) in enumerate(BOUNDS):
        prompt.begin_task(task)
        before = [values.clone() for values in rows(prompt)]
        steps(prompt, task, make=make)
        for was, now in zip(before, rows(prompt), strict=True):
            assert torch.equal(now[:first], was[:first])
            assert torch.equal(now[end:], was[end:])
            assert (now[first:end] != was[first:end]).any(dim=1).all()


@pytest.mark.parametrize("task", [None, 1])
def test_later_components_are_not_used(task):
    """Whatever they hold, in a test and in training."""
    prompt = coda()
    prompt.begin_task(1)
    end, query_BD = BOUNDS[1][1], torch.randn(3, WIDTH, generator=random_generator(3))
    found = []
    for _ in range(2):
        prompts = prompt(query_BD, 3, task=task)
        found.append([tensor for prefix in prompts.prefixes.values() for tensor in prefix]
                     + ([] if task is None else [prompts.aux_loss]))
        with torch.no_grad():
            for parameter in prompt.parameters():
                parameter[:, end:] = torch.randn(parameter[:, end:].shape, generator=random_generator(4))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    with torch.no_grad():
        prompt.keys_YMD[:, end - 1] *= -1
    assert not torch.equal(prompt(query_BD, 3, task=task).prefixes[0][0], found[0][0]), "the last of its own is used"


def test_a_test_adds_nothing_to_a_loss():
    query_BD = torch.zeros(2, WIDTH)
    assert coda()(query_BD, 2).aux_loss is None
    assert coda()(query_BD, 2, task=0).aux_loss.item() == pytest.approx(0.0, abs=1e-6), "they were drawn orthonormal"


def test_what_begins_a_task_hangs_on_seed_task_and_earlier_components_alone():
    """A run that is resumed between two tasks goes on with the values of one that was not."""
    one, other = coda(), coda()
    for task in range(2):
        one.begin_task(task)
        steps(one, task)
    other.load_state_dict(one.state_dict())
    for prompt in (one, other):
        torch.manual_seed(int(prompt is one))  # which has no say
        prompt.begin_task(2)
    assert all(torch.equal(a, b) for a, b in zip(rows(one), rows(other), strict=True))
    assert torch.equal(one.bounds, other.bounds)
    third = coda(seed=2)
    third.load_state_dict(one.state_dict())
    third.begin_task(2)
    assert not torch.equal(third.keys_YMD[:, 5:7], one.keys_YMD[:, 5:7]), "another seed, other values"


@pytest.mark.parametrize(("words", "message"), [
    (["--size", 2], "--size 2 gives not every of the 3 tasks a component: use --size 3 or more"),
    (["--length", 3], "--length 3: half of a component's vectors are keys, half are values; use an even number"),
    (["--size", 129], "--size 129: no more than 128 keys of glyph_vit_tiny can be orthogonal; use --size 128 or less"),
    (["--prompt_layers", 0, 4], "--prompt_layers 0 4: name layers of glyph_vit_tiny from 0 to 3, each once"),
    (["--prompt_layers", 1, 1], "--prompt_layers 1 1: name layers of glyph_vit_tiny from 0 to 3, each once"),
    (["--weight_decay", 0.1], "--prompt_method coda freezes the components of earlier tasks, which weight decay"),
    (["--no-reinit_optimizer"], "use --weight_decay 0 and --reinit_optimizer true"),
])
def test_what_it_refuses(words, message, data, tmp_path):
    code, _, err = call(*RUN, "--data-path", data, *words, "--output-dir", tmp_path / "run")
    assert code == 2
    assert message in err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


# ---- runs ----
RUN = ("cifar100_coda", "--num-tasks", 3, *WORDS, "--prompt_layers", 0, 3, "--size", 7, "--length", 4)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_npz(tmp_path_factory.mktemp("data") / "data.npz", 6, train_per_class=6, test_per_class=2)


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch):
    monkeypatch.setattr(outputs.Reporter, "_plot", lambda self, run: None)


def test_checkpoints_know_which_components_a_test_may_use(data, tmp_path):
    """And what earlier tasks learned stays in them, bit for bit."""
    code, _, err = call(*RUN, "--data-path", data, "--output-dir", tmp_path)
    assert code == 0, err
    states = [load_checkpoint(tmp_path / "checkpoint" / f"task{t:02d}.pth")["model"] for t in (1, 2, 3)]
    ends = [2, 4, 7]
    assert [state["prompt.bounds"].tolist() for state in states] == [[0, 2], [2, 4], [4, 7]]
    for earlier, later, end in zip(states, states[1:], ends, strict=False):
        for name in ("prompt.prompts_YMLD", "prompt.keys_YMD", "prompt.attention_YMD"):
            assert torch.equal(earlier[name][:, :end], later[name][:, :end])
            assert not earlier[name][:, end:].any(), "drawn only when their task begins"
            assert later[name][:, end].abs().amax() > 0


# ---- the schedule ----
SCHEDULED = ("--lr", 0.32, "--epochs", 5)  # 0.005 at batch 4


def expected(epoch: int, epochs: int = 5, lr: float = 0.005) -> float:
    """The released code has the first rate in two epochs: its schedule is made at epoch 0 and then begins anew."""
    return lr * math.cos(99 * math.pi * max(epoch - 1, 0) / (200 * (epochs - 1)))


def test_the_schedule_is_its_formula_in_every_task_and_after_a_stop_within_one(data, tmp_path):
    words = (*RUN, "--data-path", data, *SCHEDULED, "--subsample", 3)
    code, _, err = call(*words, "--output-dir", tmp_path / "whole")
    assert code == 0, err
    for stop in ("task 2/3 epoch 3/5 step 1/2", "task 3/3 epoch 2/5 done"):
        code, _, err = call(*words, "--output-dir", tmp_path / "stopped", "--resume", stop_at=stop)
        assert code == 143, err
    assert call(*words, "--output-dir", tmp_path / "stopped", "--resume")[0] == 0
    for name in ("whole", "stopped"):
        log = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        rates = [row["lr"] for row in log if row["kind"] == "epoch"]
        assert rates == pytest.approx([expected(epoch) for epoch in range(5)] * 3, rel=1e-12)
    assert_same_results(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("experiment", ["cifar100_coda", "cifar100_oneprompt"])
@pytest.mark.parametrize("epochs", [1, 2, 20])
def test_the_schedule_of_few_and_of_many_epochs(epochs, experiment):
    recipe = build_recipe(parse([experiment, "--epochs", str(epochs), "--batch_size", "128"]).options)
    optimizer = recipe.make_optimizer([("weight", nn.Parameter(torch.zeros(1, 1)))])
    schedule, found = recipe.make_schedule(optimizer, epochs), []
    for epoch in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        schedule.step(epoch + 1)
    assert found[0] == pytest.approx(0.001), "the published rate at the published batch"
    assert found == pytest.approx([expected(epoch, max(epochs, 2), 0.001) for epoch in range(epochs)])
    assert epochs < 20 or [rate * 1000 for rate in found[:4] + found[-2:]] == pytest.approx(
        [1, 1, 0.9967, 0.9866, 0.1784, 0.0974], abs=1e-4), "as the released code gives them"


def test_the_penalty_is_that_of_the_later_released_scripts():
    assert parse(["cifar100_coda"]).options["orthogonality"] == 0
    assert parse(["imagenet_r_coda"]).options["orthogonality"] == 0
