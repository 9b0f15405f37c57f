"""What the runs of a table came to: methods side by side, and beside what was reported for them.

`python -m reproducing.compared FOLDER …` prints the first of these tables for finished runs, a row for each folder.
"""

import math
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs import load_experiment
from configs.base import OPTIONS
from configs.command import default_options, parse
from continual_datasets.class_orders import is_drawn
from errors import DamagedFileError, InputError
from reproducing.published import AUGREG_IN21K, IN21K, SHUFFLED, SOME_IN21K, SOURCES, WEIGHTS, Published
from reproducing.runs import NATURAL, Run, read_whole

HEADER = ("method", "Acc@1", "per image", "forgetting", "just learned", "trained values", "kept", "checkpoint",
          "seconds")
REPORTED_HEADER = ("method", "reproduced", "reported", "difference", "", "weights, order, protocol", "source")
PUBLISHED_VIT = "vit_base_patch16_224"
WITHOUT_SPREAD = 1.0
"""Points by which a result may differ from one that was reported without a spread, and still be called the same."""
# Options that say where a number comes from, and are told beside it or follow from it.
_TOLD = {"seed", "device", "data_path", "precision", "compile", "model", "pretrained", "init_checkpoint"}


# ---- methods side by side ----
def table(rows: Iterable[tuple[str, Sequence[Path]]]) -> str:
    """Rows of a name and the folders of its finished runs, mean ± standard deviation where these are several.

    `kept`: bytes of replayed images and of statistics that later tasks need; `checkpoint`: of the last task; `seconds`:
    training and tests, on the clock.
    """
    return aligned([HEADER, *(_row(name, [measured(folder) for folder in places]) for name, places in rows)])


def measured(folder: Path) -> dict[str, Any]:
    """The summary of a run, and what lies in its folder. Raises InputError where that is no finished run."""
    try:
        found = read_whole(folder)
    except DamagedFileError as error:
        raise InputError(f"{error} Name the folder of a finished run, or finish this one with --resume.") from None
    summary = found.summary
    statistics_files = sorted(folder.glob("checkpoint/statistics*.pth"))
    kept = summary["replay_bytes"] + (statistics_files[-1].stat().st_size if statistics_files else 0)
    return summary | {"kept": kept, "checkpoint": found.checkpoint_bytes or 0,
                      "seconds": summary["train_seconds"] + summary["eval_seconds"]}


def _row(name: str, runs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    first = runs[0]
    return (name, *(spread([run.get(key) for run in runs], 1)
                    for key in ("acc@1", "acc@1_per_image", "forgetting", "learning_acc")),
            f"{first['trainable_parameters']:,}", _size(first["kept"]), _size(first["checkpoint"]),
            f"{statistics.mean(run['seconds'] for run in runs):.0f}")


def spread(values: Sequence[float | None], digits: int) -> str:
    """`82.7 ± 0.3`: mean and sample standard deviation; without it for one value, and – where one is missing."""
    if None in values:
        return "–"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB" if count else "0"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown that is also readable as it stands; the first row is the header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) if i == 0 else cell.rjust(width)
                               for i, (cell, width) in enumerate(zip(row, widths, strict=True))) + " |" for row in rows]
    rule = "|" + "|".join("-" * (width + 1) + ("-" if i == 0 else ":") for i, width in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


# ---- beside what was reported ----
def reported_table(published: Sequence[Published], finished: Mapping[str, Sequence[Run]],
                   lines: Mapping[str, str]) -> str:
    """`reproduced | reported | difference | weights, order, protocol`, Acc@1 / forgetting.

    Args:
        finished: method -> its finished runs.
        lines: method -> the command line of its table: with other options, nothing is compared.
    """
    rows: list[Sequence[str]] = [REPORTED_HEADER]
    sources: list[str] = []
    for entry in published:
        runs = [measured(run.folder) for run in finished.get(entry.method, ())]
        if entry.source not in sources:
            sources.append(entry.source)
        source = f"[{sources.index(entry.source) + 1}]"
        reported = _pair(_with_spread(entry.acc1, entry.acc1_std), entry.forgetting is not None
                         and _with_spread(entry.forgetting, entry.forgetting_std))
        if not runs:
            rows.append((entry.method, "not run", reported, "", "", "", source))
            continue
        acc1, forgetting = ([run.get(key) for run in runs] for key in ("acc@1", "forgetting"))
        ours = _pair(spread(acc1, 2), None not in forgetting and spread(forgetting, 2))
        why_not = differences(runs[0]["config"], lines[entry.method], entry)
        conditions = "; ".join(told(runs))
        if why_not:
            rows.append((entry.method, ours, reported, "not compared", "", f"{conditions}; {', '.join(why_not)}",
                         source))
            continue
        gaps = [(statistics.mean(acc1) - entry.acc1, entry.acc1_std)]
        if entry.forgetting is not None and None not in forgetting:
            gaps.append((statistics.mean(forgetting) - entry.forgetting, entry.forgetting_std))
        same = all(abs(round(gap, 2)) <= (WITHOUT_SPREAD if std is None else std) for gap, std in gaps)
        if runs[0]["config"]["options"]["init_checkpoint"]:  # a file may hold any weights
            same, conditions = False, f"{conditions}; reported with {entry.weights} weights"
        if not same_order(runs, entry.order):
            same, conditions = False, f"{conditions}; reported with order {entry.order}"
        rows.append((entry.method, ours, reported, " / ".join(f"{gap:+.2f}" for gap, _ in gaps), "✓" if same else "",
                     conditions, source))
    notes = [f"[{number}] {name}: {SOURCES[name]}" for number, name in enumerate(sources, start=1)]
    return "\n".join([aligned(rows), "", "Acc@1 / forgetting after the last task, percent. ✓: within the spread that "
                      f"was reported, or {WITHOUT_SPREAD:g} point where none was; never for weights from a file, or "
                      "another order of classes.",
                      *notes])


def _with_spread(value: float, deviation: float | None) -> str:
    return f"{value:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")


