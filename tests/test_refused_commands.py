"""Command lines that are refused, and the sentence that answers them; the official program's syntax."""

import math
import os
import re
import shlex
import subprocess
import sys

import pytest
import timm
import torch
from fixtures import ROOT, run_program
from test_parser import EXPERIMENTS, refusal

from configs.base import OPTIONS
from configs.checks import check
from configs.command import parse
from configs.option import boolean
from models.weights import resolve_model_name


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
    assert all(str(choice) in message for choice in OPTIONS[name].choices)


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
    "--drift sideways": "--drift: invalid choice: 'sideways'",
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
JAX_CONFIGS = {  # every file of google-research/l2p, configs/
    "cifar100_l2p": "cifar100_l2p_jax", "cifar100_gaussian_l2p": "cifar100_gaussian_l2p",
    "five_datasets_l2p": "five_datasets_l2p_jax", "core50_l2p": "core50_l2p",
    "cifar100_dualprompt": "cifar100_dualprompt", "imr_dualprompt": "imagenet_r_dualprompt"}
JAX_MODELS = {  # a name of its models/vit.py: timm's, and the width, blocks, patch and dropout that are written there
    "ViT-S_16": ("vit_small_patch16_224.augreg_in21k", 384, 12, 16, 0.0),
    "ViT-B_16": ("vit_base_patch16_224.orig_in21k", 768, 12, 16, 0.0),
    "ViT-B_32": ("vit_base_patch32_224.orig_in21k", 768, 12, 32, 0.0),
    "ViT-L_16": ("vit_large_patch16_224.orig_in21k", 1024, 24, 16, 0.1),
    "ViT-L_32": ("vit_large_patch32_224.orig_in21k", 1024, 24, 32, 0.0),
    "ViT-H_14": ("vit_huge_patch14_224.orig_in21k", 1280, 32, 14, 0.1)}
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


@pytest.mark.parametrize("config", JAX_CONFIGS)
def test_every_official_config_is_an_experiment_here(config):
    message = refusal(f"--my_config configs/{config}.py --workdir=./l2p --my_config.init_checkpoint=ViT-B_16.npz")
    ours = f"main.py {JAX_CONFIGS[config]} --output_dir ./l2p --init_checkpoint ViT-B_16.npz"
    assert message.endswith(ours)  # no remark that something is missing
    check(parse(shlex.split(ours)[1:]).options)


@pytest.mark.parametrize("model", JAX_MODELS)
def test_every_official_model_is_one_of_timms(model):
    message = refusal(f"--my_config configs/cifar100_l2p.py --my_config.model_name={model}")
    options = parse(shlex.split(message.partition("main.py ")[2])).options
    name, width, blocks, patch, drop = JAX_MODELS[model]
    assert (resolve_model_name(options["model"])[0], options["drop"]) == (name, drop)
    with torch.device("meta"):
        vit = timm.create_model(name)
    assert (vit.embed_dim, len(vit.blocks), vit.patch_embed.patch_size) == (width, blocks, (patch, patch))


def test_an_official_model_that_timm_lacks_is_named():
    message = refusal("--my_config configs/cifar100_l2p.py --my_config.model_name=ViT-B_16_2X2")
    assert "main.py cifar100_l2p_jax (not translated: --my_config.model_name=ViT-B_16_2X2;" in message


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
