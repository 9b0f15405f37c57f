"""Tables as text, Markdown, CSV and LaTeX."""

import csv
import io
import re
import textwrap
from collections.abc import Sequence

from reporting.groups import COSTS, METRICS, Group, Table
from reporting.sections import Block, Section

PLAIN = "±"
OPENING = f"Percent: mean {PLAIN} standard deviation over seeds (number of runs). Only lines of one table compare."
PAGE, WIDEST_LABEL = 120, 60  # characters of a line of text, and of a label in a table; what is longer is broken


def format_text(sections: Sequence[Section]) -> str:
    parts = [OPENING]
    for section in sections:
        parts.append("\n".join([section.title, "=" * min(len(section.title), PAGE), *_filled(section_notes(section))]))
        parts += ["\n".join([*_filled(heading(block, section)), _aligned(block_rows(block)), *_filled(notes(block))])
                  for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def format_markdown(sections: Sequence[Section]) -> str:
    parts = [OPENING]
    for section in sections:
        parts += [f"## {section.title}", *section_notes(section)]
        for block in section.blocks:
            header, *lines = [[cell.replace("|", "\\|").replace("\n", "<br>") for cell in row]
                              for row in block_rows(block)]
            ruler = [":--"] + ["--:"] * (len(header) - 1)
            parts += ["  \n".join(heading(block, section)),
                      "\n".join(f"| {' | '.join(row)} |" for row in (header, ruler, *lines)), *notes(block)]
    return "\n\n".join(parts) + "\n"


def format_latex(sections: Sequence[Section]) -> str:
    """For `booktabs`: a table environment each, also for one line, whose caption says all about it."""
    parts = []
    for table in tables_of(sections):
        header, *lines = rows(table)
        body = "\n".join(" & ".join(map(_latex, row)) + r" \\" for row in lines)
        parts.append("\n".join([
            r"\begin{table}", r"\centering",
            rf"\caption{{{_latex(' '.join(described(table)))}}}", rf"\label{{tab:report{table.number}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule",
            " & ".join(map(_latex, header)) + r" \\", r"\midrule", body, r"\bottomrule", r"\end{tabular}",
            r"\end{table}"]))
    return "% needs \\usepackage{booktabs}\n" + "\n\n".join(parts) + "\n"


def format_csv(sections: Sequence[Section]) -> str:
    """A line for each group of each table: unrounded, costs too. An empty cell was not measured, or of one run."""
    names = [*METRICS, *COSTS]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "weights", "data", "setting", "choice", "method", "runs", "seeds",
                     *(f"{name}_{part}" for name in names for part in ("mean", "std", "n"))])
    for table in tables_of(sections):
        where = [table.number, table.conditions.weights, table.conditions.data, table.conditions.setting,
                 table.conditions.choice]
        for group in table.groups:
            cells = []
            for name in names:
                mean, std, n = group.statistic(name) or ("", None, 0)
                cells += [mean, "" if std is None else std, n]
            writer.writerow([*where, group.whole_label, len(group.members), " ".join(map(str, group.seeds)), *cells])
    return text.getvalue()


# ---- parts ----
def tables_of(sections: Sequence[Section]) -> list[Table]:
    return [table for section in sections for block in section.blocks for table in block.tables]


def described(table: Table) -> list[str]:
    """What holds for all numbers of a table that stands by itself."""
    return [f"{table.conditions.how}; percent, mean {PLAIN} standard deviation (number of runs).",
            f"Data: {table.conditions.data}. Weights: {table.conditions.weights}.", *_in_common(_said_above(table)),
            *[table.reason] * bool(table.reason)]


def heading(block: Block, section: Section) -> list[str]:
    """A heading, and what is to be said beside what the section says."""
    first, *others = block.tables
    if others:
        numbers = [str(table.number) for table in block.tables]
        nor = first.reason.replace(":", ", nor with each other:", 1)
        return [f"Tables {', '.join(numbers[:-1])} and {numbers[-1]}: one line each", nor]
    begins_section = block is section.blocks[0]
    return [f"Table {first.number}: {first.conditions.how}", *_in_common(first.common),
            *[first.reason] * (not begins_section)]


def section_notes(section: Section) -> list[str]:
    return [*[section.reason] * bool(section.reason), *_in_common(section.common)]


def _in_common(words: Sequence[str]) -> list[str]:
    return [f"All of them with {' '.join(words)}."] * bool(words)


def _said_above(table: Table) -> list[str]:
    """What no label of the table says, as something above says it of all."""
    return table.groups[0].said_above


def block_rows(block: Block, costs: bool = False) -> list[list[str]]:
    """As `rows`. In a block of several tables a line begins with what it is of, and its cell has several lines."""
    if len(block.tables) == 1:
        return rows(block.tables[0], block.tables[0].costs if costs else None)
    found = {name for table in block.tables for name in (table.costs if costs else table.metrics)}
    names = [name for name in (COSTS if costs else METRICS) if name in found]
    lines = []
    for table in block.tables:
        header, line = rows(table, names)
        of = [f"Table {table.number}: {table.conditions.how}", *[table.conditions.what] * block.with_data, line[0]]
        lines.append(["\n".join(of), *line[1:]])
    return [["table and method", *header[1:]], *lines]


def rows(table: Table, names: Sequence[str] | None = None) -> list[list[str]]:
    """A header and a row for each group. `names`: metrics or costs; all metrics when not given."""
    names = table.metrics if names is None else names
    titles = {name: title for name, (title, _) in METRICS.items()} | COSTS
    return [["method", *(titles[name] for name in names)],
            *([group.label, *(cell(group, name) for name in names)] for group in table.groups)]


def notes(block: Block) -> list[str]:
    """The notes of all groups, the same ones told once."""
    found: dict[str, list[str]] = {}
    for group in block.groups:
        for note in group.notes:
            found.setdefault(note, []).append(group.label)
    return [f"{'; '.join(labels)}: {note}" for note, labels in found.items()]


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
    """Columns side by side; a long first cell goes on in further lines, broken between options."""
    firsts = [_broken(row[0]) for row in cells]
    widths = [max(len(line) for lines in firsts for line in lines),
              *(max(len(row[column]) for row in cells) for column in range(1, len(cells[0])))]
    text = []
    for (first, *further), row in zip(firsts, cells, strict=True):
        others = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        text += ["  ".join([first.ljust(widths[0]), *others]).rstrip(), *further]
    return "\n".join(text)


def _broken(label: str) -> list[str]:
    lines: list[str] = []
    for part in label.split("\n"):
        begun = len(lines)
        # An option stays with its values: before two dashes is where a line may end.
        for word in re.split(r" (?=--)|(?<=[,;]) ", part) if len(part) > WIDEST_LABEL else [part]:
            if len(lines) > begun and len(lines[-1]) + 1 + len(word) <= WIDEST_LABEL:
                lines[-1] += f" {word}"
            else:
                lines += _filled([word], WIDEST_LABEL, "    " if len(lines) > begun else "")
    return lines


def _filled(paragraphs: Sequence[str], width: int = PAGE, indent: str = "") -> list[str]:
    return [line for paragraph in paragraphs
            for line in textwrap.wrap(paragraph, width, initial_indent=indent, subsequent_indent="    ",
                                      break_long_words=False, break_on_hyphens=False)]


def _latex(text: str) -> str:
    marks = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", PLAIN: r"$\pm$",
             "--": "-{}-", **{mark: "\\" + mark for mark in "&%$#_{}"}}
    text = text.replace("--", "\0")
    return "".join(marks["--"] if mark == "\0" else marks.get(mark, mark) for mark in text)
