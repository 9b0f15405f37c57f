"""The report as one HTML file that needs nothing else: no script, no font, no picture from elsewhere."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reporting.groups import ALONE, Group, Table, as_typed, differing_options
from reporting.pictures import Picture, escape, pictures_of_group, pictures_of_table, style, votes
from reporting.tables import described, rows

DETAILED_GROUPS = 5  # with pictures of their own; of more a page would take minutes
PICTURES_OF_TABLES = 8

CSS = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #111; background: #fff; max-width: 76rem; margin: 0 auto;
       padding: 1rem; overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.2; margin: 1.6em 0 .5em; }
h1 { margin-top: .5em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0; font-size: 14px; overflow-wrap: normal; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ccc; text-align: right; vertical-align: top; }
th { border-bottom: 2px solid #555; }
th:first-child, td:first-child { text-align: left; }
td { font-variant-numeric: tabular-nums; white-space: nowrap; }
td:first-child { white-space: normal; min-width: 9rem; }
table.runs th, table.runs td { text-align: left; white-space: normal; }
code { font-size: 13px; }
.reason { border-left: 4px solid #D55E00; padding-left: .7rem; }
.note { color: #444; font-size: 14px; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(8cm, 100%), 1fr)); gap: 1rem 1.5rem; }
figure { margin: 0; }
figure svg { width: 100%; height: auto; max-width: 12cm; }
figcaption { font-size: 13px; color: #444; }
@media print {
  body { font-size: 9.5pt; max-width: none; padding: 0; }
  table, code { font-size: 8pt; }
  th, td { padding: 1pt 4pt; white-space: normal; }
  .scroll { overflow: visible; }
  figure, tr { break-inside: avoid; }
  h2, h3, h3 + p, thead { break-after: avoid; }
  .pictures { display: block; }
  figure { display: inline-block; width: 8cm; margin: 0 .4cm .4cm 0; vertical-align: top; }
  @page { margin: 1.5cm; }
}
"""


