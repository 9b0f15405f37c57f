"""Ask a run about images that it has not seen.

    python predict.py RUN_DIR IMAGE_OR_FOLDER ... [--csv FILE] [--json FILE] [--task N] [--device cpu]
    python predict.py --help
"""

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.command import build_parser
from configs.predicting import ABOUT, PREDICT_GROUPS, PROGRAM, WORDS, Question, read_question
from errors import DamagedFileError, InputError

if TYPE_CHECKING:
    from loading import LoadedRun, Prediction

Write = Callable[[str, "Prediction"], None]
TOO_LITTLE_MEMORY = "use a smaller --batch_size, or fewer --num_workers; what was answered before is right"


def main(argv: Sequence[str] | None = None) -> int:
    """Answer one command line.

    Returns:
        The exit code: 0; 1 where an image could not be read (the others were answered), or the answers not be written;
        2 for bad input.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        if "-h" in argv or "--help" in argv:
            build_parser(None, PREDICT_GROUPS, PROGRAM, WORDS, ABOUT).print_help()
            return 0
        question = read_question(argv)
        check_outputs(question)
        paths = image_paths(question.images)
        from utils import one_sentence_for_too_little_memory  # late, as torch is: a mistyped option is answered at once

        with one_sentence_for_too_little_memory(TOO_LITTLE_MEMORY):
            return answer(question, paths)
    except InputError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 1 if isinstance(error, DamagedFileError) else 2
    except BrokenPipeError:  # as of `predict.py … | head`: who read has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except RuntimeError as error:
        from utils import tells_of_a_lost_worker

        if not tells_of_a_lost_worker(error):
            raise
        print(f"{PROGRAM}: error: a process that decodes images has ended, as for lack of memory; give fewer "
              "--num_workers, or --num_workers 0, which needs none.", file=sys.stderr)
        return 1


def answer(question: Question, paths: list[str]) -> int:
    """Load the run, then answer image by image. Returns the exit code."""
    from loading import load_run

    options = question.options
    run = load_run(question.run_dir, options["task"], options["device"], options["init_checkpoint"])
    if run.warning:
        print(f"{PROGRAM}: warning: {run.warning}", file=sys.stderr)
    for line in opening_lines(run, len(paths)):
        print(line, flush=True)
    unreadable = 0
    with ExitStack() as files:
        writers = [print_answer]
        if options["csv"]:
            writers.append(csv_writer(files.enter_context(open_text(options["csv"], newline="")), run))
        if options["json"]:
            writers.append(json_writer(files.enter_context(open_text(options["json"])), files))
        for path, found in answers(run, paths, options["batch_size"], options["num_workers"]):
            if isinstance(found, str):
                unreadable += 1
                print(f"{PROGRAM}: {shown(found)}: skipped.", file=sys.stderr)
                continue
            for write in writers:
                write(path, found)
    if unreadable:
        print(f"{PROGRAM}: {unreadable} of {len(paths)} images could not be read.", file=sys.stderr)
    return 1 if unreadable else 0


def answers(run: "LoadedRun", paths: list[str], batch_size: int,
            num_workers: int) -> Iterator[tuple[str, "Prediction | str"]]:
    """For each path, in order, what the run says of it; or why it cannot be read. Few images are in memory at once."""
    import numpy as np
    import torch

    from continual_datasets import images_in_files
    from continual_datasets.large_images import Decoder
    from continual_datasets.transforms import TrainTransform

    cut = run.transform.of_pixels
    images = images_in_files("", np.array(paths), np.zeros(len(paths), np.int64), turned=run.transform.turned)
    positions = torch.arange(len(paths)).split(batch_size)
    decoder = Decoder(TrainTransform(cut.input_size), cut, num_workers)
    for number, (pixels_BCHW, unreadable) in enumerate(decoder.readable(images, positions)):
        found = []
        if len(pixels_BCHW):
            found = run.predict(cut.normalised(pixels_BCHW.to(run.device).float()), number)
        predictions = iter(found)
        for place, position in enumerate(positions[number].tolist()):
            yield paths[position], unreadable[place] if place in unreadable else next(predictions)


# ---- what goes in ----
def image_paths(words: list[str]) -> list[str]:
    """The files that are named, and those in the folders that are, in the order of their names.

    Raises:
        InputError: there is no such file or folder, or no image in a folder.
    """
    from continual_datasets.class_files import files_below

    paths = []
    for word in words:
        if not os.path.lexists(word):
            raise InputError(f"{word}: there is no such file or folder.")
        if not os.path.isdir(word):
            paths.append(word)
            continue
        try:
            found = files_below(Path(word))
        except OSError as error:
            raise InputError(f"{word}: a folder in it cannot be read ({error.strerror}).") from error
        # What is named as an image and is none, as a link to nowhere, is told of when its turn comes.
        inside = sorted(found.images + found.irregular)
        if not inside:
            raise InputError(f"{word}: no images in this folder, by the endings of their names; name a file to have it "
                             "read whatever its ending.")
        paths += inside
    return paths


def check_outputs(question: Question) -> None:
    """Refuse what cannot be written, before anything is computed."""
    names = [name for name in ("csv", "json") if question.options[name]]
    places = [Path(question.options[name]).absolute() for name in names]
    for name, place in zip(names, places, strict=True):
        if place.is_dir() or not place.parent.is_dir() or not os.access(place if place.exists() else place.parent,
                                                                        os.W_OK):
            raise InputError(f"--{name} {question.options[name]}: no file can be written there; name another.")
    if len(set(places)) < len(places):
        raise InputError("--csv and --json name the same file: give each one of its own.")


# ---- what comes out ----
def opening_lines(run: "LoadedRun", count: int) -> list[str]:
    seen = run.seen_K.tolist()
    absent = [name for name, is_seen in zip(run.class_names, seen, strict=True) if not is_seen]
    lines = [f"{count} image(s); {run.options['model']} after {run.unit} {run.task} of {run.count}, "
             f"{sum(seen)} of {len(seen)} classes seen"]
    if absent:
        names = ", ".join(map(shown, absent[:5])) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
        lines.append(f"not seen yet, so never the answer: {names}")
    if run.options["head"] != "linear":
        what = "cosines" if run.options["head"] == "ncm" else "a regression's outputs"
        lines.append(f"probabilities are the softmax of {what} (--head {run.options['head']}), which lie close "
                     "together: their order counts, not their size")
    return lines


def print_answer(path: str, found: "Prediction") -> None:
    classes = "  ".join(f"{shown(name)} {100 * probability:.1f} %"
                        for name, probability in zip(found.classes, found.probabilities, strict=True))
    prompts = "" if found.prompts is None else f"  (prompts {' '.join(map(str, found.prompts))})"
    print(f"{shown(path)}: {classes}{prompts}", flush=True)


def shown(name: str) -> str:
    from records import printable

    return printable(name)


def open_text(path: str, newline: str | None = None) -> Any:
    # Names of files need not be UTF-8; what is not comes out as the bytes it is.
    return open(path, "w", encoding="utf-8", errors="surrogateescape", newline=newline)


def csv_writer(file: Any, run: "LoadedRun") -> Write:
    """Columns image, class_1, probability_1, class_2 … and prompts, their numbers with blanks between."""
    from loading import SHOWN

    columns = [f"{what}_{n + 1}" for n in range(min(SHOWN, int(run.seen_K.sum()))) for what in ("class", "probability")]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["image", *columns, "prompts"])

    def write(path: str, found: "Prediction") -> None:
        pairs = zip(found.classes, found.probabilities, strict=True)
        writer.writerow([path, *(cell for pair in pairs for cell in pair), " ".join(map(str, found.prompts or ()))])

    return write


def json_writer(file: Any, files: ExitStack) -> Write:
    """A list of objects, written one by one."""
    before = "[\n"

    def write(path: str, found: "Prediction") -> None:
        nonlocal before
        pairs = zip(found.classes, found.probabilities, strict=True)
        content = {"image": path, "classes": [{"class": name, "probability": value} for name, value in pairs],
                   "prompts": None if found.prompts is None else list(found.prompts)}
        file.write(before + json.dumps(content))
        before = ",\n"

    files.callback(lambda: file.write("[]\n" if before == "[\n" else "\n]\n"))
    return write


if __name__ == "__main__":
    sys.exit(main())
