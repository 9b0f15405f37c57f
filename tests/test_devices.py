"""Devices that are not the CPU, as far as a machine without them can tell.

`stand_in` holds values on the CPU and says that they lie elsewhere: whole runs are made on it, backward pass included,
and give what the CPU gives. torch's fake tensors say `cuda` and have no values: whoever reads one is found out. Neither
shows how an accelerator computes: its kernels, its rounding, its memory, its streams or its speed.
"""

import contextlib
import io
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fixtures import write_npz
from methods import CLASSES, METHODS, WORDS, Method
from stand_in import PLACE, Elsewhere, stand_in
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import main
import outputs
from build import build_batches, build_recipe, choose_device, choose_precision, device_warning, read_scenario
from configs.command import parse
from engine import Continual
from errors import InputError
from interruption import StopRequest
from models import QueryCache, build_model
from models.ridge import RidgeHead
from training import train_step
from utils import Processes

CUDA = torch.device("cuda:0")
FEW = ("l2p", "coda", "ridge", "aligned")
"""Rows that differ most; `make test-long` takes all of them."""


def rows(few: tuple[str, ...], methods: list[Method] = METHODS) -> Any:
    return pytest.mark.parametrize("method", [
        pytest.param(method, marks=() if method.name in few else pytest.mark.long) for method in methods], ids=str)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_npz(tmp_path_factory.mktemp("data") / "data.npz", CLASSES, train_per_class=2, test_per_class=2)


def options_of(method: Method, data: Path, *words: object) -> Any:
    words = (*method.words[:1], "--data-path", data, "--num-tasks", 2, *WORDS, *method.words[1:], *words)
    return parse([str(word) for word in words])


# ---- which device ----
@pytest.mark.parametrize(("there", "name", "processes", "found"), [
    (True, "auto", 1, "mps"), (True, "mps", 1, "mps"), (False, "auto", 1, "cpu"), (True, "auto", 2, "cpu"),
    (False, "mps", 1, "torch finds no GPU of Apple's here"), (True, "mps", 2, "serves one process, not 2")])
def test_apples_gpu_is_taken_where_it_is(there, name, processes, found, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    processes = Processes(world_size=processes, local_world_size=processes)
    if found in ("cpu", "mps"):
        device = choose_device(name, processes)
        assert device.type == found
        assert choose_precision("auto", device) == "fp32"
        assert ("was never run by those who wrote" in (device_warning(device) or "")) == (found == "mps")
    else:
        with pytest.raises(InputError, match=found):
            choose_device(name, processes)


# ---- a device without float64 ----
def test_the_stand_in_is_a_device_of_its_own():
    """One that let everything pass would prove nothing."""
    with stand_in():
        there, here = torch.ones(3, device=PLACE), torch.ones(3)
        assert isinstance(there, Elsewhere)
        assert there.device == (here.to(PLACE) + there).device == PLACE
        assert (there + 1).tolist() == [2.0, 2.0, 2.0]
        assert not isinstance(there.cpu(), Elsewhere)
        with pytest.raises(RuntimeError, match="two devices"):
            there + here
        with pytest.raises(TypeError, match="no float64"):
            there.double()
        with pytest.raises(TypeError, match="no float64"):
            torch.zeros(3, dtype=torch.float64, device=PLACE)


def test_ridge_regression_sums_and_solves_in_float64_beside_a_device_that_has_none():
    heads = [RidgeHead(12, 4, 20, seed=1) for _ in range(2)]
    draw = torch.Generator().manual_seed(0)
    with stand_in():
        heads[1].to(PLACE)
        for task in range(2):
            features_ND, labels_N = torch.randn(30, 12, generator=draw), torch.arange(30) % 2 + 2 * task
            for head, device in zip(heads, ("cpu", PLACE), strict=True):
                head.observe(features_ND.to(device), labels_N.to(device))
                head.settle(task)
        assert isinstance(heads[1].weights_MK, Elsewhere)
        for name, sums in heads[1].statistics().items():
            assert (sums.device.type, sums.dtype) == ("cpu", torch.float64)
            torch.testing.assert_close(sums, heads[0].statistics()[name], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(heads[1].weights_MK.cpu(), heads[0].weights_MK, rtol=1e-4, atol=1e-6)
        assert heads[1].seen_K.tolist() == [True] * 4


@rows(("l2p, then ridge",))
def test_a_run_elsewhere_computes_what_the_cpu_does(method, data, tmp_path, monkeypatch):
    """From the options to summary.json, with every checkpoint, and an evaluation of these on the CPU.

    The optimizer is one that torch does not refuse to fuse for a device that it does not know.
    """
    monkeypatch.setattr(outputs.Reporter, "_plot", lambda reporter, run: None)
    found = {}
    for device in ("cpu", "meta"):
        command = options_of(method, data, "--opt", "rmsprop", "--output_dir", tmp_path / device)
        with stand_in(), contextlib.redirect_stdout(io.StringIO()):
            found[device] = main.build_and_run(command, Processes(), torch.device(device), "fp32", (),
                                               time.monotonic()).found
    assert found["meta"]["config"]["device"] == "meta"
    for name in ("acc@1", "loss", "forgetting", "trainable_parameters"):
        assert found["meta"][name] == pytest.approx(found["cpu"][name], rel=1e-4), name
    with contextlib.redirect_stdout(io.StringIO()):
        again = main.run_experiment(["--eval", "--output_dir", str(tmp_path / "meta"), "--device", "cpu"])
    assert again["loss"] == pytest.approx(found["meta"]["loss"], rel=1e-4)


# ---- CUDA, without values ----
def on_cuda(model: torch.nn.Module) -> torch.nn.Module:
    """As `.to`, which cannot exchange a parameter for a fake one."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    moved = tensor.detach().to(CUDA)
                    tensors[name] = moved if tensors is module._buffers else torch.nn.Parameter(
                        moved, tensor.requires_grad)
    return model


@pytest.fixture
def continual_on_cuda(data, monkeypatch):
    """Makes a method's parts, on a GPU of 64 GB that torch only imagines; what asks the driver is left out."""
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=2**36))
    with contextlib.ExitStack() as modes:
        def make(method: Method) -> Continual:
            options = options_of(method, data, "--no-pin_mem").options
            scenario = read_scenario(options)
            model = build_model(options, scenario.num_classes, scenario.tasks_known_in_training)
            modes.enter_context(FakeTensorMode(allow_non_fake_inputs=True))  # for the rest of the test
            return Continual(on_cuda(model), scenario, build_batches(options, model, CUDA, Processes()),
                             build_recipe(options), Processes(), outputs.Silent(), CUDA, QueryCache(),
                             StopRequest(1, set()))

        yield make


