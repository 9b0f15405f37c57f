"""Numbers in the pages against the records that they were measured in. What belongs to what: number_sources.toml."""

import fnmatch
import functools
import json
import re
import shlex
import statistics
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from fixtures import ROOT
from safetensors import safe_open

from benchmarks.speed import table as speed_table
from configs import experiment_names
from configs.base import OPTIONS
from configs.command import parse

PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "demo/README.md", "benchmarks/README.md", "results/README.md",
         "configs/cifar100_l2p_nopos.py", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
SOURCES = tomllib.loads((ROOT / "tests" / "number_sources.toml").read_text(encoding="utf-8"))
# The heading of a column -> the field of a record; or of the costs of the run with the first seed.
FIELDS = {"Acc@1": "acc@1", "per image": "acc@1_per_image", "Acc@1 per image": "acc@1_per_image",
          "forgetting": "forgetting", "just learned": "learning_acc", "trained values": "trainable_parameters"}
COSTS = ("kept", "checkpoint", "seconds")
COSTS_RECORD = "demo_costs"
NUMBER = r"\d[\d,]*(?:\.\d+)?(?: ± \d+(?:\.\d+)?)?(?: [kMG]B\b)?"
# What looks like a result: a decimal number (but no part of a version such as 1.0.31), or a whole one with a unit.
RESULT = re.compile(r"(?<![\w.,])(?:\d[\d,]*\.\d+(?!\.?\d)|\d[\d,]*(?= ?(?:%|×(?!\d)|[kMG]B\b|bytes\b|points?\b|"
                    r"images/s|s\b|seconds\b|minutes\b|values\b)))")
ROW = "⏎"  # begins a row of a table in a page's prose
CELL = re.compile(rf"(?<=\| )(?<!{ROW} \| ){NUMBER}(?= \|)")  # a number alone in a cell behind the first
NO_NUMBER = ("–", "")
SPEED_TABLES = re.compile(r"<!-- speed tables -->\n(.*)<!-- end of speed tables -->", re.DOTALL)
RECORD_FILE = re.compile(r"`((?:results/|benchmarks/)?[\w*]+\.json)`")
FILES_OF_A_RUN = {"config.json", "scenario.json", "summary.json", "eval_summary.json", "speed.json", "costs.json"}


# ---- pages ----
@dataclass(frozen=True)
class Table:
    section: str
    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Page:
    name: str
    sources: dict[str, Any]
    sections: dict[str, str]
    tables: list[Table]
    prose: str
    """All but the tables that `sources` binds, on one line."""


def read_page(name: str, text: str) -> Page:
    if name.endswith(".py"):
        text = text.split('"""')[1]
    text = SPEED_TABLES.sub("", text)
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    sources = SOURCES.get(name, {})
    sections, tables, prose, heading = {"": ""}, [], [], ""
    for line in text.splitlines():
        if title := re.match(r"#+ (.*)", line):
            heading = title[1]
        sections[heading] = sections.get(heading, "") + line + "\n"
    for heading, section in sections.items():
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()
                if line.startswith("|")]
        if rows and heading in sources.get("table", {}):
            tables.append(Table(heading, rows[0], rows[2:]))
            prose += [line for line in section.splitlines() if not line.startswith("|")]
        else:
            prose += [f"{ROW} {line}" if line.startswith("|") else line for line in section.splitlines()
                      if not re.fullmatch(r"[|:\-]+", line)]
    return Page(name, sources, sections, tables, re.sub(r"\s+", " ", " ".join(prose)))


# ---- records ----
@functools.cache
def records() -> dict[str, dict[str, Any]]:
    found = {path.stem: json.loads(path.read_text()) for folder in ("results", "benchmarks")
             for path in sorted((ROOT / folder).glob("*.json"))}
    with safe_open(ROOT / "demo" / "glyph_vit.safetensors", "numpy") as file:
        weights = file.metadata()
    found["glyph_vit"] = {name: value if name in ("model", "command") else json.loads(value)
                          for name, value in weights.items()}
    for record in found.values():
        if "ways" in record:
            record |= speed_fields(record["ways"])
    return found


def speed_fields(ways: dict[str, Any]) -> dict[str, Any]:
    """As benchmarks.speed prints them: medians over the turns, of rates and of each turn's ratio."""
    def ratios(way: str, to: str) -> dict[str, float]:
        return {kind: statistics.median(a / b for a, b in zip(rates, ways[to]["rates"][kind], strict=True))
                for kind, rates in ways[way]["rates"].items()}

    fields = {"rate": {way: {kind: statistics.median(rates) for kind, rates in found["rates"].items()}
                       for way, found in ways.items()},
              "ratio": {way: ratios(way, "naive, fp32") for way in ways}}
    return fields | ({"compiled": ratios("fp32, compiled", "fp32")} if "fp32, compiled" in ways else {})


