"""The order of the tables: those of the same images and weights stand together, and tables of one line are gathered.

A reader looks for what can be compared. So tables of several lines come first, and of those, the ones with the most
runs. Tables of one line that have the same reason not to be compared stand under one heading. They are not ranked.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from configs.base import OPTIONS
from reporting.groups import ALONE, Conditions, Group, Table, as_typed, data_of

# The options that say which images there are, and in which task each is.
OPTIONS_OF_DATA = ("dataset", "subsample", "subsample_test", "num_tasks", "classes_per_task", "shuffle", "class_order",
                   "schedule", "gaussian_episodes", "gaussian_steps", "gaussian_width", "gaussian_eval_every")
NOT_COMPARED = "Not compared with table"  # so every reason begins


@dataclass
class Block:
    """A table; or several of one line each, which share the reason why they are not compared."""

    tables: list[Table]
    with_data: bool = False
    """Whether the lines are of data and weights of their own, which they then have to name."""

    @property
    def groups(self) -> list[Group]:
        return [group for table in self.tables for group in table.groups]


@dataclass
class Section:
    """Tables of the same images, in the same split and order, and of the same weights."""

    title: str
    reason: str
    """Why nothing in it is compared with an earlier section; '' of the first one."""
    blocks: list[Block]
    common: list[str] = field(default_factory=list)
    """Changes of the experiments' options that all of its methods have."""


def arrange(tables: Iterable[Table]) -> list[Section]:
    """All tables in the order in which they are shown, numbered, with the reasons why they are not compared."""
    by_data: dict[tuple[str, str], list[Table]] = defaultdict(list)
    runs: dict[tuple[str, str], int] = defaultdict(int)
    for table in tables:
        by_data[table.conditions.data, table.conditions.weights].append(table)
        runs[_origin(table)] += len(_runs(table))
    parts = [sorted(part, key=_within_a_section) for part in by_data.values()]
    parts.sort(key=lambda part: (-runs[_origin(part[0])], _origin(part[0]), -sum(len(_runs(table)) for table in part),
                                 part[0].conditions.data))
    # Stable: parts in which nothing can be ranked come last, but not before what has the most runs.
    parts = parts[:1] + sorted(parts[1:], key=_has_one_line_each)
    for number, table in enumerate((table for part in parts for table in part), start=1):
        table.number = number
    sections = []
    alone: dict[str, list[list[Table]]] = defaultdict(list)
    for place, part in enumerate(parts):
        reason = _why_another_section(part[0], [earlier[0] for earlier in parts[:place]])
        if place and _has_one_line_each(part):
            first = parts[0][0]
            like_first = replace(part[0].conditions, setting=first.conditions.setting, choice=first.conditions.choice)
            alone[_reason(like_first, first)].append(part)
        else:
            sections.append(_section(part, reason))
        _give_reasons(part, reason)
    for reason, others in alone.items():
        lines = [table for part in others for table in part]
        if len(others) == 1:
            sections.append(_section(others[0], lines[0].reason))
        else:
            sections.append(Section("Data or weights that have one line each", "", [Block(lines, with_data=True)]))
            hints = {hint for part in others for hint in _hint(part[0], [other[0] for other in parts])}
            for table in lines:
                table.reason = " ".join([reason, *hints])
    return sections


def _section(part: Sequence[Table], reason: str) -> Section:
    """The first table, and those of several lines, stand by themselves; the others with those of the same reason."""
    single = [table for place, table in enumerate(part) if not place or len(table.groups) > 1]
    gathered: dict[str, list[Table]] = defaultdict(list)
    for table in part:
        if table not in single:
            gathered[_reason(table.conditions, part[0])].append(table)
    common = _share([group for table in part for group in table.groups])
    for table in part:
        table.common = _share(table.groups)
    return Section(part[0].conditions.what, reason, [Block([table]) for table in single]
                   + [Block(tables) for tables in gathered.values()], common)


def _share(groups: Sequence[Group]) -> list[str]:
    """What all these groups have in common and is not said above them; from now on it is. One method keeps its own."""
    first, *others = groups
    if all(group.whole_label == first.whole_label for group in others):
        return []
    common = [word for word in first.changes if word not in first.said_above
              and all(word in group.changes for group in others)]
    for group in groups:
        group.said_above = [*group.said_above, *common]
    return common


def _give_reasons(part: Sequence[Table], of_section: str) -> None:
    part[0].reason = of_section
    for table in part[1:]:
        table.reason = _reason(table.conditions, part[0])


def _origin(table: Table) -> tuple[str, str]:
    """The name of the data set, and the weights: sections that share them stand together."""
    return _option(table, "dataset"), table.conditions.weights


def _runs(table: Table) -> set[str]:
    return {run.name for group in table.groups for run in group.runs}


def _within_a_section(table: Table) -> tuple:
    return (len(table.groups) == 1, -sum(len(group.members) for group in table.groups),
            table.conditions.choice == ALONE, table.conditions.how)


def _has_one_line_each(part: Sequence[Table]) -> bool:
    return all(len(table.groups) == 1 for table in part)


def _reason(here: Conditions, table: Table) -> str:
    return f"{NOT_COMPARED} {table.number}: {'; '.join(_differences(here, table.conditions))}."


def _differences(here: Conditions, there: Conditions) -> list[str]:
    found = [(here.weights != there.weights, "other weights"),
             (here.data != there.data, "other data, split or order of classes"),
             (here.setting != there.setting, "another setting"),
             (here.choice != there.choice, "prompts chosen in another way")]
    return [words for differs, words in found if differs]


def _why_another_section(table: Table, earlier: Sequence[Table]) -> str:
    """Says in which options the data differ from those of the section that is most like it; '' of the first."""
    if not earlier:
        return ""
    nearest = min(earlier, key=lambda other: (table.conditions.weights != other.conditions.weights,
                                              _option(table, "dataset") != _option(other, "dataset"), other.number))
    reasons = []
    if table.conditions.weights != nearest.conditions.weights:
        reasons.append("other weights")
    if table.conditions.data != nearest.conditions.data:
        reasons.append(f"other data, split or order of classes ({_how_data_differ(table, nearest)})")
    return " ".join([f"{NOT_COMPARED} {nearest.number}: {'; '.join(reasons)}.", *_hint(table, [nearest])])


def _hint(table: Table, others: Sequence[Table]) -> tuple[str, ...]:
    """How to have it averaged with one of the others, where perhaps only the order of the classes differs."""
    loose = data_of(table.groups[0].runs[0], over_orders=True)
    if any(other.conditions.data != table.conditions.data and other.conditions.weights == table.conditions.weights
           and data_of(other.groups[0].runs[0], over_orders=True) == loose for other in others):
        return ("If only the order of the classes differs, --over_orders averages over it.",)
    return ()


def _how_data_differ(table: Table, other: Table) -> str:
    found = []
    for name in OPTIONS_OF_DATA:
        here, there = (each.groups[0].runs[0].config["options"].get(name, OPTIONS[name].default)
                       for each in (table, other))
        if here != there:
            found.append(f"{as_typed(name, here)}, not {as_typed(name, there).removeprefix(f'--{name} ')}")
            if name == "dataset":  # the first; the others then say nothing
                break
    if found:
        return "; ".join(found)
    recorded = [each.groups[0].runs[0].summary["config"].get("data_sha256") for each in (table, other)]
    if None in recorded:
        return "which images they had is not recorded of all of them"
    return "with the same options, but other images"


def _option(table: Table, name: str) -> str:
    return str(table.groups[0].runs[0].config["options"].get(name))
