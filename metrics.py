"""The accuracy matrix of a continual run and the numbers computed from it.

a[i, t] is the accuracy on task i's test set after training task t, both counted from 0: rows i, columns t, 0 where
i > t. Accuracies and everything made from them are in percent. A mean is over tasks, never over images.
Shape suffix: T tasks.
"""

from typing import Any

import numpy as np


class AccuracyMatrix:
    """a[i, t] for Acc@1, Acc@5 and the loss, filled cell by cell while the tasks are learned.

    Attributes (float64 unless said; change them only through `record`):
        num_tasks: number of tasks T, at least 1.
        acc1_TT, acc5_TT: accuracies in percent, 0 to 100; 0 where nothing was recorded.
        loss_TT: mean cross-entropy per image; 0 where nothing was recorded.
        recorded_TT: bool, which cells were recorded; never true where i > t.
    """

    def __init__(self, num_tasks: int) -> None:
        if num_tasks < 1:
            raise ValueError(f"an accuracy matrix needs at least one task, got num_tasks={num_tasks}")
        self.num_tasks = num_tasks
        self.acc1_TT = np.zeros((num_tasks, num_tasks))
        self.acc5_TT = np.zeros((num_tasks, num_tasks))
        self.loss_TT = np.zeros((num_tasks, num_tasks))
        self.recorded_TT = np.zeros((num_tasks, num_tasks), dtype=bool)

    def record(self, i: int, t: int, acc1: float, acc5: float, loss: float) -> None:
        """Set the cell of task i's test set after training task t (0 <= i <= t < T); a later call replaces it.

        Raises ValueError for a cell outside the upper triangle, an accuracy outside 0 to 100, or a non-finite loss.
        """
        if not 0 <= i <= t < self.num_tasks:
            raise ValueError(f"no cell for task {i} after task {t}: need 0 <= i <= t < {self.num_tasks}")
        for name, accuracy in (("acc1", acc1), ("acc5", acc5)):
            if not 0.0 <= accuracy <= 100.0:  # false for nan too
                raise ValueError(f"{name} of task {i} after task {t} is {accuracy}, not a percentage")
        if not np.isfinite(loss):
            raise ValueError(f"loss of task {i} after task {t} is {loss}, not a finite number")
        self.acc1_TT[i, t] = acc1
        self.acc5_TT[i, t] = acc5
        self.loss_TT[i, t] = loss
        self.recorded_TT[i, t] = True

    def column_complete(self, t: int) -> bool:
        """Whether all tasks 0 … t were recorded after task t. Raises ValueError unless 0 <= t < T."""
        if not 0 <= t < self.num_tasks:
            raise ValueError(f"no column for task {t}: need 0 <= t < {self.num_tasks}")
        return bool(self.recorded_TT[: t + 1, t].all())

    # The metrics after task t. Each raises ValueError while a column that it reads is not complete.

    def per_task(self, t: int) -> list[float]:
        """Accuracies a[0, t] … a[t, t] in percent, one for each task seen; length t + 1."""
        self._require_columns(t, t)
        return self.acc1_TT[: t + 1, t].tolist()

    def acc_at_1(self, t: int) -> float:
        """Acc@1 after task t: 1/(t+1) · Σ_{i<=t} a[i, t], in percent."""
        return self._column_mean(self.acc1_TT, t)

    def acc_at_5(self, t: int) -> float:
        """Acc@5 after task t: as `acc_at_1`, where an image counts when its class is among the five best logits."""
        return self._column_mean(self.acc5_TT, t)

    def loss(self, t: int) -> float:
        """Mean over tasks i <= t of the test loss after task t."""
        return self._column_mean(self.loss_TT, t)

    def forgetting(self, t: int) -> float:
        """1/t · Σ_{i<t} (max_{s<=t} a[i, s] − a[i, t]), in percent; never negative, as the maximum includes column t.

        0.0 for t = 0, where there is no earlier task to forget.
        """
        self._require_columns(0, t)
        if t == 0:
            return 0.0
        # Cells before a task was learned are 0, so they never win the maximum.
        return float(np.mean(self.acc1_TT[:t, : t + 1].max(axis=1) - self.acc1_TT[:t, t]))

    def backward(self, t: int) -> float:
        """Backward transfer: 1/t · Σ_{i<t} (a[i, t] − a[i, i]), in percent; negative when old tasks got worse.

        0.0 for t = 0, where there is no earlier task to help or harm.
        """
        self._require_columns(0, t)
        if t == 0:
            return 0.0
        return float(np.mean(self.acc1_TT[:t, t] - np.diagonal(self.acc1_TT)[:t]))

    def learning_acc(self, t: int) -> float:
        """Learning accuracy: 1/(t+1) · Σ_{i<=t} a[i, i], each task right after it was learned, in percent."""
        self._require_columns(0, t)
        return float(np.mean(np.diagonal(self.acc1_TT)[: t + 1]))

    def average_incremental_acc(self, t: int) -> float:
        """Average incremental accuracy: 1/(t+1) · Σ_{s<=t} Acc@1 after task s, in percent."""
        self._require_columns(0, t)
        return float(np.mean([self.acc_at_1(s) for s in range(t + 1)]))

    def summary(self, t: int) -> dict[str, Any]:
        """Every metric after task t under its name in `summary.json`: floats, and the list `per_task`."""
        return {
            "acc@1": self.acc_at_1(t),
            "acc@5": self.acc_at_5(t),
            "loss": self.loss(t),
            "forgetting": self.forgetting(t),
            "backward": self.backward(t),
            "learning_acc": self.learning_acc(t),
            "average_incremental_acc": self.average_incremental_acc(t),
            "per_task": self.per_task(t),
        }

    def state(self) -> dict[str, list[list[float]] | list[list[bool]]]:
        """The matrices as nested lists of plain values, from which `from_state` rebuilds this one exactly."""
        return {
            "acc1": self.acc1_TT.tolist(),
            "acc5": self.acc5_TT.tolist(),
            "loss": self.loss_TT.tolist(),
            "recorded": self.recorded_TT.tolist(),
        }

    @classmethod
    def from_state(cls, state: dict[str, list[list[float]] | list[list[bool]]]) -> "AccuracyMatrix":
        """The matrix that `state` was taken from.

        Raises ValueError when an entry is missing, misshapen or refused by `record`.
        """
        if set(state) != {"acc1", "acc5", "loss", "recorded"}:
            raise ValueError(f"the state has the entries {sorted(state)}, not acc1, acc5, loss, recorded")
        matrix = cls(len(state["recorded"]))
        values = {name: np.array(nested, dtype=float) for name, nested in state.items()}
        for name, values_TT in values.items():
            if values_TT.shape != matrix.recorded_TT.shape:
                raise ValueError(f"{name} in the state has shape {values_TT.shape}, not {matrix.recorded_TT.shape}")
        for i, t in np.argwhere(values["recorded"]):
            matrix.record(int(i), int(t), *(values[name][i, t] for name in ("acc1", "acc5", "loss")))
        return matrix

    def to_rows(self) -> list[list[str | float]]:
        """The Acc@1 matrix as the lines of a CSV file: a header, then one row per task, counted from 1.

        A cell is in percent, unrounded, and empty where nothing was recorded.
        """
        header: list[str | float] = ["task", *(f"after_task_{t + 1}" for t in range(self.num_tasks))]
        rows = [header]
        for i in range(self.num_tasks):
            recorded = zip(self.acc1_TT[i].tolist(), self.recorded_TT[i], strict=True)
            rows.append([i + 1, *(value if known else "" for value, known in recorded)])
        return rows

    def format_table(self) -> str:
        """The Acc@1 matrix as plain text: a row per task, a column per task trained (counted from 1), one decimal.

        The last rows are Acc@1 (the mean of the column) and forgetting, where all columns up to theirs are complete.
        Cells that were not recorded stay empty.
        """
        tasks = range(self.num_tasks)
        known = [all(self.column_complete(s) for s in range(t + 1)) for t in tasks]
        lines = [_table_line("after task", [str(t + 1) for t in tasks])]
        for i in tasks:
            cells = [f"{self.acc1_TT[i, t]:.1f}" if self.recorded_TT[i, t] else "" for t in tasks]
            lines.append(_table_line(f"task {i + 1}", cells))
        for name, metric in (("Acc@1", self.acc_at_1), ("forgetting", self.forgetting)):
            lines.append(_table_line(name, [f"{metric(t):.1f}" if known[t] else "" for t in tasks]))
        return "\n".join(lines)

    def _column_mean(self, values_TT: np.ndarray, t: int) -> float:
        self._require_columns(t, t)
        return float(np.mean(values_TT[: t + 1, t]))

    def _require_columns(self, first: int, t: int) -> None:
        """Raise ValueError unless columns `first` … t are complete."""
        # t comes first, so that a t outside the matrix is refused even where it makes the range empty.
        for column in (t, *range(first, t)):
            if not self.column_complete(column):
                i = int(np.argmin(self.recorded_TT[: column + 1, column]))
                raise ValueError(f"nothing was recorded for task {i} after task {column}")


def _table_line(name: str, cells: list[str]) -> str:
    return (f"{name:<10}" + "".join(f"{cell:>6}" for cell in cells)).rstrip()
