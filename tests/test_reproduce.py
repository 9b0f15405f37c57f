"""`reproduce.py`: its command lines, its tables, and that stopping it loses nothing."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
from fixtures import ROOT
from safetensors.torch import load_file, save_file
from test_plots import check_picture

import reproduce
from configs.command import parse
from errors import InputError
from reproducing import compared
from reproducing.compared import HEADER, reported_table
from reproducing.published import Published
from reproducing.runs import Run, planned
from reproducing.tables import TABLES
from reproducing.workers import places, run_all

TINY = ["--subsample", "2", "--subsample_test", "1", "--num_tasks", "2", "--batch_size", "4", "--device", "cpu"]


def call(*words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of reproduce.py in this process."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = reproduce.main(list(map(str, words)))
    return code, out.getvalue(), err.getvalue()


def start(*words: object) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "reproduce.py", *map(str, words)], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def rows(printed: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]


# ---- command lines ----
@pytest.mark.parametrize(("words", "answer"), [
    ([], "name the table first: cifar100, imagenet_r, five_datasets, core50, gaussian, few, demo."),
    (["--dry_run"], "name the table first: cifar100,"),
    (["cifar10"], "unknown table 'cifar10': did you mean cifar100? There are cifar100,"),
    (["photos"], "unknown table 'photos': there are cifar100,"),
    (["demo", "demo_l2p"], "unexpected word 'demo_l2p': options stand behind the table;"),
    (["demo", "--methods", "l3p"], "--methods l3p: did you mean l2p? This table has l2p, l2p_deep,"),
    (["demo", "--methods", "l2p,linear"], "--methods l2p,linear: names stand apart by blanks: l2p linear."),
    (["demo", "--methods"], "--methods: expected at least one argument"),
    (["demo", "--seeds", "1", "1"], "--seeds 1 1: each seed is one run, so name it once."),
    (["demo", "--seed", "3"], "--seed is not for all runs of a table: use --seeds."),
    (["demo", "--class_order", "seed"], "--class_order is not for all runs of a table: use --class_orders."),
    (["demo", "--overwrite"], "--overwrite is not for all runs of a table: use another --output_dir."),
    (["demo", "--seeds", "1", "2", "--class_orders", "natural"], "--class_orders has 1 value(s) for the seeds 1 2: "),
    (["demo", "--epohcs", "3"], "unknown option --epohcs: did you mean --epochs?"),
    (["demo", "--output_dir", "/dev/null"], "--output_dir /dev/null is a device"),
    (["demo", "--jobs", "0"], "--jobs: '0' is not a whole number of at least 1"),
])
def test_command_lines_that_cannot_be(words, answer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert answer in err
    assert err.startswith("reproduce.py: error: ")
    assert len(err.splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_words_of_the_user_come_after_the_lines(tmp_path):
    (first, second) = planned(TABLES["cifar100"], tmp_path, methods=["l2p_official"], seeds=[3, 4],
                              class_orders=["natural", "numpy:1993"], more=["--batch-size", "32"])
    assert parse(first.words).options["batch_size"] == 32
    assert parse(first.words).options["class_order"] is None
    assert parse(second.words).options | {"seed": 0} == parse(first.words).options | {
        "seed": 0, "class_order": "numpy:1993", "output_dir": str(tmp_path / "l2p_official_seed4")}


def test_where_runs_happen(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    assert places("cpu", small=False, jobs=None) == [{}]
    assert places("cpu", small=True, jobs=None) == ([{"OMP_NUM_THREADS": "1"}] * cores if cores > 1 else [{}])
    assert places("cpu", small=False, jobs=2) == [{"OMP_NUM_THREADS": str(max(1, cores // 2))}] * 2
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert places("auto", small=False, jobs=None) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places("cuda", small=True, jobs=3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-7f,5")
    assert places("auto", small=True, jobs=None) == [{"CUDA_VISIBLE_DEVICES": "GPU-7f"}, {"CUDA_VISIBLE_DEVICES": "5"}]
    assert places("cuda:1", small=False, jobs=None) == [{}]


# ---- running ----
@pytest.fixture(scope="module")
def reproduced(tmp_path_factory) -> tuple[Path, str]:
    """A finished table and what was printed."""
    folder = tmp_path_factory.mktemp("reproduced") / "table"
    code, out, err = call("demo", "--methods", "l2p", "ridge", "--seeds", 1, "--output_dir", folder, *TINY)
    assert code == 0, out + err
    return folder, out


def test_a_table(reproduced):
    folder, printed = reproduced
    header, _, *found = rows(printed)
    assert header == list(HEADER)
    assert [row[0] for row in found] == ["l2p", "ridge"]
    assert found[1][2] == "–" != found[1][3], "nothing to choose, but there is forgetting"
    assert [row[5] for row in found] == ["10,260", "0"]
    assert found[0][6] == "0" != found[1][6], "ridge keeps a Gram matrix"
    check_picture(folder / "compare.png")
    written = (folder / "RESULTS.md").read_text()
    assert rows(written) == rows(printed)
    assert "python main.py demo_l2p --subsample 2" in written
    assert "<svg" in (folder / "report.html").read_text()


def test_repeated_it_runs_nothing_and_prints_the_same(reproduced):
    folder, printed = reproduced
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}
    code, out, _ = call("demo", "--methods", "l2p", "ridge", "--seeds", 1, "--output_dir", folder, *TINY)
    assert (code, rows(out)) == (0, rows(printed))
    assert "to do" not in out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")} == before


def test_options_that_came_after_a_run_are_as_they_were(reproduced, tmp_path):
    """A table of an earlier version is shown, and not told to be another one."""
    folder = shutil.copytree(reproduced[0], tmp_path / "table")
    for path in folder.glob("*/*.json"):
        content = json.loads(path.read_text())
        options = content.get("options") or content.get("config", {}).get("options")
        if options:
            del options["crop_pct"]
            path.write_text(json.dumps(content))
    code, out, err = call("demo", "--methods", "l2p", "ridge", "--seeds", 1, "--output_dir", folder, *TINY)
    assert (code, rows(out)) == (0, rows(reproduced[1])), err
    assert "to do" not in out


def test_a_folder_of_another_run_is_refused(reproduced):
    code, out, err = call("demo", "--methods", "ridge", "--seeds", 1, "--output_dir", reproduced[0], *TINY,
                          "--input_norm", "imagenet")
    assert (code, out) == (2, "")
    assert "holds a run with another --input_norm than 'ridge' has now: remove the folder, or name another" in err


@pytest.mark.long
def test_a_dry_run_tells_states_commands_time_and_memory(reproduced):
    folder, _ = reproduced
    before = sorted(folder.rglob("*"))
    code, out, _ = call("demo", "--methods", "ridge", "--seeds", 1, 2, "--dry_run", "--jobs", 2, "--output_dir", folder,
                        *TINY)
    assert code == 0
    finished, waiting, estimate, total = out.splitlines()
    assert finished.startswith("finished: python main.py demo_linear --head ridge")
    assert waiting.startswith("not begun: python main.py demo_linear --head ridge")
    assert re.fullmatch(r"ridge: about \d+s for a whole run, 1 to do, \d\.\d GB of memory", estimate)
    assert re.fullmatch(r"all: about \d+s, 2 at a time; starts, solving and saving come on top", total)
    assert sorted(folder.rglob("*")) == before


def test_a_dry_run_without_the_data_still_tells_the_commands(tmp_path):
    code, out, _ = call("cifar100", "--methods", "nearest_class_mean", "--data-path", tmp_path, "--dry_run",
                        "--no-pretrained", "--model", "vit_tiny_patch16_224", "--device", "cpu")
    assert code == 0
    command, estimate = out.splitlines()
    assert command.startswith("not begun: python main.py cifar100_ncm --crop_pct 1 --data_path")
    assert estimate.startswith("nearest_class_mean: no estimate: ")
    assert "--download" in estimate


@pytest.mark.long
def test_a_run_that_fails_does_not_keep_the_others(tmp_path):
    (tmp_path / "ridge_seed1").mkdir()
    (tmp_path / "ridge_seed1" / "config.json").write_text("{")
    code, out, err = call("demo", "--methods", "ridge", "nearest_class_mean", "--seeds", 1, "--output_dir", tmp_path,
                          *TINY)
    assert code == 1
    assert re.search(r"ridge_seed1: .*, ended with exit code 2: main.py: error: .*json.* \(see .*seed1.log", out)
    assert [row[0] for row in rows(out)[2:]] == ["nearest_class_mean"]
    assert "Only 1 of 2 runs are finished." in (tmp_path / "RESULTS.md").read_text()
    assert "error: not every run is finished; the same command tries again." in err


@pytest.mark.long
def test_what_would_be_said_of_all_is_said_of_two(tmp_path):
    """As of data that are not there."""
    code, out, err = call("demo", "--methods", "ridge", "nearest_class_mean", "linear", "--seeds", 1, 2, "--jobs", 1,
                          "--output_dir", tmp_path, *TINY, "--init_checkpoint", tmp_path / "none.pth")
    assert code == 1
    assert out.count("none.pth") == 2
    assert "two methods were refused for the same reason: 4 run(s) are not started" in out
    assert len(list(tmp_path.glob("*.log"))) == 2
    assert "error: not every run is finished" in err


def test_a_dry_run_says_it_once_more_and_no_oftener(tmp_path):
    code, out, _ = call("demo", "--dry_run", "--methods", "ridge", "nearest_class_mean", "linear", "--seeds", 1,
                        "--output_dir", tmp_path, *TINY, "--init_checkpoint", tmp_path / "none.pth")
    assert code == 0
    assert out.count("no estimate") == 2
    assert out.endswith("two methods were refused for the same reason: the others are not tried\n")


@pytest.mark.parametrize(("name", "kind"), [("", "file"), ("ridge_seed1", "file"), ("ridge_seed1.log", "folder"),
                                            ("RESULTS.md", "folder"), ("report.html", "folder")])
def test_what_is_in_the_way_is_told_before_anything_runs(name, kind, tmp_path):
    place = tmp_path / "table" / name
    place.parent.mkdir(exist_ok=True)
    place.mkdir() if kind == "folder" else place.write_text("")
    code, out, err = call("demo", "--methods", "ridge", "--seeds", 1, "--output_dir", tmp_path / "table", *TINY)
    assert (code, out) == (2, "")
    assert re.search(r"in the way|is no folder|is a file", err)


def test_a_summary_that_is_lost_or_damaged_is_no_lost_run(reproduced, tmp_path):
    """Its run is then one that was begun; with other options it is refused as a finished one is."""
    shutil.copytree(reproduced[0], tmp_path / "table")
    run, = planned(TABLES["demo"], tmp_path / "table", methods=["ridge"], seeds=[1], more=TINY)
    other = replace(run, words=(*run.words, "--lr", "1"))
    assert run.state() == "finished"
    assert replace(run, words=(*run.words, "--device", "cuda")).state() == "finished", "as --resume allows it"
    path = tmp_path / "table" / "ridge_seed1" / "summary.json"
    whole = json.loads(path.read_text())
    for damage in (lambda: path.write_text(json.dumps(whole | {"acc@1": whole["acc@1"] + 9})),
                   lambda: path.write_text(json.dumps(whole | {"acc@1": "x"})),
                   lambda: path.write_text(json.dumps({k: v for k, v in whole.items() if k != "replay_bytes"})),
                   lambda: path.write_text('{"acc@1": 5'), path.unlink):
        damage()
        assert run.state() == "begun"
        with pytest.raises(InputError, match="holds a run with another --lr than 'ridge' has now"):
            other.state()


def test_other_weights_under_another_name_are_another_run(reproduced, tmp_path):
    """Where a finished run names its weights in another way, --resume looks at them: the same ones may have moved."""
    folder = shutil.copytree(reproduced[0], tmp_path / "table")
    weights = load_file(ROOT / "demo" / "glyph_vit.safetensors")
    save_file(weights, tmp_path / "same.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in weights.items()}, tmp_path / "other.safetensors")
    words = ["demo", "--methods", "ridge", "--seeds", 1, "--output_dir", folder, *TINY, "--init_checkpoint"]
    code, out, err = call(*words, tmp_path / "other.safetensors")
    assert code == 1
    assert re.search(r"ridge_seed1: .*, ended with exit code 2: main.py: error: .*weights", out), out
    assert rows(out) == []
    code, out, err = call(*words, tmp_path / "same.safetensors")
    assert code == 0, out + err
    assert rows(out)[2][:6] == rows(reproduced[1])[3][:6]
    code, out, err = call(*words, tmp_path / "same.safetensors")
    assert (code, "to do" in out) == (0, False)


def test_images_or_an_order_named_in_another_way_are_for_resume_to_look_at(reproduced, tmp_path):
    """What it then says of other content has tests of its own."""
    shutil.copytree(reproduced[0], tmp_path / "table")
    run, = planned(TABLES["demo"], tmp_path / "table", methods=["ridge"], seeds=[1], more=TINY)
    assert replace(run, words=(*run.words, "--data-path", "elsewhere")).state() == "begun"
    ordered = replace(run, words=(*run.words, "--class_order", "first.txt"))
    with pytest.raises(InputError, match="holds a run with another --class_order"):
        ordered.state()
    path = run.folder / "summary.json"
    summary = json.loads(path.read_text())
    summary["config"]["options"]["class_order"] = "first.txt"
    path.write_text(json.dumps(summary))
    assert ordered.state() == "finished"
    assert replace(run, words=(*run.words, "--class_order", "moved.txt")).state() == "begun"
    with pytest.raises(InputError, match="holds a run with another --class_order"):
        replace(run, words=(*run.words, "--class_order", "numpy:1993")).state()


def test_a_place_that_nobody_may_write_to():
    code, _, err = call("demo", "--methods", "ridge", "--seeds", 1, "--output_dir", "/proc/x", *TINY)
    assert code == 1
    assert re.fullmatch(r"reproduce.py: error: .*/proc/x.*; runs keep what they have saved, and .*\n", err)


def test_what_is_said_of_a_run_is_what_it_said(tmp_path):
    """Also where its log has an earlier start's lines, and another run of the same folder goes on writing to it."""
    run = Run("x", tmp_path / "x", ("--epohcs", "3"))
    run.log.write_text("main.py: error: of an earlier start\n")
    ended = threading.Event()

    def write() -> None:
        while not ended.wait(0.005):
            with open(run.log, "a") as log:
                log.write("task 1/2 epoch 1/1 step 1/1\n")

    other = threading.Thread(target=write)
    other.start()
    said: list[str] = []
    assert run_all([run], [{}], said.append) == 1
    ended.set()
    other.join()
    assert "exit code 2: main.py: error: unknown option --epohcs: did you mean --epochs?" in said[0]


