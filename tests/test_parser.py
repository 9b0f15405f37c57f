"""The command line: experiments, options, values, and what is answered to those that are not there."""

import math
import os
import re
import shlex
import subprocess
import sys

import pytest
from fixtures import ROOT, run_program

import main
from configs import experiment_names, load_experiment
from configs.base import GROUPS, OPTIONS
from configs.checks import check
from configs.command import build_parser, default_options, parse
from configs.option import boolean
from continual_datasets.scenario import DEFAULT_TASKS
from errors import InputError

EXPERIMENTS = experiment_names()
BOOLEANS = [name for name, option in OPTIONS.items() if option.type is boolean]
INERT = [name for name, option in OPTIONS.items() if option.inert]


def values(line: str) -> dict:
    """What a command line gives explicitly."""
    return parse(shlex.split(line)).given


def refusal(line: str) -> str:
    """The one sentence that answers a command line which is wrong in itself."""
    with pytest.raises(InputError) as caught:
        check(parse(shlex.split(line)).options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- experiments ----
def test_the_first_word_may_name_an_experiment():
    named, default = parse(["cifar100_l2p_jax", "--seed", "1"]), parse(["--seed", "1"])
    assert (named.experiment, named.named) == ("cifar100_l2p_jax", True)
    assert (default.experiment, default.named) == ("cifar100_l2p", False)
    assert parse([]).experiment == "cifar100_l2p"


def test_options_given_come_before_the_experiments_and_these_before_the_general_ones():
    command = parse(["cifar100_l2p_jax", "--length", "7"])
    assert command.given == {"length": 7}
    assert command.options["length"] == 7  # given; the experiment says 10
    assert command.options["top_k"] == 4  # the experiment's; generally 5
    assert command.options["epochs"] == 5  # general
    assert command.options.keys() == OPTIONS.keys()


def test_list_prints_every_experiment_with_one_line(capsys):
    assert main.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == EXPERIMENTS
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in lines)
    assert all(len(line) <= 120 for line in lines)


