"""The accuracy matrix of a continual run and the numbers computed from it.

a[i, t] is the accuracy on task i's test set after training task t, both counted from 0: rows i, columns t, 0 where
i > t. Where all tasks share one test set, there is one row: an accuracy curve. Accuracies and everything made from them
are in percent. A mean is over tasks, never over images. Shape suffixes: T evaluations, R rows (T or 1).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


class AccuracyMatrix:
    """a[i, t] for Acc@1, Acc@5 and the loss, filled cell by cell while the tasks are learned.

    Attributes (float64 unless said; change them only through `record`):
        num_tasks: number of columns T, at least 1: tasks, or evaluations of a stream without tasks.
        num_tests: how many test sets all columns share, one row each; None where each task has its own.
        acc1_RT, acc5_RT: accuracies in percent, 0 to 100; 0 where nothing was recorded.
        loss_RT: mean cross-entropy per image; 0 where nothing was recorded.
        recorded_RT: bool, which cells were recorded; never true where i > t.
    """

    def __init__(self, num_tasks: int, num_tests: int | None = None) -> None:
        if num_tasks < 1:
            raise ValueError(f"an accuracy matrix needs at least one task, got num_tasks={num_tasks}")
        self.num_tasks, self.num_tests = num_tasks, num_tests
        shape = num_tasks if num_tests is None else num_tests, num_tasks
        self.acc1_RT = np.zeros(shape)
        self.acc5_RT = np.zeros(shape)
        self.loss_RT = np.zeros(shape)
        self.recorded_RT = np.zeros(shape, dtype=bool)

    def rows(self, t: int) -> int:
        """How many test sets are evaluated after task t: t + 1, or all that are shared."""
        return t + 1 if self.num_tests is None else self.num_tests

    def record(self, i: int, t: int, acc1: float, acc5: float, loss: float) -> None:
        """Set the cell of task i's test set after training task t (0 <= i <= t < T); a later call replaces it.

        Raises ValueError for a cell outside the upper triangle, an accuracy outside 0 to 100, or a non-finite loss.
        """
        if not (0 <= t < self.num_tasks and 0 <= i < self.rows(t)):
            raise ValueError(f"no cell for task {i} after task {t}: need 0 <= i <= t < {self.num_tasks}")
        for name, accuracy in (("acc1", acc1), ("acc5", acc5)):
            if not 0.0 <= accuracy <= 100.0:  # false for nan too
                raise ValueError(f"{name} of task {i} after task {t} is {accuracy}, not a percentage")
        if not np.isfinite(loss):
            raise ValueError(f"loss of task {i} after task {t} is {loss}, not a finite number")
        self.acc1_RT[i, t] = acc1
        self.acc5_RT[i, t] = acc5
        self.loss_RT[i, t] = loss
        self.recorded_RT[i, t] = True

    def column_complete(self, t: int) -> bool:
        """Whether all rows that task t has were recorded. Raises ValueError unless 0 <= t < T."""
        if not 0 <= t < self.num_tasks:
            raise ValueError(f"no column for task {t}: need 0 <= t < {self.num_tasks}")
        return bool(self.recorded_RT[: self.rows(t), t].all())

    # The metrics after task t. Each raises ValueError while a column that it reads is not complete.

    def per_task(self, t: int) -> list[float]:
        """Accuracies a[0, t] … a[t, t] in percent, one for each task seen; length t + 1 (or 1: `rows`)."""
        self._require_columns(t, t)
        return self.acc1_RT[: self.rows(t), t].tolist()

    def acc_at_1(self, t: int) -> float:
        """Acc@1 after task t: 1/(t+1) · Σ_{i<=t} a[i, t], in percent."""
        return self._column_mean(self.acc1_RT, t)

    def acc_at_5(self, t: int) -> float:
        """Acc@5 after task t: as `acc_at_1`, where an image counts when its class is among the five best logits."""
        return self._column_mean(self.acc5_RT, t)

    def loss(self, t: int) -> float:
        """Mean over tasks i <= t of the test loss after task t."""
        return self._column_mean(self.loss_RT, t)

    def forgetting(self, t: int) -> float:
        """1/t · Σ_{i<t} (max_{s<=t} a[i, s] − a[i, t]), in percent; never negative, as the maximum includes column t.

        0.0 for t = 0, where there is no earlier task to forget.
        """
        self._require_tests_of_their_own(t)
        if t == 0:
            return 0.0
        # Cells before a task was learned are 0, so they never win the maximum.
        return float(np.mean(self.acc1_RT[:t, : t + 1].max(axis=1) - self.acc1_RT[:t, t]))

    def backward(self, t: int) -> float:
        """Backward transfer: 1/t · Σ_{i<t} (a[i, t] − a[i, i]), in percent; negative when old tasks got worse.

        0.0 for t = 0, where there is no earlier task to help or harm.
        """
        self._require_tests_of_their_own(t)
        if t == 0:
            return 0.0
        return float(np.mean(self.acc1_RT[:t, t] - np.diagonal(self.acc1_RT)[:t]))

    def learning_acc(self, t: int) -> float:
        """Learning accuracy: 1/(t+1) · Σ_{i<=t} a[i, i], each task right after it was learned, in percent."""
        self._require_tests_of_their_own(t)
        return float(np.mean(np.diagonal(self.acc1_RT)[: t + 1]))

    def average_incremental_acc(self, t: int) -> float:
        """Average incremental accuracy: 1/(t+1) · Σ_{s<=t} Acc@1 after task s, in percent."""
        self._require_columns(0, t)
        return float(np.mean(self.curve(t)))

    def curve(self, t: int) -> list[float]:
        """Acc@1 after each task 0 … t, in percent."""
        self._require_columns(0, t)
        return [self.acc_at_1(s) for s in range(t + 1)]

    def summary(self, t: int) -> dict[str, Any]:
        """Every metric after task t under its name in `summary.json`: floats, and the list `per_task`.

        With shared test sets nothing can be forgotten: the list `curve` is in the place of what compares tasks.
        """
        found = {"acc@1": self.acc_at_1(t), "acc@5": self.acc_at_5(t), "loss": self.loss(t)}
        if self.num_tests is not None:
            found |= {"average_incremental_acc": self.average_incremental_acc(t), "curve": self.curve(t)}
            return found if self.num_tests == 1 else found | {"per_task": self.per_task(t)}
        return found | {
            "forgetting": self.forgetting(t),
            "backward": self.backward(t),
            "learning_acc": self.learning_acc(t),
            "average_incremental_acc": self.average_incremental_acc(t),
            "per_task": self.per_task(t),
        }

    def state(self) -> dict[str, Any]:
        """The matrices as nested lists of plain values, from which `from_state` rebuilds this one exactly."""
        return {
            "one_test_set": self.num_tests is not None,
            "acc1": self.acc1_RT.tolist(),
            "acc5": self.acc5_RT.tolist(),
            "loss": self.loss_RT.tolist(),
            "recorded": self.recorded_RT.tolist(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "AccuracyMatrix":
        """The matrix that `state` was taken from.

        Raises ValueError when an entry is missing, misshapen or refused by `record`.
        """
        nested = dict(state)
        one_test_set = nested.pop("one_test_set", False)
        if set(nested) != {"acc1", "acc5", "loss", "recorded"}:
            raise ValueError(f"the state has the entries {sorted(nested)}, not acc1, acc5, loss, recorded")
        num_tests = len(nested["recorded"]) if one_test_set else None
        matrix = cls(len(nested["recorded"][0]), num_tests)
        values = {name: np.array(cells, dtype=float) for name, cells in nested.items()}
        for name, values_RT in values.items():
            if values_RT.shape != matrix.recorded_RT.shape:
                raise ValueError(f"{name} in the state has shape {values_RT.shape}, not {matrix.recorded_RT.shape}")
        for i, t in np.argwhere(values["recorded"]):
            matrix.record(int(i), int(t), *(values[name][i, t] for name in ("acc1", "acc5", "loss")))
        return matrix

    def to_rows(self, unit: str = "task", numbers: Sequence[int] | None = None) -> list[list[str | float]]:
        """The Acc@1 matrix as the lines of a CSV file: a header, then one row per test set, counted from 1.

        A cell is in percent, unrounded, and empty where nothing was recorded.

        Args:
            unit, numbers: what the columns are after: `task` 1, 2, 3 …, or `episode` 10, 20, 30 …
        """
        header: list[str | float] = ["test" if self.num_tests == 1 else unit,
                                     *(f"after_{unit}_{number}" for number in self._numbers(numbers))]
        rows = [header]
        for i, (values, known) in enumerate(zip(self.acc1_RT.tolist(), self.recorded_RT, strict=True)):
            rows.append([i + 1, *(value if here else "" for value, here in zip(values, known, strict=True))])
        return rows

    def format_table(self, unit: str = "task", numbers: Sequence[int] | None = None) -> str:
        """The Acc@1 matrix as plain text: a row per test set, a column per task trained, one decimal.

        The last rows are Acc@1 (the mean of the column) and forgetting, where all columns up to theirs are complete.
        Cells that were not recorded stay empty. Arguments as for `to_rows`.
        """
        columns = range(self.num_tasks)
        lines = [_table_line(f"after {unit}", list(map(str, self._numbers(numbers))))]
        if self.num_tests != 1:
            for i in range(len(self.acc1_RT)):
                cells = [f"{self.acc1_RT[i, t]:.1f}" if self.recorded_RT[i, t] else "" for t in columns]
                lines.append(_table_line(f"{unit} {i + 1}", cells))
        known = [all(self.column_complete(s) for s in range(t + 1)) for t in columns]
        metrics = {"Acc@1": self.acc_at_1} | ({} if self.num_tests is not None else {"forgetting": self.forgetting})
        for name, metric in metrics.items():
            lines.append(_table_line(name, [f"{metric(t):.1f}" if known[t] else "" for t in columns]))
        return "\n".join(lines)

    def _numbers(self, numbers: Sequence[int] | None) -> Sequence[int]:
        return range(1, self.num_tasks + 1) if numbers is None else numbers

    def _column_mean(self, values_RT: np.ndarray, t: int) -> float:
        self._require_columns(t, t)
        return float(np.mean(values_RT[: self.rows(t), t]))

    def _require_columns(self, first: int, t: int) -> None:
        """Raise ValueError unless columns `first` … t are complete."""
        # t comes first, so that a t outside the matrix is refused even where it makes the range empty.
        for column in (t, *range(first, t)):
            if not self.column_complete(column):
                i = int(np.argmin(self.recorded_RT[: self.rows(column), column]))
                raise ValueError(f"nothing was recorded for task {i} after task {column}")

    def _require_tests_of_their_own(self, t: int) -> None:
        """Raise ValueError unless each task has a test set, and all columns up to t are complete."""
        self._require_columns(0, t)
        if self.num_tests is not None:
            raise ValueError("with one test set for all tasks, no task can be forgotten: read `curve`")


def _table_line(name: str, cells: list[str]) -> str:
    return (f"{name:<10}" + "".join(f"{cell:>6}" for cell in cells)).rstrip()
