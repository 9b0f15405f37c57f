"""report.py: which runs are averaged and compared, and what is left out."""

import csv
import io
import json
import re
import shlex
import shutil
from pathlib import Path
from statistics import mean, stdev

import pytest
from fixtures import ROOT
from run_folders import run_report, write_run

from configs.command import parse
from reporting import page
from results.record import make_record

ALONE = "nothing to choose"  # so that a run has one line, and none for the batch vote


def table(*words: object, capsys) -> list[dict[str, str]]:
    """The lines of --csv."""
    code, out, err = run_report(*words, "--csv", "-", "--html", "none", capsys=capsys)
    assert code == 0, err
    return list(csv.DictReader(io.StringIO(out)))


def in_one_line(text: str) -> str:
    return " ".join(text.split())


# ---- what is averaged, and what is compared ----
def test_seeds_are_averaged_and_both_protocols_told(tmp_path, capsys):
    runs = [write_run(tmp_path / "runs" / f"seed{seed}", seed) for seed in (1, 2, 3)]
    summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
    vote, alone = table(tmp_path, capsys=capsys)
    assert (vote["choice"], vote["runs"], vote["seeds"]) == ("batch vote over 20", "3", "1 2 3")
    for name in ("acc@1", "forgetting", "backward", "learning_acc", "average_incremental_acc", "train_seconds"):
        values = [summary[name] for summary in summaries]
        assert float(vote[f"{name}_mean"]) == pytest.approx(mean(values))
        assert float(vote[f"{name}_std"]) == pytest.approx(stdev(values))
    assert alone["choice"].startswith("prompts chosen per image")
    assert float(alone["acc@1_mean"]) == pytest.approx(79.0)
    assert alone["learning_acc_mean"] == "", "not measured with prompts chosen per image"
    assert vote["checkpoint_bytes_mean"] == "1000.0"

    code, out, _ = run_report(*runs, "--html", "none", capsys=capsys)
    assert code == 0
    assert f"{mean(s['acc@1'] for s in summaries):.2f} ± {stdev(s['acc@1'] for s in summaries):.2f} (3)" in out


@pytest.mark.parametrize(("other", "reason"), [
    ({"weights": "b" * 64}, "other weights"),
    ({"data": "e" * 64}, "other data, split or order of classes"),
    ({"data": None}, "other data, split or order of classes"),
    ({"setting": "task-incremental"}, "another setting"),
    ({"choice": "batch vote over 16"}, "prompts chosen in another way"),
    ({"choice": "nothing to choose"}, "prompts chosen in another way"),
])
def test_what_does_not_compare_is_in_a_table_of_its_own_with_the_reason(other, reason, tmp_path, capsys):
    for seed in (1, 2):
        write_run(tmp_path / f"one{seed}", seed)
    write_run(tmp_path / "other", 3, **other)
    lines = table(tmp_path, capsys=capsys)
    assert any(line["seeds"] == "1 2" for line in lines if line["choice"] == "batch vote over 20")
    assert not any(line["seeds"] == "1 2 3" for line in lines if line["choice"].startswith("batch vote"))
    _, out, _ = run_report(tmp_path, "--html", "none", capsys=capsys)
    assert re.search(rf"Not compared with table 1(, nor with each other)?: [^.]*{reason}", in_one_line(out))


