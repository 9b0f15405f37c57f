"""The report as one HTML file that needs nothing else: no script, no font, no picture from elsewhere."""

import re
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reporting.drawing import Picture, escape, style
from reporting.groups import ALONE, Group, Table, as_typed, differing_options
from reporting.pictures import curves_of_part, parts_of, pictures_of_group, votes
from reporting.sections import NOT_COMPARED, Section
from reporting.tables import block_rows, heading, notes, section_notes, tables_of

DETAILED_GROUPS = 5  # with pictures of their own; of more a page would take minutes
PICTURES_OF_TABLES = 12

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
td:first-child { white-space: normal; min-width: 11rem; }
td span { white-space: nowrap; }
table.lone td:first-child { min-width: min(26rem, 55vw); }
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
    """A report, before it is written: pictures of each table, and of the groups in it, by the table's number."""

    sections: Sequence[Section]
    of_tables: dict[int, list[Picture]] = field(default_factory=lambda: defaultdict(list))
    of_groups: dict[int, list[tuple[Group, list[Picture]]]] = field(default_factory=lambda: defaultdict(list))
    notes: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Sentences on pictures of a table that are not there."""
    left_out: list[str] = field(default_factory=list)
    """Sentences on runs and files that are not in it."""

    @property
    def pictures(self) -> list[Picture]:
        found = []
        for table in tables_of(self.sections):
            found += self.of_tables[table.number]
            for _, pictures in self.of_groups[table.number]:
                found += pictures
        return found


def gather(sections: Sequence[Section], left_out: Sequence[str]) -> Contents:
    """Choose what is drawn: of each table the best lines first, until the page has as many pictures as one can read."""
    contents = Contents(sections, left_out=list(left_out))
    tables = tables_of(sections)
    lines, methods = _choose_curves(contents, tables), _choose_groups(contents, tables)
    for table in tables:
        if what := _not_drawn(lines[table.number], methods[table.number], "more "):
            contents.notes[table.number].append(f"Not drawn: {what}.")
    if what := _not_drawn(sum(lines.values()), sum(methods.values())):
        contents.left_out.append(f"{what}, of which there would be too many; give fewer folders to see them.")
    return contents


def _not_drawn(lines: int, methods: int, more: str = "") -> str:
    return " and ".join([f"the curves of {_count(lines, f'{more}line')}"] * bool(lines)
                        + [f"the pictures of {_count(methods, f'{more}method')}"] * bool(methods))


def _choose_curves(contents: Contents, tables: Sequence[Table]) -> dict[int, int]:
    """Of each table in turn the curves of its best lines, then of the next best.

    Returns how many lines of each table have none.
    """
    parts = [(place, table, part) for table in tables for place, part in enumerate(parts_of(table))]
    without: dict[int, int] = defaultdict(int)
    room = PICTURES_OF_TABLES
    for place, table, part in sorted(parts, key=lambda found: found[0]):
        if room <= 0:
            without[table.number] += len(part)
            continue
        pictures, note = curves_of_part(place, table, part)
        contents.of_tables[table.number] += pictures
        contents.notes[table.number] += [note] * bool(note)
        room -= len(pictures)
    return without


def _choose_groups(contents: Contents, tables: Sequence[Table]) -> dict[int, int]:
    """Of each table in turn the best method, then the next best. Returns how many of each table have no pictures.

    A group with a batch vote has its pictures in the table of that vote, of which they are.
    """
    candidates = [(place, table, group) for table in tables for place, group in enumerate(table.groups, start=1)
                  if not (table.conditions.choice == ALONE and votes(group.runs[0]))]
    drawn = 0
    without: dict[int, int] = defaultdict(int)
    for place, table, group in sorted(candidates, key=lambda found: found[0]):
        if drawn == DETAILED_GROUPS:
            without[table.number] += 1
            continue
        pictures, wrong = pictures_of_group(f"table{table.number}_method{place}", group)
        contents.left_out += [f"a picture: {line}" for line in wrong if f"a picture: {line}" not in contents.left_out]
        if pictures:
            drawn += 1
            contents.of_groups[table.number].append((group, pictures))
    return without


def format_page(contents: Contents) -> str:
    tables = tables_of(contents.sections)
    runs = {run.name for table in tables for group in table.groups for run in group.runs}
    parts = ["<h1>Report of continual learning runs</h1>",
             f"<p>{_count(len(runs), 'run')} in {_count(len(tables), 'table')}. Numbers are in percent, "
             "mean ± sample standard deviation over seeds (number of runs). Only numbers in one table compare.</p>"]
    if contents.left_out:
        parts += ["<h2>Left out</h2><ul>", *(f"<li>{escape(line)}</li>" for line in contents.left_out), "</ul>"]
    for section in contents.sections:
        parts.append(_section(section, contents))
    parts.append("<h2>To repeat each run</h2>")
    where: dict[tuple[str, ...], list[tuple[int, Group]]] = defaultdict(list)
    for table in tables:
        for group in table.groups:
            where[tuple(run.name for run in group.runs)].append((table.number, group))
    parts += [_repeat_section(found[0][1], [number for number, _ in found]) for found in where.values()]
    body = "\n".join(parts)
    return ('<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<link rel="icon" href="data:,">\n'
            f"<title>Report of continual learning runs</title>\n<style>{CSS}</style>\n</head>\n<body>\n{body}\n"
            "</body>\n</html>\n")


def _section(section: Section, contents: Contents) -> str:
    parts = [f"<section><h2>{escape(section.title)}</h2>", *_paragraphs(section_notes(section))]
    told: set[str] = set()  # runs whose cost is in a table of this section already
    for block in section.blocks:
        title, *lines = heading(block, section)
        kind = "lone" if len(block.tables) > 1 else ""
        parts += [f"<h3>{escape(title)}</h3>", *_paragraphs(lines), _html_table(block_rows(block), kind),
                  *_paragraphs(notes(block))]
        runs = {run.name for group in block.groups for run in group.runs}
        if any(table.costs for table in block.tables) and not runs <= told:
            told |= runs
            parts += ["<h4>Cost</h4>", _html_table(block_rows(block, costs=True), kind)]
        for table in block.tables:
            of = f" of table {table.number}" if len(block.tables) > 1 else ""
            if contents.of_tables[table.number]:
                parts += [f"<h4>Over the course of training{of}</h4>", _figures(contents.of_tables[table.number])]
            for group, pictures in contents.of_groups[table.number]:
                parts += [f"<h4>{escape(group.label)}{of}</h4>", _figures(pictures)]
            parts += _paragraphs(contents.notes[table.number])
    return "\n".join([*parts, "</section>"])


def _paragraphs(lines: Sequence[str]) -> list[str]:
    return [f'<p class="{"reason" if line.startswith(NOT_COMPARED) else "note"}">{escape(line)}</p>' for line in lines]


def _repeat_section(group: Group, numbers: Sequence[int]) -> str:
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
    where = f"table{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
    return "\n".join([f"<h3>{escape(group.whole_label)} ({where})</h3>",
                      f'<p class="note">Options that differ from the program\'s defaults: {words}</p>',
                      _html_table([header, *lines], "runs", escaped=True)])


def _short_commit(commit: str) -> str:
    """As many digits as name a commit; and whether files differed from it."""
    number, plus, changes = commit.partition("+")
    return number[:12] + plus + changes


def _html_table(cells: list[list[str]], kind: str = "", escaped: bool = False) -> str:
    write = (lambda text: text) if escaped else _unbroken
    header, *lines = [[write(cell) for cell in row] for row in cells]
    head = "<tr>" + "".join(f"<th>{cell}</th>" for cell in header) + "</tr>"
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in lines)
    return (f'<div class="scroll"><table class="{kind}">\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n'
            "</table></div>")


def _unbroken(text: str) -> str:
    """Escaped, its lines kept, and so that none ends within `--option`."""
    return "<br>".join(re.sub(r"--[\w-]+", r"<span>\g<0></span>", escape(line)) for line in text.split("\n"))


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
