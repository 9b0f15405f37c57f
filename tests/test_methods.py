"""What every method promises, checked for each row of methods.py alike: also of methods that are yet to come."""

import contextlib
import functools
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import ROOT, compiled_anew, write_npz
from killing import assert_same_results
from methods import BATCH, CLASSES, METHODS, TASKS, WORDS, Method
from test_waiting import one_epoch, parts, readings

import continual_datasets
import engine
import main
import outputs
import speed_test
from configs.base import OPTIONS
from configs.command import parse
from continual_datasets import images_in_memory
from continual_datasets.scenario import Sessions
from models import PromptedViT, build_model
from prompt import Host
from prompt_methods import build_prompt_method
from utils import load_checkpoint, random_generator


# ---- runs ----
@pytest.fixture(scope="module", autouse=True)
def _quicker():
    """Without plots, which test_plots.py looks at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs.Reporter, "_plot", lambda self, run: None)
        yield


class Signalling(io.StringIO):
    """A terminal from which a SIGTERM comes once a line that begins with `text` was printed."""

    def __init__(self, text: str | None):
        super().__init__()
        self.text = text

    def write(self, printed: str) -> int:
        if self.text is not None and printed.startswith(self.text):
            self.text = None
            signal.raise_signal(signal.SIGTERM)
        return super().write(printed)


def call(*words: object, stop_at: str | None = None) -> tuple[int, str, str]:
    """Run the program in this process: exit code, stdout, stderr."""
    out, err = Signalling(stop_at), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main.main([str(word) for word in words])
    return code, out.getvalue(), err.getvalue()


def command(method: Method, data: Path, *words: object) -> tuple[object, ...]:
    return (*method.words[:1], "--data-path", data, "--num-tasks", TASKS, *WORDS, *method.words[1:], *words)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Three steps in each task: a run can be stopped in the middle of one."""
    return write_npz(tmp_path_factory.mktemp("data") / "data.npz", CLASSES, train_per_class=6, test_per_class=3)


class Finished:
    """An undisturbed run of a method: its folder, its model as it was made, and as it became."""

    def __init__(self, method: Method, data: Path, folder: Path):
        self.folder = folder
        seen: list[PromptedViT] = []
        run = engine.Continual.run

        def looking(continual, *arguments):
            seen.append(continual.model)
            self.before = {name: tensor.clone() for name, tensor in continual.model.state_dict().items()}
            return run(continual, *arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine.Continual, "run", looking)
            code, self.out, err = call(*command(method, data), "--output-dir", folder)
        assert code == 0, err
        self.model = seen[0]
        self.summary = json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    return functools.cache(lambda method: Finished(method, data, tmp_path_factory.mktemp("finished")))


every_method = pytest.mark.parametrize("method", METHODS, ids=str)


# ---- what trains ----
@every_method
def test_exactly_what_is_said_trains_and_nothing_frozen_moves(method, finished):
    found = finished(method)
    sizes = {name: parameter.numel() for name, parameter in found.model.trained_parameters()}
    assert sizes == method.trains()
    assert found.summary["trainable_parameters"] == sum(sizes.values())
    learned = load_checkpoint(found.folder / "checkpoint" / f"task{TASKS:02d}.pth")["model"]
    assert learned.keys() == sizes.keys() | set(method.buffers), "a checkpoint holds exactly what was learned"
    for name, tensor in found.model.state_dict().items():
        assert torch.equal(tensor, found.before[name]) == (name not in learned), name


@pytest.mark.parametrize(("experiment", "published"), [
    ("cifar100_l2p", 10 * 5 * 768 + 10 * 768), ("cifar100_dualprompt", 2 * 10 * 768 + 10 * 3 * 10 * 768 + 10 * 768),
    ("cifar100_coda", 5 * 100 * (8 + 1 + 1) * 768), ("cifar100_oneprompt", 107_520),
    ("imagenet_r_dualprompt", 2 * 10 * 768 + 10 * 3 * 40 * 768 + 10 * 768)])
def test_sizes_in_a_vit_b16(experiment, published):
    """What trains beside the head in ten tasks, by the published settings."""
    host = Host(dim=768, depth=12, num_heads=12, head_dim=64, num_tasks=10,
                generator=functools.partial(random_generator, 0))
    options = parse([experiment]).options
    prompt = build_prompt_method(options["prompt_method"], options, host)
    assert sum(parameter.numel() for parameter in prompt.parameters()) == published