def test_list_is_a_program_that_anyone_can_run(tmp_path):
    done = run_program("--list", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == EXPERIMENTS


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_file_is_differences_and_a_docstring_with_its_command(name):
    experiment = load_experiment(name)
    module = sys.modules[f"configs.{name}"]
    assert re.search(rf"main\.py {name}\b", module.__doc__), "the docstring carries the command"
    general = default_options()
    for option, value in experiment.defaults.items():
        assert option in OPTIONS, f"{option} is no option"
        assert not OPTIONS[option].inert
        words = value if isinstance(value, list) else [value]
        read = parse([name, f"--{option}", *map(str, words)]).options[option]
        assert read == value
        assert type(read) is type(value)
        assert [type(v) for v in (read if isinstance(read, list) else [read])] == [type(word) for word in words]
        assert value != general[option], f"{option} is {value} anyway"
    check(default_options(experiment))


@pytest.mark.parametrize("name", OPTIONS)
def test_general_defaults_are_values_that_the_option_itself_would_read(name):
    option = OPTIONS[name]
    if option.default is not None:
        words = option.default if isinstance(option.default, list) else [option.default]
        assert parse([f"--{name}", *map(str, words)]).given[name] == option.default


REFERENCES = {  # the table of settings of the two reference implementations, and what both have in common
    "cifar100_l2p": {
        "batch_size": 16, "lr": 0.03, "epochs": 5, "num_tasks": None, "size": 10, "top_k": 5, "length": 5,
        "pull_constraint_coeff": 0.1, "initializer": "uniform", "prompt_key_init": "uniform",
        "head_init": "trunc_normal", "prompt_pos_embed": "cls", "unscale_lr": True},
    "cifar100_l2p_jax": {
        "batch_size": 16, "lr": 0.03, "epochs": 5, "num_tasks": None, "size": 10, "top_k": 4, "length": 10,
        "pull_constraint_coeff": 1.0, "initializer": "flax_uniform", "prompt_key_init": "flax_uniform",
        "head_init": "zero", "prompt_pos_embed": "none", "unscale_lr": False},
}
IN_BOTH = {
    "model": "vit_base_patch16_224", "pretrained": True, "init_checkpoint": None, "input_size": 224,
    "input_norm": "none", "dataset": "Split-CIFAR100", "shuffle": False, "subsample": None, "subsample_test": None,
    "scale": [0.05, 1.0], "ratio": [3 / 4, 4 / 3], "hflip": 0.5, "drop": 0.0, "drop_path": 0.0, "opt": "adam",
    "opt_eps": 1e-8, "opt_betas": [0.9, 0.999], "weight_decay": 0.0, "clip_grad": 1.0, "reinit_optimizer": True,
    "sched": "constant", "head": "linear", "head_type": "prompt", "train_mask": True, "task_inc": False,
    "prompt_method": "l2p", "prompt_pool": True, "prompt_key": True, "use_prompt_mask": False,
    "shared_prompt_pool": False, "shared_prompt_key": False, "batchwise_prompt": True, "embedding_key": "cls",
    "pull_constraint": True,
}


@pytest.mark.parametrize("name", REFERENCES)
def test_the_two_references_keep_their_settings(name):
    expected = IN_BOTH | REFERENCES[name]
    options = parse([name]).options
    assert {option: options[option] for option in expected} == expected
    assert DEFAULT_TASKS == 10, "what no --num_tasks means"
    assert options["freeze"] == ["backbone"], "covers what the references list: blocks, patch_embed, cls_token …"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_help_shows_every_option_with_the_experiments_own_default(capsys, name):
    assert main.main([name, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text == " ".join(build_parser(load_experiment(name)).format_help().split())
    for option, value in parse([name]).options.items():
        about = re.escape(" ".join(OPTIONS[option].help.split()))
        shown = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        default = "" if OPTIONS[option].inert else r" \[" + re.escape(shown) + r"\]"
        assert re.search(rf"--{option} [^-]*?{about}{default}", text), option
    assert all(title in text for title in GROUPS)


# ---- spellings ----
@pytest.mark.parametrize("name", BOOLEANS)
def test_a_boolean_takes_every_spelling(name):
    dashed = name.replace("_", "-")
    for spelling in {name, dashed}:
        for line in ("--{}", "--{} true", "--{} True", "--{}=true", "--{} 1", "--{} yes"):
            assert values(line.format(spelling)) == {name: True}
        for line in ("--no-{}", "--no_{}", "--{} false", "--{} False", "--{}=False", "--{} 0", "--{} no"):
            assert values(line.format(spelling)) == {name: False}
    assert values(f"--{name} --seed 3") == {name: True, "seed": 3}
    assert values(f"--{name} --no-{dashed}") == {name: False}  # the last word counts
    assert re.search(f"^--{name}: 'maybe' is neither true nor false", refusal(f"--{name} maybe"))


def test_the_word_after_a_boolean_is_not_swallowed():
    assert "--eval: 'cifar100_l2p' is neither true nor false" in refusal("--eval cifar100_l2p")
    assert "unexpected word 'x'" in refusal("--no-shuffle x")


@pytest.mark.parametrize(("line", "expected"), [
    ("--freeze blocks patch_embed", {"freeze": ["blocks", "patch_embed"]}),
    ("--freeze blocks patch_embed --seed 1", {"freeze": ["blocks", "patch_embed"], "seed": 1}),
    ("--freeze", {"freeze": []}),
    ("--freeze --seed 1", {"freeze": [], "seed": 1}),
    ("--freeze=blocks", {"freeze": ["blocks"]}),
    ("--opt-betas 0.8 0.9", {"opt_betas": [0.8, 0.9]}),
    ("--decay-milestones 2", {"decay_milestones": [2]}),
    ("--decay-milestones 2 3 4", {"decay_milestones": [2, 3, 4]}),
    ("--lr-noise 0.4 0.9", {"lr_noise": [0.4, 0.9]}),
    ("--scale 0.2 0.9 --ratio 1 1", {"scale": [0.2, 0.9], "ratio": [1.0, 1.0]}),
])
def test_lists_are_lists_of_words(line, expected):
    assert values(line) == expected


@pytest.mark.parametrize(("line", "expected"), [
    ("--lr=0.1", {"lr": 0.1}),
    ("--batch-size=8", {"batch_size": 8}),
    ("--data-path=a=b-c_d", {"data_path": "a=b-c_d"}),
    ("--data-path my-data/set_1", {"data_path": "my-data/set_1"}),
    ("--output_dir=", {"output_dir": ""}),
    ("--output-dir ''", {"output_dir": ""}),
    ("--lr 3e-2", {"lr": 0.03}),
    ("--lr 0.1 --lr 0.2", {"lr": 0.2}),
    ("--subsample none --clip-grad None --world_size none", {"subsample": None, "clip_grad": None, "world_size": None}),
])
def test_values_are_taken_as_they_are_written(line, expected):
    assert values(line) == expected


REFERENCE_OPTIONS = {  # every option of the PyTorch reference that means something, in its spelling, with a new value
    "--batch-size 32": 32, "--epochs 2": 2, "--model deit_tiny_patch16_224": "deit_tiny_patch16_224",
    "--input-size 192": 192, "--pretrained False": False, "--drop 0.1": 0.1, "--drop-path 0.2": 0.2, "--opt sgd": "sgd",
    "--opt-eps 1e-6": 1e-6, "--opt-betas 0.8 0.99": [0.8, 0.99], "--clip-grad 2.0": 2.0, "--momentum 0.8": 0.8,
    "--weight-decay 0.05": 0.05, "--reinit_optimizer False": False, "--sched cosine": "cosine", "--lr 0.01": 0.01,
    "--lr-noise 0.3 0.6": [0.3, 0.6], "--lr-noise-pct 0.5": 0.5, "--lr-noise-std 0.8": 0.8, "--warmup-lr 1e-4": 1e-4,
    "--min-lr 1e-4": 1e-4, "--decay-epochs 3": 3.0, "--warmup-epochs 1": 1, "--cooldown-epochs 2": 2,
    "--patience-epochs 3": 3, "--decay-rate 0.5": 0.5, "--unscale_lr False": False, "--data-path /data/": "/data/",
    "--dataset Split-Glyphs": "Split-Glyphs", "--shuffle True": True, "--output_dir ./runs/a": "./runs/a",
    "--device cuda": "cuda", "--seed 7": 7, "--eval": True, "--num_workers 2": 2, "--pin-mem": True,
    "--no-pin-mem": False, "--world_size 2": 2, "--dist_url tcp://localhost:1234": "tcp://localhost:1234",
    "--num_tasks 5": 5, "--train_mask False": False, "--task_inc True": True, "--prompt_pool False": False,
    "--size 20": 20, "--length 10": 10, "--top_k 4": 4, "--initializer zero": "zero", "--prompt_key False": False,
    "--prompt_key_init zero": "zero", "--use_prompt_mask True": True, "--shared_prompt_pool True": True,
    "--shared_prompt_key True": True, "--batchwise_prompt False": False, "--embedding_key mean": "mean",
    "--pull_constraint False": False, "--pull_constraint_coeff 0.5": 0.5, "--head_type token": "token",
    "--freeze blocks cls_token": ["blocks", "cls_token"], "--print_freq 100": 100,
}


@pytest.mark.parametrize("line", REFERENCE_OPTIONS)
def test_every_option_of_the_pytorch_reference_keeps_its_name(line):
    flag, _, rest = line.partition(" ")
    name = flag.removeprefix("--").removeprefix("no-").replace("-", "_")
    for spelling in (flag, "--" + flag[2:].replace("_", "-"), "--" + flag[2:].replace("-", "_")):
        command = parse(shlex.split(f"{spelling} {rest}"))
        assert command.given == {name: REFERENCE_OPTIONS[line]}
        assert command.warnings == []


@pytest.mark.parametrize("line", [
    "--model vit_base_patch16_224 --batch-size 16 --data-path /local_datasets/ --output_dir ./output --epochs 5",
    "cifar100_l2p --model vit_base_patch16_224 --batch-size 16 --data-path /local_datasets/ --output_dir ./output",
    "--eval",
    "--local_rank=0 --lr 0.1",
])
def test_commands_that_people_already_use_are_read(line):
    command = parse(shlex.split(line))
    assert command.experiment == "cifar100_l2p"
    assert command.warnings == []
    check(command.options)


@pytest.mark.parametrize("first", ["--local-rank=0", "--local_rank=0"])
def test_what_torch_distributed_launch_puts_first_leaves_the_experiment_its_place(first):
    """Without --use_env it starts `main.py --local-rank=0 WORDS`."""
    command = parse([first, "cifar100_l2p_jax", "--lr", "0.1"])
    assert (command.experiment, command.named) == ("cifar100_l2p_jax", True)
    assert command.given == {"lr": 0.1, "local_rank": 0}


INERT_LINES = {
    "color_jitter": "--color-jitter 0.4", "aa": "--aa rand-m9-mstd0.5-inc1", "smoothing": "--smoothing 0.1",
    "train_interpolation": "--train-interpolation bicubic", "reprob": "--reprob 0.25", "remode": "--remode pixel",
    "recount": "--recount 1", "global_pool": "--global_pool token", "predefined_key": "--predefined_key ''",
}


def test_what_does_nothing_is_known():
    assert set(INERT_LINES) == set(INERT)


@pytest.mark.parametrize("name", INERT_LINES)
def test_what_does_nothing_says_so_in_one_line(name):
    command = parse(shlex.split(INERT_LINES[name]))
    assert len(command.warnings) == 1
    assert re.fullmatch(rf"--{name} .*does nothing.*", command.warnings[0])
    assert parse(shlex.split(f"{INERT_LINES[name]} {INERT_LINES[name]}")).warnings == command.warnings


def test_what_does_something_does_not_warn():
    everything = " ".join(line for line in REFERENCE_OPTIONS if line != "--no-pin-mem")
    assert parse(shlex.split(everything)).warnings == []
    both = parse(shlex.split(f"{everything} {' '.join(INERT_LINES.values())}"))
    assert len(both.warnings) == len(INERT_LINES)


def test_warnings_are_lines_on_standard_error(capsys, tmp_path):
    assert main.main(["--aa", "x", "--smoothing", "0.1", "--device", "cpu", "--output_dir", "", "--data-path",
                      str(tmp_path / "none.npz")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[:3] for line in lines] == [["main.py:", "warning:", "--aa"],
                                                    ["main.py:", "warning:", "--smoothing"],
                                                    ["main.py:", "error:", "--data_path"]]


# ---- what is not there ----
@pytest.mark.parametrize(("line", "says"), [
    ("cifar100_l2q", "unknown experiment 'cifar100_l2q': did you mean cifar100_l2p"),
    ("demo-l2p", "unknown experiment 'demo-l2p': did you mean demo_l2p"),
    ("xyz --lr 0.1", "unknown experiment 'xyz': main.py --list"),
    ("--epohcs 3", "unknown option --epohcs: did you mean --epochs"),
    ("--ouptut-dir x", "unknown option --ouptut_dir: did you mean --output_dir"),
    ("--topk 3", "unknown option --topk: did you mean --top_k"),
    ("--zzz", "unknown option --zzz: main.py --help"),
    ("--lr 0.1 cifar100_l2p", "unexpected word 'cifar100_l2p': the experiment comes first"),
    ("cifar100_l2p demo_l2p", "unexpected word 'demo_l2p'"),
    ("--seed 1 2", "unexpected word '2'"),
])
def test_unknown_words_are_answered_with_the_nearest_known_ones(line, says):
    assert says in refusal(line)


@pytest.mark.parametrize(("line", "meant"), [
    ("--batch 8", "--batch_size"), ("--pretrain", "--pretrained"), ("--epoch 3", "--epochs"),
    ("--weight 0.1", "--weight_decay"), ("--output x", "--output_dir"), ("--data x", "--data_path"),
    ("--no-pretrain", "pretrained"), ("--pull_constraint_c 1", "--pull_constraint_coeff"),
])
def test_abbreviations_are_refused_with_the_whole_name(line, meant):
    """An abbreviation that works today means something else, or nothing, once a new option begins with it."""
    message = refusal(line)
    assert message.startswith("unknown option --")
    assert meant in message


@pytest.mark.parametrize("line", ["-lr 0.1", "-epochs=3"])
def test_one_dash_is_answered_with_two(line):
    assert re.fullmatch(r"unknown option -(lr|epochs): did you mean --\1\?", refusal(line))


BAD_VALUES = {
    "--lr nan": "--lr: 'nan' is not a finite number of at least 0",
    "--lr inf": "--lr: 'inf' is not a finite number",
    "--lr=-inf": "--lr: '-inf' is not a finite number",
    "--lr -0.1": "--lr: '-0.1' is not a finite number of at least 0",
    "--lr=-1e-3": "--lr: '-1e-3' is not",
    "--lr fast": "--lr: 'fast' is not",
    "--lr ''": "--lr: '' is not",
    "--lr": "--lr: expected one argument",
    "--batch-size 0": "--batch_size: '0' is not a whole number of at least 1",
    "--batch-size -4": "--batch_size: '-4' is not a whole number of at least 1",
    "--batch-size 2.5": "--batch_size: '2.5' is not a whole number",
    "--epochs 0": "--epochs: '0' is not",
    "--seed -1": "--seed: '-1' is not a whole number of at least 0",
    "--num_tasks 0": "--num_tasks: '0' is not",
    "--subsample 0": "--subsample: '0' is not",
    "--drop 1.0": "--drop: '1.0' is too much: give at most 0.99",
    "--hflip 1.1": "--hflip: '1.1' is too much: give at most 1",
    "--weight-decay nan": "--weight_decay: 'nan' is not",
    "--clip-grad nan": "--clip_grad: 'nan' is not",
    "--pull_constraint_coeff -1": "--pull_constraint_coeff: '-1' is not",
    "--opt-betas 0.9": "--opt_betas: expected 2 arguments",
    "--opt-betas 0.9 x": "--opt_betas: 'x' is not",
    "--opt-betas 0.9 1": "--opt_betas: '1' is too much",  # Adam divides by 1 - beta
    "--decay-epochs 0": "--decay_epochs: '0' is not",  # a division by it
    "--freeze ''": "--freeze: '' ",  # every name begins with no letter: it would freeze everything, the head too
    "--no-shuffle=false": "--no_shuffle: ",
    "--initializer gauss": "--initializer: invalid choice: 'gauss'",
    "--gaussian_width 1e200": "--gaussian_width: '1e200' is too much: give at most 1e+09",  # it is squared
    "--lr_noise_pct 1e-6": "--lr_noise_pct: '1e-6' is not",  # noise is drawn until it is smaller
    "--data_path ~nosuchuser/x": "--data_path: '~nosuchuser/x': this machine knows no home folder of ~nosuchuser",
    "--output_dir ~nosuchuser/x": "--output_dir: '~nosuchuser/x': ",
    "--dist_url file://folder/x": "--dist_url: 'file://folder/x' is no file://, and an absolute path",
    "--input-norm=--": "--input-norm=--: -- is no value",  # argparse makes an empty list of it
    "--model --": "--: -- is no value",
    "-- --seed 1": "--: -- is no value",
    "--input_norm imagnet": "--input_norm: invalid choice: 'imagnet'",
    "--head_type prompts": "--head_type: invalid choice: 'prompts'",
    "--sched cosin": "--sched: invalid choice: 'cosin'",
}


@pytest.mark.parametrize("line", BAD_VALUES)
def test_a_bad_value_is_answered_with_the_option_and_what_it_takes(line):
    assert BAD_VALUES[line] in refusal(line)


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.choices])
def test_a_choice_that_is_not_there_is_answered_with_those_that_are(name):
    message = refusal(f"--{name} nothing-like-it")
    assert all(choice in message for choice in OPTIONS[name].choices)


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items()
                                  if isinstance(option.default, float | int) and option.type is not boolean])
