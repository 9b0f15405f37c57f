"""report.py: what it writes. Pages, pictures and tables that stand alone."""

import csv
import io
import json
import re
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fixtures import ROOT, TINY, write_npz
from lab import BASE, CODA, DIVERSE, DUAL, NO_PROMPTS, STREAM, call
from PIL import Image
from run_folders import run_report, write_run

import utils

CHROMIUM = shutil.which("chromium")


# ---- what is written ----
def test_every_format_has_the_numbers_and_escapes(tmp_path, capsys):
    write_run(tmp_path / "runs" / "a", 1, dataset="Split_&50%|x", pool=False)
    files = {name: tmp_path / f"out.{name}" for name in ("latex", "csv", "markdown", "html", "pdf")}
    words = [word for name, path in files.items() for word in (f"--{name}", path)]
    code, _, err = run_report(tmp_path / "runs", *words, "--csv_pictures", tmp_path / "numbers", capsys=capsys)
    assert code == 0, err
    number = f"{json.loads((tmp_path / 'runs/a/summary.json').read_text())['acc@1']:.2f} (1)"
    assert number in files["markdown"].read_text()
    page = files["html"].read_text()
    for text in (number, "python main.py demo_l2p --seed 1", "c" * 12, "torch 2.15.0", "AMD EPYC", "--num_tasks 5"):
        assert text in page
    latex = files["latex"].read_text()
    assert number in latex
    assert r"Split\_\&50\%|x" in latex
    assert "Split_&amp;50%|x" in page
    assert r"-{}-dataset 'Split\_" in latex, "LaTeX would join the two dashes"
    assert files["pdf"].read_bytes().startswith(b"%PDF")
    pictures = {path.name for path in (tmp_path / "numbers").iterdir()}
    assert len(pictures) == page.count("<figure>")
    (matrix,) = (path for path in (tmp_path / "numbers").iterdir() if "accuracy_matrix" in path.name)
    drawn, own = (list(csv.reader(io.StringIO(path.read_text()))) for path in (
        matrix, tmp_path / "runs" / "a" / "accuracy_matrix.csv"))
    assert [row[1:] for row in drawn[1:]] == [row[1:] for row in own[1:]]


@pytest.mark.long
def test_the_same_runs_give_the_same_bytes(tmp_path, capsys):
    write_run(tmp_path / "runs" / "1", 1, choice="nothing to choose", pool=False)
    for name in ("a", "b"):
        run_report(tmp_path / "runs", "--html", tmp_path / f"{name}.html", "--pdf", tmp_path / f"{name}.pdf",
                   capsys=capsys)
    for kind in ("html", "pdf"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


@pytest.mark.parametrize("options", [
    {"setting": "task-agnostic"}, {"tasks": 50, "classes": 100, "prompts": 40}, {"tasks": 1, "classes": 1},
    *(pytest.param(more, marks=pytest.mark.long) for more in (
        {}, {"setting": "domain-incremental"}, {"pool": False, "choice": "nothing to choose"}, {"prompts": 1}))])
def test_every_picture_has_a_title_and_labels_of_its_axes(options, tmp_path, capsys):
    for seed in (1, 2):
        write_run(tmp_path / "runs" / str(seed), seed, **options)
    code, _, err = run_report(tmp_path / "runs", "--html", tmp_path / "r.html", capsys=capsys)
    assert (code, len(err.splitlines())) == (0, 1), err
    check_pictures((tmp_path / "r.html").read_text())


def test_pictures_that_are_not_drawn_are_mentioned(tmp_path, capsys):
    """Of six data sets with three methods each, so of more tables and methods than a page draws."""
    for number, (data, experiment) in enumerate((data, lr) for data in "123456" for lr in (0.1, 0.2, 0.3)):
        write_run(tmp_path / "runs" / str(number), 1, data=data * 64, dataset=f"Split-{data}", lr=experiment,
                  choice="nothing to choose", pool=False)
    code, _, err = run_report(tmp_path / "runs", "--html", tmp_path / "r.html", "--csv_pictures", tmp_path / "numbers",
                              capsys=capsys)
    page = (tmp_path / "r.html").read_text()
    names = {path.stem for path in (tmp_path / "numbers").iterdir()}
    assert code == 0
    assert {name for name in names if "_acc" in name and "matrix" not in name} == {f"table{n}_acc" for n in range(1, 7)}
    assert {name.partition("_")[0] for name in names if "method1" in name} == {f"table{n}" for n in range(1, 6)}, \
        "the best method of each table, not all of the first table"
    assert "left out: the pictures of 13 methods, of which there would be too many; give fewer folders" in err
    assert page.count("Not drawn: the pictures of 2 more methods.") == 5
    assert page.count("Not drawn: the pictures of 3 more methods.") == 1


def test_curves_that_were_not_measured_are_mentioned(tmp_path, capsys):
    """The log of these runs has no accuracy of prompts chosen per image, which only the summary has."""
    write_run(tmp_path / "runs" / "a", 1)
    run_report(tmp_path / "runs", "--html", tmp_path / "r.html", capsys=capsys)
    page = (tmp_path / "r.html").read_text()
    assert "No curves of demo_l2p --size 4 --top_k 2: not measured in this way after every task." in page


def check_pictures(page: str) -> int:
    figures = re.findall(r"<figure>.*?</figure>", page, re.DOTALL)
    ids = re.findall(r' id="([^"]+)"', page)
    for figure in figures:
        title, x_label, y_label = (re.search(pattern, figure)[1] for pattern in (
            r"<title>([^<]+)</title>", r'data-x="([^"]+)"', r'data-y="([^"]+)"'))
        drawn = " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", figure))
        for text in (*title.split(), x_label, y_label):
            assert text in drawn.replace("&#39;", "'") or text.replace("&#x27;", "'") in drawn, text
        assert re.search(r"<figcaption>[^<]+</figcaption>", figure)
    assert len(ids) == len(set(ids)), "no two elements of the page have one id"
    return len(figures)