def test_tables_of_one_line_with_one_reason_stand_under_one_heading(tmp_path, capsys, monkeypatch):
    """Of three data sets with a line each, and one with several, whose tables come first and are ranked."""
    monkeypatch.setattr(page, "PICTURES_OF_TABLES", 0)  # which take long, and are not looked at
    monkeypatch.setattr(page, "DETAILED_GROUPS", 0)
    write_run(tmp_path / "a", 1, level=70)
    write_run(tmp_path / "b", 1, level=90, lr=0.5)
    write_run(tmp_path / "c", 1, setting="task-incremental")
    write_run(tmp_path / "d", 1, setting="task-incremental", choice="nothing to choose")
    for number, name in enumerate(("Split-A", "Split-B", "Split-C")):
        write_run(tmp_path / name, 1, data=str(number) * 64, dataset=name, choice="nothing to choose",
                  level=50 + number)
    _, out, _ = run_report(tmp_path, "--html", tmp_path / "r.html", "--markdown", tmp_path / "r.md", capsys=capsys)
    text = in_one_line(out)
    assert re.findall(r"^Table (\d+)", out, re.MULTILINE) == list("1234567"), "all are there, in order"
    assert ("Tables 5, 6 and 7: one line each Not compared with table 1, nor with each other: other data, split or "
            "order of classes.") in text
    assert "Not compared with table 1: another setting" in text
    for path in ("r.html", "r.md"):
        written = in_one_line((tmp_path / path).read_text())
        assert written.count("nor with each other") == 1
        assert "Table 6: class-incremental, prompts chosen per image, or not at all<br>Split-B, 6 cl" in written
    lines = table(tmp_path, capsys=capsys)
    assert len({line["table"] for line in lines if line["data"] != lines[0]["data"]}) == 3, "still three tables"


def test_a_record_without_names_of_classes_is_of_the_same_images(tmp_path, capsys):
    write_run(tmp_path / "new", 1)
    write_run(tmp_path / "old", 2, classes=0)
    lines = table(tmp_path, capsys=capsys)
    assert [line["seeds"] for line in lines] == ["1 2", "1 2"]
    assert "6 classes" in lines[0]["data"]


@pytest.mark.parametrize("words", [(), ("--over_orders",)])
def test_the_number_of_tasks_is_of_the_data_however_it_was_typed(words, tmp_path, capsys):
    """`--num_tasks 3`, `--classes_per_task 2` and nothing at all can be the same three tasks of six classes."""
    for seed, options in enumerate(({"num_tasks": 3}, {"num_tasks": None, "classes_per_task": 2}, {"num_tasks": None})):
        write_run(tmp_path / str(seed), seed, **options)
    write_run(tmp_path / "two", 4, tasks=2, data="e" * 64, num_tasks=2)
    lines = table(tmp_path, *words, capsys=capsys)
    assert {(line["seeds"], "3 test sets" in line["data"]) for line in lines} == {("0 1 2", True), ("4", False)}


def test_a_reason_names_the_options_in_which_the_data_differ(tmp_path, capsys):
    write_run(tmp_path / "a", 1)
    write_run(tmp_path / "b", 2, data="e" * 64, num_tasks=2, subsample=7)
    write_run(tmp_path / "c", 3, data="e" * 64, num_tasks=2, subsample=7, lr=0.5)
    write_run(tmp_path / "d", 3, lr=0.5)
    _, out, _ = run_report(tmp_path, "--html", "none", capsys=capsys)
    assert re.search(r"other data, split or order of classes \(--subsample (7|200), not (200|7); --num_tasks (2|5), "
                     r"not (5|2)\)\.", in_one_line(out))


@pytest.mark.parametrize(("options", "label"), [
    ({"lr": 0.5}, "demo_l2p --lr 0.5"), ({"length": 9}, "demo_l2p --length 9"),
    ({"prompt_layers": [0, 3]}, "demo_l2p --prompt_layers 0 3"), ({"experiment": "demo_linear"}, "demo_linear"),
    ({"align": True}, "demo_l2p --align"), ({"prompt_pool": False}, "demo_l2p --no-prompt_pool"),
    ({"clip_grad": None}, "demo_l2p --clip_grad none"), ({"freeze": []}, "demo_l2p --freeze"),
    ({"model": "my vit"}, "demo_l2p --model 'my vit'")])
