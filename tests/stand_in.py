"""A device that is not the CPU, without one: tensors that hold their values on the CPU and say that they lie elsewhere.

They say `meta`, the only kind of device beside the CPU for which torch's backward pass needs no driver. As an
accelerator does, the stand-in refuses to compute with tensors of two devices; as Apple's mps does, it has no float64.
It shows nothing of an accelerator's kernels, their rounding or their speed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

PLACE = torch.device("meta")
MOVES = ("aten::_to_copy", "aten::copy_", "aten::lift_fresh", "aten::detach")


class Elsewhere(torch.Tensor):
    """Values that lie on the stand-in."""

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> "Elsewhere":
        if values.dtype == torch.float64:
            raise TypeError("the stand-in has no float64")
        made = torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype, device=PLACE,
                                                   strides=values.stride(), storage_offset=values.storage_offset())
        made.values_of = values
        return made

    def __repr__(self) -> str:
        return f"Elsewhere({self.values_of})"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.tolist:  # torch refuses it for subclasses
            return args[0].values_of.tolist()
        with torch._C.DisableTorchFunctionSubclass():  # which would call what comes back from here an Elsewhere
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


def compute(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Carry out one of torch's operations on the values, and let what comes of it lie where it should."""
    name = func.name().partition(".")[0]
    flat, _ = tree_flatten((args, kwargs))
    tensors = [part for part in flat if isinstance(part, torch.Tensor)]
    here = [part for part in tensors if isinstance(part, Elsewhere)]
    target = kwargs.get("device")
    if target is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
        to_stand_in = torch.device(target).type == PLACE.type
    else:
        to_stand_in = bool(here) if name != "aten::copy_" else isinstance(args[0], Elsewhere)
    if here and name not in MOVES and any(part.ndim and not isinstance(part, Elsewhere) for part in tensors):
        raise RuntimeError(f"{name}: the tensors lie on two devices")
    if name == "aten::_local_scalar_dense":
        to_stand_in = False
    plain_args, plain_kwargs = tree_map(lambda part: part.values_of if isinstance(part, Elsewhere) else part,
                                        (args, kwargs))
    found = func(*plain_args, **plain_kwargs)
    if func._schema.is_mutable and found is plain_args[0]:  # in place: what was given comes back
        return args[0]
    if not to_stand_in:
        return found
    return tree_map(lambda part: Elsewhere(part) if isinstance(part, torch.Tensor) else part, found)


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


class _Constants(TorchFunctionMode):
    """`torch.tensor`, which makes its values past the dispatcher."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") is not None:
            return torch.tensor(*args, **kwargs | {"device": None}).to(kwargs["device"])
        return func(*args, **kwargs)


@contextmanager
def stand_in() -> Iterator[None]:
    """Inside it, what is made for the stand-in's device, or moved to it, lies there."""
    with _Operations(), _Constants():
        yield
