"""How a task is trained: the recipe, one step, the sums over steps, and what of it a checkpoint holds.

Shapes: B images in a batch, K classes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from continual_datasets import Batch
from utils import gathered_in_order, sum_over_processes


@dataclass(frozen=True)
class Recipe:
    """How to train and to evaluate: what the options say, and nothing of where it runs."""

    epochs: int
    make_optimizer: Callable[[Iterable[tuple[str, nn.Parameter]]], torch.optim.Optimizer]
    make_schedule: Callable[[torch.optim.Optimizer, int], Any]
    """A timm scheduler for so many epochs, or None for a constant rate."""
    clip_grad: float | None = 1.0
    reinit_optimizer: bool = True
    train_mask: bool = True
    eval_per_image: str = "final"
    """`final`, `always` or `never`: when to evaluate the choice per image beside the batch vote."""
    adapt: str = "all"
    """`all`, `first` or `none`: the tasks that are learned by gradient."""
    follows_drift: bool = False
    """Whether the head is told how far the features of a task's images moved while it was learned."""
    print_freq: int = 10
    seed: int = 42
    lr: float | None = None
    """The rate with which `make_optimizer` begins, scaled by the batch."""

    def adapts_to(self, task: int) -> bool:
        return self.adapt == "all" or (self.adapt == "first" and task == 0)


class Sums:
    """Named sums on the device. Adding to them waits for nothing; reading them does.

    In float32, which every kind of device has: counts are exact up to 16 million.
    """

    def __init__(self, device: torch.device, **start: float):
        self.names = tuple(start)
        self._values = torch.tensor(list(start.values()), dtype=torch.float32, device=device)

    def add(self, **values: Tensor | float) -> None:
        for name, value in values.items():
            self._values[self.names.index(name)] += value

    def here(self) -> dict[str, float]:
        """The sums of this process."""
        return dict(zip(self.names, self._values.tolist(), strict=True))

    def of_each_process(self) -> list[list[float]]:
        """The values of every process, in the order of the processes."""
        return gathered_in_order(self._values[None], 1).tolist()

    def over_processes(self) -> dict[str, float]:
        """The sums over all processes. Call it once: the sums of this process are then gone."""
        return dict(zip(self.names, sum_over_processes(self._values).tolist(), strict=True))


def train_step(learner: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, task: int | None,
               outside_K: Tensor | None, clip_grad: float | None) -> tuple[Tensor, Tensor]:
    """One step (paper eq. 5): cross-entropy over the allowed classes, plus what the prompt method adds.

    `task` is None where training is not told of tasks. Replayed images, last in the batch, may be of any class.

    Returns the loss and the number of hits among new images, both still on the device.
    """
    output = learner(batch.images_BCHW, task=task)
    new = slice(batch.num_new)
    logits_BK = masked(output.logits_BK[new], outside_K)
    hits = (logits_BK.argmax(1) == batch.labels_B[new]).sum()
    if batch.num_replayed:
        logits_BK = torch.cat([logits_BK, output.logits_BK[batch.num_new:]])
    loss = F.cross_entropy(logits_BK, batch.labels_B)
    if output.aux_loss is not None:
        loss = loss + output.aux_loss
    optimizer.zero_grad(set_to_none=True)
    (loss * batch.share).backward()  # the share makes the mean over processes the mean over images
    if clip_grad is not None:
        nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], clip_grad)
    optimizer.step()
    return loss.detach(), hits


def training_state(optimizer: torch.optim.Optimizer | None, schedule: Any) -> dict[str, Any]:
    """What of training a checkpoint holds beside the model."""
    return {"optimizer": optimizer.state_dict() if optimizer else None,
            "schedule": [part.state_dict() for part in _schedule_parts(schedule)]}


def load_training_state(optimizer: torch.optim.Optimizer, schedule: Any, state: dict[str, Any]) -> None:
    """Take over what `training_state` gave."""
    optimizer.load_state_dict(state["optimizer"])
    for part, saved in zip(_schedule_parts(schedule), state["schedule"], strict=True):
        part.load_state_dict(saved)


def _schedule_parts(schedule: Any) -> list[Any]:
    """What of a timm schedule has a state: itself, and torch's scheduler inside `plateau`, which timm leaves out."""
    return [part for part in (schedule, getattr(schedule, "lr_scheduler", None)) if part is not None]


def masked(logits_BK: Tensor, outside_K: Tensor | None) -> Tensor:
    return logits_BK if outside_K is None else logits_BK.masked_fill(outside_K, float("-inf"))


def means(sums: dict[str, float]) -> tuple[float, float]:
    """Mean loss and accuracy in percent."""
    images = max(sums["images"], 1)
    return sums["loss"] / images, 100 * sums["hits"] / images