def test_other_options_are_another_line_of_the_same_table(options, label, tmp_path, capsys):
    write_run(tmp_path / "a", 1)
    write_run(tmp_path / "b", 2, level=90, **options)
    lines = [line for line in table(tmp_path, capsys=capsys) if line["table"] == "1"]
    assert [line["runs"] for line in lines] == ["1", "1"]
    assert lines[0]["acc@1_std"] == "", "one run has no spread"
    both = " --size 4 --top_k 2"
    assert [line["method"].startswith(label.split()[0]) for line in lines] == [True, "linear" not in label]
    assert lines[1]["method"] == f"demo_l2p{both}", "a line of CSV says all of it"
    _, out, _ = run_report(tmp_path, "--html", "none", capsys=capsys)
    assert re.findall(r"^(demo\w+(?: --?.+?)?)  +[89]", out, re.MULTILINE)[:2] == [label, "demo_l2p"], \
        "the better one is first, and is called as one would type it"
    assert f"All of them with{both}." in out
    assert parse(shlex.split(label)).given == {name: options[name] for name in options if name != "experiment"}


@pytest.mark.parametrize("options", [
    {"data_path": "/elsewhere"}, {"output_dir": "/x/y"}, {"num_workers": 7}, {"init_checkpoint": "moved.npz"},
    {"print_freq": 3}, {"eval_per_image": "always"}])
def test_what_changes_no_result_splits_no_group(options, tmp_path, capsys):
    write_run(tmp_path / "a", 1)
    write_run(tmp_path / "b", 2, **options)
    assert table(tmp_path, capsys=capsys)[0]["seeds"] == "1 2"


def test_orders_of_classes_are_averaged_on_request_only(tmp_path, capsys):
    for seed in (1, 2):
        write_run(tmp_path / str(seed), seed, data=str(seed) * 64, shuffle=True)
    write_run(tmp_path / "other", 3, data="3" * 64, shuffle=True, dataset="Split-MNIST")
    words = [tmp_path, "--html", "none"]
    _, out, _ = run_report(*words, capsys=capsys)
    assert "--over_orders averages over it" in in_one_line(out)
    assert max(int(line["runs"]) for line in table(tmp_path, capsys=capsys)) == 1
    lines = table(tmp_path, "--over_orders", capsys=capsys)
    assert sorted({line["seeds"] for line in lines}) == ["1 2", "3"], "another data set stays apart"


def lines_of(tmp_path, capsys, *runs: dict[str, object]) -> list[int]:
    """How many seeds each line of the table over orders has, of runs in folders and with seeds of their own."""
    for seed, options in enumerate(runs):
        words = options.get("options", {})
        folder = write_run(tmp_path / f"run{seed}", seed, data=str(seed) * 64, choice=ALONE, **words)
        if "splits" in options:
            (folder / "scenario.json").write_text(json.dumps({"splits": options["splits"]}))
    return sorted(len(row["seeds"].split()) for row in table(tmp_path, "--over_orders", capsys=capsys))


@pytest.mark.parametrize(("one", "other", "together"), [
    ({"splits": {"F": {"seed": 1, "test": ["a"]}}}, {"splits": {"F": {"seed": 1, "test": ["b"]}}}, 0),
    ({"splits": {"F": {"seed": 1, "test": ["a"]}}}, {"splits": {"F": {"seed": 1, "test": ["a"]}}}, 1),
    ({"options": {"classes_per_task": 2}}, {"options": {"num_tasks": 3}}, 1),
    ({"options": {"classes_per_task": 2, "classes": 5}}, {"options": {"num_tasks": 3, "classes": 5}}, 0)])
def test_over_orders_splits_and_sizes_of_tasks_are_told_apart(one, other, together, tmp_path, capsys):
    assert lines_of(tmp_path, capsys, one, other) == ([2] if together else [1, 1])


def test_folders_with_the_same_names_of_files_are_told_apart(tmp_path, capsys):
    """The hash of images in files is that of their names."""
    for name in ("clean", "blurred"):
        write_run(tmp_path / "runs" / name, choice=ALONE, dataset="Split-Folder", data_path=f"/data/{name}")
    assert len(table(tmp_path / "runs", capsys=capsys)) == 2


