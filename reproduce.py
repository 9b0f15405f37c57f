"""A paper's table in one command: every run that it takes, and what was reported beside what came out.

    python reproduce.py TABLE --data-path DIR [--seeds 42 43 44] [--methods l2p coda] [--dry_run] [--option value ...]

TABLE is one of cifar100, imagenet_r, five_datasets, core50, gaussian, few, demo. Further options are main.py's and hold
for every run. Killed and repeated, the same command goes on where it was.
"""

import difflib
import io
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.command import build_parser, parse, split_off
from configs.reproducing import DEFAULT_PLACE, PROGRAM, REPRODUCING_GROUPS
from errors import InputError
from paths import outside_path
from reproducing.published import PUBLISHED
from reproducing.runs import Run, planned
from reproducing.tables import TABLES

RESULTS, PICTURE, REPORT = "RESULTS.md", "compare.png", "report.html"
LEGEND = """Mean ± standard deviation over seeds. Per image: each test image chooses its prompts without the rest of
its batch. Kept: replayed images and statistics that later tasks need. Checkpoint: of the last task. Seconds: training
and tests, on the clock."""
NOT_FOR_ALL = {
    "seed": "--seeds", "class_order": "--class_orders", "eval": "main.py", "overwrite": "another --output_dir",
    "resume": "no option, as it always goes on", "speed_test_only": "--dry_run"}
"""Options of main.py that cannot hold for every run of a table -> what to use instead."""


@dataclass(frozen=True)
class Plan:
    """A command line, read and checked."""

    table: str
    options: dict[str, Any]
    folder: Path
    runs: list[Run]

    @property
    def device(self) -> str:
        """As main.py's --device, for every run."""
        return parse(self.runs[0].words).options["device"]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0; 1 when a run failed; 2 for bad input; 128 + a signal that stopped it."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        if "-h" in argv or "--help" in argv:
            print_help()
            return 0
        return carry_out(read(argv))
    except InputError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # of `reproduce.py ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a folder that nobody may write to
        print(f"{PROGRAM}: error: {error}; runs keep what they have saved, and the same command goes on there.",
              file=sys.stderr)
        return 1


def print_help() -> None:
    build_parser(groups=REPRODUCING_GROUPS, program=PROGRAM, words="TABLE",
                 about=__doc__.splitlines()[0]).print_help()
    print("\ntables:")
    for name, table in TABLES.items():
        print(f"  {name:14}{table.summary}\n{'':16}{', '.join(table.methods)}")
    print("\nAll other options are main.py's and hold for every run: python main.py --help.")


def read(argv: Sequence[str]) -> Plan:
    """Read a command line.

    Raises:
        InputError: what main.py would refuse, or a table, a method or a combination that there is not.
    """
    options, words = split_off(argv, REPRODUCING_GROUPS, PROGRAM)
    if not words or words[0].startswith("-"):
        raise InputError(f"name the table first: {', '.join(TABLES)}.")
    name, *more = words
    if name not in TABLES:
        near = difflib.get_close_matches(name, TABLES, n=1)
        raise InputError(f"unknown table {name!r}: {f'did you mean {near[0]}? There' if near else 'there'} are "
                         f"{', '.join(TABLES)}.")
    if more and not more[0].startswith("-"):
        raise InputError(f"unexpected word {more[0]!r}: options stand behind the table; --methods chooses its runs.")
    given = parse(more, launcher=list(options)).given
    for option, instead in NOT_FOR_ALL.items():
        if option in given:
            raise InputError(f"--{option} is not for all runs of a table: use {instead}.")
    place = options["output_dir"]
    folder = outside_path("--output_dir", place.replace("TABLE", name) if place == DEFAULT_PLACE else place)
    runs = planned(TABLES[name], folder, methods=options["methods"], seeds=options["seeds"],
                   class_orders=options["class_orders"], more=more)
    return Plan(name, options, folder, runs)


