"""`make compare`: its command lines, its table, and that a kill loses nothing."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fixtures import ROOT
from lab import Interrupting, call
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from test_plots import check_picture

import main
from configs.base import parse
from configs.demo_l2p import GLYPHS
from demo import compare
from errors import InputError
from plots import plot_against_size

METHODS = {"l2p": "demo_l2p", "ridge": compare.METHODS["ridge"]}
TINY = ("--subsample", "2", "--subsample_test", "1", "--num_tasks", "2", "--batch_size", "4")
SEEDS = (1, 2)
SMALL = f"import sys; from demo.compare import *; sys.exit(compare({METHODS}, {SEEDS}, Path(sys.argv[1]), {TINY}))"


def start(folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", SMALL, folder], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)


def rows(printed: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]


def test_every_method_has_the_same_images_steps_and_mask(tmp_path):
    runs = compare.planned(compare.METHODS, compare.SEEDS, tmp_path)  # parses and checks each
    assert len({run.folder for run in runs}) == len(runs)
    assert not any(tmp_path.iterdir())
    shared = GLYPHS.keys() - {"lr", "epochs"}
    for run in runs:
        options = parse(run.words).options
        assert {name: options[name] for name in shared} == {name: GLYPHS[name] for name in shared}, run.method
        assert (options["train_mask"], options["sched"]) == (True, "constant"), run.method
        one_pass = options["adapt"] == "all" and options["head"] != "linear"
        assert options["epochs"] == (1 if one_pass else GLYPHS["epochs"]), run.method


def test_two_methods_run_through_one_of_them_stopped_before(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "run_all", lambda runs: max(compare.run_one(run)[0] for run in runs))
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert compare.compare(METHODS, SEEDS[:1], tmp_path / "whole", TINY) == 0
    header, _, *found = rows(capsys.readouterr().out)
    assert header == list(compare.HEADER)
    assert [row[0] for row in found] == ["l2p", "ridge"]
    assert found[1][2] == "–" != found[1][3], "nothing to choose, but there is forgetting"
    assert [row[5] for row in found] == ["10,260", "0"]
    assert found[0][6] == "0" != found[1][6], "ridge keeps a Gram matrix"
    check_picture(tmp_path / "whole" / "compare.png")

    runs = compare.planned(METHODS, SEEDS[:1], tmp_path / "stopped", TINY)
    assert call(*runs[0].words, out=Interrupting("task 2/2 epoch 1"))[0] == 130
    assert not runs[0].is_finished()
    assert compare.compare(METHODS, SEEDS[:1], tmp_path / "stopped", TINY) == 0
    assert [row[:-1] for row in rows(capsys.readouterr().out)[2:]] == [row[:-1] for row in found]  # all but seconds

    assert all(run.is_finished() for run in runs)
    changed = compare.planned({"ridge": f"{METHODS['ridge']} --input_norm imagenet"}, SEEDS[:1], tmp_path / "stopped",
                              TINY)
    with pytest.raises(InputError, match="holds a run with another --input_norm than 'ridge' has now: remove"):
        changed[0].is_finished()


@pytest.mark.long
def test_killed_and_repeated_gives_the_same_table(tmp_path, capsys):
    """The whole program dies without a word: its workers must let go of their runs, and the next one finish them."""
    killed = start(tmp_path / "killed")
    until = time.monotonic() + 100
    while not list((tmp_path / "killed").glob("*/checkpoint/last.pth")) and time.monotonic() < until:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    printed = killed.communicate(timeout=60)[0]
    assert not rows(printed), "killed too late to tell anything"
    again = start(tmp_path / "killed")
    printed = again.communicate(timeout=200)[0]
    assert again.returncode == 0, printed

    whole = compare.planned(METHODS, SEEDS, tmp_path / "whole", TINY)
    for run in whole:
        assert main.main(run.words) == 0
    capsys.readouterr()
    expected = compare.table((name, [run.folder for run in whole if run.method == name]) for name in METHODS)
    assert "±" in expected
    assert [row[:-1] for row in rows(printed)] == [row[:-1] for row in rows(expected)]  # all but the seconds


def test_labels_of_points_keep_apart(tmp_path):
    groups = {"a": [("one", 0, 90.0, 1.0), ("two", 0, 90.1, 0.0), ("three", 0, 89.9, 0.0)],
              "b": [("four", 10_000, 20.0, 0.5), ("five", 10_500, 20.2, 0.0)], "c": [("six", 800_000, 99.0, 0.0)]}
    figure = plot_against_size(groups, tmp_path / "compare.png")
    check_picture(tmp_path / "compare.png")
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [Text.get_window_extent(text, renderer) for text in figure.axes[0].texts]
    assert len(boxes) == 6
    assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])