# ---- what is reported ----
@every_method
def test_a_result_says_how_prompts_were_chosen(method, finished):
    summary = finished(method).summary
    assert summary["protocol"] == f"{method.protocol}, class-incremental"
    assert ("acc@1_per_image" in summary) == method.chooses
    assert finished(method).model.prompt.needs_query == method.queries
    rows = [json.loads(line) for line in (finished(method).folder / "log.jsonl").read_text().splitlines()]
    chosen = [row.get("prompts") for row in rows if row["kind"] == "evaluation"]
    if method.chooses:
        images, top_k = CLASSES // TASKS * 3, finished(method).model.prompt.top_k
        assert [[sum(row) for row in rows] for rows in chosen] == [[images * top_k] * t for t in range(1, TASKS + 1)]
    else:
        assert chosen == [None] * TASKS


@every_method
def test_evaluation_from_checkpoints_equals_training(method, finished):
    found = finished(method)
    code, _, err = call("--eval", "--output-dir", found.folder)
    assert code == 0, err
    assert (found.folder / "eval_accuracy_matrix.csv").read_text() == (
        found.folder / "accuracy_matrix.csv").read_text()
    again = json.loads((found.folder / "eval_summary.json").read_text())
    for key in ("acc@1", "acc@5", "loss", "forgetting", "per_task"):
        assert again[key] == found.summary[key]
    assert again.get("acc@1_per_image") == found.summary.get("acc@1_per_image")


# ---- resumed runs ----
@every_method
def test_a_stopped_run_ends_as_one_that_was_not(method, data, finished, tmp_path):
    """Stopped in an epoch, and stopped after it, while the head observes or the test is under way. Real signals."""
    words = (*command(method, data), "--output-dir", tmp_path)
    stops = ["task 2/3 epoch 1/1 step 1/3", "task 2/3 epoch 1/1 done"]
    if not method.trains():  # the first thing after an evaluation is that the head observes
        stops = ["after task 1/3", "after task 2/3"]
    elif "first" in method.words:  # only its first task is learned in epochs
        stops = ["task 1/3 epoch 1/1 step 1/3", "task 1/3 epoch 1/1 done", "after task 1/3", "after task 2/3"]
    elif "shift" in method.words:  # where a task's images are looked at before they are learned
        stops = ["after task 1/3", *stops]
    for stop in stops:
        code, out, err = call(*words, "--resume", stop_at=stop)
        assert code == 143, err
        assert "stopped by SIGTERM; everything done is saved" in out
        assert stop in out
        assert "task 3/3" not in out
    code, out, err = call(*words, "--resume")
    assert code == 0, err
    assert "task 2/3 epoch" not in out
    assert_same_results(finished(method).folder, tmp_path)


# ---- other settings ----
@every_method
def test_task_incremental(method, finished):
    """Another evaluation of the same run: fewer classes compete."""
    found = finished(method)
    code, _, err = call("--eval", "--task_inc", "--output-dir", found.folder)
    assert code == 0, err
    again = json.loads((found.folder / "eval_summary.json").read_text())
    assert again["protocol"] == f"{method.protocol}, task-incremental"
    assert again["acc@1"] >= found.summary["acc@1"]
    assert again["loss"] <= found.summary["loss"]


@every_method
def test_domain_incremental(method, tmp_path, monkeypatch):
    """Sessions that share their classes and one test set, as CORe50 has them."""
    draw = np.random.default_rng(3)

    def images(per_class: int):
        labels = np.tile(np.arange(4), per_class)
        return images_in_memory(draw.integers(0, 256, (len(labels), 32, 32, 3)).astype(np.uint8), labels)

    sessions = Sessions((images(2), images(1)), images(1), tuple("abcd"))
    monkeypatch.setattr(continual_datasets, "CATALOGUE", {"CORe50": lambda *_: sessions})
    code, _, err = call(*method.words[:1], *WORDS, *method.words[1:], "--dataset", "CORe50", "--data-path", tmp_path,
                        "--output-dir", tmp_path / "run")
    assert code == 0, err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["protocol"] == f"{method.protocol}, domain-incremental"
    assert len(summary["curve"]) == 2