def named(pattern: str) -> list[str]:
    """The records that a name means; `*` stands for digits."""
    found = [name for name in records() if re.fullmatch(re.escape(pattern).replace(r"\*", r"\d+"), name)]
    assert found, f"there is no record {pattern}"
    return found


def values(reference: str) -> list[float | None]:
    """`record field` -> the field of each of these records."""
    pattern, _, field = reference.partition(" ")
    found = [records()[name] for name in named(pattern)]
    for key in (field or "acc@1").split("/"):
        found = [record[int(key)] if isinstance(record, list) else record.get(key) for record in found]
    return found


def meant(body: str) -> list[float]:
    """What stands between braces."""
    if body.startswith("= "):
        return [eval(body[2:], {"__builtins__": {}})]
    first, minus, second = body.partition(" - ")
    if minus:
        return [statistics.mean(values(first)) - statistics.mean(values(second))]
    word, _, reference = body.partition(" ")
    return [{"min": min, "max": max}[word](values(reference))] if word in ("min", "max") else values(body)


# ---- the comparison ----
def faults_of_number(printed: str, found: list[float], *, spread_is_told: bool) -> Iterator[str]:
    """Compare `68.2 ± 1.6` or `32.3 MB` with mean and sample standard deviation, at the printed precision.

    Args:
        spread_is_told: whether values that differ need a ±, as in a table; a sentence may give the mean alone.
    """
    mean, _, rest = printed.partition(" ± ")
    deviation, _, unit = (rest or mean).partition(" ")
    unit_size = {"": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]
    expected = {"mean": (mean.split()[0], statistics.mean(found))}
    if rest:
        if len(found) < 2:
            yield f"{printed} has a ±, and there is one record"
            return
        expected["standard deviation"] = (deviation, statistics.stdev(found))
    elif spread_is_told and len(set(found)) > 1:
        yield f"{printed} needs a ±: its records have {', '.join(f'{value:g}' for value in found)}"
    for what, (text, value) in expected.items():
        decimals = len(text.partition(".")[2])
        if abs(float(text.replace(",", "")) - value / unit_size) > 0.5 * 10**-decimals + 1e-9:
            yield f"{what} {text} is {value / unit_size:.{decimals + 2}f} in the records"


