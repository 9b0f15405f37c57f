"""The prompt family: a file for each method beside L2P, which lies in `prompt.py`.

A method is found by its name: `--prompt_method coda` is `prompt_methods/coda.py`. Its function `build(host, *, …)`
takes the options that its arguments are named after, so nothing else has to know of a new method but `configs/base.py`,
where the words of the command line are.
"""

import importlib
import inspect
from collections.abc import Collection, Iterable, Mapping
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


def untaken_options(options: Mapping[str, Any], given: Collection[str], methods: Iterable[str]) -> list[str]:
    """Those of the options given that are some prompt method's, and not of the one that is chosen.

    Args:
        given: names of the options that a command line has.
        methods: the names of all prompt methods.
    """
    name = options["prompt_method"]
    taken = prompt.WITHOUT_POOL if name == "l2p" and not options["prompt_pool"] else options_of(name)
    of_some = {option for method in methods for option in options_of(method)}
    return [option for option in given if option in of_some and option not in taken]


def _module(name: str) -> ModuleType:
    return prompt if name == "l2p" else importlib.import_module(f"{__name__}.{name}")