def carry_out(plan: Plan) -> int:
    """Say what there is to do, do it, and compare what came out."""
    from reproducing.workers import places, run_all, submit

    check_place(plan.folder)
    states = {run: run.state() for run in plan.runs}
    left = [run for run in plan.runs if states[run] != "finished"]
    if plan.options["dry_run"]:
        for run in plan.runs:
            print(f"{states[run]}: {run.command}")
        estimate(left, len(places(plan.device, TABLES[plan.table].small, plan.options["jobs"])) if left else 1)
        return 0
    if left and plan.options["slurm"]:
        print(submit(left, plan.folder))
        print("when it is done, the same command without --slurm prints the table.")
        return 0
    code = 0
    if left:
        at = places(plan.device, TABLES[plan.table].small, plan.options["jobs"])
        print(f"{len(left)} of {len(plan.runs)} run(s) to do, {len(at)} at a time, in {plan.folder}", flush=True)
        code = run_all(left, at, lambda line: print(line, flush=True))
    if code >= 128:
        print(f"{PROGRAM}: stopped; the same command goes on where it was.", file=sys.stderr)
        return code
    compare(plan)
    if code:
        print(f"{PROGRAM}: error: not every run is finished; the same command tries again.", file=sys.stderr)
    return code


def check_place(folder: Path) -> None:
    """Refuse a folder in which the tables could not be written. Makes nothing."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output_dir {folder} is no folder: name another.")
    for name in (RESULTS, PICTURE, REPORT):
        if (folder / name).is_dir():
            raise InputError(f"--output_dir {folder}: there is a folder {name} in the way; move it, or name another.")


def estimate(runs: Sequence[Run], at_a_time: int) -> None:
    """Measure each method's speed on this machine, and print what its runs would take."""
    import main as program
    from progress import duration

    methods: dict[str, list[Run]] = {}
    for run in runs:
        methods.setdefault(run.method, []).append(run)
    total, refused = 0.0, ""
    for method, members in methods.items():
        words = [word for word in members[0].words if word != "--resume"]
        try:
            with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
                words[words.index("--output_dir") + 1] = folder
                found = program.run_experiment([*words, "--speed_test_only"])
        except (InputError, program.RunStoppedError) as error:
            print(f"{method}: no estimate: {error}")
            if str(error) == refused:  # of the method before, too: of the data or the weights
                print("two methods were refused for the same reason: the others are not tried")
                break
            refused = str(error)
            continue
        seconds = found["whole_run_seconds"]
        total += seconds * len(members)
        memory = max((part["peak_memory_bytes"] or 0 for part in found["parts"]), default=0)
        print(f"{method}: about {duration(seconds)} for a whole run, {len(members)} to do"
              + (f", {memory / 1e9:.1f} GB of memory" if memory else ""), flush=True)
    if total:
        print(f"all: about {duration(total / at_a_time)}, {at_a_time} at a time; starts, solving and saving come on "
              "top")


def compare(plan: Plan) -> None:
    """Print the tables of what is finished, and write them, a picture and a report beside the runs."""
    import plots
    from reproducing.compared import points, reported_table, table

    finished: dict[str, list[Run]] = {}
    for run in plan.runs:
        if run.state() == "finished":
            finished.setdefault(run.method, []).append(run)
    if not finished:
        return
    parts = [table((name, [run.folder for run in runs]) for name, runs in finished.items())]
    reported = [entry for entry in PUBLISHED[plan.table] if entry.method in {run.method for run in plan.runs}]
    if reported:
        parts.append(reported_table(reported, finished, TABLES[plan.table].methods))
    done = sum(map(len, finished.values()))
    if done < len(plan.runs):
        parts.append(f"Only {done} of {len(plan.runs)} runs are finished.")
    print("\n" + "\n\n".join(parts) + "\n")
    commands = "".join(f"    {run.command}\n" for run in plan.runs)
    (plan.folder / RESULTS).write_text(f"# {TABLES[plan.table].summary}\n\n" + "\n\n".join(parts) + "\n\n" + LEGEND
                                       + f"\n\nCommands:\n\n{commands}", encoding="utf-8")
    plots.plot_against_size(points(finished), plan.folder / PICTURE)
    write_report(plan.folder, finished, bool(plan.options["class_orders"]))


def write_report(folder: Path, finished: Mapping[str, Sequence[Run]], over_orders: bool) -> None:
    """report.html of all finished runs."""
    from reporting.groups import make_tables
    from reporting.page import format_page, gather
    from reporting.runs import find_and_read
    from reporting.sections import arrange

    runs, left_out = find_and_read([str(run.folder) for members in finished.values() for run in members])
    page = format_page(gather(arrange(make_tables(runs, over_orders)), left_out))
    (folder / REPORT).write_text(page, encoding="utf-8", errors="replace")
    print(f"written: {folder}/{RESULTS}, {PICTURE}, {REPORT}")


if __name__ == "__main__":
    sys.exit(main())
