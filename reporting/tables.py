"""Tables as text, Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Sequence

from reporting.groups import COSTS, METRICS, Group, Table

PLAIN = "±"


def format_text(tables: Sequence[Table]) -> str:
    return "\n\n".join(f"{heading(number, table)}\n{_aligned(rows(table))}" + _notes(table)
                       for number, table in enumerate(tables, start=1)) + "\n"


def format_markdown(tables: Sequence[Table]) -> str:
    parts = []
    for number, table in enumerate(tables, start=1):
        header, *lines = [[cell.replace("|", "\\|") for cell in row] for row in rows(table)]
        ruler = [":--"] + ["--:"] * (len(header) - 1)
        parts.append(f"{heading(number, table, sep='  ')}\n\n" + "\n".join(
            f"| {' | '.join(row)} |" for row in (header, ruler, *lines)) + _notes(table, before="\n\n"))
    return "\n\n".join(parts) + "\n"


def format_latex(tables: Sequence[Table]) -> str:
    """For `booktabs`: a table environment each."""
    parts = []
    for number, table in enumerate(tables, start=1):
        header, *lines = rows(table)
        body = "\n".join(" & ".join(map(_latex, row)) + r" \\" for row in lines)
        parts.append("\n".join([
            r"\begin{table}", r"\centering",
            rf"\caption{{{_latex(' '.join(described(table)))}}}", rf"\label{{tab:report{number}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule",
            " & ".join(map(_latex, header)) + r" \\", r"\midrule", body, r"\bottomrule", r"\end{tabular}",
            r"\end{table}"]))
    return "% needs \\usepackage{booktabs}\n" + "\n\n".join(parts) + "\n"


def format_csv(tables: Sequence[Table]) -> str:
    """A line for each group of each table: unrounded, costs too. An empty cell was not measured, or of one run."""
    names = [*METRICS, *COSTS]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "weights", "data", "setting", "choice", "method", "runs", "seeds",
                     *(f"{name}_{part}" for name in names for part in ("mean", "std", "n"))])
    for number, table in enumerate(tables, start=1):
        where = [number, table.conditions.weights, table.conditions.data, table.conditions.setting,
                 table.conditions.choice]
        for group in table.groups:
            cells = []
            for name in names:
                mean, std, n = group.statistic(name) or ("", None, 0)
                cells += [mean, "" if std is None else std, n]
            writer.writerow([*where, group.label, len(group.members), " ".join(map(str, group.seeds)), *cells])
    return text.getvalue()


# ---- parts ----
def described(table: Table) -> list[str]:
    """What holds for all numbers of a table."""
    same = table.conditions
    return [f"{same.setting}, {same.choice}; percent, mean {PLAIN} standard deviation (number of runs).",
            f"Data: {same.data}. Weights: {same.weights}.",
            *[f"All of them with {' '.join(table.common)}."] * bool(table.common),
            *[table.reason] * bool(table.reason)]


def heading(number: int, table: Table, sep: str = "") -> str:
    first, *others = described(table)
    return f"Table {number}: " + f"{sep}\n".join([first, *others])


def rows(table: Table, names: Sequence[str] | None = None) -> list[list[str]]:
    """A header and a row for each group. `names`: metrics or costs; all metrics when not given."""
    names = table.metrics if names is None else names
    titles = {name: title for name, (title, _) in METRICS.items()} | COSTS
    return [["method", *(titles[name] for name in names)],
            *([group.label, *(cell(group, name) for name in names)] for group in table.groups)]


def cell(group: Group, name: str) -> str:
    """`93.20 ± 0.41 (3)`; '' where it was not measured."""
    found = group.statistic(name)
    if found is None:
        return ""
    mean, std, n = found
    digits = {"loss": 3, "train_seconds": 1, "eval_seconds": 1, "train_images_per_second": 1}.get(name, 2)
    if name in ("trainable_parameters", "checkpoint_bytes", "replay_images", "replay_bytes"):
        digits = 0
    if not digits and not std:  # a count that is the same in all runs
        std = None
    spread = "" if std is None else f" {PLAIN} {std:,.{digits}f}"
    return f"{mean:,.{digits}f}{spread} ({n})"


def _aligned(cells: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join("  ".join(cell.ljust(width) if column == 0 else cell.rjust(width)
                               for column, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
                     for row in cells)


def _notes(table: Table, before: str = "\n") -> str:
    notes = [f"{group.label}: {note}" for group in table.groups for note in group.notes]
    return before + before.join(notes) if notes else ""


def _latex(text: str) -> str:
    marks = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", PLAIN: r"$\pm$",
             "--": "-{}-", **{mark: "\\" + mark for mark in "&%$#_{}"}}
    text = text.replace("--", "\0")
    return "".join(marks["--"] if mark == "\0" else marks.get(mark, mark) for mark in text)