def test_evaluations_in_another_precision_are_no_seeds_of_one_run(tmp_path, capsys):
    for seed, precision in ((1, "fp32"), (2, "bf16")):
        folder = write_run(tmp_path / f"run{seed}", seed, choice=ALONE)
        write_run(folder, seed, prefix="eval_", data="e" * 64, choice=ALONE)
        _edit(folder / "eval_summary.json", config=json.loads((folder / "eval_summary.json").read_text())["config"]
              | {"precision": precision})
    evaluations = [row for row in table(tmp_path, capsys=capsys) if "--eval" in row["method"]]
    assert [row["seeds"] for row in evaluations] in (["1", "2"], ["2", "1"])


def test_of_copies_the_whole_one_counts_and_the_others_are_named(tmp_path, capsys):
    whole = write_run(tmp_path / "whole", 1)
    cut, later = (shutil.copytree(whole, tmp_path / name) for name in ("a", "z"))
    (cut / "log.jsonl").unlink()
    _, _, err = run_report(tmp_path, "--html", "none", capsys=capsys)
    assert err.splitlines() == [
        f"report.py: left out: {later} is a copy of {whole}, which is taken: its name comes first.",
        f"report.py: left out: {cut} is a copy of {whole}, which is taken: it has more of its files."]
    assert [line["seeds"] for line in table(tmp_path, capsys=capsys)] == ["1", "1"]

    (whole / "log.jsonl").write_text("[cut short")
    _, _, err = run_report(tmp_path, "--html", "none", capsys=capsys)
    assert f"{cut} is a copy of {later}, which is taken: it has more of its files." in err
    assert f"{whole} is a copy of {later}, which is taken: it has more of its files." in err


