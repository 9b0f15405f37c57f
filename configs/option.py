"""What an option is, and the types of its values: text to value, or an error that says what is accepted."""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from paths import expanded

# Every number has an upper bound: one that sizes memory or a loop, or is squared and multiplied, ends a run otherwise.
EPOCHS = 1_000_000
RATE = 1e6  # of learning rates and what they are multiplied by: products of two fit float32


def integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if len(text) > 100 and text.isdecimal():  # Python refuses to read thousands of digits
            value = high + 1
        if value < low:
            raise argparse.ArgumentTypeError(f"{_shortened(text)} is not a whole number of at least {low}")
        if value > high:
            raise argparse.ArgumentTypeError(f"{_shortened(text)} is too much: give at most {high}")
        return value

    return parse


def number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{_shortened(text)} is not a finite number of at least {low:g}")
        if value > high:
            raise argparse.ArgumentTypeError(f"{_shortened(text)} is too much: give at most {high:g}")
        return value

    return parse


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:30]}…{text[-5:]}")


def path(text: str) -> str:
    """A path, `~` expanded. `checks` looks whether what lies there can be used."""
    try:
        return expanded(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(error) from error


def meeting_place(text: str) -> str:
    """A URL for torch.distributed, which would take file://folder/name for /name."""
    scheme, _, place = text.partition("://")
    if scheme == "file" and not path(place).startswith("/"):
        raise argparse.ArgumentTypeError(f"{text!r} is no file://, and an absolute path behind it")
    return text


def boolean(text: str) -> bool:
    """'true' and 'False' alike: a flag that reads the word False as true has cost people runs."""
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"{_shortened(text)} is neither true nor false")
    return words[text.lower()]


_OF_THE_REFERENCE = {"Imagenet-R": "ImageNet-R", "Flower102": "Flowers102", "Split-Imagenet-R": "Split-ImageNet-R",
                     "Split-Flower102": "Split-Flowers102"}


def datasets(text: str) -> str:
    """Names of data sets, with ours in the place of other names in the PyTorch re-implementation."""
    if text == "CIFAR100":  # of its first releases, which know no other
        return "Split-CIFAR100"
    return ",".join(_OF_THE_REFERENCE.get(name.strip(), name) for name in text.split(","))


def word(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("'' is no word; for an empty list give the option alone")
    return text


def or_none(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: None if text.lower() == "none" else parse(text)


@dataclass(frozen=True)
class Option:
    name: str
    type: Callable[[str], Any]
    default: Any
    help: str
    choices: tuple[str | None, ...] | None = None
    nargs: str | int | None = None
    inert: bool = False  # accepted because existing commands carry it; does nothing, and says so
    run_only: bool = False  # says how this process runs, not what is computed; not taken over by --eval or --resume