@every_method
def test_a_stream_without_tasks(method, data, tmp_path):
    """Runs, or is refused with one sentence before anything is written."""
    stream = ("--schedule", "gaussian", "--num-tasks", "none", "--no-shared_prompt_pool", "--gaussian_episodes", 2,
              "--gaussian_steps", 2, "--gaussian_width", 2, "--gaussian_eval_every", 2)
    code, out, err = call(*command(method, data), *stream, "--output-dir", tmp_path / "run")
    if method.in_a_stream is None:
        assert code == 0, err
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert summary["protocol"] == f"{method.protocol}, task-agnostic"
        return
    assert code == 2
    [line] = [line for line in err.splitlines() if "warning" not in line]
    assert line.startswith(f"main.py: error: {method.in_a_stream}")
    assert not out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["dualprompt", "coda", "oneprompt"])
def test_prefixes_need_plain_attention(name, data, tmp_path):
    method = next(method for method in METHODS if method.name == name)
    model = ("--model", "vit_small_patch16_18x2_224", "--no-pretrained", "--init-checkpoint", "none")
    code, out, err = call(*command(method, data), *model, "--output-dir", tmp_path / "run")
    assert code == 2
    assert (f"--prompt_method {name} adds keys and values to timm's plain attention, and the blocks of "
            "vit_small_patch16_18x2_224 are of another kind") in err.splitlines()[-1]
    assert not out
    assert not (tmp_path / "run").exists()


# ---- speed and precision ----
def built(method: Method, *words: object) -> PromptedViT:
    options = parse([str(word) for word in command(method, Path("none"), *words)]).options
    return build_model(options, CLASSES, TASKS)