def line_that_raised(error: BaseException, file: str) -> str:
    """The line of the innermost frame in one of our files."""
    lines = [(Path(frame.path).name, str(frame.statement)) for frame in pytest.ExceptionInfo.from_exception(
        error).traceback]
    return next(statement for name, statement in reversed(lines) if name == file)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@rows(FEW)
def test_an_evaluation_on_cuda_reads_nothing_before_its_end(method, continual_on_cuda):
    """Batches, query, prompts, logits, metrics and counts all lie on the GPU, and the first value that is read is the
    sums of the whole test set. What comes of it, fake tensors cannot tell."""
    continual = continual_on_cuda(method)
    batch = next(continual.batches.evaluation(continual.scenario.tested[0].test))
    output = continual.model.eval()(batch.images_BCHW)
    tensors = [batch.images_BCHW, batch.labels_B, output.logits_BK]
    tensors += [] if output.selected_BN is None else [output.selected_BN]
    assert {tensor.device for tensor in tensors} == {CUDA}
    assert all(store.device == CUDA for store in continual.batches._on_gpu.values()), "the pixels stay there"
    with pytest.raises(DataDependentOutputException) as raised:
        continual.evaluate(0, per_image=False)
    assert "sum_over_processes(self._values).tolist()" in line_that_raised(raised.value, "training.py")


@rows(FEW, [method for method in METHODS if method.trains()])
def test_a_step_on_cuda_reads_nothing(method, continual_on_cuda, monkeypatch):
    """Forward pass, clipping and optimizer. Not the backward pass, for which torch wants a real GPU: what it would
    leave, gradients of zero, is put in its place. `test_a_run_elsewhere_computes_what_the_cpu_does` has a backward
    pass, and a GPU's own tests have all of it."""
    continual = continual_on_cuda(method)
    trained = [parameter for _, parameter in continual.model.trained_parameters()]

    def backward(loss: torch.Tensor) -> None:
        assert (loss.device, loss.shape, loss.requires_grad) == (CUDA, (), True)
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    optimizer, _ = continual._optimizer()
    task = continual.scenario.tasks[0]
    continual.model.train()
    continual.model.prompt.begin_task(0)
    outside_K = continual._outside(task.classes)
    for batch in continual.batches.training(task.train, 0, 0):
        loss, hits = train_step(continual.model, optimizer, batch, 0, outside_K, 1.0)
        assert (loss.device, hits.device) == (CUDA, CUDA)
    assert {part.device for state in optimizer.state.values() for part in state.values()} == {CUDA}
    with pytest.raises(DataDependentOutputException):
        loss.item()
