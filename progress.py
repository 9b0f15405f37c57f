"""How far a run is: what is left of it, how long that takes by the speed measured so far, and the bar of a terminal.

A run is a sequence of passes over images. Nothing here asks the device: a step counts when the engine says so.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

TRAINING, OBSERVING, FIRST_TEST, TEST, RECALL = "training", "observing", "first test", "test", "recall"
# What an image costs in each kind of pass, in passes through the ViT: for kinds that have not been measured yet. A
# recall has none, and says nothing of the others.
_COSTS = {TRAINING: 3.0, OBSERVING: 2.0, FIRST_TEST: 2.0, TEST: 1.0, RECALL: 0.0}

DRAW_EVERY = 0.1
"""Seconds between two pictures of the bar."""
SAY_EVERY = 60.0
"""Seconds after which a log hears where the run is, where nothing else was printed."""


@dataclass(frozen=True)
class Pass:
    """One pass over images, or what is left of it."""

    kind: str
    """TRAINING, OBSERVING, FIRST_TEST (images whose queries are computed), TEST (queries are known or not needed) or
    RECALL (what the head reads is known)."""
    where: str
    """What the bar is called: "task 1/10 epoch 2/5"."""
    steps: int
    """Steps of this pass that are to be done, over all processes."""
    images: int
    """Images of those steps."""
    before: int = 0
    """Steps of the bar that are done before: of a resumed epoch, or of the tests before this one."""
    total: int = 0
    """Steps of the whole bar."""


class Forecast:
    """How long the rest of a run takes, by the speed of each kind of pass.

    Args:
        passes: all that is to be done.
        clock: seconds, from anywhere.
    """

    def __init__(self, passes: Iterable[Pass], clock: Callable[[], float] = time.monotonic):
        self.left = dict.fromkeys(_COSTS, 0.0)
        for work in passes:
            self.left[work.kind] += work.images
        self._clock = clock
        self._work = Pass(TRAINING, "", 0, 0)
        self._done, self._began, self._looked = 0, 0.0, 0.0
        self._warm_up: dict[str, tuple[float, float]] = {}  # kind -> images and seconds of its first steps
        self._measured: dict[str, tuple[float, float]] = {}  # the same of all the others

    def begins(self, work: Pass) -> None:
        self._work, self._done = work, 0
        self._began = self._looked = self._clock()

    def advance(self, done: int) -> None:
        """`done` steps of the pass are done."""
        now = self._clock()
        kind, images = self._work.kind, self._images(done) - self._images(self._done)
        # The first steps of a kind make memory and kernels ready: they count only while there are no others.
        measured = self._measured if kind in self._warm_up else self._warm_up
        before = measured.get(kind, (0.0, 0.0))
        measured[kind] = before[0] + images, before[1] + now - self._looked
        self.left[kind] = max(0.0, self.left[kind] - images)
        self._done, self._looked = done, now

    def _images(self, done: int) -> float:
        return self._work.images * done / max(1, self._work.steps)

    def seconds_per_image(self, kind: str) -> float | None:
        """As measured, or derived from the other kinds; None before anything is measured."""
        images, seconds = self._measured.get(kind, (0.0, 0.0))
        if not images:
            images, seconds = self._warm_up.get(kind, (0.0, 0.0))
        if images:
            return seconds / images
        others = [other for other, cost in _COSTS.items()
                  if cost and other in self._warm_up and self._warm_up[other][0] and other != kind]
        if not others:
            return None
        return sum(self.seconds_per_image(other) / _COSTS[other] for other in others) / len(others) * _COSTS[kind]

    def seconds_left(self) -> float | None:
        """None before anything is measured."""
        kinds = [kind for kind, images in self.left.items() if images]
        costs = [self.seconds_per_image(kind) for kind in kinds]
        if None in costs:
            return None
        return sum(self.left[kind] * cost for kind, cost in zip(kinds, costs, strict=True))

    def images_per_second(self) -> float | None:
        """Of the pass that runs or has just ended; before its first step, of earlier ones of its kind."""
        images, seconds = self._images(self._done), self._looked - self._began
        if not images:
            images, seconds = self._measured.get(self._work.kind, (0.0, 0.0))
        return images / seconds if images and seconds > 0 else None


class Progress:
    """Shows how far a run is: a bar where stderr is a terminal, else a line now and then.

    Args:
        say: prints a line.
        peak_memory: bytes, or None where the system does not tell.
        clock: seconds, from anywhere.
    """

    def __init__(self, say: Callable[[str], None], peak_memory: Callable[[], int | None] = lambda: None,
                 clock: Callable[[], float] = time.monotonic):
        self._say, self._peak_memory, self._clock = say, peak_memory, clock
        self.on_terminal = bool(sys.stderr and sys.stderr.isatty())
        self.forecast = Forecast((), clock)
        self._began = clock()
        self._bar = None
        self._work: Pass | None = None
        self._done = 0
        self._values: tuple[str, str, str] | None = None
        self._last_shown = self._began

    def expect(self, passes: Iterable[Pass]) -> None:
        """All that is to be done from here on."""
        self.forecast = Forecast(passes, self._clock)

    def begins(self, work: Pass) -> None:
        self.forecast.begins(work)
        if self._work is None or work.where != self._work.where:
            self.clear()
            self._values = None
        self._work, self._done = work, 0
        if self.on_terminal:
            self._draw()

    def advance(self, done: int) -> None:
        """`done` steps of the pass are done. Waits for nothing."""
        if self._work is None:
            return
        self.forecast.advance(done)
        self._done = done
        since = self._clock() - self._last_shown
        if self.on_terminal and since >= DRAW_EVERY:
            self._draw()
        elif not self.on_terminal and since >= SAY_EVERY:
            done, total = self._work.before + self._done, self._work.total
            self._say(f"{self._work.where} step {done}/{total}  " + ", ".join(self._facts()))

    def read(self, loss: float, acc1: float, lr: float) -> None:
        """Values that were read from the device: the bar shows them until the next come."""
        self._values = f"loss {loss:.3f}", f"acc {acc1:.1f}", f"lr {lr:.3g}"

    def printed(self) -> None:
        """Something else is being printed: the bar makes room, and comes back with the next step."""
        self.clear()
        self._last_shown = self._clock()

    def clear(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def summary(self) -> str:
        """Of the pass that has ended: images per second and memory; in a log also the run's time."""
        facts = self._facts(left=not self.on_terminal)
        if not self.on_terminal:
            facts.insert(-1, f"{duration(self._clock() - self._began)} so far")
        return "  ".join(facts)

    def memory(self) -> str | None:
        found = self._peak_memory()
        return None if found is None else f"{found / 1e9:.1f} GB"

    def _facts(self, left: bool = True) -> list[str]:
        rate, seconds = self.forecast.images_per_second(), self.forecast.seconds_left()
        facts = [None if rate is None else f"{per_second(rate)} img/s", self.memory(),
                 ("?" if seconds is None else duration(seconds)) + " left" if left else None]
        return [fact for fact in facts if fact]

    def _draw(self) -> None:
        try:
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
        except OSError:
            width = 80
        width -= 1  # a full line would begin another on some terminals
        work, done = self._work, self._work.before + self._done
        seconds, rate = self.forecast.seconds_left(), self.forecast.images_per_second()
        loss, acc, lr = self._values or (None, None, None)
        shown = layout(width, work.where, f"{done}/{work.total}", loss=loss, acc=acc,
                       rate=None if rate is None else f"{per_second(rate)} img/s",
                       left=("?" if seconds is None else duration(seconds)) + " left", memory=self.memory(), lr=lr)
        if self._bar is None:
            from tqdm import tqdm

            tqdm.monitor_interval = 0  # a thread of its own, which a bar that is drawn by time does not need
            self._bar = tqdm(total=work.total, initial=done, leave=False, file=sys.stderr, bar_format=shown,
                             ncols=width)
        else:
            self._bar.n, self._bar.ncols, self._bar.bar_format = done, width, shown
            self._bar.refresh()
        self._last_shown = self._clock()


def layout(width: int, where: str, count: str, *, loss: str | None, acc: str | None, rate: str | None, left: str,
           memory: str | None, lr: str | None, bar: int = 5) -> str:
    """tqdm's `bar_format`, with as many of the values as leave `bar` columns to the bar; the least important go first.

    The bar itself takes what is left over.
    """
    values = [loss, acc, rate, left, memory, lr]
    for least in (lr, memory, rate, acc, loss, left):
        text = _joined(values)
        if len(f"{where} || {count} {text}") + bar <= width:
            break
        values = [value for value in values if value is not least]
    return f"{where} |{{bar}}| {count} {_joined(values)}"


def _joined(values: Iterable[str | None]) -> str:
    return ", ".join(value for value in values if value).replace(", acc", " acc")


def per_second(rate: float) -> str:
    return f"{rate:.{0 if rate >= 10 else 1}f}"


def duration(seconds: float) -> str:
    """`45s`, `23m45s`, `1h23m`, `4d03h`."""
    seconds = round(seconds)
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days}d{hours % 24:02d}h"
    if hours:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{minutes}m{seconds % 60:02d}s" if minutes else f"{seconds}s"
