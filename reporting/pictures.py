"""The pictures of a report: of the groups of a table side by side, and of one group.

Shape suffixes: T tasks (or evaluations), R test sets, K classes, M prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from errors import DamagedFileError
from reporting.drawing import LINES_IN_A_PICTURE, PALETTE, Picture, heat_picture, line_picture, printable, short
from reporting.groups import ALONE, Group, Table
from reporting.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# ---- of a table ----
def parts_of(table: Table) -> list[list[Group]]:
    """The groups of a table, the best first, as many in each part as a picture has lines."""
    return [table.groups[first:first + LINES_IN_A_PICTURE] for first in range(0, len(table.groups), LINES_IN_A_PICTURE)]


def curves_of_part(place: int, table: Table, groups: Sequence[Group]) -> tuple[list[Picture], str]:
    """Acc@1 and forgetting over tasks, a line for each group, its band one standard deviation over the seeds; and a
    sentence where there is nothing to draw, or ''.

    Args:
        place: of these groups among `parts_of(table)`.
    """
    part = f"_{place + 1}" if len(table.groups) > LINES_IN_A_PICTURE else ""
    number, unit, alone = table.number, groups[0].runs[0].unit, table.conditions.choice == ALONE
    found = _curves(f"table{number}_acc{part}", f"Table {number}: accuracy over {unit}s", "accuracy (%)", groups,
                    _per_image_curve if alone else _curve)
    if "forgetting" in table.metrics:
        found += _curves(f"table{number}_forgetting{part}", f"Table {number}: forgetting over {unit}s",
                         "forgetting (points)", groups, _per_image_forgetting if alone else _forgetting)
    if found or len(groups[0].runs[0].numbers) == 1:
        return found, ""
    return [], (f"No curves of {'; '.join(group.label for group in groups)}: not measured in this way after every "
                f"{unit}.")


def votes(run: Run) -> bool:
    return "batch vote" in run.choice


def _curve(run: Run) -> list[float]:
    return run.accuracy.curve(run.accuracy.num_tasks - 1)


def _forgetting(run: Run) -> list[float]:
    if run.accuracy.num_tests is not None:
        return []
    return [run.accuracy.forgetting(t) for t in range(run.accuracy.num_tasks)]


def _per_image_curve(run: Run) -> list[float]:
    """The matrix of a run with a batch vote is of that vote; the log may have the other."""
    if not votes(run):
        return _curve(run)
    try:
        return [row.get("acc@1_per_image", np.nan) for row in run.log if row["kind"] == "evaluation"]
    except DamagedFileError:  # named beside the pictures of its group
        return []


def _per_image_forgetting(run: Run) -> list[float]:
    return [] if votes(run) else _forgetting(run)


def _curves(name: str, title: str, quantity: str, groups: Sequence[Group],
            values: Callable[[Run], list[float]]) -> list[Picture]:
    lines, missing = [], []
    for group in groups:
        numbers = group.runs[0].numbers
        found = [curve for curve in map(values, group.runs) if len(curve) == len(numbers) > 1]
        if found and not np.isnan(found).any():
            lines.append((group.label, numbers, np.array(found)))
        else:
            missing.append(group.label)
    if not lines:
        return []
    caption = "Mean over the seeds; the band is one standard deviation." \
        if any(len(line[2]) > 1 for line in lines) else "One run each."
    if missing:
        caption += f" Not measured after every {groups[0].runs[0].unit}: {'; '.join(missing)}."
    return [line_picture(name, title, f"after training {groups[0].runs[0].unit}", quantity, lines, caption)]


# ---- of a group ----
def pictures_of_group(name: str, group: Group) -> tuple[list[Picture], list[str]]:
    """What one group did in detail, and sentences on files that could not be read."""
    found, wrong = [], []
    for make in (_accuracy_matrix, _confusion, _class_accuracy, _prompts):
        try:
            found += make(name, group)
        except DamagedFileError as error:
            wrong.append(str(error))
    return found, wrong


def _mean_of(group: Group) -> str:
    return f"Mean of {len(group.runs)} runs." if len(group.runs) > 1 else "One run."


def _accuracy_matrix(name: str, group: Group) -> list[Picture]:
    unit = group.runs[0].unit
    known_RT = group.runs[0].accuracy.recorded_RT
    runs = [run for run in group.runs if run.accuracy.recorded_RT.shape == known_RT.shape]
    if known_RT.size == 1 or len(known_RT) == 1:
        return []
    mean_RT = np.where(known_RT, np.mean([run.accuracy.acc1_RT for run in runs], axis=0), np.nan)
    return [heat_picture(f"{name}_accuracy_matrix", "Accuracy matrix", f"after training {unit}", f"test set of {unit}",
                         mean_RT, "accuracy (%)", (0, 100), _mean_of(group), columns=runs[0].numbers)]


def _confusion(name: str, group: Group) -> list[Picture]:
    """Of the test images of each task (or, with one test set, of each class), the share sent to each."""
    shares, unit = [], "task"
    for run in group.runs:
        counts_KK = run.confusion.get("counts")
        if counts_KK is not None:
            task_K = run.confusion.get("task_of_class")
            unit = "class" if task_K is None else "task"
            parts_KT = np.eye(len(counts_KK)) if task_K is None else np.eye(task_K.max())[task_K - 1]
            counts_TT = parts_KT.T @ counts_KK @ parts_KT
            images_T1 = counts_TT.sum(1, keepdims=True)
            shares.append(100 * np.divide(counts_TT, images_T1, where=images_T1 > 0,
                                          out=np.full(counts_TT.shape, np.nan)))
    if not shares:
        return []
    shares = [share for share in shares if share.shape == shares[0].shape]
    first = (1, 1) if unit == "task" else (0, 0)
    return [heat_picture(f"{name}_confusion", f"Where the images of each {unit} go", f"{unit} of the predicted class"
                         if unit == "task" else "predicted class", f"true {unit}", np.mean(shares, axis=0),
                         "share of images (%)", (0, 100),
                         f"At the last evaluation{_choice(group)}. {_mean_of(group)}", first)]


def _choice(group: Group) -> str:
    return f", {group.runs[0].choice}" if votes(group.runs[0]) else ""


def _class_accuracy(name: str, group: Group) -> list[Picture]:
    found, task_K = [], None
    for run in group.runs:
        counts_KK = run.confusion.get("counts")
        if counts_KK is not None:
            task_K = run.confusion.get("task_of_class") if task_K is None else task_K
            images_K = counts_KK.sum(1)
            found.append(100 * np.divide(np.diagonal(counts_KK), images_K, where=images_K > 0,
                                         out=np.full(len(counts_KK), np.nan)))
    if not found:
        return []
    values_NK, names = np.array(found), group.runs[0].config["class_names"]
    mean_K = values_NK.mean(0)
    spread_K = values_NK.std(0, ddof=1) if len(values_NK) > 1 else np.zeros(len(names))
    order_K = np.arange(len(names)) if task_K is None else np.lexsort((np.arange(len(names)), task_K))
    numbers = [["class", "name", "task", "accuracy (%)", "std", "runs"]] + [
        [int(k), names[k], "" if task_K is None else int(task_K[k]), float(mean_K[k]),
         float(spread_K[k]) if len(values_NK) > 1 else "", len(values_NK)] for k in order_K]

    def draw(figure: Figure, _: str) -> Axes:
        axes = figure.subplots()
        at_K = np.arange(len(names))
        colours = [PALETTE[0] if task_K is None or task_K[k] % 2 else PALETTE[5] for k in order_K]
        few = len(names) <= 24
        axes.bar(at_K, mean_K[order_K], width=0.8 if few else 1.0, color=colours,
                 yerr=spread_K[order_K] if len(values_NK) > 1 and len(names) <= 50 else None,
                 error_kw={"linewidth": 0.7})
        axes.set_ylim(0, 100)
        if few:
            axes.set_xticks(at_K, labels=[short(printable(names[k]), 14) for k in order_K], rotation=90, fontsize=5.5)
        axes.set_xlabel("class" + ("" if few else ", by number") + ("" if task_K is None else ", in order of tasks"))
        axes.set_ylabel("accuracy (%)")
        axes.spines[["top", "right"]].set_visible(False)
        return axes

    bars = "" if task_K is None else "Light and dark bars are tasks in turn. "
    return [Picture(f"{name}_classes", "Accuracy of each class",
                    f"At the last evaluation{_choice(group)}. {bars}{_mean_of(group)}", numbers, draw)]


def _prompts(name: str, group: Group) -> list[Picture]:
    """Prompts have no order, so those of different seeds cannot be averaged: the tables of prompts are of one run."""
    run = group.runs[0]
    unit, one_of = run.unit, f"Of the run with seed {run.seed}"
    logs = [(r, [row for row in r.log if row["kind"] == "evaluation" and row.get("prompts")],
             [row for row in r.log if row["kind"] == "keys"]) for r in group.runs]
    found = []
    evaluations, keys = logs[0][1:]
    try:
        if evaluations:
            counts_RM = np.array(evaluations[-1]["prompts"], dtype=float)
            share_RM = 100 * counts_RM / np.maximum(1, _images_R(counts_RM, run))
            found.append(heat_picture(
                f"{name}_prompts", f"Prompts chosen for each {unit}'s images", "prompt (index in the pool)",
                f"test set of {unit}" if len(share_RM) > 1 else "test set", share_RM, "share of images (%)", (0, 100),
                f"{one_of}, at the last evaluation{_choice(group)}.", (1, 0)))
        if keys:
            found += _nearness(name, run, keys[-1], one_of)
        found += _over_tasks(name, unit, logs)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise DamagedFileError(f"{run.folder}/{run.prefix}log.jsonl is damaged: its numbers of prompts or keys do not "
                               "fit together.") from error
    return found


def _images_R(counts_RM: np.ndarray, run: Run) -> np.ndarray:
    options = run.config["options"]
    chosen = 1 if options.get("prompt_method") == "dualprompt" else options["top_k"]
    return counts_RM.sum(1, keepdims=True) / chosen


def _square(row: dict[str, Any]) -> np.ndarray:
    """The similarities of keys [M, M] of a log line of kind `keys`."""
    size = len(row["keys_to_queries"][0])
    near_MM = np.zeros((size, size))
    near_MM[np.triu_indices(size, k=1)] = row["keys_to_keys"]
    return near_MM + near_MM.T + np.eye(size)


def _nearness(name: str, run: Run, row: dict[str, Any], one_of: str) -> list[Picture]:
    to_queries_RM = np.array(row["keys_to_queries"], dtype=float)
    caption = f"{one_of}, at the last evaluation. 1 means the same direction."
    return [
        heat_picture(f"{name}_keys", "Keys: similarity to each other", "key (index in the pool)",
                     "key (index in the pool)", _square(row), "cosine similarity", (-1, 1), caption, (0, 0), 1),
        heat_picture(f"{name}_queries", f"Keys: similarity to the queries of each {run.unit}",
                     "key (index in the pool)", f"test set of {run.unit}" if len(to_queries_RM) > 1 else "test set",
                     to_queries_RM, "mean cosine similarity", (-1, 1), caption, (1, 0), 1)]


def _over_tasks(name: str, unit: str, logs: Iterable[tuple[Run, list, list]]) -> list[Picture]:
    """Does the pool collapse? Keys that become alike, and prompts that nobody chooses."""
    between, largest, to_queries, used = [], [], [], []
    for _, evaluations, keys in logs:
        if keys:
            # Of one prompt there is no pair.
            between.append([np.mean(row["keys_to_keys"]) if row["keys_to_keys"] else 1.0 for row in keys])
            largest.append([max(row["keys_to_keys"], default=1.0) for row in keys])
            to_queries.append([np.mean(row["keys_to_queries"]) for row in keys])
        if evaluations:
            used.append([_effective(np.sum(row["prompts"], axis=0)) for row in evaluations])
    at = [row[unit] for row in next(iter(logs))[2 if between else 1]]
    caption = f"Mean of {len(between or used)} runs; the band is one standard deviation." \
        if len(between or used) > 1 else "One run."
    found = []
    if between and len(at) > 1:
        lines = [(label, at, np.array(values, dtype=float)) for label, values in (
            ("two keys, mean", between), ("two keys, most alike", largest), ("key and query, mean", to_queries))]
        found.append(line_picture(f"{name}_collapse", f"Keys over {unit}s", f"after training {unit}",
                                  "cosine similarity", lines, f"Does the pool collapse? {caption}"))
    if used and len(used[0]) > 1:
        at = [row[unit] for row in next(iter(logs))[1]]
        found.append(line_picture(
            f"{name}_used", f"Prompts in use over {unit}s", f"after training {unit}", "effective number of prompts",
            [("exp(entropy of the choices)", at, np.array(used))], f"1: one prompt for all images. {caption}",
            (0, None)))
    return found


def _effective(counts_M: np.ndarray) -> float:
    """exp of the entropy of the choices: M where all prompts are chosen alike, 1 where only one is."""
    share_M = counts_M[counts_M > 0] / max(1, counts_M.sum())
    return float(np.exp(-(share_M * np.log(share_M)).sum()))
