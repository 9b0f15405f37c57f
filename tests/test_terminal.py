"""What is on the screen of a real terminal while a run goes on: a pseudo-terminal, and a terminal in software."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pyte
import pytest
from fixtures import ROOT, write_npz

from progress import Forecast, Pass, Progress, duration, layout

WORDS = ["demo_l2p", "--num_tasks", "2", "--dataset", "Split-CIFAR100", "--data_path", "data.npz", "--device", "cpu",
         "--output_dir", "run"]
BAR = re.compile(r"(?P<where>(task|testing after task) .*) \|(?P<bar>.*)\| (?P<done>\d+)/(?P<total>\d+) (?P<values>.*)")


class Terminal:
    """A program in a terminal; `bars` holds every bar that was seen on the screen, in order."""

    def __init__(self, columns: int, cwd: Path, *words: str):
        self.columns = columns
        self.screen = pyte.HistoryScreen(columns, 24, history=1000)
        self.stream = pyte.ByteStream(self.screen)
        self.bars: list[re.Match] = []
        self.fd, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}
        env.pop("COLUMNS", None)
        self.process = subprocess.Popen([sys.executable, str(ROOT / "main.py"), *words], cwd=cwd, env=env, stdin=inside,
                                        stdout=inside, stderr=inside, start_new_session=True)
        os.close(inside)

    def watch(self, until: str | None = None, timeout: float = 120) -> bool:
        """Look at the screen until a bar matches, or the program ends. Returns whether one did."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if not select.select([self.fd], [], [], 1)[0]:
                continue
            try:
                data = os.read(self.fd, 100_000)
            except OSError:  # the program has ended
                return False
            self.stream.feed(data)
            seen = [match for row in self.screen.display if (match := BAR.fullmatch(row.rstrip()))]
            assert len(seen) <= 1, "a bar was left behind"
            if seen and (not self.bars or seen[0][0] != self.bars[-1][0]):
                self.bars.append(seen[0])
                if until and re.search(until, seen[0][0]):
                    return True
        raise TimeoutError(self.text())

    def text(self) -> str:
        """All that stands on the screen and above it; a line that went on in the next row is one."""
        rows = ["".join(row[column].data for column in range(self.columns)) for row in self.screen.history.top]
        text = ""
        for row in rows + self.screen.display:
            text += row if len(row.rstrip()) == self.columns else row.rstrip() + "\n"
        return text

    def end(self) -> int:
        self.watch()
        os.close(self.fd)
        return self.process.wait(timeout=60)


@pytest.fixture(scope="module")
def stopped_and_resumed(tmp_path_factory) -> tuple[Terminal, Terminal]:
    """A run in a terminal of 80 columns, stopped in an epoch, and resumed in one of 120."""
    folder = tmp_path_factory.mktemp("terminal")
    (folder / "demo").symlink_to(ROOT / "demo")
    write_npz(folder / "data.npz", classes=20, train_per_class=20, test_per_class=10)
    narrow = Terminal(80, folder, *WORDS)
    assert narrow.watch(until=r"epoch 2/2 .*[3456]/10 "), narrow.text()
    narrow.process.send_signal(signal.SIGTERM)
    assert narrow.end() == 128 + signal.SIGTERM, narrow.text()
    wide = Terminal(120, folder, "--resume", "--output_dir", "run")
    assert wide.end() == 0, wide.text()
    return narrow, wide


def test_the_bar_begins_with_the_first_step_and_moves_with_time(stopped_and_resumed):
    """print_freq is 1000 in the demo: the bar does not wait for it."""
    for terminal in stopped_and_resumed:
        first, *_ = bars = [bar for bar in terminal.bars if bar["where"].startswith("task")]
        assert (first["done"] == "0") == (terminal is stopped_and_resumed[0])
        assert first["values"].startswith("? left"), "nothing is measured"
        counts = {(bar["where"], int(bar["done"])) for bar in bars}
        assert len(counts) >= 6, counts
        assert all(bar["total"] == "10" for bar in bars)


@pytest.mark.parametrize("number", [0, 1])
def test_a_bar_is_readable(stopped_and_resumed, number):
    terminal = stopped_and_resumed[number]
    for bar in terminal.bars:
        assert len(bar[0]) < terminal.columns
        assert len(bar["bar"]) >= 5
        assert re.search(r"(\?|\d+[smhd](\d\d[smh])?) left", bar["values"]), bar[0]
        filled = bar["bar"].count("█") / len(bar["bar"])
        assert abs(filled - int(bar["done"]) / int(bar["total"])) <= 1 / len(bar["bar"])
    late = [bar["values"] for bar in terminal.bars if int(bar["done"]) > 2 and "? left" not in bar[0]]
    assert all(re.search(r"\d img/s, ", values) for values in late)
    if number:
        assert all(re.search(r"\d\.\d GB", values) for values in late)