def test_table_stands_for_the_tables_name_in_the_default_place_alone(tmp_path):
    assert reproduce.read(["demo", "--output_dir", str(tmp_path / "MYTABLES")]).folder.name == "MYTABLES"
    assert reproduce.read(["demo"]).folder.name == "demo"


@pytest.mark.parametrize("place", ["nowhere", "."])
def test_the_table_of_folders_that_hold_no_run(place, tmp_path, capsys):
    assert compared.main([str(tmp_path / place)]) == 2
    assert "it has no summary.json. Name the folder of a finished run" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_stopped_and_repeated_gives_the_same_table(number, reproduced, tmp_path):
    words = ["demo", "--methods", "l2p", "ridge", "--seeds", 1, "--output_dir", tmp_path / "stopped", *TINY]
    stopped = start(*words)
    until = time.monotonic() + 100
    while not list((tmp_path / "stopped").glob("*/checkpoint/last.pth")) and time.monotonic() < until:
        time.sleep(0.005)
    stopped.send_signal(number)
    printed = stopped.communicate(timeout=60)[0]
    assert not rows(printed), "stopped too late to tell anything"
    assert stopped.returncode == (-number if number == signal.SIGKILL else 128 + number)
    again = start(*words)
    printed = again.communicate(timeout=200)[0]
    assert again.returncode == 0, printed
    assert [row[:-1] for row in rows(printed)] == [row[:-1] for row in rows(reproduced[1])]  # all but the seconds


# ---- what was reported ----
def test_what_was_reported_stands_beside_what_came_out(reproduced):
    """Accuracies of the runs above: l2p and ridge, whose real weights are no published ones."""
    folder, printed = reproduced
    acc1 = {row[0]: float(row[1]) for row in rows(printed)[2:]}
    runs = {name: [Run(name, folder / f"{name}_seed1", ())] for name in acc1}
    lines = {name: " ".join([TABLES["demo"].methods[name], *TINY]) for name in acc1}
    text = reported_table([Published("l2p", "L2P paper", 80.0, 2.0), Published("coda", "CODA paper", 70.0, None, 0.5)],
                          runs, lines | {"coda": "demo_l2p"})
    _, _, l2p, coda = rows(text)
    assert l2p[1].startswith(f"{acc1['l2p']:.2f} / ")
    assert l2p[2:5] == ["80.00 / 2.00", "not compared", ""]
    assert "reported with vit_base_patch16_224" in l2p[5]
    assert coda[1:3] == ["not run", "70.00 ± 0.50"]
    assert "[1] L2P paper: Wang et al." in text
