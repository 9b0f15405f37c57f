"""Nothing in a training step waits for the device: no value is read back, and no shape hangs on one."""

from contextlib import contextmanager

import pytest
import torch
from tiny_vits import images_for, tiny_vit
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode

from continual_datasets import Batches, images_in_memory
from continual_datasets.transforms import EvalTransform, TrainTransform
from models.prompted_vit import PromptedViT
from prompt import PromptPool
from training import train_step

CLASSES = 6
# What reads a tensor's values on the host, as Python sees it and as torch's dispatcher does.
READING_CALLS = {"item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "nonzero",
                 "masked_select", "unique", "is_nonzero", "__contains__", "equal", "allclose"}
READING_OPS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::equal",
               "aten::is_nonzero", "aten::unique_dim", "aten::unique_consecutive"}


class Readings(TorchDispatchMode):
    """Records every call inside it that would make the host wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split(".")[0]
        by_mask = name in ("aten::index", "aten::index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1])
        if name in READING_OPS or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class Calls(TorchFunctionMode):
    def __init__(self, found: list[str]):
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = (resolve_name(func) or getattr(func, "__name__", "")).rpartition(".")[2]
        if name in READING_CALLS:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def readings():
    with Readings() as ops, Calls(ops.found):
        yield ops.found


def parts(device: str = "cpu", **changes):
    torch.manual_seed(0)
    settings = {"trained_key": True, "batchwise": True, "task_mask": False} | changes
    vit = tiny_vit("32 pixels")
    prompt = PromptPool(vit.embed_dim, 6, 2, 3, initializer="uniform", key_initializer="uniform", share_prompts=True,
                        share_keys=True, pull_coefficient=0.5, generator=torch.Generator().manual_seed(1), **settings)
    model = PromptedViT(vit, prompt, torch.nn.Linear(vit.embed_dim, CLASSES), head_type="prompt",
                        prompt_pos_embed="none", freeze=("backbone",)).to(device)
    pixels = (images_for(vit, 24).movedim(1, -1).clamp(-1, 1) * 127 + 128).to(torch.uint8).numpy()
    images = images_in_memory(pixels, torch.arange(24).remainder(CLASSES).numpy())
    batches = Batches(TrainTransform(32, (0.05, 1.0), (0.75, 1.33), 0.5, None, None), EvalTransform(32, None, None),
                      batch_size=8, seed=1, device=torch.device(device))
    return model.train(), batches, images


def one_epoch(model, batches, images, device: str = "cpu", replay=()) -> list[torch.Tensor]:
    """Steps as the engine takes them; the optimizer's own arithmetic is left out where it is not ours."""
    optimizer = torch.optim.Adam([p for _, p in model.trained_parameters()], lr=0.01, fused=device != "cpu")
    if device == "cpu":
        optimizer.step = lambda: None
    outside_K = torch.zeros(CLASSES, dtype=torch.bool, device=device)
    steps = iter(batches.training(images, 0, 0, replay=replay))
    return [train_step(model, optimizer, next(steps), 0, outside_K, 1.0)[0] for _ in range(3)]


@pytest.mark.parametrize("replayed", [False, True])
@pytest.mark.parametrize("changes", [{}, {"batchwise": False}, {"trained_key": False}, {"task_mask": True}],
                         ids=lambda changes: ",".join(changes) or "vote")
def test_a_step_reads_no_value(changes, replayed):
    model, batches, images = parts(**changes)
    with readings() as found:
        losses = one_epoch(model, batches, images, replay=[images] if replayed else ())
    assert found == []
    assert len(losses) == 3


@pytest.mark.parametrize("reading", [
    lambda x: x.item(), lambda x: x.tolist(), lambda x: x.cpu(), lambda x: bool(x), lambda x: float(x),
    lambda x: x.nonzero(), lambda x: torch.ones(2)[torch.ones(2) > x], lambda x: x.unique()])
def test_the_counter_counts(reading):
    """A counter that missed them would pass the test above."""
    with readings() as found:
        reading(torch.zeros(()))
    assert found
