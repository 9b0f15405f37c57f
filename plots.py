"""The pictures of a run: accuracy matrix, accuracy and forgetting over tasks, prompts chosen for each task.
And of several runs: accuracy against size.

Each `plot_*` writes one PNG and returns the figure it drew. All values are in percent. Tasks are counted from 1 as in
the file names of a run, prompts from 0 as in the pool. The colours stay apart for the colour-blind; lines differ by
marker and dash too.
Shape suffixes: T tasks, M prompts in the pool.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Three colours of Okabe and Ito's palette, and a map that colour-blind readers see alike.
BLUE, ORANGE, VERMILLION = "#0072B2", "#E69F00", "#D55E00"
COLOUR_MAP = "cividis"
DOTS_PER_INCH = 150
MAX_CELLS_WITH_NUMBERS = 12  # along either side; beyond it numbers no longer fit their cells
MAX_TICKS = 20


def plot_accuracy_matrix(matrix_TT: ArrayLike, path: str | Path) -> Figure:
    """Heat map of a[i, t], the accuracy in percent on task i (rows) after training task t (columns).

    Cells with i > t stay blank, and so do cells that are nan (not measured). The colours always span 0 to 100, so that
    the pictures of two runs can be compared. Raises ValueError unless the matrix is square with at least one task.
    """
    values_TT = np.array(matrix_TT, dtype=float)
    if values_TT.ndim != 2 or values_TT.shape[0] != values_TT.shape[1] or values_TT.size == 0:
        raise ValueError(f"an accuracy matrix is square with at least one task, got shape {values_TT.shape}")
    values_TT[np.tril_indices(len(values_TT), k=-1)] = np.nan

    figure, axes = _heat_map(values_TT, top=100, colour_label="accuracy (%)", number_format=".1f")
    ticks = _ticks(len(values_TT), first=1)
    axes.set_xticks(ticks - 1, labels=ticks)
    axes.set_yticks(ticks - 1, labels=ticks)
    axes.set_xlabel("after training task")
    axes.set_ylabel("test set of task")
    _save(figure, path)
    return figure


def plot_over_tasks(
    acc1_T: ArrayLike, forgetting_T: ArrayLike | None, path: str | Path, per_image_acc1: ArrayLike | None = None,
    unit: str = "task", numbers: ArrayLike | None = None,
) -> Figure:
    """Lines of Acc@1 and forgetting (percent) after each task, their last values in the legend.

    Args:
        forgetting_T: None where there is one test set and so nothing to forget.
        per_image_acc1: Acc@1 with prompts chosen per image, length T, nan after tasks where it was not measured; when
            given, a line (or a lone marker) joins the others.
        unit, numbers: what the values were measured after: `task` 1, 2, 3 …, or `episode` 10, 20, 30 …

    Raises ValueError when the lengths differ or are zero.
    """
    lines = [("Acc@1", acc1_T, BLUE, "o", "-")]
    if per_image_acc1 is not None:
        lines.append(("Acc@1 per image", per_image_acc1, ORANGE, "s", "--"))
    if forgetting_T is not None:
        lines.append(("forgetting", forgetting_T, VERMILLION, "^", "-."))
    after_T = np.arange(1, np.size(acc1_T) + 1) if numbers is None else np.asarray(numbers)
    if after_T.size == 0 or any(np.shape(values) != after_T.shape for _, values, *_ in lines):
        raise ValueError(f"the lines need one value per {unit}, got shapes {[np.shape(line[1]) for line in lines]}")

    figure = _new_figure(7.0, 4.5)
    axes = figure.subplots()
    for name, values, colour, marker, dash in lines:
        values_T = np.array(values, dtype=float)
        measured = values_T[~np.isnan(values_T)]
        label = f"{name} (last {measured[-1]:.1f})" if measured.size else name
        style = {"color": colour, "marker": marker, "markersize": 5, "linestyle": dash}
        axes.plot(after_T, values_T, label=label, clip_on=False, **style)
    if numbers is None:
        axes.set_xticks(_ticks(after_T.size, first=1))
    margin = 0.5 * (after_T[-1] / after_T.size)
    axes.set_xlim(after_T[0] - margin, after_T[-1] + margin)
    axes.set_ylim(0, 100)
    axes.set_xlabel(f"after training {unit}")
    axes.set_ylabel("accuracy (%)" if forgetting_T is None else "accuracy, forgetting (%)")
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(lines), frameon=False, handlelength=3.5, fontsize=9)
    _save(figure, path)
    return figure


def plot_prompt_selection(counts_TM: ArrayLike, path: str | Path, top_k: int, unit: str = "task") -> Figure:
    """Heat map of the share of each task's test images (rows, percent) that were given each prompt (columns).

    Args:
        counts_TM: how often each prompt was given to an image of each task's test set; not negative.
        top_k: distinct prompts given to an image, so a row of counts sums to top_k times the images.

    A row of zeros (not measured) stays blank. Raises ValueError when `counts_TM` is not of this form or a prompt would
    have been given to more than all images.
    """
    counts_TM = np.array(counts_TM, dtype=float)
    if counts_TM.ndim != 2 or counts_TM.size == 0 or not counts_TM.min() >= 0 or top_k < 1:
        raise ValueError(f"need a T×M table of counts >= 0 and top_k >= 1, got shape {counts_TM.shape} and {top_k}")
    images_T1 = counts_TM.sum(axis=1, keepdims=True) / top_k
    share_TM = 100.0 * np.divide(counts_TM, images_T1, where=images_T1 > 0, out=np.full_like(counts_TM, np.nan))
    if np.nanmax(share_TM, initial=0.0) > 100.0:
        raise ValueError(f"top_k={top_k} does not fit the counts: a prompt was given to more images than there are")

    # With many prompts every share is small; a scale up to 100 would leave the whole picture dark.
    top = max(10, 10 * np.ceil(np.nanmax(share_TM, initial=0) / 10))
    figure, axes = _heat_map(share_TM, top=top, colour_label="share of images (%)", number_format=".0f")
    num_tasks, num_prompts = share_TM.shape
    task_ticks, prompt_ticks = _ticks(num_tasks, first=1), _ticks(num_prompts, first=0)
    axes.set_xticks(prompt_ticks, labels=prompt_ticks)
    axes.set_yticks(task_ticks - 1, labels=task_ticks)
    axes.set_xlabel("prompt (index in the pool)")
    axes.set_ylabel(f"test set of {unit}" if num_tasks > 1 else "test set")
    _save(figure, path)
    return figure


def plot_class_probability(probability_SK: ArrayLike, active_EK: ArrayLike, path: str | Path, batches: int) -> Figure:
    """A stream without tasks: each class's probability to be active (above), and the episodes that had it (below).

    Args:
        probability_SK: of each class (columns) at evenly spaced points of the stream (rows), 0 to 1.
        active_EK: bool, whether a class was drawn in an episode.
        batches: length of the stream, the unit of the horizontal axis.
    """
    from matplotlib import colormaps

    probability_SK, active_EK = np.asarray(probability_SK, dtype=float), np.asarray(active_EK, dtype=bool)
    num_classes = probability_SK.shape[1]
    if active_EK.ndim != 2 or active_EK.shape[1] != num_classes:
        raise ValueError(f"{num_classes} classes have probabilities, but episodes are of shape {active_EK.shape}")
    figure = _new_figure(8.0, 5.5)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[1, 1.3])
    at_S = np.linspace(0, batches, len(probability_SK), endpoint=False)
    for number, values_S in enumerate(probability_SK.T):
        colour = colormaps[COLOUR_MAP](number / max(1, num_classes - 1))
        upper.plot(at_S, values_S, color=colour, linewidth=1)
    upper.set_ylim(0, 1.02)
    upper.set_ylabel("probability of a class")
    lower.imshow(active_EK.T, cmap="Blues", vmin=0, vmax=1, aspect="auto", origin="lower", interpolation="nearest",
                 extent=(0, batches, -0.5, num_classes - 0.5))
    lower.set_yticks(_ticks(num_classes, first=0))
    lower.set_xlabel("batches of the stream")
    lower.set_ylabel("classes drawn, in their order")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)
    return figure


def plot_against_size(groups: Mapping[str, Sequence[tuple[str, int, float, float]]], path: str | Path) -> Figure:
    """A point for each method: Acc@1 against the number of trained values, on a logarithmic axis that begins with 0.

    Args:
        groups: the groups' names, at most three, and their methods: name, trained values, Acc@1 in percent, and its
            standard deviation, which is drawn as a bar (0: none).
    """
    figure = _new_figure(9.0, 6.0)
    axes = figure.subplots()
    points = [point for members in groups.values() for point in members]
    for (group, members), colour, marker in zip(groups.items(), (BLUE, ORANGE, VERMILLION), "os^", strict=False):
        _, values, acc1, deviations = zip(*members, strict=True)
        axes.errorbar(values, acc1, yerr=deviations, label=group, color=colour, marker=marker, linestyle="none")
    axes.set_xscale("symlog", linthresh=1000, linscale=0.5)
    most = max(1000, *(values for _, values, *_ in points))
    axes.set_xlim(-200, 8 * most)  # room for the names
    axes.set_xticks([0, *(10**power for power in range(3, len(str(most)) + 1))])
    axes.set_xlabel("trained values")
    axes.set_ylabel("Acc@1 (%)")
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    _label_points(axes, [point[:3] for point in points])
    figure.legend(loc="outside upper center", ncols=len(groups), frameon=False, fontsize=9)
    _save(figure, path)
    return figure


def _label_points(axes: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Names to the right of points, each as near to its height as other names and points leave room."""
    limits = axes.get_xlim(), axes.get_ylim()
    height, letter = 0.028, 0.0075  # of a name, in shares of the axes
    corners = axes.transAxes.inverted().transform(axes.transData.transform([point[1:] for point in points]))
    taken = [(x - 0.008, x + 0.008, y) for x, y in corners]  # left, right, middle
    for (name, *point), (x, y) in zip(points, corners, strict=True):
        left, right = x + 0.018, x + 0.018 + letter * len(name)
        shifts = sorted(np.arange(-20, 21) * height / 4, key=abs)
        free = [shift for shift in shifts if not any(
            left < other_right and other_left < right and abs(y + shift - middle) < height
            for other_left, other_right, middle in taken)]
        middle = y + (free[0] if free else 0.0)
        taken.append((left, right, middle))
        axes.annotate(name, point, xytext=(left, middle), textcoords="axes fraction", va="center", fontsize=8,
                      arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkA": 0})
    axes.set_xlim(limits[0])
    axes.set_ylim(limits[1])


def _heat_map(values_RC: np.ndarray, top: float, colour_label: str, number_format: str) -> tuple[Figure, Axes]:
    """A heat map of percentages 0 … top (rows R, columns C; nan is blank), its numbers printed where they fit."""
    rows, columns = values_RC.shape
    with_numbers = max(rows, columns) <= MAX_CELLS_WITH_NUMBERS
    cell = 0.55 if with_numbers else min(0.3, 10 / max(rows, columns))  # inches
    figure = _new_figure(max(cell * columns, 2.5) + 1.8, max(cell * rows, 2.0) + 0.8)
    axes = figure.subplots()
    image = axes.imshow(np.ma.masked_invalid(values_RC), cmap=COLOUR_MAP, vmin=0, vmax=top, aspect="auto")
    figure.colorbar(image, ax=axes, label=colour_label)
    axes.set_xticks(np.arange(1, columns) - 0.5, minor=True)  # white lines between the cells
    axes.set_yticks(np.arange(1, rows) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    if with_numbers:
        for (row, column), value in np.ndenumerate(values_RC):
            if not np.isnan(value):
                ink = "white" if value < top / 2 else "black"  # the map runs from dark to light
                axes.text(column, row, f"{value:{number_format}}", ha="center", va="center", color=ink, fontsize=9)
    return figure, axes


def _ticks(count: int, first: int) -> np.ndarray:
    """Round numbers among first … first + count − 1, at most MAX_TICKS of them."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if count <= step * MAX_TICKS)
    numbers = np.arange(first, first + count)
    return numbers[numbers % step == 0]


def _new_figure(width: float, height: float) -> Figure:
    """An empty figure in inches, drawn without pyplot, so no window system and no state that outlives it."""
    from matplotlib.figure import Figure  # slow to import, and needed only when a run ends

    return Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")


def _save(figure: Figure, path: str | Path) -> None:
    """Write a PNG so that `path` is at every moment absent, the old picture or the whole new one."""
    path = Path(path)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_bytes(picture.getvalue())
    os.replace(unfinished, path)
