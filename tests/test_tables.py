"""The tables of `reproduce.py` as they are written: each line is a command, with the steps that it should have."""

import pytest

from configs import experiment_names, load_experiment
from configs.command import parse
from configs.demo_l2p import GLYPHS
from reproducing.published import PUBLISHED
from reproducing.runs import planned
from reproducing.tables import TABLES


@pytest.mark.parametrize("name", TABLES)
def test_every_line_of_a_table_is_a_command(name, tmp_path):
    table = TABLES[name]
    runs = planned(table, tmp_path)  # parses and checks each
    assert len({run.folder for run in runs}) == len(runs)
    assert {run.method for run in runs} == table.methods.keys() >= table.first_seed_only
    assert not any(tmp_path.iterdir())
    seeds = {method: [parse(run.words).options["seed"] for run in runs if run.method == method]
             for method in table.methods}
    for method, found in seeds.items():
        assert found == list(table.seeds)[:1 if method in table.first_seed_only else None]


def test_every_method_of_the_demo_has_the_same_images_steps_and_mask(tmp_path):
    shared = GLYPHS.keys() - {"lr", "epochs"}
    for run in planned(TABLES["demo"], tmp_path):
        options = parse(run.words).options
        assert {name: options[name] for name in shared} == {name: GLYPHS[name] for name in shared}, run.method
        assert (options["train_mask"], options["sched"]) == (True, "constant"), run.method
        one_pass = options["adapt"] == "all" and options["head"] != "linear"
        assert options["epochs"] == (1 if one_pass else GLYPHS["epochs"]), run.method


def test_one_process_takes_the_steps_of_the_official_eight(tmp_path):
    """Those experiments scale the rate by all images of a step. Tables that compare with nothing published need not."""
    for table in (TABLES[name] for name, reported in PUBLISHED.items() if reported):
        for run in planned(table, tmp_path):
            experiment = load_experiment(parse(run.words).experiment)
            if experiment.defaults.get("unscale_lr") is False:
                per_process = experiment.defaults.get("batch_size", 16)
                assert parse(run.words).options["batch_size"] == 8 * per_process, run.command


def test_every_experiment_of_a_table_exists():
    used = {line.split()[0] for table in TABLES.values() for line in table.methods.values()}
    assert used <= set(experiment_names())
