"""Every option of the program, once: name, type, default, meaning; and the parser made of them.

Names are those of the PyTorch re-implementation where it has them. A command line is read in three layers, each over
the one before: the defaults below (the PyTorch settings for Split CIFAR-100), the experiment's `DEFAULTS`, the options
given. `--eval` and `--resume` put the options saved in `output_dir/config.json` in place of the first two.
"""

import argparse
import difflib
import math
import re
import shlex
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from configs import DEFAULT_EXPERIMENT, Experiment, experiment_names, load_experiment
from errors import InputError
from paths import expanded

# ---- types: text -> value, or an error that says what is accepted ----
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
    choices: tuple[str, ...] | None = None
    nargs: str | int | None = None
    inert: bool = False  # accepted because existing commands carry it; does nothing, and says so
    run_only: bool = False  # says how this process runs, not what is computed; not taken over by --eval or --resume


INITIALIZERS = ("uniform", "flax_uniform", "zero", "normal")
SCHEDULES = ("constant", "cosine", "quarter_cosine", "tanh", "step", "multistep", "poly", "plateau")

_o = Option
GROUPS: dict[str, list[Option]] = {
    "training": [
        _o("batch_size", integer(1, 16_384), 16, "images per process and step, in training and in evaluation"),
        _o("epochs", integer(1, EPOCHS), 5, "passes over each task's images"),
        _o("seed", integer(0, 2**63 - 1), 42, "seed of every random draw"),
        _o("device", str, "auto", "auto (a GPU when there is one), cpu, cuda, cuda:N or mps"),
        _o("print_freq", integer(1, 1_000_000), 10, "steps between progress lines", run_only=True),
    ],
    "speed": [
        _o("precision", str, "auto", "of the ViT: fp32, tf32 and bf16; auto = bf16 on a GPU that has it, else fp32. "
           "What trains, the head and the loss stay in float32", ("auto", "fp32", "tf32", "bf16")),
        _o("compile", boolean, False, "make kernels of the ViT's blocks with torch.compile; takes time at the start"),
        _o("speed_test", boolean, False, "measure speed and memory first: speed.json", run_only=True),
        _o("speed_test_only", boolean, False, "measure speed and memory, and do not train", run_only=True),
    ],
    "model": [
        _o("model", str, "vit_base_patch16_224", "any timm VisionTransformer, with or without a tag"),
        _o("input_size", integer(1, 4096), 224, "side of the square input, pixels"),
        _o("pretrained", boolean, True, "start from the pretrained weights of the model's tag"),
        _o("init_checkpoint", or_none(path), None, "backbone weights: official .npz, .safetensors or .pth"),
        _o("input_norm", str, "none", "pixels: none = [0, 1]; imagenet or the model's own mean and std",
           ("none", "imagenet", "model")),
        _o("drop", number(0, 0.99), 0.0, "dropout rate in the prompted pass"),
        _o("drop_path", number(0, 0.99), 0.0, "stochastic depth rate in the prompted pass"),
        _o("freeze", word, ["backbone"],
           "parameters whose names begin with one of these words do not train: backbone, blocks, norm …; no word: "
           "everything trains",
           nargs="*"),
        _o("head", str, "linear", "classifier: a trained linear layer; or without gradient the nearest class mean, or "
           "ridge regression (RanPAC)", ("linear", "ncm", "ridge")),
        _o("random_features", integer(0, 20_000), 10_000, "ridge: random features, M; 0 takes the ViT's own"),
        _o("align", boolean, False, "after each task, retrain the linear head alone on samples of a Gaussian of every "
           "class seen (SLCA); keeps no image"),
        _o("align_samples", integer(1, 10_000), 256, "align: samples of each class and epoch"),
        _o("align_epochs", integer(1, EPOCHS), 5, "align: epochs"),
        _o("align_lr", number(0, RATE), 0.01, "align: learning rate"),
        _o("align_covariance", str, "full", "align: whole covariances, 2.4 MB a class of a ViT-B, or their diagonals",
           ("full", "diagonal")),
        _o("head_type", str, "prompt", "what the head reads: mean prompt output, cls token, mean token, cls + prompts",
           ("prompt", "token", "gap", "token+prompt")),
        _o("head_init", str, "trunc_normal", "trunc_normal = std 0.02 with zero bias", ("trunc_normal", "zero")),
    ],
    "optimizer": [
        _o("opt", str, "adam", "any timm optimizer"),
        _o("opt_eps", number(0, RATE), 1e-8, "epsilon of the optimizer"),
        _o("opt_betas", number(0, 0.999999), [0.9, 0.999], "betas of the optimizer", nargs=2),
        _o("momentum", number(0, 1), 0.9, "momentum of sgd and the like"),
        _o("weight_decay", number(0, RATE), 0.0, "weight decay of matrices (none for biases)"),
        _o("clip_grad", or_none(number(1e-12, 1e12)), 1.0,
           "largest global gradient norm of what trains; none: no clipping"),
        _o("reinit_optimizer", boolean, True, "a new optimizer and schedule for every task; otherwise, and in a stream "
           "without tasks, one of each for the whole run"),
    ],
    "learning rate": [
        _o("lr", number(0, RATE), 0.03, "learning rate for a batch of 256"),
        _o("unscale_lr", boolean, True, "scale lr by the batch of one process, not of all processes together"),
        _o("sched", str, "constant", "schedule over the epochs of a task, or of the whole run: timm's; quarter_cosine: "
           "CODA-Prompt's, lr * cos(0.495 pi * epoch / (epochs - 1))", SCHEDULES),
        _o("warmup_epochs", integer(0, EPOCHS), 5, "epochs of linear warm-up (not with constant)"),
        _o("warmup_lr", number(0, RATE), 1e-6, "learning rate where the warm-up begins"),
        _o("min_lr", number(0, RATE), 1e-5, "lowest learning rate of cosine, tanh, poly, plateau"),
        _o("decay_epochs", number(1, EPOCHS), 30.0, "epochs between decays (step)"),
        _o("decay_milestones", integer(1, EPOCHS), [30, 60], "epochs at which to decay (multistep)", nargs="+"),
        _o("decay_rate", number(0, 10), 0.1, "factor of a decay (step, multistep, plateau), power (poly)"),
        _o("patience_epochs", integer(0, EPOCHS), 10, "epochs without a lower training loss before a decay (plateau)"),
        _o("cooldown_epochs", integer(0, EPOCHS), 10, "epochs of rest after a decay (plateau)"),
        _o("lr_noise", number(0, 1), None, "one or two shares of the epochs between which the rate is noisy",
           nargs="+"),
        _o("lr_noise_pct", number(0.001, 1), 0.67, "largest share by which noise moves the rate"),
        _o("lr_noise_std", number(0, 100), 1.0, "standard deviation of that noise"),
    ],
    "data": [
        _o("dataset", str, "Split-CIFAR100",
           "a data set of the catalogue (a wrong name prints all), or several with commas between: a task for each"),
        _o("data_path", path, "/local_datasets/", "folder of the data, an archive of it, or an .npz file"),
        _o("download", boolean, False, "fetch missing files into data_path", run_only=True),
        _o("shuffle", boolean, False, "shuffle the order of the classes by seed before they are split into tasks"),
        _o("class_order", or_none(path), None,
           "order of the classes: a file with one (name or number) on each line; seed or seed:N shuffles; numpy:N "
           "shuffles as numpy.random.seed(N) and permutation do; none: as numbered"),
        _o("subsample", or_none(integer(1, 1_000_000_000)), None, "use the first N training images of each class"),
        _o("subsample_test", or_none(integer(1, 1_000_000_000)), None, "use the first N test images of each class"),
        _o("scale", number(0, 1), [0.05, 1.0], "share of the image that a random crop covers", nargs=2),
        _o("ratio", number(0.01, 100), [3 / 4, 4 / 3], "width / height of a random crop", nargs=2),
        _o("hflip", number(0, 1), 0.5, "probability of a horizontal flip"),
        _o("num_workers", integer(0, 256), 4,
           "batches prepared ahead by a thread, or processes that decode image files; changes no number",
           run_only=True),
        _o("pin_mem", boolean, True, "pinned memory for copies to a GPU", run_only=True),
    ],
    "continual learning": [
        _o("schedule", str, "tasks", "tasks one after another; or gaussian: a stream without tasks, in which classes "
           "come and go gradually", ("tasks", "gaussian")),
        _o("gaussian_episodes", integer(1, 10_000), 200, "episodes of the stream, each with a fixed set of classes"),
        _o("gaussian_steps", integer(1, 10_000), 5, "batches that an episode trains in each of its epochs"),
        _o("gaussian_width", number(1e-6, 1e9), 50.0,
           "standard deviation of a class's probability to be active, in batches of a stream of episodes · steps"),
        _o("gaussian_eval_every", integer(1, 10_000), 10, "episodes between two evaluations"),
        _o("num_tasks", or_none(integer(1, 1_000_000)), None,
           "tasks into which the classes are split equally; none: 10, or as many as classes_per_task or the data make"),
        _o("classes_per_task", or_none(integer(1, 1_000_000)), None,
           "classes of a task; the last task has what is left"),
        _o("adapt", str, "all", "the tasks on which what trains is trained by gradient", ("all", "first", "none")),
        _o("joint", boolean, False, "the bound: all tasks' images in one stretch, as many steps as task after task, "
           "tested on each task"),
        _o("train_mask", boolean, True, "train on the classes of the current task only: other logits are -inf"),
        _o("task_inc", boolean, False, "task-incremental test: logits outside the image's own task are -inf"),
        _o("replay_per_class", integer(0, 1_000_000), 0,
           "images of each class that are kept (L2P-R): from the second task on, each batch is joined by as many of "
           "them; --train_mask does not concern these"),
    ],
    "prompts": [
        _o("prompt_method", str, "l2p", "L2P; DualPrompt; CODA-Prompt; OnePrompt, which has no pool; none: no prompts",
           ("l2p", "dualprompt", "coda", "oneprompt", "none")),
        _o("prompt_pool", boolean, True, "choose prompts from a pool; otherwise one prompt is always used"),
        _o("prompt_layers", integer(0, 1_000), [0],
           "blocks of the ViT, from 0, that the chosen prompts go to", nargs="+"),
        _o("g_prompt_layers", integer(0, 1_000), [0, 1],
           "dualprompt, oneprompt: blocks with keys and values for every image", nargs="+"),
        _o("g_prompt_length", integer(1, 1_000), 5, "dualprompt, oneprompt: how many of those in a block"),
        _o("orthogonality", number(0, 1e6), 0.1,
           "coda: weight of the penalty on components that are not orthogonal, mu"),
        _o("prompt_choice", str, "nearest", "l2p: the prompts of the nearest keys; or, as controls, random ones or the "
           "first ones for every image, without keys and query", ("nearest", "random", "fixed")),
        _o("size", integer(1, 10_000), 10, "prompts in the pool, M"),
        _o("length", integer(1, 1_000), 5, "vectors in a prompt, L; coda: half of them keys, half values"),
        _o("top_k", integer(1, 10_000), 5, "prompts chosen for an image, N"),
        _o("initializer", str, "uniform", "prompts: U(-1, 1), U(0, 0.01), zeros, N(0, 1)", INITIALIZERS),
        _o("prompt_key", boolean, True, "a trained key for every prompt; otherwise the mean of its vectors"),
        _o("prompt_key_init", str, "uniform", "keys, as for prompts", INITIALIZERS),
        _o("use_prompt_mask", boolean, False, "in training, task t uses prompts t·top_k to (t+1)·top_k - 1"),
        _o("shared_prompt_pool", boolean, False, "a task's prompts start from the previous task's"),
        _o("shared_prompt_key", boolean, False, "a task's keys start from the previous task's"),
        _o("batchwise_prompt", boolean, True, "one choice for a whole batch of one process, by vote"),
        _o("embedding_key", str, "cls", "query: cls output, or statistics of the embedded patches",
           ("cls", "mean", "max", "mean_max")),
        _o("prompt_pos_embed", str, "cls", "position embedding added to prompts", ("none", "cls")),
        _o("pull_constraint", boolean, True, "pull the chosen keys towards the query"),
        _o("pull_constraint_coeff", number(0, RATE), 0.1, "weight of that pull, lambda"),
        _o("eval_per_image", str, "final", "when to evaluate the choice per image beside the batch vote",
           ("final", "always", "never")),
    ],
    "output": [
        _o("output_dir", path, "./output/EXPERIMENT", "where the run is written; '' saves nothing", run_only=True),
        _o("overwrite", boolean, False, "remove a run that output_dir holds and begin anew", run_only=True),
        _o("resume", boolean, False, "continue the run in output_dir, or begin it", run_only=True),
        _o("eval", boolean, False, "evaluate the checkpoints of the run in output_dir", run_only=True),
    ],
    "processes": [
        _o("world_size", or_none(integer(1, 100_000)), None, "processes expected; the launcher's number when not given",
           run_only=True),
        _o("dist_url", meeting_place, "env://", "where the processes meet", run_only=True),
        _o("dist_timeout", number(1, 1e6), 1800.0, "seconds that a process waits for the others before it gives up",
           run_only=True),
        _o("local_rank", or_none(integer(0, 100_000)), None, "given by old launchers; the environment counts",
           run_only=True),
    ],
    "accepted, but doing nothing (the PyTorch re-implementation never reads them either)": [
        _o(name, str, None, "does nothing", inert=True, run_only=True, nargs="?")
        for name in ("color_jitter", "aa", "smoothing", "train_interpolation", "reprob", "remode", "recount",
                     "global_pool", "predefined_key")
    ],
}
OPTIONS: dict[str, Option] = {option.name: option for group in GROUPS.values() for option in group}


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
    """Options with underscores. A `--` alone is refused: argparse would take it out, and leave an empty list behind."""
    for word in argv:
        if word == "--" or (word.startswith("--") and word.endswith("=--")):
            raise InputError(f"{word}: -- is no value; leave it out.")
    return [_underscores(word) for word in argv]


def _underscores(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


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
_JAX_EXPERIMENTS = {"cifar100_l2p": "cifar100_l2p_jax"}
_JAX_OPTIONS = {"init_checkpoint": "init_checkpoint", "seed": "seed", "learning_rate": "lr", "num_epochs": "epochs",
                "per_device_batch_size": "batch_size", "model_name": "model", "weight_decay": "weight_decay"}


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
