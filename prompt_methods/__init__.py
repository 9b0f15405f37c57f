"""The prompt family: a file for each method beside L2P, which lies in `prompt.py`.

A method is found by its name: `--prompt_method coda` is `prompt_methods/coda.py`. Its function `build(host, *, …)`
takes the options that its arguments are named after, so nothing else has to know of a new method but `configs/base.py`,
where the words of the command line are.
"""

import importlib
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import prompt
from prompt import Host, NoPrompts, PromptMethod


def build_prompt_method(name: str, options: Mapping[str, Any], host: Host) -> PromptMethod:
    """The prompt method `name` with those of the options that it takes.

    Raises:
        InputError: the ViT, or the run, is not one that the method can serve.
    """
    if name == "none":
        return NoPrompts()
    return _module(name).build(host, **{option: options[option] for option in options_of(name)})


def options_of(name: str) -> list[str]:
    """The names of the options that the prompt method `name` takes."""
    if name == "none":
        return []
    return [parameter for parameter in inspect.signature(_module(name).build).parameters if parameter != "host"]


def _module(name: str) -> ModuleType:
    return prompt if name == "l2p" else importlib.import_module(f"{__name__}.{name}")