def test_names_that_neither_pages_nor_pictures_expect(tmp_path, capsys):
    folder = write_run(tmp_path / "runs" / "a <b>&'\"", 1)
    for name in ("config.json", "summary.json"):
        content = json.loads((folder / name).read_text())
        config = content.get("config", content)
        config["class_names"] = ["<script>alert(1)</script>", "$x^", "\udcff\x00", "蜂", "a\nb", "&amp;"]
        config["command"] = ["main.py", "</td><img src=http://x.invalid/>"]
        (folder / name).write_text(json.dumps(content))
    code, _, err = run_report(tmp_path / "runs", "--html", tmp_path / "r.html", capsys=capsys)
    assert (code, len(err.splitlines())) == (0, 1), err
    page = (tmp_path / "r.html").read_text()
    assert "<script" not in page
    assert "<img" not in page
    assert "蜂" in page
    check_pictures(page)


def test_reading_its_command_line_loads_no_heavy_library():
    heavy = "{'torch', 'timm', 'matplotlib', 'numpy'}"
    done = subprocess.run([sys.executable, "-c", "import report; report.main(['--help']); report.main(['--htlm']); "
                           f"import sys; print(*{heavy} & set(sys.modules))"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "", done.stdout + done.stderr


def test_a_report_needs_no_torch():
    statement = "import sys, report, reporting.groups, reporting.page, reporting.runs; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", statement], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


# ---- a real run ----
@pytest.fixture(scope="module")
def real_runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    data = write_npz(folder / "data.npz", classes=4)
    code, _, err = call("cifar100_l2p", "--data-path", data, *TINY, "--num-tasks", 2, "--seed", 1, "--output_dir",
                            folder / "runs" / "1", "--device", "cpu")
    assert code == 0, err
    return folder / "runs"


def test_a_real_run_counts_every_image_and_writes_what_keys_are_near(real_runs):
    run = real_runs / "1"
    summary = json.loads((run / "summary.json").read_text())
    with np.load(run / "confusion.npz") as content:
        assert content["task_of_class"].tolist() == [1, 1, 2, 2]
        for name, expected in (("counts", summary["acc@1"]), ("counts_per_image", summary["acc@1_per_image"])):
            counts_KK = content[name]
            assert counts_KK.sum(1).tolist() == [3] * 4, "three test images of each class"
            assert 100 * np.trace(counts_KK) / 12 == pytest.approx(expected), "tasks are of one size"
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    keys = [row for row in log if row["kind"] == "keys"]
    for row in keys:
        learned = utils.load_checkpoint(run / "checkpoint" / f"task{row['task']:02d}.pth")["model"]
        keys_MD = learned["prompt.keys_MD"].numpy()
        keys_MD /= np.linalg.norm(keys_MD, axis=1, keepdims=True)
        np.testing.assert_allclose(row["keys_to_keys"], (keys_MD @ keys_MD.T)[np.triu_indices(10, k=1)], atol=1e-4)
        assert np.shape(row["keys_to_queries"]) == (row["task"], 10)
        assert np.abs(row["keys_to_queries"]).max() <= 1


def test_evaluating_again_writes_files_of_its_own_with_the_same_counts(real_runs, tmp_path):
    folder = shutil.copytree(real_runs / "1", tmp_path / "run")
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    code, _, err = call("--eval", "--output_dir", folder)
    assert code == 0, err
    assert {path: path.read_bytes() for path in before} == before
    with np.load(folder / "confusion.npz") as first, np.load(folder / "eval_confusion.npz") as again:
        assert {name: first[name].tolist() for name in first} == {name: again[name].tolist() for name in again}
    rows = [[{key: value for key, value in json.loads(line).items() if key != "time"}
             for line in (folder / name).read_text().splitlines() if '"epoch"' not in line]
            for name in ("log.jsonl", "eval_log.jsonl")]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(("words", "keys", "images"), [
    (STREAM, 10, 8), ((*STREAM, *DIVERSE), 10, 8), (DUAL, 2, 8), (CODA, None, 8),
    ((*BASE, *NO_PROMPTS), None, 8), ((*BASE, "--prompt_key", "false"), 10, 8),
    ((*BASE, "--joint"), 10, 8), ((*BASE, "--prompt_choice", "random"), None, 8)])
def test_streams_and_every_method_count_images_and_keys(words, keys, images, lab, tmp_path):
    code, _, err = call(*lab.words(*words), "--output_dir", tmp_path)
    assert code == 0, err
    with np.load(tmp_path / "confusion.npz") as content:
        counts_KK = content["counts"]
        assert ("task_of_class" in content) == ("--schedule" not in words)
    assert (counts_KK.shape, counts_KK.sum()) == ((4, 4), images)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    rows = [row for row in log if row["kind"] == "keys"]
    assert len(rows) == (0 if keys is None else sum(row["kind"] == "evaluation" for row in log))
    for row in rows:
        assert len(row["keys_to_keys"]) == keys * (keys - 1) // 2
        assert np.isfinite(row["keys_to_queries"]).all()


def test_the_report_of_a_real_run(real_runs, tmp_path, capsys):
    code, _, err = run_report(real_runs, "--html", tmp_path / "r.html", capsys=capsys)
    assert (code, len(err.splitlines())) == (0, 1), err
    page = (tmp_path / "r.html").read_text()
    assert f"{json.loads((real_runs / '1' / 'summary.json').read_text())['acc@1']:.2f} (1)" in page
    assert check_pictures(page) == 2 + 3 + 5, "over tasks; of the run; of its prompts"


# ---- in a browser ----
@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
def test_a_browser_shows_it_without_script_errors_and_asks_for_nothing(tmp_path, capsys):
    for seed in (1, 2):
        write_run(tmp_path / "runs" / str(seed), seed)
    run_report(tmp_path / "runs", "--html", tmp_path / "r.html", capsys=capsys)
    asked: list[bytes] = []
    with RefusingProxy(asked) as port:
        for width in (500, 1400):
            err = browse(tmp_path, f"--proxy-server=127.0.0.1:{port}", "--proxy-bypass-list=<-loopback>",
                         f"--window-size={width},2000", f"--screenshot={tmp_path / f'{width}.png'}").stderr
            assert "CONSOLE" not in err, err
            with Image.open(tmp_path / f"{width}.png") as picture:
                assert picture.size == (width, 2000)
                shades = np.asarray(picture.convert("L"))
            assert shades.max() == 255
            assert (shades < 100).any(axis=1).mean() > 0.2, "something is written all over the page"
        shown = browse(tmp_path, f"--proxy-server=127.0.0.1:{port}", "--dump-dom").stdout
    wanted = [line for line in asked if b"google" not in line and b"gvt1" not in line]  # the browser's own
    assert wanted == []
    assert check_pictures(shown) == (tmp_path / "r.html").read_text().count("<figure>")


def browse(folder: Path, *words: str) -> subprocess.CompletedProcess:
    profile = folder / f"profile{time.monotonic_ns()}"
    return subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
         "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--enable-logging=stderr",
         f"--user-data-dir={profile}", *words, (folder / "r.html").as_uri()],
        capture_output=True, text=True, timeout=120)