def test_of_a_seed_that_was_run_again_the_newest_counts(tmp_path, capsys):
    first, again = (write_run(tmp_path / name, 2) for name in ("a", "b"))
    write_run(tmp_path / "other", 1)
    rows = [json.loads(line) | {"time": 99.0} for line in (again / "log.jsonl").read_text().splitlines()]
    (again / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = run_report(tmp_path, "--html", "none", capsys=capsys)
    assert (code, err) == (0, "")
    assert f"{first} repeats seed 2 of {again}, which is taken: it is newer." in in_one_line(out)
    line = table(tmp_path, capsys=capsys)[0]
    assert line["seeds"] == "1 2"
    accs = [json.loads((tmp_path / name / "summary.json").read_text())["acc@1"] for name in ("other", "b")]
    assert float(line["acc@1_mean"]) == pytest.approx(mean(accs))


def test_an_evaluation_that_measured_something_else_is_told_apart(tmp_path, capsys):
    folder = write_run(tmp_path / "a", 1)
    write_run(folder, 1, prefix="eval_")
    assert len(table(tmp_path, capsys=capsys)) == 2, "the same once more is not told"
    write_run(folder, 1, prefix="eval_", setting="task-incremental", level=95)
    lines = table(tmp_path, capsys=capsys)
    assert {(line["setting"], line["method"].endswith("(--eval)")) for line in lines} == {
        ("class-incremental", False), ("task-incremental", True)}


def test_records_say_the_same_as_the_runs_they_were_made_of(tmp_path, capsys):
    for seed in (1, 2):
        folder = write_run(tmp_path / "runs" / str(seed), seed, output_dir=f"/home/somebody/{seed}")
        (tmp_path / "records").mkdir(exist_ok=True)
        (tmp_path / "records" / f"{seed}.json").write_text(json.dumps(make_record(folder)))
    (tmp_path / "records" / "other.json").write_text('{"name": "no record of a run"}')
    of_runs, of_records = (table(tmp_path / part, capsys=capsys) for part in ("runs", "records"))
    for line in of_runs + of_records:
        line.pop("checkpoint_bytes_mean"), line.pop("checkpoint_bytes_n"), line.pop("checkpoint_bytes_std")
    assert of_runs == of_records
    record = json.loads((tmp_path / "records" / "1.json").read_text())
    tests = [30 * (task + 1) for task in range(len(record["prompts_chosen"]))]
    assert record["prompts_chosen"] == [[count, count, 0, 0] for count in tests], "over all test sets of an evaluation"
    assert table(tmp_path, capsys=capsys)[0]["seeds"] == "1 2", "both of one run count once"


def test_the_records_in_the_repository_are_read(capsys):
    lines = table(ROOT / "results", capsys=capsys)
    assert {"demo_l2p", "demo_linear"} <= {line["method"] for line in lines}
    found = [line for line in lines if line["method"] == "demo_linear" and line["runs"] == "3"]
    assert found[0]["seeds"] == "1 2 42"


# ---- what is left out ----
def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("damage", [
    lambda folder: (folder / "summary.json").unlink(), lambda folder: _cut(folder / "summary.json"),
    lambda folder: (folder / "summary.json").write_text("[]"), lambda folder: (folder / "summary.json").write_bytes(
        b"\xff\xfe\x00"), lambda folder: _edit(folder / "summary.json", **{"acc@1": 12.0}),
    lambda folder: _edit(folder / "summary.json", **{"acc@1": "high"}),
    lambda folder: _edit(folder / "summary.json", config=None),
    lambda folder: _edit(folder / "summary.json", evaluated_after=[1]),
    lambda folder: (folder / "accuracy_matrix.csv").unlink(),
    lambda folder: (folder / "accuracy_matrix.csv").write_text("task,after_task_1\n1,120\n"),
    lambda folder: (folder / "accuracy_matrix.csv").write_text("task,after_task_1\n1,abc\n"),
    lambda folder: (folder / "accuracy_matrix.csv").write_text(""),
    lambda folder: _cut(folder / "accuracy_matrix.csv"),
])
def test_a_damaged_or_unfinished_run_is_named_and_left_out(damage, tmp_path, capsys):
    write_run(tmp_path / "whole", 1)
    broken = write_run(tmp_path / "broken", 2)
    damage(broken)
    code, out, err = run_report(tmp_path, "--html", "none", capsys=capsys)
    assert (code, len(err.splitlines())) == (0, 1)
    assert str(broken) in err
    assert "(1)" in out
    code, out, err = run_report(broken, "--html", tmp_path / "none.html", capsys=capsys)
    assert (code, out) == (2, "")
    assert "no finished run is left" in err
    assert not (tmp_path / "none.html").exists()


@pytest.mark.parametrize("name", ["log.jsonl", "confusion.npz"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b'{"kind": "keys"}\n', b'[1]\n', b"PK\x03\x04 cut short"])
def test_a_damaged_file_of_pictures_takes_the_pictures_away_and_nothing_else(name, content, tmp_path, capsys):
    folder = write_run(tmp_path / "run", 1)
    (folder / name).write_bytes(content)
    code, out, err = run_report(tmp_path, "--html", "none", "--csv_pictures", tmp_path / "numbers", capsys=capsys)
    assert code == 0
    assert "batch vote over 20" in out
    if name == "confusion.npz" or content:  # an empty log is one of which nothing is known
        assert f"{name} is damaged" in err
    left = {path.stem.partition("method1_")[2] for path in (tmp_path / "numbers").iterdir()}
    of_the_file = {"confusion.npz": {"confusion", "classes"}, "log.jsonl": {"prompts", "keys", "collapse"}}[name]
    assert "accuracy_matrix" in left
    assert not left & of_the_file
    assert len(left) > 2, "the other file's are there"


@pytest.mark.parametrize(("words", "sentence"), [
    ([], "name the folders"), (["{runs}", "--htlm", "x"], "unknown option --htlm"), (["{none}"], "is not there"),
    (["{runs}", "--html", "{none}/x/r.html"], "cannot be written"), (["{runs}", "--html", "{runs}"], "cannot be"),
    (["{runs}", "--html", "-"], "--html -"), (["{runs}", "--csv", "-", "--latex", "-"], "only one of"),
    (["{runs}", "--over_orders", "maybe"], "maybe")])
def test_bad_input_is_answered_with_one_sentence(words, sentence, tmp_path, capsys):
    write_run(tmp_path / "runs" / "a", 1)
    places = {"runs": tmp_path / "runs", "none": tmp_path / "none"}
    code, out, err = run_report(*(word.format(**places) for word in words), capsys=capsys)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert sentence in err