def faults_of_template(template: str, text: str, what: str) -> tuple[list[str], list[tuple[int, int]]]:
    """Compare the one place in `text` that reads as `template`. Returns faults, and where its numbers stand."""
    parts = re.split(r"\{(.*?)\}", template)
    pattern = "".join(re.escape(part) if number % 2 == 0 else f"({NUMBER})" for number, part in enumerate(parts))
    found = list(re.finditer(pattern, text))
    if len(found) != 1:
        return [f"{what}: {len(found)} places read as {template!r}; one should"], []
    faults = [f"{what}: {fault} ({parts[2 * number - 1]})" for number in range(1, len(parts) // 2 + 1)
              for fault in faults_of_number(found[0][number], meant(parts[2 * number - 1]), spread_is_told=False)]
    return faults, [found[0].span()]


def faults_of_tables(page: Page) -> Iterator[str]:
    bound = page.sources.get("table", {})
    for section in bound.keys() - {table.section for table in page.tables}:
        yield f"there is no table in a section {section!r}"
    for table in page.tables:
        rows = bound[table.section]
        labels = [row[0] for row in table.rows]
        if labels != list(rows):
            yield f"{table.section}: the rows are {labels}, in number_sources.toml they are {list(rows)}"
            continue
        for row in table.rows:
            for fault in faults_of_row(table, row, rows[row[0]], page.sections[table.section]):
                yield f"{table.section}: {row[0]}: {fault}"


def faults_of_row(table: Table, row: list[str], source: str | list[str] | dict[str, str],
                  section: str) -> Iterator[str]:
    if isinstance(source, dict):
        if not any(source["reported"] in cell for cell in row):
            yield f"name its source ({source['reported']})"
        return
    if isinstance(source, list):
        for cell, template in zip(row[1:], source, strict=True):
            if template in NO_NUMBER:
                if cell != template:
                    yield f"{cell} is of no record"
                continue
            yield from faults_of_template(template, cell, template)[0]
            if re.fullmatch(re.sub(r"\\{.*?\\}", lambda _: NUMBER, re.escape(template)), cell) is None:
                yield f"{cell} has more than {template}"
        used = {name for template in source for body in re.findall(r"\{(.*?)\}", template)
                for name in named(body.partition(" ")[0])}
    else:
        used = set(named(source))
        yield from faults_of_label(row[0], sorted(used))
        for heading, cell in zip(table.header[1:], row[1:], strict=True):
            yield from faults_of_cell(heading, cell, source)
        if set(COSTS) & set(table.header):
            used.add(COSTS_RECORD)
    files = [name.rpartition("/")[2] for name in RECORD_FILE.findall(section)]
    for name in sorted(used):
        if not any(fnmatch.fnmatch(f"{name}.json", pattern) for pattern in files):
            yield f"the section does not name its record {name}.json"


def faults_of_cell(heading: str, cell: str, pattern: str) -> Iterator[str]:
    if heading in COSTS:
        runs = records()[COSTS_RECORD]["runs"]
        found = [runs[run][heading] for run in runs if f"compare_{run}" in named(pattern)]
    elif heading in FIELDS:
        found = values(f"{pattern} {FIELDS[heading]}")
        chooses = not records()[named(pattern)[0]]["protocol"].startswith("nothing to choose")
        if cell in NO_NUMBER and FIELDS[heading] == "acc@1_per_image" and not chooses:
            return
    else:
        yield f"the column {heading!r} is no field: add it to FIELDS"
        return
    if cell in NO_NUMBER or None in found:
        if not (cell in NO_NUMBER and set(found) == {None}):
            yield f"{heading}: {cell!r} is {found} in the records"
    elif not re.fullmatch(NUMBER, cell):
        yield f"{heading}: {cell!r} is no number"
    else:
        yield from (f"{heading}: {fault}" for fault in faults_of_number(cell, found, spread_is_told=True))


def faults_of_label(label: str, names: list[str]) -> Iterator[str]:
    """A command in a row's label is the one that its records were made with."""
    command = re.match(r"`(\w+.*?)`", label)
    if not command or command[1].split()[0] not in experiment_names():
        return
    read = parse(shlex.split(command[1]))
    for name in names:
        config = records()[name]["config"]
        if config["experiment"] != read.experiment:
            yield f"{name} is of {config['experiment']}"
        for option, value in read.given.items():
            saved = config["options"].get(option, OPTIONS[option].default)
            if saved != value:
                yield f"{name} has --{option} {saved}"


def faults_of_prose(page: Page) -> Iterator[str]:
    taken: list[tuple[int, int]] = []
    for template in page.sources.get("sentences", []):
        faults, spans = faults_of_template(re.sub(r"\s+", " ", template), page.prose, page.name)
        yield from faults
        taken += spans
    for words, reason in page.sources.get("no_record", {}).items():
        places = [match.span() for match in re.finditer(re.escape(words), page.prose)]
        if not places:
            yield f"nothing reads {words!r}, which number_sources.toml excuses"
        if isinstance(reason, dict) and reason["reported"] not in page.prose:
            yield f"{words!r}: name its source ({reason['reported']})"
        taken += places
    code = [match.span() for match in re.finditer(r"`[^`]*`|\]\([^)]*\)|<!--.*?-->", page.prose)]
    for match in (*RESULT.finditer(page.prose), *CELL.finditer(page.prose)):
        if not any(begin <= match.start() < end for begin, end in taken + code):
            around = page.prose[max(0, match.start() - 50):match.end() + 30]
            yield (f"{match[0]!r} in '…{around}…' is bound to no record: add it to "
                   "tests/number_sources.toml, or to its no_record with the reason")


def faults_of_page(page: Page) -> list[str]:
    return [*faults_of_tables(page), *faults_of_prose(page)]


@pytest.mark.parametrize("name", PAGES)
def test_every_number_is_in_its_record(name):
    faults = faults_of_page(read_page(name, (ROOT / name).read_text(encoding="utf-8")))
    assert not faults, "\n".join(faults)


def test_every_source_is_of_a_page():
    assert SOURCES.keys() <= set(PAGES)
    for page, sources in SOURCES.items():
        assert sources.keys() <= {"sentences", "no_record", "table"}, page


def test_the_tables_of_speed_are_those_of_the_records():
    found = SPEED_TABLES.search((ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8"))
    files = sorted((ROOT / "benchmarks").glob("speed_*.json"))
    assert found[1].strip() == speed_table([json.loads(path.read_text()) for path in files]).strip()


# ---- the comparison finds what is wrong ----
@pytest.mark.parametrize(("name", "old", "new", "fault"), [
    ("README.md", "| L2P | 68.2 ± 1.6 |", "| L2P | 68.3 ± 1.6 |", "mean 68.3 is 68.167 in the records"),
    ("README.md", "| L2P | 68.2 ± 1.6 |", "| L2P | 68.2 ± 1.3 |", "standard deviation 1.3 is 1.620"),
    ("README.md", "| L2P | 68.2 ± 1.6 |", "| L2P | 68.2 |", "68.2 needs a ±"),
    ("README.md", "| 70.0 |", "| 70.0 ± 0.1 |", "has a ±, and there is one record"),
    ("README.md", "| 10,260 |", "| 10,261 |", "mean 10,261 is 10260.00"),
    ("README.md", "| linear head |", "| another head |", "in number_sources.toml they are"),
    ("README.md", "| method | Acc@1 |", "| method | AUC |", "the column 'AUC' is no field"),
    ("README.md", "| 0.5 ± 0.1 |", "| – |", "forgetting: '–' is [0.5, 0.5, 0.625]"),
    ("README.md", "## Status", "| run | Acc@1 |\n|---|---|\n| new | 71 |\n\n## Status", "'71' in"),
    ("README.md", "## Status", "It learns 3 % faster.\n\n## Status", "'3' in"),
    ("README.md", "## Status", "It has 71.3 then.\n\n## Status", "'71.3' in"),
    ("README.md", "ends at 31.50", "ends at 31.51", "mean 31.51 is 31.5000 in the records"),
    ("README.md", "`results/compare_*.json`", "somewhere", "does not name its record compare_coda_seed42.json"),
    ("README.md", "reported by others; ", "", "name its source (reported by others)"),
    ("docs/results.md", "`cifar100_l2p --lr 0.16`", "`cifar100_l2p --lr 0.15`", "in number_sources.toml they are"),
    ("docs/results.md", "[Janson et al. 2022](https://arxiv.org/abs/2210.04428)", "others", "name its source"),
    ("docs/results.md", "| 95.8 | 93.3 | 91.7 |", "| 95.8 (best) | 93.3 | 91.7 |", "has more than"),
    ("docs/results.md", "| 87.5 | – | – |", "| 87.5 | 80.0 | – |", "80.0 is of no record"),
    ("docs/speed.md", "119 images/s", "120 images/s", "mean 120 is 118.91"),
    ("docs/speed.md", "against 344 MB", "against 345 MB", "mean 345 is 343.73"),
    ("demo/README.md", "by 17 points", "by 18 points", "mean 18 is 16.90"),
    ("demo/README.md", "154 kB |", "155 kB |", "kept: mean 155 is 15"),
    ("docs/faq.md", "a random choice 70.0", "a random choice has 70.0", "0 places read as"),
])
def test_what_is_wrong_is_found(name, old, new, fault):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert old in text
    faults = faults_of_page(read_page(name, text.replace(old, new, 1)))
    assert any(fault in line for line in faults), faults


def test_a_label_that_names_another_command_is_found():
    assert list(faults_of_label("`cifar100_l2p --lr 0.15`", ["cifar100_l2p_deit_tiny_50per_seed42"])) == [
        "cifar100_l2p_deit_tiny_50per_seed42 has --lr 0.16"]
    assert list(faults_of_label("`cifar100_linear`", ["cifar100_l2p_deit_tiny_50per_seed42"])) == [
        "cifar100_l2p_deit_tiny_50per_seed42 is of cifar100_l2p"]


# ---- names of records, and the log ----
@pytest.mark.parametrize("name", PAGES)
def test_records_that_are_named_exist(name):
    for file in set(RECORD_FILE.findall((ROOT / name).read_text(encoding="utf-8"))) - FILES_OF_A_RUN:
        folders = [""] if "/" in file else ["results/"]
        assert any(list(ROOT.glob(folder + file)) for folder in folders), f"{name}: {file}"


def test_an_entry_of_the_log_has_a_question_a_result_with_its_record_and_what_it_rules_out():
    _, *entries = re.split(r"^- ", (ROOT / "docs" / "log.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(entries) > 5
    for entry in entries:
        lines = entry.strip().split("\n")
        assert len(lines) == 3, entry
        question, result, ruled_out = map(str.strip, lines)
        assert re.fullmatch(r"\*\*.+\?\*\*", question), entry
        assert RECORD_FILE.search(result), f"no record: {entry}"
        assert ruled_out.startswith("Rules "), entry
