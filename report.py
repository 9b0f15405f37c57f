"""Tables and pictures of finished runs: what may be averaged, what may be compared, and how each was made.

    python report.py DIR... [--html FILE] [--latex FILE] [--csv FILE] [--markdown FILE] [--pdf FILE]

DIR is the folder of a run, a folder in which runs lie at any depth, or a record as `python -m results.record` makes it.
"""

import csv
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.command import build_parser, split_off
from configs.report import PROGRAM, REPORT_GROUPS
from errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, also where runs were left out, which are named on stderr; 2 for bad input, or when no
    run is left."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        if "-h" in argv or "--help" in argv:
            parser = build_parser(groups=REPORT_GROUPS, program=PROGRAM)
            parser.usage, parser.description = f"{PROGRAM} DIR... [--option value ...]", __doc__.splitlines()[0]
            parser.print_help()
            return 0
        options, places = split_off(argv, REPORT_GROUPS, PROGRAM)
        check(options, places)
        return report(options, places)
    except InputError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # of `report.py ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 1


def check(options: dict[str, Any], places: list[str]) -> None:
    """Refuse what cannot be meant, before anything is read or written."""
    unknown = [word for word in places if word.startswith("-")]
    if unknown:
        names = ", ".join(f"--{option.name}" for group in REPORT_GROUPS.values() for option in group)
        raise InputError(f"unknown option {unknown[0]}: there are {names}.")
    if not places:
        raise InputError("name the folders of the runs to report on, such as ./output.")
    for name in ("html", "pdf", "csv_pictures"):
        if options[name] == "-":
            raise InputError(f"--{name} -: this cannot be written to the standard output; name a place.")
    if sum(options[name] == "-" for name in ("latex", "csv", "markdown")) > 1:
        raise InputError("only one of --latex, --csv and --markdown can be written to the standard output.")
    for name in ("html", "latex", "csv", "markdown", "pdf", "csv_pictures"):
        place = options[name]
        if place in (None, "-"):
            continue
        is_folder = name == "csv_pictures"
        nearest = next(path for path in (Path(place).absolute(), *Path(place).absolute().parents) if path.exists())
        if nearest == Path(place).absolute():
            fits = nearest.is_dir() == is_folder
        else:  # a folder is made, a file's folder must be there
            fits = nearest.is_dir() and (is_folder or nearest == Path(place).absolute().parent)
        if not (fits and os.access(nearest, os.W_OK)):
            raise InputError(f"--{name} {place}: it cannot be written there; name a "
                             f"{'folder' if is_folder else 'file in a folder that is there'}.")


def report(options: dict[str, Any], places: list[str]) -> int:
    """Read, compare, write."""
    from reporting.groups import make_tables  # late: a mistyped option is answered at once
    from reporting.runs import find_and_read
    from reporting.sections import arrange
    from reporting.tables import format_csv, format_latex, format_markdown, format_text

    runs, left_out = find_and_read(places)
    for line in left_out:
        print(f"{PROGRAM}: left out: {line}", file=sys.stderr)
    if not runs:
        raise InputError(f"no finished run is left in {' '.join(places)}.")
    sections = arrange(make_tables(runs, options["over_orders"]))
    formats = {"latex": format_latex, "csv": format_csv, "markdown": format_markdown}
    if "-" not in [options[name] for name in formats]:
        print(format_text(sections))
    for name, write in formats.items():
        if options[name] == "-":
            print(write(sections), end="")
        elif options[name]:
            Path(options[name]).write_text(write(sections), encoding="utf-8", errors="replace")
    if options["html"] or options["pdf"] or options["csv_pictures"]:
        draw(options, sections, left_out)
    return 0


def draw(options: dict[str, Any], sections: list, left_out: list[str]) -> None:
    """Write what has pictures."""
    from reporting.page import format_page, gather, write_pdf

    contents = gather(sections, left_out)
    for line in contents.left_out[len(left_out):]:
        print(f"{PROGRAM}: left out: {line}", file=sys.stderr)
    if options["html"]:
        Path(options["html"]).write_text(format_page(contents), encoding="utf-8", errors="replace")
        print(f"written: {options['html']}", file=sys.stderr)
    if options["pdf"]:
        write_pdf(contents.pictures, Path(options["pdf"]))
    if options["csv_pictures"]:
        folder = Path(options["csv_pictures"])
        folder.mkdir(parents=True, exist_ok=True)
        for picture in contents.pictures:
            with open(folder / f"{picture.name}.csv", "w", newline="", encoding="utf-8", errors="replace") as file:
                csv.writer(file, lineterminator="\n").writerows(picture.numbers)


if __name__ == "__main__":
    sys.exit(main())