@dataclass
class Contents:
    """A report, before it is written: pictures of each table, and of the groups in it."""

    tables: Sequence[Table]
    of_tables: list[list[Picture]] = field(default_factory=list)
    of_groups: list[list[tuple[Group, list[Picture]]]] = field(default_factory=list)
    without_pictures: list[list[Group]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Sentences on runs and files that are not in it."""

    @property
    def pictures(self) -> list[Picture]:
        found = []
        for of_table, of_groups in zip(self.of_tables, self.of_groups, strict=True):
            found += of_table
            for _, pictures in of_groups:
                found += pictures
        return found


def gather(tables: Sequence[Table], left_out: Sequence[str]) -> Contents:
    """Choose what is drawn. A group with a batch vote has its pictures in the table of that vote, of which they are."""
    contents = Contents(tables, left_out=list(left_out))
    drawn: set[tuple[str, ...]] = set()
    for number, table in enumerate(tables, start=1):
        room = PICTURES_OF_TABLES - sum(map(len, contents.of_tables))
        contents.of_tables.append(pictures_of_table(number, table)[:max(0, room)])
        of_groups, without = [], []
        for place, group in enumerate(table.groups, start=1):
            mark = tuple(run.name for run in group.runs)
            if mark in drawn or (table.conditions.choice == ALONE and votes(group.runs[0])):
                continue
            if len(drawn) == DETAILED_GROUPS:
                without.append(group)
                continue
            pictures, wrong = pictures_of_group(f"table{number}_method{place}", group)
            contents.left_out += wrong
            if pictures:
                drawn.add(mark)
                of_groups.append((group, pictures))
        contents.of_groups.append(of_groups)
        contents.without_pictures.append(without)
    return contents


def format_page(contents: Contents) -> str:
    runs = {run.name for table in contents.tables for group in table.groups for run in group.runs}
    parts = ["<h1>Report of continual learning runs</h1>",
             f"<p>{_count(len(runs), 'run')} in {_count(len(contents.tables), 'table')}. Numbers are in percent, "
             "mean ± sample standard deviation over seeds (number of runs). Only numbers in one table compare.</p>"]
    if contents.left_out:
        parts += ["<h2>Left out</h2><ul>", *(f"<li>{escape(line)}</li>" for line in contents.left_out), "</ul>"]
    for number, table in enumerate(contents.tables, start=1):
        parts.append(_table_section(number, table, contents))
    parts.append("<h2>To repeat each run</h2>")
    seen: set[tuple[str, ...]] = set()
    for group in (group for table in contents.tables for group in table.groups):
        mark = tuple(run.name for run in group.runs)
        if mark not in seen:
            seen.add(mark)
            parts.append(_repeat_section(group))
    body = "\n".join(parts)
    return ('<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<link rel="icon" href="data:,">\n'
            f"<title>Report of continual learning runs</title>\n<style>{CSS}</style>\n</head>\n<body>\n{body}\n"
            "</body>\n</html>\n")


def _table_section(number: int, table: Table, contents: Contents) -> str:
    what, *about = described(table)
    parts = [f"<section><h2>Table {number}: {escape(what.partition(';')[0])}</h2>",
             *(f'<p class="{"reason" if line == table.reason else "note"}">{escape(line)}</p>' for line in about),
             _html_table(rows(table))]
    parts += [f'<p class="note">{escape(group.label)}: {escape(note)}</p>' for group in table.groups
              for note in group.notes]
    if table.costs:
        parts += ["<h3>Cost</h3>", _html_table(rows(table, table.costs))]
    if contents.of_tables[number - 1]:
        parts += ["<h3>Over the course of training</h3>", _figures(contents.of_tables[number - 1])]
    for group, pictures in contents.of_groups[number - 1]:
        parts += [f"<h3>{escape(group.label)}</h3>", _figures(pictures)]
    without = contents.without_pictures[number - 1]
    if without:
        parts.append(f'<p class="note">{_count(len(without), "more method")} of this table without pictures of their '
                     "own: give report.py their folders alone to see them.</p>")
    return "\n".join([*parts, "</section>"])


def _repeat_section(group: Group) -> str:
    options = {}
    for run in group.runs:
        options |= {as_typed(name, value): None for name, value in differing_options(run).items() if name != "seed"}
    header = ["run", "seed", "command", "commit", "versions", "hardware"]
    lines = []
    for run in group.runs:
        config, hardware = run.config, run.config.get("hardware", {})
        where = [str(hardware.get("device", "?")), f"{hardware.get('threads', '?')} threads",
                 f"{config.get('world_size', 1)} process(es)", str(config.get("precision", "fp32"))]
        versions = ", ".join(f"{name} {version}" for name, version in config.get("versions", {}).items())
        command = shlex.join(["python", *map(str, config.get("command", []))])
        lines.append([escape(run.name), str(run.seed), f"<code>{escape(command)}</code>",
                      f"<code>{escape(_short_commit(str(config.get('commit'))))}</code>", escape(versions),
                      escape(", ".join(where))])
    words = f"<code>{escape(' '.join(options))}</code>" if options else "none"
    return "\n".join([f"<h3>{escape(group.label)}</h3>",
                      f'<p class="note">Options that differ from the program\'s defaults: {words}</p>',
                      _html_table([header, *lines], "runs", escaped=True)])


def _short_commit(commit: str) -> str:
    """As many digits as name a commit; and whether files differed from it."""
    number, plus, changes = commit.partition("+")
    return number[:12] + plus + changes


def _html_table(cells: list[list[str]], kind: str = "", escaped: bool = False) -> str:
    write = (lambda text: text) if escaped else escape
    header, *lines = cells
    head = "<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in header) + "</tr>"
    body = "\n".join("<tr>" + "".join(f"<td>{write(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return (f'<div class="scroll"><table class="{kind}">\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n'
            "</table></div>")


def _figures(pictures: Sequence[Picture]) -> str:
    return '<div class="pictures">\n' + "\n".join(
        f"<figure>{picture.svg()}<figcaption>{escape(picture.caption)}</figcaption></figure>"
        for picture in pictures) + "\n</div>"


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def write_pdf(pictures: Sequence[Picture], path: Path) -> None:
    """Every picture on a page of its own size, as vectors."""
    from matplotlib.backends.backend_pdf import PdfPages

    with style(), PdfPages(path, metadata={"CreationDate": None}) as pages:
        for picture in pictures:
            pages.savefig(picture.figure()[0])
