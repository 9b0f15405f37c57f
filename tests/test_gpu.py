"""What only a CUDA GPU can show: it computes what the CPU computes, goes on exactly, and is not waited for.

`make test-gpu` runs these tests; all others run as if there were no GPU.
"""

import functools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fixtures import ROOT, compiled_anew, write_npz
from methods import BATCH, CLASSES, METHODS, TASKS, WORDS, Method
from test_methods import built, call, images_and_labels, query_of, relative
from test_waiting import one_epoch, parts

import outputs
from build import choose_device
from continual_datasets import Batches, images_in_memory
from continual_datasets.transforms import EvalTransform, TrainTransform
from errors import InputError
from loading import load_run
from models.ridge import RidgeHead
from utils import Processes, load_checkpoint

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
every_method = pytest.mark.parametrize("method", METHODS, ids=str)
trained_methods = pytest.mark.parametrize("method", [method for method in METHODS if method.trains()], ids=str)


@pytest.fixture(scope="module", autouse=True)
def _quicker():
    """Without plots, which do not depend on the device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs.Reporter, "_plot", lambda self, run: None)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_npz(tmp_path_factory.mktemp("data") / "data.npz", CLASSES, train_per_class=6, test_per_class=3)


def finish(*words: object) -> str:
    code, out, err = call(*words)
    assert code == 0, err
    return out


def command(method: Method, data: Path, device: str, *words: object) -> tuple[object, ...]:
    """A run by SGD: Adam would magnify what the rounding of another device leaves of a gradient of zero."""
    return (*method.words[:1], "--data-path", data, "--num-tasks", TASKS, *WORDS, *method.words[1:], "--device", device,
            "--opt", "sgd", "--sched", "constant", "--lr", 0.1, "--precision", "fp32", *words)


def learned(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "checkpoint" / f"task{TASKS:02d}.pth")["model"]


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4,
                                   msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture(scope="module")
def on_gpu(data, tmp_path_factory):
    """The folder of an undisturbed run of a method."""
    @functools.cache
    def run(method: Method) -> Path:
        folder = tmp_path_factory.mktemp("gpu")
        finish(*command(method, data, DEVICE), "--output-dir", folder)
        return folder
    return run


# ---- the same values ----
@pytest.mark.parametrize("norm", [None, (0.485, 0.456, 0.406)], ids=["[0, 1]", "mean and std"])
@pytest.mark.parametrize(("size", "images"), [(32, 8), (224, 8), (24, 40)], ids=str)
def test_batches_have_the_pixels_of_the_cpu(size, images, norm):
    generator = torch.Generator().manual_seed(4)
    pixels = torch.randint(0, 256, (20, images, images, 3), dtype=torch.uint8, generator=generator).numpy()
    labelled = images_in_memory(pixels, torch.arange(20).numpy() % CLASSES)
    std = norm and (0.229, 0.224, 0.225)

    def batches(device: str) -> Iterator[torch.Tensor]:
        made = Batches(TrainTransform(size, mean=norm, std=std), EvalTransform(size, norm, std), batch_size=6, seed=1,
                       device=torch.device(device), prefetch=2 if device == DEVICE else 0, pin_memory=True)
        for batch in (*made.training(labelled, 1, 2), *made.evaluation(labelled)):
            assert batch.images_BCHW.device.type == batch.labels_B.device.type == device
            yield batch.images_BCHW.cpu()

    for found, expected in zip(batches(DEVICE), batches("cpu"), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # a GPU divides by multiplying


@pytest.mark.parametrize("method", [method for method in METHODS if not method.draws], ids=str)
def test_a_run_ends_as_on_the_cpu(method, data, on_gpu, tmp_path):
    finish(*command(method, data, "cpu"), "--output-dir", tmp_path)
    assert_close(learned(on_gpu(method)), learned(tmp_path))
    cpu, gpu = (json.loads((folder / "summary.json").read_text()) for folder in (tmp_path, on_gpu(method)))
    assert gpu["loss"] == pytest.approx(cpu["loss"], rel=1e-3)
    assert gpu["acc@1"] == pytest.approx(cpu["acc@1"], abs=100 / (CLASSES * 3) + 1e-9), "one near-tie at most"


@every_method
def test_evaluation_from_checkpoints_equals_training(method, on_gpu):
    folder = on_gpu(method)
    finish("--eval", "--output-dir", folder)
    assert (folder / "eval_accuracy_matrix.csv").read_text() == (folder / "accuracy_matrix.csv").read_text()


@every_method
def test_bfloat16_computes_the_same_to_its_rounding(method):
    """Against float32 on the CPU, with the choice given."""
    exact, rounded = (built(method, "--head_init", "trunc_normal") for _ in range(2))
    query_BD = query_of(exact)
    rounded.to(DEVICE).use_bfloat16()
    images_BCHW, _ = images_and_labels()
    torch.manual_seed(2)
    logits_BK = exact(images_BCHW, query_BD=query_BD).logits_BK
    torch.manual_seed(2)
    found_BK = rounded(images_BCHW.to(DEVICE), query_BD=None if query_BD is None else query_BD.to(DEVICE)).logits_BK
    if method.trains() and not method.draws:  # a closed form has seen nothing yet
        assert 1e-6 < relative(found_BK.cpu(), logits_BK) < 0.03
    if query_BD is not None:
        assert relative(rounded.query(images_BCHW.to(DEVICE)).cpu(), query_BD) < 0.03


@pytest.mark.parametrize("name", ["l2p", "dualprompt", "coda", "no prompts", "fine-tuning"])
def test_compiled_blocks_compute_the_same(name, data, on_gpu, tmp_path):
    """CUDA graphs included: steps, a shorter last batch, tests."""
    method = next(method for method in METHODS if method.name == name)
    with compiled_anew():
        finish(*command(method, data, DEVICE, "--compile"), "--output-dir", tmp_path)
    assert_close(learned(tmp_path), learned(on_gpu(method)))


def test_precision_is_chosen_by_the_device(data, tmp_path):
    method = METHODS[0]
    words = command(method, data, DEVICE)
    has_bf16 = torch.cuda.get_device_capability() >= (8, 0)
    chosen = {"auto": "bf16" if has_bf16 else "fp32", "tf32": "tf32", "fp32": "fp32"} | ({"bf16": "bf16"} if has_bf16
                                                                                         else {})
    for precision, said in chosen.items():
        out = finish(*words, "--precision", precision, "--output-dir", tmp_path / precision)
        assert re.search(rf"on cuda:0, {said}, ", out)


# ---- going on ----
def stopped_and_resumed(method: Method, words: tuple[object, ...]) -> None:
    """Stopped by SIGTERM in an epoch, and between tasks."""
    in_epoch = [] if not method.trains() else [f"task {1 if 'first' in method.words else 2}/3 epoch 1/1 step 1/3"]
    for stop in (*in_epoch, "after task 2/3"):
        code, out, err = call(*words, "--resume", stop_at=stop)
        assert code == 143, err
        assert "everything done is saved" in out
    finish(*words, "--resume")


@every_method
def test_a_stopped_run_ends_as_one_that_was_not(method, data, on_gpu, tmp_path):
    """To rounding: a GPU's kernels may add in another order each time."""
    stopped_and_resumed(method, (*command(method, data, DEVICE), "--output-dir", tmp_path))
    assert_close(learned(tmp_path), learned(on_gpu(method)))