def test_no_number_is_nan_or_infinite(name):
    for text in ("nan", "inf", "-nan", "1e999"):
        assert f"--{name}: '{text}' is not" in refusal(f"--{name}={text}")
    assert math.isfinite(OPTIONS[name].default)


NUMBERS = [name for name, option in OPTIONS.items() if type(option.default) in (int, float, list) and name != "freeze"]
NUMBERS += ["subsample", "subsample_test", "num_tasks", "classes_per_task", "lr_noise", "world_size", "local_rank"]


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_an_upper_bound_and_is_shown_shortened(name):
    """Squares, products, loops and memory are made of them; and Python reads no integer of 5000 digits."""
    count = OPTIONS[name].nargs if isinstance(OPTIONS[name].nargs, int) else 1
    for text in ("1" + "0" * 30, "9" * 5000):
        message = refusal(" ".join([f"--{name}", *[text] * count]))
        assert f"--{name}: " in message
        assert len(message) < 200


CONTRADICTIONS = {
    "--sched step --decay_rate 2": "--decay_rate 2 would raise the rate with every decay of --sched step",
    "--size 2000 --length 1000": "--size 2000 --length 1000 in 1 layer.s.: more than",
    "--top_k 11": "--top_k 11 is more than --size 10",
    "--size 3": "--top_k 5 is more than --size 3",
    "--prompt_method none": "--head_type prompt .*--head_type token",
    "--prompt_method none --head_type token+prompt": r"--head_type token\+prompt ",
    "--head ncm": "--head ncm .*--prompt_method none",
    "cifar100_ncm --freeze": "--head ncm .*--freeze",
    "--head ridge": "--head ridge .*--adapt first or none, or --drift shift",
    "--drift shift": "--drift shift .*--align",
    "--drift ignore --head ncm --adapt first": "--drift ignore .*--adapt all",
    "--align --drift ignore": "--drift ignore is what --align does",
    "cifar100_drift_ranpac --adapt first": "--drift shift .*--drift none",
    "cifar100_drift_ranpac --joint": "--head linear --drift none",
    "cifar100_drift_ranpac --schedule gaussian": "--head linear --drift none",
    "--drift sideways": "--drift: 'sideways' is not one of ignore, shift, none",
    "--adapt none": "--adapt none: .*--head ncm or ridge",
    "--adapt first": "--adapt first: .*--align",
    "cifar100_ncm --align": "--align .*--head linear",
    "--random_features 9": "--random_features .*--head ridge",
    "--align_lr 0.5": "--align_lr .*--align",
    "--joint --replay_per_class 3 --align --use_prompt_mask": "--no-use_prompt_mask --no-align --replay_per_class 0",
    "--joint --task_inc": r"--task_inc has no meaning: take out what you gave of it, .* add --no-task_inc\.",
    "--schedule gaussian --joint --adapt first --head ncm": "--head linear --no-joint --adapt all",
    "--prompt_method coda --weight_decay 0.1 --head_type token": "--prompt_method coda .*--weight_decay 0",
    "--prompt_method oneprompt --prompt_choice fixed": "--prompt_choice fixed .*--prompt_method l2p",
    "--prompt_choice random --no-prompt_pool": "--prompt_choice random .*--prompt_pool true",
    "--prompt_choice fixed --use_prompt_mask": "--use_prompt_mask .*--prompt_choice fixed",
    "--no-prompt_pool --use_prompt_mask": "--use_prompt_mask .*--prompt_pool true",
    "--no-prompt_pool --shared_prompt_pool": "--shared_prompt_pool .*--prompt_pool true",
    "--no-prompt_pool --shared_prompt_key": "--shared_prompt_key .*--prompt_pool true",
    "cifar100_linear --shared_prompt_pool": "--shared_prompt_pool .*--prompt_method l2p",
    "cifar100_dualprompt --use_prompt_mask": "--use_prompt_mask .*--prompt_method l2p",
    "cifar100_oneprompt --shared_prompt_pool": "--shared_prompt_pool .*--prompt_method l2p",
    "cifar100_coda --shared_prompt_key": "--shared_prompt_key .*--prompt_method l2p",
    "--no-prompt_key --shared_prompt_key": "--shared_prompt_key .*--prompt_key true",
    "--scale 0.9 0.2": "--scale 0.9 0.2",
    "--scale 0 1": "--scale 0 1",
    "--ratio 2 1": "--ratio 2 1",
    "--lr-noise 0.1 0.2 0.3": "--lr_noise .*one or two",
    "--output_dir '' --eval": "--eval .*--output_dir",
    "--output_dir '' --resume": "--resume .*--output_dir",
    "--output_dir '' --overwrite": "--overwrite .*--output_dir",
    "--eval --resume": "--eval and --resume exclude",
    "--resume --overwrite": "--resume and --overwrite exclude",
    "--eval --overwrite": "--eval and --overwrite exclude",
}


