"""Command lines, read: the parser made of the options, and what answers a mistyped one.

A command line is read in three layers, each over the one before: the defaults of `configs.base`, the experiment's
`DEFAULTS`, the options given. `--eval` and `--resume` put the options saved in `output_dir/config.json` in place of the
first two.
"""

import argparse
import difflib
import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from configs import DEFAULT_EXPERIMENT, Experiment, experiment_names, load_experiment
from configs.base import ALIASES, GROUPS, OPTIONS
from configs.option import Option, boolean
from errors import InputError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message.replace("argument --", "--", 1))


@dataclass
class Command:
    """A command line, read: which experiment, all its options, and which of them were given explicitly."""

    experiment: str
    options: dict[str, Any]
    given: dict[str, Any]
    warnings: list[str]
    named: bool
    """Whether the experiment was named, or is the default."""
    turn_photos: bool = True
    """Whether photos of one's own are stood upright, as their EXIF says. Runs of older versions did not do so, and go
    on as they began."""


def build_parser(experiment: Experiment | None = None, groups: dict[str, list[Option]] = GROUPS,
                 program: str = "main.py", words: str = "[EXPERIMENT]",
                 about: str = "Learning to Prompt for continual learning. Experiments: main.py --list.",
                 ) -> argparse.ArgumentParser:
    """The parser, its help showing the defaults of `experiment`. Options not given are absent from its result.

    Args:
        words: what stands before the options, for the help.
        about: what the program does, for the help.
    """
    parser = _Parser(
        prog=program, usage=f"{program} {words} [--option value ...]", allow_abbrev=False,
        argument_default=argparse.SUPPRESS, formatter_class=lambda prog: argparse.HelpFormatter(prog, width=120),
        description=f"{about} Options take - and _ alike; booleans: --flag, --no-flag, --flag true, --flag false.")
    defaults = default_options(experiment)
    for title, options in groups.items():
        group = parser.add_argument_group(title)
        for option in options:
            shown = defaults[option.name] if OPTIONS.get(option.name) is option else option.default
            shown = " ".join(map(str, shown)) if isinstance(shown, list) else shown
            about = option.help.replace("%", "%%") + ("" if option.inert else f" [{shown}]")
            if option.type is boolean:
                group.add_argument(f"--{option.name}", type=boolean, nargs="?", const=True, help=about,
                                   metavar="true|false")
                group.add_argument(f"--no_{option.name}", dest=option.name, action="store_false",
                                   help=argparse.SUPPRESS)
            else:
                group.add_argument(f"--{option.name}", type=option.type, nargs=option.nargs, choices=option.choices,
                                   help=about, metavar=None if option.choices else option.name.upper())
    return parser


def default_options(experiment: Experiment | None = None) -> dict[str, Any]:
    options = {name: option.default for name, option in OPTIONS.items()}
    if experiment:
        options["output_dir"] = options["output_dir"].replace("EXPERIMENT", experiment.name)
        options.update(experiment.defaults)
    return options


def parse(argv: Sequence[str], launcher: Collection[str] = ()) -> Command:
    """Read a command line. `launcher`: names of further options, which are only suggested for mistyped ones.

    Raises:
        InputError: an unknown experiment, option or value; or the JAX program's syntax, answered with our command.
    """
    argv = list(argv)
    if any(word.startswith("--my_config") for word in argv):
        raise InputError(translate_jax_command(argv))
    # torch.distributed.launch without --use_env puts its own option before ours
    position = 1 if argv and re.match("--local[-_]rank=", argv[0]) else 0
    named = len(argv) > position and not argv[position].startswith("-")
    experiment = _experiment(argv.pop(position) if named else DEFAULT_EXPERIMENT)
    parser = build_parser(experiment)
    known, unknown = parser.parse_known_args(_plain_words(argv))
    if unknown:
        raise InputError(_unknown(unknown[0], [*OPTIONS, *launcher]))
    given = vars(known)
    warnings = [f"--{name} is accepted for compatibility and does nothing." for name in given if OPTIONS[name].inert]
    options = default_options(experiment) | given
    return Command(experiment.name, options, given, warnings, named)


def split_off(argv: Sequence[str], groups: dict[str, list[Option]], program: str) -> tuple[dict[str, Any], list[str]]:
    """The values of a launcher's own options (`groups`) in a command line, and the words that are left for `parse`.

    Raises:
        InputError: a value that one of these options does not accept.
    """
    known, rest = build_parser(groups=groups, program=program).parse_known_args(_plain_words(argv))
    return {option.name: option.default for group in groups.values() for option in group} | vars(known), rest


def words_and_options(argv: Sequence[str], groups: dict[str, list[Option]],
                      program: str) -> tuple[list[str], dict[str, Any]]:
    """The plain words of a command line whose only options are those in `groups`, and the values of these.

    Raises:
        InputError: an unknown option, or a value that one does not accept.
    """
    options, words = split_off(argv, groups, program)
    for word in words:
        if word.startswith("-"):
            raise InputError(_unknown(word, options, program))
    return words, options


def typed(option: Option, value: Any) -> Any:
    """A value from elsewhere as the command line would give it: numbers of the option's type, a list where it takes
    several. Raises ValueError for one that the option does not accept."""
    several = isinstance(value, list | tuple)
    try:
        parts = [option.type(str(part)) for part in (value if several else [value])]
    except argparse.ArgumentTypeError as error:
        raise ValueError(str(error)) from error
    if several != (option.nargs not in (None, "?")) or (option.choices and set(parts) - set(option.choices)):
        raise ValueError(f"{value!r} is none of its values")
    return parts if several else parts[0]