@pytest.mark.parametrize("name", ["l2p", "aligned", "l2p, then ridge", "fine-tuning"])
def test_with_the_settings_of_a_gpu_too(name, data, tmp_path):
    """bfloat16 where there is any, Adam, batches made ahead by a thread, pinned memory."""
    method = next(method for method in METHODS if method.name == name)
    words = (*command(method, data, DEVICE), "--opt", "adam", "--lr", 0.01, "--precision", "auto", "--num-workers", 2)
    finish(*words, "--output-dir", tmp_path / "whole")
    finish("--eval", "--output-dir", tmp_path / "whole")
    stopped_and_resumed(method, (*words, "--output-dir", tmp_path / "stopped"))
    whole, stopped = (json.loads((tmp_path / folder / "summary.json").read_text()) for folder in ("whole", "stopped"))
    assert stopped["loss"] == pytest.approx(whole["loss"], rel=0.05)
    again = json.loads((tmp_path / "whole" / "eval_summary.json").read_text())
    assert again["loss"] == pytest.approx(whole["loss"], rel=1e-3)


def test_a_run_goes_on_on_the_cpu(data, on_gpu, tmp_path):
    """And what a GPU saved is asked out there."""
    method = METHODS[0]
    words = (*command(method, data, DEVICE), "--output-dir", tmp_path)
    code, _, err = call(*words, "--resume", stop_at="task 2/3 epoch 1/1 step 1/3")
    assert code == 143, err
    finish("--resume", "--output-dir", tmp_path, "--device", "cpu")
    assert_close(learned(on_gpu(method)), learned(tmp_path))