@pytest.mark.parametrize("line", CONTRADICTIONS)
def test_contradictions_are_refused_by_the_options_names(line):
    assert re.search(CONTRADICTIONS[line], refusal(line))


@pytest.mark.parametrize("line", [
    "--size 5 --top_k 5", "--no-prompt_pool --top_k 20", "--prompt_method none --head_type gap --top_k 20",
    "cifar100_oneprompt --size 3", "cifar100_dualprompt --shared_prompt_key --no-prompt_key",
    "--no-prompt_key", "--use_prompt_mask --shared_prompt_pool --shared_prompt_key", "cifar100_ncm --epochs 1",
    "--adapt first --align", "--adapt first --head ridge", "--adapt none --head ncm", "--joint",
    "cifar100_drift_ranpac --drift none --adapt first", "--align --drift shift", "--head ridge --drift ignore",
    "cifar100_finetune --head ncm --drift shift",
    "--scale 0.5 0.5 --ratio 1 1", "--output_dir ''", "--freeze", "--eval", "--resume --no-eval",
])
def test_what_goes_together_is_not_refused(line):
    check(parse(shlex.split(line)).options)


def test_an_error_is_one_line_on_standard_error_and_exit_code_2(tmp_path):
    done = run_program("--epohcs", "3", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "main.py: error: unknown option --epohcs: did you mean --epochs?\n"
    assert list(tmp_path.iterdir()) == []


# ---- the official program's syntax ----
JAX_LINES = {
    "--my_config configs/cifar100_l2p.py --workdir=./cifar100_l2p "
    "--my_config.init_checkpoint='<ViT-saved-path/ViT-B_16.npz>'":
        "python main.py cifar100_l2p_jax --output_dir ./cifar100_l2p --init_checkpoint '<ViT-saved-path/ViT-B_16.npz>'",
    "--my_config configs/cifar100_gaussian_l2p.py --workdir=./cifar100_gaussian_l2p "
    "--my_config.init_checkpoint='<ViT-saved-path/ViT-B_16.npz>'":
        "python main.py cifar100_gaussian_l2p --output_dir ./cifar100_gaussian_l2p "
        "--init_checkpoint '<ViT-saved-path/ViT-B_16.npz>'",
    "--my_config=configs/cifar100_l2p.py --workdir 'my runs' --my_config.seed=3 --my_config.learning_rate=0.01":
        "python main.py cifar100_l2p_jax --output_dir 'my runs' --seed 3 --lr 0.01",
    "--workdir=w --my_config configs/cifar100_l2p.py": "python main.py cifar100_l2p_jax --output_dir w",
    "--my_config configs/cifar100_l2p.py --debug --workdir=w": "python main.py cifar100_l2p_jax --output_dir w",
}


@pytest.mark.parametrize("line", JAX_LINES)
def test_the_official_programs_syntax_is_answered_with_our_command(line):
    message, ours = refusal(line), JAX_LINES[line]
    assert f"{ours} (" in message or message.endswith(ours)
    _, _, experiment, *options = shlex.split(ours)
    if experiment in EXPERIMENTS:
        check(parse([experiment, *options]).options)  # what we advise works
    else:
        assert f"there is no experiment {experiment}: main.py --list" in message


def test_fields_that_have_no_counterpart_are_named():
    message = refusal("--my_config configs/cifar100_l2p.py --my_config.norm_pre_logits=True --workdir=w")
    assert "not translated: --my_config.norm_pre_logits=True" in message
    assert "--output_dir w" in message


def test_the_official_command_itself_is_answered():
    """Run as its README writes it: with `-m`, which imports main.py and then finds no module main.py in it."""
    words = ["--my_config", "configs/cifar100_l2p.py", "--workdir=./cifar100_l2p",
             "--my_config.init_checkpoint=<ViT-saved-path/ViT-B_16.npz>"]
    done = subprocess.run([sys.executable, "-m", "main.py", *words], cwd=ROOT, capture_output=True, text=True,
                          timeout=60, env=os.environ | {"PYTHONPATH": ""})
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert ("python main.py cifar100_l2p_jax --output_dir ./cifar100_l2p "
            "--init_checkpoint '<ViT-saved-path/ViT-B_16.npz>'") in done.stderr
    assert not (ROOT / "cifar100_l2p").exists()