def _pair(first: str, second: str | bool) -> str:
    return f"{first} / {second}" if second else first


def differences(config: Mapping[str, Any], line: str, entry: Published) -> list[str]:
    """Why a run's number must not be compared with a reported one; empty where it may be."""
    command = parse(line.split())
    options, expected = default_options(load_experiment(command.experiment)) | config["options"], command.options
    found = [f"--{name} differs" for name, option in OPTIONS.items()
             if not option.run_only and name not in _TOLD and name != "class_order"
             and options[name] != expected[name]]
    name = config["model"]["name"].partition(".")[0]
    if name != PUBLISHED_VIT:
        found.insert(0, f"reported with {PUBLISHED_VIT}")
    elif not (options["init_checkpoint"] or weights(config) == entry.weights
              or (entry.weights == SOME_IN21K and weights(config) in (IN21K, AUGREG_IN21K))):
        found.insert(0, f"reported with {entry.weights} weights")
    return found + [entry.more] * bool(entry.more)


def weights(config: Mapping[str, Any]) -> str:
    """What the ViT was pretrained on, as far as the options say it."""
    options = config["options"]
    if options["init_checkpoint"]:
        return f"weights from {Path(options['init_checkpoint']).name}"
    if not options["pretrained"]:
        return "random weights"
    tag = config["model"]["name"].partition(".")[2]
    return WEIGHTS.get(tag, tag)


def told(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Weights, class order and protocol of a method's runs."""
    configs = [run["config"] for run in runs]
    return [f"{configs[0]['model']['name'].partition('.')[0]}, {weights(configs[0])}, "
            f"{configs[0].get('precision', 'fp32')}", f"order {' '.join(sorted(_orders(runs)))}", runs[0]["protocol"]]


def same_order(runs: Sequence[Mapping[str, Any]], reported: str) -> bool:
    """Whether the runs' orders of classes are the reported one; for SHUFFLED, whether each of them is drawn."""
    orders = _orders(runs)
    return all(map(is_drawn, orders)) if reported == SHUFFLED else orders == {reported}


def _orders(runs: Sequence[Mapping[str, Any]]) -> set[str]:
    return {run["config"]["options"].get("class_order") or NATURAL for run in runs}


# ---- accuracy against size ----
def points(finished: Mapping[str, Sequence[Run]]) -> dict[str, list[tuple[str, int, float, float]]]:
    """For `plots.plot_against_size`."""
    groups: dict[str, list[tuple[str, int, float, float]]] = {}
    for name, runs in finished.items():
        found = [measured(run.folder) for run in runs]
        accuracies = [summary["acc@1"] for summary in found]
        deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
        groups.setdefault(_group(found[0]["config"]["options"]), []).append(
            (name, found[0]["trainable_parameters"], math.fsum(accuracies) / len(accuracies), deviation))
    return groups


def _group(options: Mapping[str, Any]) -> str:
    if options["joint"]:
        return "all tasks at once"
    return "no prompts" if options["prompt_method"] == "none" else "prompts"


def main(folders: Sequence[str]) -> int:
    if not folders:
        print("reproducing.compared: error: name the folders of finished runs.", file=sys.stderr)
        return 2
    try:
        print("\n" + table((Path(folder).name, [Path(folder)]) for folder in folders))
        return 0
    except InputError as error:
        print(f"reproducing.compared: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