def test_answers_are_those_of_the_cpu(on_gpu):
    generator = torch.Generator().manual_seed(6)
    images_BCHW = torch.rand(5, 3, 32, 32, generator=generator)
    gpu, cpu = (load_run(on_gpu(METHODS[0]), device=device).predict(images_BCHW) for device in (DEVICE, "cpu"))
    for found, expected in zip(gpu, cpu, strict=True):
        assert found.prompts == expected.prompts
        assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-4)


# ---- not waiting ----
def assert_nothing_waits(step: Callable[[], object]) -> None:
    step()  # the first kernels are loaded
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@trained_methods
def test_a_step_does_not_wait_for_the_gpu(method):
    _, batches, images = parts(DEVICE)
    model = built(method).to(DEVICE).train()
    assert_nothing_waits(lambda: one_epoch(model, batches, images, DEVICE))


@pytest.mark.parametrize("changes", [{}, {"batchwise": False}, {"task_mask": True}])
def test_a_step_with_replay_does_not_wait_for_the_gpu(changes):
    model, batches, images = parts(DEVICE, **changes)
    assert_nothing_waits(lambda: one_epoch(model, batches, images, DEVICE, replay=[images]))


# ---- size ----
def test_ridge_solves_ten_thousand_features_in_seconds():
    """M = 10,000 as published, for a task of 1,000 images."""
    generator = torch.Generator().manual_seed(0)
    head = RidgeHead(768, 100, 10_000, seed=0).to(DEVICE)
    head.observe(torch.randn(1000, 768, generator=generator).to(DEVICE), (torch.arange(1000) % 100).to(DEVICE))
    torch.cuda.synchronize()
    started = time.perf_counter()
    head.settle(0)
    torch.cuda.synchronize()
    assert time.perf_counter() - started < 10


def test_too_little_memory_is_one_sentence(data, tmp_path):
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(2e8 / total)  # less than a ViT-B's weights
    try:
        code, _, err = call(*command(METHODS[0], data, DEVICE), "--model", "vit_base_patch16_224", "--no-pretrained",
                            "--init-checkpoint", "none", "--input-size", 224, "--output-dir", tmp_path)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert code == 1
    assert "too little memory" in err


# ---- which device ----
def test_a_gpu_that_is_not_there():
    with pytest.raises(InputError, match=r"--device cuda:99 needs 100 GPU\(s\)"):
        choose_device("cuda:99", Processes())
    assert choose_device("auto", Processes()) == torch.device("cuda:0")


def test_a_process_that_sees_its_own_gpu_only():
    last = torch.cuda.device_count()
    process = Processes(last, last, last + 1, last + 1, own_gpu=True)
    assert choose_device("cuda", process) == torch.device("cuda:0")
    with pytest.raises(InputError, match=rf"--device cuda needs {last + 1} GPU\(s\)"):
        choose_device("cuda", replace(process, own_gpu=False))


def test_torchrun(data, on_gpu, tmp_path):
    """One process for each GPU; where there are several, over NCCL."""
    count = torch.cuda.device_count()
    words = (*command(METHODS[0], data, DEVICE), "--batch-size", -(-BATCH // count), "--output-dir", tmp_path)
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}",
                           "main.py", *map(str, words)], cwd=ROOT, env=os.environ, capture_output=True, text=True,
                          timeout=200)
    assert done.returncode == 0, done.stderr
    assert f"{count} process(es) on cuda:0" in done.stdout
    if count == 1:
        assert (tmp_path / "accuracy_matrix.csv").read_text() == (
            on_gpu(METHODS[0]) / "accuracy_matrix.csv").read_text()


# ---- speed ----
def test_the_speed_test(data, tmp_path):
    finish(*command(METHODS[0], data, DEVICE), "--speed_test_only", "--output-dir", tmp_path)
    found = json.loads((tmp_path / "speed.json").read_text())
    for part in found["parts"]:
        assert part["images_per_second"] > 0
        assert 0 < part["fraction_of_peak"] < 1
        assert part["peak_memory_bytes"] > 0

