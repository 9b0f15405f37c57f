"""Where a run is written and found when no --output_dir says so."""

import json
from pathlib import Path

import pytest

import main
from configs import load_experiment
from configs.command import default_options, parse
from errors import InputError
from resuming import with_saved_options


def make_run(folder: str, experiment: str, **options: object) -> None:
    """As much of a run as is needed to find it."""
    saved = default_options(load_experiment(experiment)) | {"output_dir": folder} | options
    Path(folder).mkdir(parents=True)
    Path(folder, "config.json").write_text(json.dumps({"experiment": experiment, "options": saved}))


@pytest.mark.parametrize("experiment", ["cifar100_l2p", "cifar100_linear", "demo_l2p"])
def test_a_run_has_a_folder_of_its_experiment(experiment):
    assert parse([experiment]).options["output_dir"] == f"./output/{experiment}"


def test_a_command_without_a_name_is_the_default_experiment():
    assert parse([]).options["output_dir"] == "./output/cifar100_l2p"
    assert parse(["demo_l2p", "--output_dir", "x"]).options["output_dir"] == "x"


CASES = {  # runs that are there (folder below ./output -> experiment), command -> where it goes, and what it says
    "eval after the first command": ({"cifar100_l2p": "cifar100_l2p"}, "--eval", "./output/cifar100_l2p", ""),
    "eval of the only run": ({"demo_l2p": "demo_l2p"}, "--eval", "./output/demo_l2p", ""),
    "eval, as the reference writes and finds": ({".": "cifar100_l2p"}, "--eval", "./output", ""),
    "eval of the reference's run beside a demo": (
        {".": "cifar100_l2p", "demo_l2p": "demo_l2p"}, "--eval", "./output",
        "this is the run in ./output; give --output_dir for that in ./output/demo_l2p."),
    "eval of a named one": ({".": "cifar100_l2p", "demo_l2p": "demo_l2p"}, "demo_l2p --eval", "./output/demo_l2p", ""),
    "eval of a named one in ./output": ({".": "demo_l2p", "cifar100_l2p": "cifar100_l2p"}, "demo_l2p --eval",
                                        "./output", ""),
    "eval of one of several": ({"cifar100_l2p": "cifar100_l2p", "demo_l2p": "demo_l2p"}, "--eval", None,
                               "there are runs in ./output/cifar100_l2p and ./output/demo_l2p: give the --output_dir"),
    "eval of one of two of a name": ({".": "demo_l2p", "demo_l2p": "demo_l2p"}, "demo_l2p --eval", None,
                                     "there are runs in ./output and ./output/demo_l2p: give the --output_dir"),
    "eval of nothing": ({}, "--eval", None, "--output_dir ./output/cifar100_l2p holds no run"),
    "eval of nothing by that name": ({".": "cifar100_l2p"}, "demo_l2p --eval", None,
                                     "--output_dir ./output/demo_l2p holds no run"),
    "resume of the same command": ({"cifar100_l2p": "cifar100_l2p", "demo_l2p": "demo_l2p"}, "--resume",
                                   "./output/cifar100_l2p", ""),
    "resume of a named one": ({"demo_l2p": "demo_l2p"}, "demo_l2p --resume", "./output/demo_l2p", ""),
    "resume in ./output": ({".": "demo_l2p"}, "--resume", "./output", ""),
    "resume begins beside another run": ({".": "cifar100_l2p"}, "demo_l2p --resume", "./output/demo_l2p", ""),
    "resume begins": ({"demo_l2p": "demo_l2p"}, "--resume", "./output/cifar100_l2p", ""),
    "a new run beside an old one": ({".": "cifar100_l2p"}, "", "./output/cifar100_l2p", ""),
    "a folder that is named": ({".": "cifar100_l2p", "demo_l2p": "demo_l2p"}, "--eval --output_dir ./output/demo_l2p",
                               "./output/demo_l2p", ""),
}


@pytest.mark.parametrize("case", CASES)
def test_where_a_command_goes(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs, words, folder, said = CASES[case]
    for name, experiment in runs.items():
        make_run(str(Path("output", name)), experiment)
    command = parse(words.split())
    if folder is None:
        with pytest.raises(InputError, match=said):
            with_saved_options(command)
        return
    found = with_saved_options(command)
    assert found.options["output_dir"] == folder
    main.check_output_dir(found.options)
    assert found.warnings == ([said] if said else [])
    at = str(Path(folder).relative_to("output")) if folder != "./output" else "."
    if at in runs:
        assert found.experiment == runs[at]


@pytest.mark.parametrize("mode", ["--eval", "--resume"])
def test_how_a_process_runs_comes_from_the_runs_experiment(mode, tmp_path):
    """Not from the default one, which nobody named."""
    make_run(str(tmp_path / "run"), "demo_l2p", num_workers=3, print_freq=7)
    command = with_saved_options(parse([mode, "--output_dir", str(tmp_path / "run"), "--dist_timeout", "9"]))
    assert parse([]).options["num_workers"] != 0
    assert (command.options["num_workers"], command.options["print_freq"]) == (0, 1000)
    assert command.options["dist_timeout"] == 9
    assert command.options["output_dir"] == str(tmp_path / "run")
    assert command.options[mode[2:]] is True