class RefusingProxy:
    """Writes down the first line of what it is asked, and refuses."""

    def __init__(self, asked: list[bytes]):
        self.asked, self.server = asked, socket.create_server(("127.0.0.1", 0))

    def __enter__(self) -> int:
        threading.Thread(target=self._serve, daemon=True).start()
        return self.server.getsockname()[1]

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            with connection:
                self.asked.append(connection.recv(4096).split(b"\r\n")[0])
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    def __exit__(self, *_: object) -> None:
        self.server.close()


# ---- many ----
@pytest.mark.long
def test_a_thousand_runs_of_a_hundred_classes_take_less_than_twenty_seconds(tmp_path, capsys):
    for number in range(1000):
        write_run(tmp_path / "runs" / f"{number:04d}", number % 5, level=40 + number % 50, tasks=10, classes=100,
                  prompts=10, lr=0.001 * (1 + number // 5))
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, str(ROOT / "report.py"), str(tmp_path / "runs"), "--html",
                           str(tmp_path / "r.html")], capture_output=True, text=True)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    of_the_processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 2
    assert "the pictures of 195 methods" in done.stderr
    assert "1,000 runs" in (tmp_path / "r.html").read_text()
    print(f"{seconds:.1f} s, {of_the_processor:.1f} s of a processor")
    assert of_the_processor < 20, "on a machine that does nothing else; the tests' own may"
