"""Kinds of values, of which descriptions of saved files are made.

`check(value, where)` of each kind raises `Mismatch`, which names the field and says what it must be.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

MAX_WHOLE = 2**63 - 1


class Mismatch(Exception):
    """A value is not as described: the text names the field and says what it must be."""

    def __init__(self, where: str, must_be: str, value: Any):
        super().__init__(f"{where} must be {must_be}, and is {shown(value)}")


class Kind(Protocol):
    def check(self, value: Any, where: str) -> None: ...


@dataclass(frozen=True)
class Anything:
    def check(self, value: Any, where: str) -> None:
        pass


@dataclass(frozen=True)
class Text:
    def check(self, value: Any, where: str) -> None:
        if not isinstance(value, str):
            raise Mismatch(where, "a text", value)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Mismatch(where, "a text in UTF-8", value) from None
        if "\0" in value:
            raise Mismatch(where, "a text without NUL characters", value)


@dataclass(frozen=True)
class Flag:
    def check(self, value: Any, where: str) -> None:
        if not isinstance(value, bool):
            raise Mismatch(where, "true or false", value)


@dataclass(frozen=True)
class Whole:
    low: int = 0
    high: int = MAX_WHOLE

    def check(self, value: Any, where: str) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not self.low <= value <= self.high:
            limits = f"from {self.low} to {self.high}" if self.high < MAX_WHOLE else f"of at least {self.low}"
            raise Mismatch(where, f"a whole number {limits}", value)


@dataclass(frozen=True)
class Number:
    """A finite number, or with `infinite` one that may be infinite; never NaN."""

    low: float = -math.inf
    high: float = math.inf
    infinite: bool = False

    def check(self, value: Any, where: str) -> None:
        if isinstance(value, int) and not isinstance(value, bool):
            Whole(-MAX_WHOLE).check(value, where)
            value = float(value)
        if not isinstance(value, float) or math.isnan(value) or (math.isinf(value) and not self.infinite):
            raise Mismatch(where, "a finite number", value)
        if not self.low <= value <= self.high:
            raise Mismatch(where, f"from {self.low:g} to {self.high:g}", value)


@dataclass(frozen=True)
class Exactly:
    """One value: a text, a truth value, None, or a list of small numbers."""

    value: Any

    def check(self, value: Any, where: str) -> None:
        if type(value) is not type(self.value) or value != self.value:
            raise Mismatch(where, shown(self.value), value)


@dataclass(frozen=True)
class OrNone:
    kind: Kind

    def check(self, value: Any, where: str) -> None:
        if value is not None:
            self.kind.check(value, where)


@dataclass(frozen=True)
class ListOf:
    kind: Kind
    length: int | None = None

    def check(self, value: Any, where: str) -> None:
        if not isinstance(value, list | tuple) or self.length not in (None, len(value)):
            raise Mismatch(where, "a list" if self.length is None else f"a list of {self.length} values", value)
        for number, item in enumerate(value):
            self.kind.check(item, f"{where}[{number}]")


@dataclass(frozen=True)
class MapOf:
    """Any names, each with a value of one kind."""

    kind: Kind

    def check(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise Mismatch(where, "an object with names", value)
        for name, item in value.items():
            Text().check(name, f"a name in {where}")
            self.kind.check(item, f"{where}.{name}")


@dataclass(frozen=True)
class Fields:
    """Certain names, each with a value of its own kind. Further names are no fault, unless it is `closed`."""

    required: dict[Any, Kind]
    optional: dict[Any, Kind] = field(default_factory=dict)
    closed: bool = False

    def check(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise Mismatch(where or "all of it", "an object with names", value)
        inside = f"{where}." if where else ""
        for name, kind in self.required.items():
            if name not in value:
                raise Mismatch(f"{inside}{name}", "there", None)
            kind.check(value[name], f"{inside}{name}")
        for name in self.optional.keys() & value.keys():
            self.optional[name].check(value[name], f"{inside}{name}")
        if self.closed:
            for name in value.keys() - self.required.keys() - self.optional.keys():
                raise Mismatch(where or "all of it", "without further names", name)


@dataclass(frozen=True)
class Array:
    """An ordinary tensor in memory. Shape and dtype are those of `example`, where there is one."""

    example: torch.Tensor | None = None
    finite: bool = False

    def check(self, value: Any, where: str) -> None:
        if not isinstance(value, torch.Tensor):
            raise Mismatch(where, "a tensor", value)
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized or value.is_nested:
            raise Mismatch(where, "an ordinary dense tensor", value)
        if self.example is None:
            return
        if value.shape != self.example.shape or value.dtype != self.example.dtype:
            raise Mismatch(where, shown(self.example), value)
        if self.finite and not value.isfinite().all():
            raise Mismatch(where, "finite in every value", value)


@dataclass(frozen=True)
class Table:
    """Lists of one length, at least one of them."""

    kind: Kind

    def check(self, value: Any, where: str) -> None:
        ListOf(ListOf(self.kind)).check(value, where)
        if not value or not value[0] or len({len(row) for row in value}) != 1:
            raise Mismatch(where, "a table", value)


def like(example: Any, finite: bool = False) -> Kind:
    """A description by example: the same structure and types, tensors of the same shape. Numbers may differ."""
    if isinstance(example, torch.Tensor):
        return Array(example, finite)
    if isinstance(example, dict):
        return Fields({name: like(value, finite) for name, value in example.items()}, closed=True)
    if isinstance(example, list | tuple):
        return Items(tuple(like(value, finite) for value in example))
    if isinstance(example, bool | str) or example is None:
        return Exactly(example)
    if isinstance(example, int):
        return Whole(-MAX_WHOLE)
    return Number(infinite=True)


@dataclass(frozen=True)
class Items:
    """A list in which each place has a kind of its own."""

    kinds: tuple[Kind, ...]

    def check(self, value: Any, where: str) -> None:
        ListOf(Anything(), len(self.kinds)).check(value, where)
        for number, (kind, item) in enumerate(zip(self.kinds, value, strict=True)):
            kind.check(item, f"{where}[{number}]")


def shown(value: Any) -> str:
    """A value in a sentence, in a few words however large or deep it is."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of {list(value.shape)[:8]} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, int) and abs(value) > MAX_WHOLE:
        return "a number of more than 19 digits"
    if isinstance(value, str):
        return ascii(value[:40]) if len(value) <= 40 else f"{value[:40]!a} …"
    if value is None:
        return "missing or empty"
    if isinstance(value, bool | int | float):
        return str(value).lower() if isinstance(value, bool) else str(value)
    if isinstance(value, list | tuple):
        return f"a list of {len(value)} values"
    return "an object with names" if isinstance(value, dict) else f"a {type(value).__name__}"