def accepts(option: Option, value: Any) -> bool:
    """Whether `value`, read from a file, is one that the command line could have given to `option`."""
    if value == option.default and isinstance(value, bool) == isinstance(option.default, bool):
        return True  # a default need not be typable: None, for one
    if option.nargs in (None, "?"):
        return _is_typable(option, value)
    if not isinstance(value, list):
        return False
    if isinstance(option.nargs, int) and len(value) != option.nargs:
        return False
    if option.nargs == "+" and not value:
        return False
    return all(_is_typable(option, part) for part in value)


def _is_typable(option: Option, value: Any) -> bool:
    """Whether the option's own type makes `value` of the text that it is written as."""
    if not isinstance(value, str | int | float | None):
        return False
    try:
        typed = option.type(str(value))
    except (ValueError, argparse.ArgumentTypeError):
        return False
    if isinstance(value, str):  # a type may write a text in another way, such as ~/data without the ~
        fits = isinstance(typed, str)
    else:
        fits = typed == value and isinstance(typed, bool) == isinstance(value, bool)
    if not fits:
        return False
    return option.choices is None or value in option.choices


def _experiment(name: str) -> Experiment:
    names = experiment_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "main.py --list prints them all."
        raise InputError(f"unknown experiment {name!r}: {hint}")
    return load_experiment(name)


def _plain_words(argv: Sequence[str]) -> list[str]:
    """Options with underscores, short names in full.

    A `--` alone is refused: argparse would take it out, and leave an empty list behind.
    """
    for word in argv:
        if word == "--" or (word.startswith("--") and word.endswith("=--")):
            raise InputError(f"{word}: -- is no value; leave it out.")
    return [_plain(word) for word in argv]


def _plain(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    name = name[2:].replace("-", "_")
    return "--" + ALIASES.get(name, name) + equals + value


def _unknown(word: str, names: Collection[str], program: str = "main.py") -> str:
    if not word.startswith("-"):
        return f"unexpected word {word!r}: the experiment comes first, and every other word belongs to an option."
    typed = word.partition("=")[0]
    name = typed.lstrip("-")
    begun = [name] if name in names else [option for option in names if name and option.startswith(name)][:3]
    near = begun or difflib.get_close_matches(name, names, n=2, cutoff=0.7)
    return f"unknown option {typed}: " + (
        f"did you mean {' or '.join('--' + n for n in near)}?" if near else f"{program} --help prints them all.")


# The official program's config names and fields, and ours.
_JAX_EXPERIMENTS = {"cifar100_l2p": "cifar100_l2p_jax", "five_datasets_l2p": "five_datasets_l2p_jax",
                    "imr_dualprompt": "imagenet_r_dualprompt"}
_JAX_OPTIONS = {"init_checkpoint": "init_checkpoint", "seed": "seed", "learning_rate": "lr", "num_epochs": "epochs",
                "per_device_batch_size": "batch_size", "weight_decay": "weight_decay"}
# Its models that timm has, with weights of ImageNet-21k. Its largest two drop a tenth of the values in training.
_JAX_MODELS = {"ViT-B_16": "vit_base_patch16_224", "ViT-B_32": "vit_base_patch32_224.orig_in21k",
               "ViT-L_16": "vit_large_patch16_224.orig_in21k", "ViT-L_32": "vit_large_patch32_224.orig_in21k",
               "ViT-H_14": "vit_huge_patch14_224.orig_in21k", "ViT-S_16": "vit_small_patch16_224.augreg_in21k"}
_JAX_DROPOUT = {"ViT-L_16": ["--drop", "0.1"], "ViT-H_14": ["--drop", "0.1"]}


def translate_jax_command(argv: Sequence[str]) -> str:
    """The sentence that answers `--my_config configs/X.py --workdir=DIR --my_config.field=value`."""
    pairs: list[list[str]] = []
    for word in argv:
        if word.startswith("--") or not pairs:
            pairs.append([*word.split("=", 1), ""][:2])
        else:
            pairs[-1][1] = word
    experiment, command, untranslated = DEFAULT_EXPERIMENT, [], []
    for key, value in pairs:
        field = key.removeprefix("--my_config.")
        if key == "--my_config":
            experiment = value.rsplit("/", 1)[-1].removesuffix(".py")
        elif key == "--workdir":
            command += ["--output_dir", value]
        elif key.startswith("--my_config.") and field in _JAX_OPTIONS:
            command += [f"--{_JAX_OPTIONS[field]}", value]
        elif key.startswith("--my_config.") and field == "model_name" and value in _JAX_MODELS:
            command += ["--model", _JAX_MODELS[value], *_JAX_DROPOUT.get(value, [])]
        else:
            untranslated.append(f"{key}={value}")
    ours = _JAX_EXPERIMENTS.get(experiment, experiment)
    text = "this is the syntax of the official JAX program; here the same run is: " + shlex.join(
        ["python", "main.py", ours, *command])
    if ours not in experiment_names():
        text += f" (but there is no experiment {ours}: main.py --list)"
    if untranslated:
        text += f" (not translated: {' '.join(untranslated)}; see main.py --help)"
    return text
