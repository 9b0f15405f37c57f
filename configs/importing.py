"""The command line of `import_run.py`, and the options of the PyTorch re-implementation as ours."""

from dataclasses import dataclass
from typing import Any

from configs.base import OPTIONS
from configs.command import Command, default_options, parse, typed
from configs.option import Option
from errors import InputError

PROGRAM = "import_run.py"
WORDS = "REFERENCE_DIR OUTPUT_DIR"
ABOUT = ("Make a run of this program from what the PyTorch re-implementation of L2P wrote: its options, where none are "
         "given here, prompts, keys, head and backbone.")

# What its processes found out for themselves, and where they ran: no option of ours, and nothing is lost.
_NO_OPTIONS = {"nb_classes", "distributed", "rank", "gpu", "dist_backend", "local_rank", "subparser_name"}
_OF_THE_MACHINE = {"device"}


@dataclass(frozen=True)
class Import:
    """A command line of import_run.py, read."""

    reference_dir: str
    output_dir: str
    command: Command
    """main.py's part: `given` goes before what the files say."""


def read_import(argv: list[str]) -> Import:
    """Read a command line of import_run.py.

    Raises:
        InputError: one that is not complete, or with options that main.py does not know.
    """
    if len(argv) < 2 or argv[0].startswith("-") or argv[1].startswith("-"):
        raise InputError(f"the folder of the reference's files and the one of the new run come first: {PROGRAM} "
                         f"{WORDS} [--option value ...].")
    command = parse(argv[2:])
    if command.named:
        raise InputError(f"unexpected word {argv[2]!r}: the options come from the reference's files, and no experiment "
                         "is named.")
    if given := [name for name in command.given if OPTIONS[name].run_only and name != "download"]:
        raise InputError(f"--{given[0]} says how main.py runs: leave it out here.")
    return Import(argv[0], argv[1], command)


def translated(reference: dict[str, Any], given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """All options of main.py from the reference's; and the names of those that mean nothing here.

    Args:
        reference: its `args`.
        given: options that go before them.

    Raises:
        InputError: a value that has no counterpart, named with what to give instead.
    """
    options, unknown = default_options(), []
    # It saves the rate that it trained with; ours is for a batch of 256.
    reference = dict(reference)
    if isinstance(reference.get("lr"), float):
        processes = 1 if reference.get("unscale_lr", True) else reference.get("world_size") or 1
        reference["lr"] = reference["lr"] * 256 / (reference["batch_size"] * processes)
    for name, value in reference.items():
        option = OPTIONS.get(name)
        if option is None:
            unknown += [name] * (name not in _NO_OPTIONS)
        elif not option.run_only and name not in given and name not in _OF_THE_MACHINE:
            options[name] = _value(option, value)
    options |= {"precision": "fp32"} | given  # it knows no other
    if options["shuffle"] and "shuffle" not in given:
        if options["dataset"] == "5-datasets" or "," in options["dataset"]:
            if "dataset" not in given:
                raise InputError("--dataset A,B,… is missing: the reference shuffled its data sets (--shuffle) and did "
                                 "not save their order, but printed it; give them in that order.")
        elif options["class_order"] is None:
            raise InputError("--class_order FILE is missing: the reference shuffled its classes (--shuffle) and did "
                             "not save their order; write it into a file, a class on each line.")
        options["shuffle"] = False
    return options, unknown


def _value(option: Option, value: Any) -> Any:
    """The reference's value as ours of the same name: numbers of our type, lists for tuples."""
    if value is None:
        return option.default if option.nargs else None
    try:
        return typed(option, value)
    except ValueError as error:
        raise InputError(f"the reference ran with --{option.name} {value!r}, which this program does not have: give "
                         f"another with --{option.name}.") from error
