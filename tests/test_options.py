"""Every option does something: what each one changes in the computed values, not only in config.json.

`PROBES` holds one row per option: words that set it, and which of the measured values then differ from those of the
same command line without them. Options whose effect is no difference between two runs have a test of their own, named
in `OWN_TESTS` of test_options_alone.py. Whoever adds an option adds a row to one of the two.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import test_heads
import test_options_alone as alone
import test_refused_commands
from lab import ALIGNED, BASE, CODA, DIVERSE, DUAL, NO_PROMPTS, SGD, STREAM, measure_rates, measure_run

from configs.base import OPTIONS
from configs.command import parse

pytestmark = pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated")


# ---- the table ----
@dataclass(frozen=True)
class Probe:
    """Setting an option to any of `values` moves all of `moves`, differently for each value, and none of `keeps`."""

    values: tuple[str, ...]
    """Each is the words behind `--option`, separated by blanks."""
    moves: tuple[str, ...]
    keeps: tuple[str, ...] = ()
    base: tuple[str, ...] = BASE
    how: Callable = measure_run


def rates(sched: str, *values: str, base: str = "--warmup_epochs 0 --epochs 12") -> Probe:
    return Probe(values, ("rates",), (), ("--sched", sched, *base.split()), measure_rates)


PROBES: dict[str, Probe] = {
    # training
    "batch_size": Probe(("8",), ("steps", "first loss", "lr"), ("backbone",)),
    "epochs": Probe(("2",), ("steps", "first loss", "later loss"), ("shapes", "backbone")),
    "seed": Probe(("1",), ("first loss", "learned", "backbone"), ("steps", "lr")),
    "print_freq": Probe(("1",), ("steps",), ("first loss", "evaluation", "learned")),
    # speed
    "precision": Probe(("bf16",), ("opening", "first loss", "evaluation"), ("backbone", "steps", "lr", "shapes")),
    # model
    "model": Probe(("test_vit",), ("backbone", "shapes", "first loss"), ("steps", "lr")),
    "input_size": Probe(("16",), ("first loss", "evaluation"), ("shapes", "lr")),
    "init_checkpoint": Probe(("{weights}",), ("backbone", "first loss"), ("shapes", "lr")),
    "input_norm": Probe(("imagenet", "model"), ("first loss", "evaluation"), ("backbone",),
                        (*BASE, "--model", "test_vit")),
    "crop_pct": Probe(("1",), ("evaluation",), ("first loss", "later loss", "learned")),
    "drop": Probe(("0.5",), ("first loss", "evaluation"), ("backbone", "lr")),
    "drop_path": Probe(("0.5",), ("first loss", "evaluation"), ("backbone", "lr")),
    "freeze": Probe(("", "blocks", "blocks patch_embed prompt"), ("shapes", "learned", "later loss"), ("lr",)),
    "head": Probe(("ncm",), ("shapes", "evaluation"), ("backbone",), (*BASE, *NO_PROMPTS)),
    "random_features": Probe(("0", "30"), ("shapes", "evaluation"), ("backbone",),
                             (*BASE, *NO_PROMPTS, "--head", "ridge", "--random_features", "20")),
    "align": Probe(("true",), ("learned", "evaluation"), ("first loss", "shapes"), BASE),
    "align_samples": Probe(("7",), ("learned", "evaluation"), ("first loss", "shapes"), ALIGNED),
    "align_epochs": Probe(("2",), ("learned", "evaluation"), ("first loss", "shapes"), ALIGNED),
    "align_lr": Probe(("0.5",), ("learned", "evaluation"), ("first loss", "shapes"), ALIGNED),
    "align_covariance": Probe(("diagonal",), ("learned", "evaluation"), ("first loss", "shapes"), ALIGNED),
    "head_type": Probe(("token", "gap", "token+prompt"), ("first loss", "evaluation"), ("shapes", "lr")),
    "head_init": Probe(("zero",), ("first loss", "learned"), ("shapes",)),
    # optimizer
    "opt": Probe(("sgd", "adamw"), ("later loss", "learned"), ("lr",), (*BASE, "--weight_decay", "0.1")),
    "opt_eps": Probe(("0.1",), ("later loss", "learned"), ("lr",)),
    "opt_betas": Probe(("0.5 0.999", "0.9 0.5"), ("later loss", "learned"), ("lr",)),
    "momentum": Probe(("0.5",), ("later loss", "learned"), ("lr",), (*BASE, *SGD)),
    "weight_decay": Probe(("0.5",), ("later loss", "learned"), ("lr",)),
    "clip_grad": Probe(("0.01", "none"), ("later loss", "learned"), ("lr",), (*BASE, *SGD, "--clip_grad", "0.1")),
    "reinit_optimizer": Probe(("false",), ("later loss", "learned"), ("first loss", "lr")),
    # learning rate
    "lr": Probe(("0.1",), ("lr", "later loss", "learned"), ("steps",)),
    "sched": rates("constant", "cosine", "quarter_cosine", "tanh", "step", "multistep", "poly", "plateau",
                   base="--warmup_epochs 0 --epochs 12 --patience_epochs 2 --decay_epochs 4 --decay_milestones 3 9"),
    "warmup_epochs": rates("cosine", "2", "5"),
    "warmup_lr": rates("cosine", "1e-5", "1e-4", base="--warmup_epochs 3 --epochs 6"),
    "min_lr": rates("cosine", "0", "1e-4"),
    "decay_epochs": rates("step", "2", "5"),
    "decay_milestones": rates("multistep", "2", "2 4"),
    "decay_rate": rates("step", "0.5", "0.9", base="--warmup_epochs 0 --epochs 6 --decay_epochs 2"),
    "patience_epochs": rates("plateau", "1", "3"),
    "cooldown_epochs": rates("plateau", "0", "3", base="--warmup_epochs 0 --epochs 12 --patience_epochs 1"),
    "lr_noise": rates("step", "0.5", "0.2 0.6"),
    "lr_noise_pct": rates("step", "0.1", "0.3", base="--warmup_epochs 0 --epochs 12 --lr_noise 0.1"),
    "lr_noise_std": rates("step", "0.1", "0.5", base="--warmup_epochs 0 --epochs 12 --lr_noise 0.1"),
    # data
    "data_path": Probe(("{other}",), ("first loss", "evaluation"), ("shapes", "backbone")),
    "dataset": Probe(("Split-Glyphs",), ("shapes", "first loss"), ("backbone",),
                     (*BASE, "--subsample", "1", "--subsample_test", "1")),
    "shuffle": Probe(("true",), ("first loss", "later loss", "evaluation"), ("steps", "backbone")),
    "class_order": Probe(("seed:5", "{order}"), ("first loss", "later loss", "evaluation"), ("steps", "backbone")),
    "subsample": Probe(("2",), ("steps", "first loss"), ("backbone", "lr")),
    "subsample_test": Probe(("1",), ("evaluation",), ("first loss", "later loss", "learned")),
    "scale": Probe(("0.5 1",), ("first loss", "learned"), ("steps",)),
    "ratio": Probe(("0.25 4",), ("first loss", "learned"), ("steps",)),
    "hflip": Probe(("0",), ("first loss", "learned"), ("steps",)),
    # continual learning
    "num_tasks": Probe(("4",), ("steps", "first loss", "evaluation"), ("backbone",)),
    "classes_per_task": Probe(("3",), ("steps", "first loss", "evaluation"), ("backbone",)),
    "adapt": Probe(("first",), ("learned", "evaluation", "lr"), ("first loss", "shapes"), ALIGNED),
    "drift": Probe(("ignore",), ("evaluation",), ("first loss", "later loss", "shapes"),
                   (*BASE, "--head", "ncm", "--drift", "shift", "--lr", "1")),
    "joint": Probe(("true",), ("steps", "first loss", "evaluation"), ("backbone",)),
    "train_mask": Probe(("false",), ("first loss", "later loss", "learned"), ("steps", "lr")),
    "task_inc": Probe(("true",), ("evaluation",), ("first loss", "later loss", "learned")),
    "gaussian_episodes": Probe(("6",), ("steps", "evaluation", "later loss"), ("backbone",), STREAM),
    "gaussian_steps": Probe(("3",), ("steps", "first loss", "evaluation"), ("backbone",), STREAM),
    "gaussian_width": Probe(("20",), ("later loss", "evaluation"), ("steps", "lr"), STREAM),
    "gaussian_eval_every": Probe(("1", "4"), ("evaluation", "shapes"), ("steps", "first loss", "later loss"), STREAM),
    "replay_per_class": Probe(("1", "2"), ("later loss", "learned"), ("first loss", "steps", "lr")),
    # prompts
    "prompt_method": Probe(("dualprompt", "coda", "oneprompt", "none"), ("shapes", "first loss", "evaluation"), ("lr",),
                           (*BASE, "--head_type", "token", "--prompt_layers", "2", "--length", "4")),
    "prompt_pool": Probe(("false",), ("shapes", "first loss", "evaluation"), ("lr",)),
    "prompt_layers": Probe(("1", "0 2"), ("first loss", "evaluation"), ("lr", "backbone")),
    "prompt_choice": Probe(("random", "fixed"), ("first loss", "learned"), ("lr", "backbone")),
    "g_prompt_layers": Probe(("1", "0 3"), ("first loss", "evaluation"), ("lr", "backbone"), DUAL),
    "g_prompt_length": Probe(("3",), ("shapes", "first loss"), ("lr", "backbone"), DUAL),
    "orthogonality": Probe(("0", "0.5"), ("learned",), ("lr", "shapes"), CODA),
    "size": Probe(("12",), ("shapes", "first loss"), ("lr",)),
    "length": Probe(("3",), ("shapes", "first loss"), ("lr",)),
    "top_k": Probe(("3",), ("first loss", "evaluation"), ("shapes", "lr")),
    "initializer": Probe(("flax_uniform", "zero", "normal"), ("first loss", "evaluation"), ("shapes", "lr")),
    "prompt_key": Probe(("false",), ("shapes", "first loss"), ("lr",)),
    "prompt_key_init": Probe(("flax_uniform", "zero", "normal"), ("first loss", "learned"), ("shapes", "lr")),
    "use_prompt_mask": Probe(("true",), ("first loss", "later loss"), ("shapes",)),
    "shared_prompt_pool": Probe(("true",), ("later loss", "learned"), ("first loss",), (*BASE, "--use_prompt_mask")),
    "shared_prompt_key": Probe(("true",), ("later loss", "learned"), ("first loss",), (*BASE, "--use_prompt_mask")),
    "batchwise_prompt": Probe(("false",), ("first loss", "evaluation"), ("shapes", "lr"), (*BASE, *DIVERSE)),
    "embedding_key": Probe(("mean", "max", "mean_max"), ("first loss", "learned"), ("shapes", "lr")),
    "prompt_pos_embed": Probe(("none",), ("first loss", "evaluation"), ("shapes", "lr")),
    "pull_constraint": Probe(("false",), ("first loss", "learned"), ("shapes", "lr")),
    "pull_constraint_coeff": Probe(("0.5",), ("first loss", "learned"), ("shapes", "lr")),
    "eval_per_image": Probe(("final", "always"), ("per image",), ("first loss", "evaluation", "learned")),
}


# ---- the tests of the table ----
def test_the_same_words_compute_the_same_values(lab):
    """Without this, no difference that a probe finds would mean anything."""
    for words in (BASE, (*BASE, "--drop", "0.5")):
        assert lab.measure(words) == lab.measure_anew(words)


@pytest.mark.parametrize("name", PROBES)
def test_the_option_changes_computed_values(name, lab):
    probe = PROBES[name]
    commands = [probe.base, *((*probe.base, f"--{name}", *value.split()) for value in probe.values)]
    options = [parse(words).options for words in commands]
    assert all({n for n in o if o[n] != options[0][n]} == {name} for o in options[1:]), "not a probe of this option"
    if OPTIONS[name].choices and name not in CHOICES_ELSEWHERE:
        assert {o[name] for o in options} == set(OPTIONS[name].choices)

    found = [lab.measure(words, probe.how) for words in commands]
    for what in probe.moves:
        for (words, one), (others, other) in itertools.combinations(zip(commands, found, strict=True), 2):
            assert one[what] != other[what], f"{what} of {words[len(probe.base):]} and {others[len(probe.base):]}"
    for what in probe.keeps:
        assert all(each[what] == found[0][what] for each in found), what


def test_every_option_has_a_probe_or_a_test_of_its_own():
    covered = [*PROBES, *alone.OWN_TESTS, *NO_EFFECT]
    assert sorted(covered) == sorted(name for name, option in OPTIONS.items() if not option.inert)


def test_a_run_trains_at_the_rates_of_the_schedule(lab):
    """What the rows with `measure_rates` measure is what training uses, and every task starts anew."""
    schedule = ("--sched", "cosine", "--epochs", "3", "--warmup_epochs", "1")
    rates = lab.measure((*BASE, *schedule), measure_rates)["rates"]
    assert len(set(rates)) == 3
    assert lab.measure((*BASE, *schedule))["lr"] == rates * 2


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.inert])
def test_an_inert_option_gives_one_warning_and_changes_nothing(name, lab):
    base, found = lab.measure(BASE), lab.measure((*BASE, f"--{name.replace('_', '-')}", "0.4"))
    assert found["warnings"] == [f"main.py: warning: --{name} is accepted for compatibility and does nothing."]
    assert base["warnings"] == []
    assert found | {"warnings": []} == base


def test_local_rank_is_accepted_and_changes_nothing(lab):
    assert lab.measure((*BASE, "--local_rank", "3")) == lab.measure(BASE)


# Not every machine has all precisions; `none` leaves nothing that learns but in closed form; the default 10,000
# random features of `ridge` take their time.
CHOICES_ELSEWHERE = {"drift": test_refused_commands.test_contradictions_are_refused_by_the_options_names,
                     "head": test_heads.test_what_was_adapted_on_the_first_task_stays,
                     "precision": alone.test_precision_is_chosen_by_the_device,
                     "adapt": alone.test_adapt_none_trains_nothing}
# Deliberately without effect, although not listed as inert: torch.distributed.launch without --use_env gives it to each
# process by itself, so a warning would blame people for nothing. The environment's LOCAL_RANK says the same and counts.
NO_EFFECT = {"local_rank": test_local_rank_is_accepted_and_changes_nothing}