def images_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    """Batches as a run has them: pixels in [0, 1]."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(BATCH, 3, 32, 32, generator=generator), torch.tensor([0, 1, 1, 0])


def step(model: PromptedViT, query_BD: torch.Tensor | None):
    """Logits, loss and the gradients of what trains, of one step."""
    images, labels = images_and_labels()
    torch.manual_seed(2)
    output = model.train()(images, task=0, query_BD=query_BD)
    loss = torch.nn.functional.cross_entropy(output.logits_BK, labels)
    if output.aux_loss is not None:
        loss = loss + output.aux_loss
    parameters = [parameter for _, parameter in model.trained_parameters()]
    return output.logits_BK, loss, torch.autograd.grad(loss, parameters) if parameters else ()


def query_of(model: PromptedViT) -> torch.Tensor | None:
    return model.query(images_and_labels()[0]) if model.prompt.needs_query else None


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-12)).item()


@every_method
def test_bfloat16_computes_the_same_to_its_rounding(method):
    """Eight bits of mantissa: some percent. The choice is given, as near-ties may fall otherwise."""
    exact, rounded = (built(method, "--head_init", "trunc_normal") for _ in range(2))
    rounded.use_bfloat16()
    query_BD = query_of(exact)
    (logits, loss, gradients), (logits_, loss_, gradients_) = step(rounded, query_BD), step(exact, query_BD)
    assert {tensor.dtype for tensor in (logits, loss, *gradients)} == {torch.float32}
    if method.trains():  # a closed form has seen nothing yet
        assert 1e-6 < relative(logits, logits_) < 0.03
        assert relative(loss, loss_) < 0.03
    whole, whole_ = (torch.cat([g.flatten() for g in each]) if each else torch.zeros(1)
                     for each in (gradients, gradients_))
    assert relative(whole, whole_) < 0.1
    if query_BD is not None:
        assert relative(rounded.query(images_and_labels()[0]), query_BD) < 0.03


@pytest.mark.parametrize("method", [method for method in METHODS if method.trains()], ids=str)
def test_a_step_reads_no_value(method):
    """Nothing in a step waits for the device."""
    _, batches, images = parts()
    model = built(method).train()
    with readings() as found:
        losses = one_epoch(model, batches, images)
    assert found == []
    assert len(losses) == 3


def measured(folder: Path, *words: object) -> dict[str, float]:
    """GFLOP per image of each part that --speed_test_only measures."""
    code, _, err = call(*words, "--device", "cpu", "--speed_test_only", "--output-dir", folder)
    assert code == 0, err
    return {part["name"]: part["gflop_per_image"] for part in json.loads((folder / "speed.json").read_text())["parts"]}


@pytest.fixture
def _counting_only(monkeypatch):
    """The speed test without its repeats: counts of operations do not need them."""
    monkeypatch.setattr(speed_test, "matmul_peak", lambda device, dtype: 1e12)
    monkeypatch.setattr(speed_test, "images_per_second", lambda steps, device: [float(steps())])


@pytest.mark.usefixtures("_counting_only")
@every_method
def test_the_speed_test_names_the_passes_that_there_are(method, data, tmp_path):
    found = measured(tmp_path, *command(method, data))
    assert ("query pass" in found) == method.queries
    # What a frozen ViT without prompts makes of a test image is kept: there no image is made or read again.
    assert ("evaluation, task seen before" in found) == method.queries
    assert ("training step" in found) == bool(method.trains())
    whole, prompted = found["evaluation, new task"], found.get("prompted pass") or found["pass"]
    assert whole == pytest.approx(prompted + found.get("query pass", 0.0))
    assert ("prompted pass" in found) == any(name.startswith("prompt.") for name in method.trains())


def test_rounds_come_again_and_one_without_a_batch_is_an_error():
    rounds = speed_test.again_and_again(lambda number: ((number, n) for n in range(number, 3)), most=2)
    assert [next(rounds) for _ in range(5)] == [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)]
    with pytest.raises(ValueError, match="round 3 has no batch"):
        next(rounds)


@pytest.mark.usefixtures("_counting_only")
def test_one_prompt_costs_two_thirds_of_l2p(data, tmp_path):
    """By count of operations, with the settings of both experiments in a small ViT of twelve blocks."""
    words = ("--data-path", data, "--num-tasks", TASKS, "--model", "vit_tiny_patch16_224", "--no-pretrained",
             "--batch-size", 2, "--num-workers", 0)
    one, l2p = (measured(tmp_path / name, f"cifar100_{name}", *words) for name in ("oneprompt", "l2p"))
    assert "query pass" not in one
    # L2P's 25 vectors are tokens among 197; OnePrompt's 20 pairs in a few blocks are not.
    assert 0.58 < one["training step"] / l2p["training step"] < 0.67
    assert one["evaluation, new task"] / l2p["evaluation, new task"] == pytest.approx(0.5, abs=0.05)


# ---- slower ----
@pytest.mark.long
@pytest.mark.parametrize("method", [method for method in METHODS if not method.draws], ids=str)
def test_two_processes_agree_with_each_other_and_with_one(method, data, tmp_path):
    """2 × 2 images take the steps of 1 × 4, where the choice is per image; by SGD, as Adam would magnify rounding."""
    words = (*command(method, data), "--no-batchwise_prompt", "--no-unscale_lr", "--opt", "sgd", "--sched", "constant")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    two = subprocess.run([sys.executable, *launcher, str(ROOT / "tests" / "save_each_rank.py"), str(tmp_path),
                          *map(str, words), "--batch-size", "2", "--output_dir", str(tmp_path / "two")],
                         cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
                         timeout=200)
    assert two.returncode == 0, two.stderr
    code, _, err = call(*words, "--output-dir", tmp_path / "one")
    assert code == 0, err
    ranks = [torch.load(tmp_path / f"rank{rank}.pth") for rank in (0, 1)]
    one = load_checkpoint(tmp_path / "one" / "checkpoint" / f"task{TASKS:02d}.pth")["model"]
    for name, tensor in one.items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        torch.testing.assert_close(ranks[0][name], tensor, atol=1e-5, rtol=0)
    per_task = [json.loads((tmp_path / name / "summary.json").read_text())["per_task"] for name in ("one", "two")]
    assert per_task[0] == per_task[1]


@pytest.mark.long
@pytest.mark.parametrize("name", ["dualprompt", "coda", "deep l2p"])
def test_compiled_blocks_compute_the_same(name):
    method = next(method for method in METHODS if method.name == name)
    plain, compiled = (built(method, "--head_init", "trunc_normal") for _ in range(2))
    with compiled_anew():
        compiled.compile(BATCH)
    for found, expected in zip(step(compiled, None), step(plain, None), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_every_method_of_the_command_line_has_a_row():
    parsed = [parse([str(word) for word in command(method, Path("none"))]).options for method in METHODS]
    for option in ("prompt_method", "head", "prompt_choice"):
        assert {options[option] for options in parsed} == set(OPTIONS[option].choices), option
