"""The command line: experiments, options, values."""

import re
import shlex
import sys

import pytest
from fixtures import run_program

import main
from configs import experiment_names, load_experiment
from configs.base import ALIASES, GROUPS, OPTIONS
from configs.checks import check
from configs.command import build_parser, default_options, parse
from configs.option import boolean
from continual_datasets.readers import names_of
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
    "crop_pct": 0.875, "input_norm": "none", "dataset": "Split-CIFAR100", "shuffle": False, "subsample": None,
    "subsample_test": None,
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
    "--patience-epochs 3": 3, "--decay-rate 0.5": 0.5, "--dr 0.4": 0.4, "--unscale_lr False": False,
    "--data-path /data/": "/data/", "--dataset Split-Glyphs": "Split-Glyphs", "--shuffle True": True,
    "--output_dir ./runs/a": "./runs/a", "--device cuda": "cuda", "--seed 7": 7, "--eval": True, "--num_workers 2": 2,
    "--pin-mem": True, "--no-pin-mem": False, "--world_size 2": 2, "--dist_url tcp://localhost:1234": "tcp://localhost:1234",
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
    name = ALIASES.get(name, name)
    for spelling in (flag, "--" + flag[2:].replace("_", "-"), "--" + flag[2:].replace("-", "_")):
        command = parse(shlex.split(f"{spelling} {rest}"))
        assert command.given == {name: REFERENCE_OPTIONS[line]}
        assert command.warnings == []


OF_THE_REFERENCE = ("CIFAR100", "CIFAR10", "MNIST", "FashionMNIST", "SVHN", "NotMNIST", "Flower102", "Cars196",
                    "CUB200", "Scene67", "TinyImagenet", "Imagenet-R")


@pytest.mark.parametrize("name", OF_THE_REFERENCE)
def test_every_data_set_of_the_pytorch_reference_keeps_its_name(name):
    """What is saved is our own name, so that runs under either compare."""
    ours = {"Flower102": "Flowers102", "Imagenet-R": "ImageNet-R"}.get(name, name)
    assert values(f"--dataset Split-{name}") == {"dataset": f"Split-{ours}"}
    assert names_of(f"Split-{ours}") == [f"Split-{ours}"]
    listed = values(f"--dataset SVHN,{name}")["dataset"]
    assert (listed, names_of(listed)) == (f"SVHN,{ours}", ["Split-SVHN", f"Split-{ours}"])


def test_the_one_data_set_of_its_first_releases():
    assert values("--dataset CIFAR100") == {"dataset": "Split-CIFAR100"}
    assert values("--dataset 'MNIST, Split-Folder'") == {"dataset": "MNIST, Split-Folder"}, "all others as they are"


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


# JH-LEE-KR/l2p-pytorch: what its parsers have, in configs/cifar100_l2p.py and configs/five_datasets_l2p.py alike.
REFERENCE_FLAGS = """
    --batch-size --epochs --model --input-size --pretrained --drop --drop-path --opt --opt-eps --opt-betas --clip-grad
    --momentum --weight-decay --reinit_optimizer --sched --lr --lr-noise --lr-noise-pct --lr-noise-std --warmup-lr
    --min-lr --decay-epochs --warmup-epochs --cooldown-epochs --patience-epochs --decay-rate --dr --unscale_lr
    --color-jitter --aa --smoothing --train-interpolation --reprob --remode --recount --data-path --dataset --shuffle
    --output_dir --device --seed --eval --num_workers --pin-mem --no-pin-mem --world_size --dist_url --num_tasks
    --train_mask --task_inc --prompt_pool --size --length --top_k --initializer --prompt_key --prompt_key_init
    --use_prompt_mask --shared_prompt_pool --shared_prompt_key --batchwise_prompt --embedding_key --predefined_key
    --pull_constraint --pull_constraint_coeff --global_pool --head_type --freeze --print_freq"""
# What the parser in main.py of its first releases had beside these.
EARLIER_FLAGS = ("--classes_per_task", "--test_speed", "--only_test_speed", "--dist-eval", "--no_aug", "--visualize",
                 "--prompt_idx")


def test_the_tables_have_every_option_of_the_reference():
    flags = [line.partition(" ")[0] for line in [*REFERENCE_OPTIONS, *INERT_LINES.values()]]
    assert sorted(flags) == sorted(REFERENCE_FLAGS.split())


def test_of_what_the_reference_has_dropped_only_the_classes_of_a_task_are_read():
    assert parse([EARLIER_FLAGS[0], "5"]).given == {"classes_per_task": 5}
    assert all(refusal(flag).startswith("unknown option --") for flag in EARLIER_FLAGS[1:])


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