def test_an_evaluation_has_a_bar(stopped_and_resumed):
    wide = stopped_and_resumed[1]
    tests = [bar for bar in wide.bars if bar["where"] == "testing after task 2/2"]
    assert len({bar["done"] for bar in tests}) >= 2
    assert {bar["total"] for bar in tests} == {"20"}, "two test sets of 5 batches, by both protocols"


def test_a_stop_leaves_nothing_of_the_bar(stopped_and_resumed):
    narrow, wide = (terminal.text() for terminal in stopped_and_resumed)
    *_, last = narrow.rstrip().splitlines()
    assert last.startswith("main.py: stopped by SIGTERM; everything done is saved")
    assert not re.search(r"\| \d+/\d+ ", narrow + wide)
    assert re.search(r"^task 1/2 epoch 1/2 done  loss \S+  acc \S+  \S+ s  \S+ img/s  \S+ GB$", narrow, re.M)


def test_a_resumed_run_says_where_it_goes_on_and_its_bar_is_there(stopped_and_resumed):
    wide = stopped_and_resumed[1]
    step = int(re.search(r"^resuming at task 1, epoch 2, step (\d+) of 10$", wide.text(), re.M)[1])
    assert wide.bars[0]["where"] == "task 1/2 epoch 2/2"
    assert int(wide.bars[0]["done"]) == step - 1 >= 3
    assert len(wide.bars[0]["bar"].rstrip()) > 0


def test_the_last_lines_say_where_all_lies_and_how_long_it_took(stopped_and_resumed):
    took, where = stopped_and_resumed[1].text().rstrip().splitlines()[-2:]
    assert re.fullmatch(r"took \d+s \(training \d+s, tests \d+s; these of all its starts\), at most \S+ GB of memory",
                        took)
    assert where == "run holds summary.json, accuracy_matrix.csv, log.jsonl, checkpoint/, plots/, tensorboard/"


# ---- without a terminal ----
@pytest.mark.parametrize(("width", "shown"), [
    (60, "loss left"), (79, "loss acc rate left"), (90, "loss acc rate left memory"),
    (119, "loss acc rate left memory lr")])
def test_the_least_important_values_go_first(width, shown):
    values = {"loss": "loss 0.123", "acc": "acc 45.2", "rate": "188 img/s", "left": "23m45s left",
              "memory": "12.3 GB", "lr": "lr 0.00188"}
    line = layout(width, "task 1/10 epoch 2/5", "312/313", **values)
    assert [name for name, text in values.items() if text in line] == shown.split()
    assert len(line.replace("{bar}", "")) + 5 <= width


@pytest.mark.parametrize(("seconds", "text"), [
    (0.4, "0s"), (59.6, "1m00s"), (1425, "23m45s"), (3600, "1h00m"), (86399, "23h59m"), (97200, "1d03h")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_forecast_follows_the_speed_of_each_kind_of_pass():
    now = [0.0]
    training, first, again = Pass("training", "", 10, 100), Pass("first test", "", 2, 20), Pass("test", "", 2, 20)
    forecast = Forecast([training, training, first, again, again], clock=lambda: now[0])
    assert forecast.seconds_left() is None
    forecast.begins(training)
    now[0] = 50.0
    forecast.advance(1)  # a slow first step is all that is known: 5 seconds for an image
    assert forecast.seconds_left() == pytest.approx(5 * (190 + 20 * 2 / 3 + 40 / 3))
    for step in range(2, 11):
        now[0] += 3.0
        forecast.advance(step)
    assert forecast.seconds_left() == pytest.approx(100 * 0.3 + 20 * 0.2 + 40 * 0.1)
    assert forecast.images_per_second() == pytest.approx(100 / 77)
    now[0] += 1000  # between two passes: of neither
    forecast.begins(first)
    for step in (1, 2):
        now[0] += 20.0
        forecast.advance(step)
    # A test is half a first one, and a third of a training step: the mean of what both say.
    assert forecast.seconds_left() == pytest.approx(100 * 0.3 + 40 * (0.1 + 1.0) / 2)


def test_a_log_hears_of_a_long_silence():
    now, said = [0.0], []

    def say(text: str) -> None:
        said.append(text)
        progress.printed()

    progress = Progress(say, lambda: 3_000_000_000, clock=lambda: now[0])
    work = Pass("test", "testing after task 1/2", 100, 1000, total=100)
    progress.expect([work])
    progress.begins(work)
    for step in range(1, 101):
        now[0] += 1.0
        progress.advance(step)
    assert said == ["testing after task 1/2 step 60/100  10 img/s, 3.0 GB, 40s left"]
