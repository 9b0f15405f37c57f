"""Methods side by side on the demo's glyphs: `python -m demo.compare` runs them all and prints a table.

Two runs at a time with one thread each, in output/compare/NAME_seedS, their output in a .log beside it. Killed and
repeated, it goes on where it was; remove output/compare to begin anew. `python -m demo.compare FOLDER …` prints the
table of finished runs instead, a row for each folder.
"""

import contextlib
import json
import multiprocessing
import os
import re
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import main as program
from configs.base import OPTIONS, parse
from configs.checks import check
from errors import InputError

FOLDER = Path("output/compare")
SEEDS = (42, 1, 2)
ALL_LAYERS = "--prompt_layers 0 1 2 3"
PREFIXES = "--head_type token --g_prompt_layers 0 1 --prompt_layers 2 3"  # as in the papers' first five blocks
GENTLE = "--lr 0.000128 --head_init zero"  # the shared rate wrecks what was pretrained

# Name -> command line. Images, batches, steps and the class mask are those of the demo everywhere, and so is the
# learning rate where the line does not say why not. CODA and OnePrompt are published with a fifteenth of L2P's rate and
# more epochs; of 0.01, 0.003 and 0.00067 the shared 0.01 was best for both (seed 0; demo/README.md).
METHODS = {
    "l2p": "demo_l2p",
    "l2p deep": f"demo_l2p {ALL_LAYERS}",
    "l2p random": "demo_l2p --prompt_choice random",
    "l2p fixed": "demo_l2p --prompt_choice fixed",
    "l2p pool of one": "demo_l2p --size 1 --top_k 1",
    "one prompt, no pool": "demo_l2p --no-prompt_pool",
    "dualprompt": f"demo_l2p --prompt_method dualprompt {PREFIXES} --shared_prompt_pool --pull_constraint_coeff 1",
    "coda": f"demo_l2p --prompt_method coda --head_type token {ALL_LAYERS} --size 50 --length 8",
    "oneprompt": f"demo_l2p --prompt_method oneprompt {PREFIXES} --length 20",
    "l2p + align": "demo_l2p --align",
    "l2p, then ranpac": "demo_l2p --head_type token --adapt first --head ridge --random_features 2000",
    "linear": "demo_linear",
    "linear + align": "demo_linear --align",
    "nearest class mean": "demo_linear --head ncm --epochs 1",  # no gradient: one pass is all it can use
    "ridge": "demo_linear --head ridge --random_features 0 --epochs 1",  # likewise
    "ranpac": "demo_linear --head ridge --random_features 2000 --epochs 1",  # likewise
    "fine-tuning": "demo_finetune",
    "fine-tuning, gentle": f"demo_finetune {GENTLE}",
    "joint linear": "demo_linear --joint",
    "joint l2p": "demo_l2p --joint",
    "joint fine-tuning": f"demo_finetune {GENTLE} --joint",  # the rate at which fine-tuning learns most
}
# L2P and what is fast; of the others the first seed alone, so that all of it stays within eight minutes on two cores.
THREE_SEEDS = {"l2p", "linear", "linear + align", "nearest class mean", "ridge", "ranpac", "joint linear"}


@dataclass(frozen=True)
class Run:
    """One method with one seed, and the folder that it is written to."""

    method: str
    folder: Path
    words: tuple[str, ...]

    @property
    def log(self) -> Path:
        return self.folder.with_name(self.folder.name + ".log")

    def is_finished(self) -> bool:
        """Raises InputError where the folder holds a run of another command line."""
        summary = self.folder / "summary.json"
        if not summary.exists():
            return False
        saved, options = json.loads(summary.read_text())["config"]["options"], parse(self.words).options
        changed = [name for name in OPTIONS if not OPTIONS[name].run_only  # a resumed run saves what `auto` came to
                   and options[name] not in ("auto", saved.get(name))]
        if changed:
            raise InputError(f"{self.folder} holds a run with another --{changed[0]} than {self.method!r} has now: "
                             "remove the folder, and it is made again.")
        return True


def planned(methods: Mapping[str, str], seeds: Sequence[int], folder: Path, more: Sequence[str] = ()) -> list[Run]:
    """The runs of the methods, every command line checked. Raises InputError for one that cannot be."""
    runs = []
    for name, line in methods.items():
        for seed in seeds if name in THREE_SEEDS else seeds[:1]:
            place = folder / f"{re.sub('[^a-z0-9]+', '_', name)}_seed{seed}"
            words = (*line.split(), *more, "--seed", str(seed), "--device", "cpu", "--resume", "--output_dir",
                     str(place))
            check(parse(words).options)
            runs.append(Run(name, place, words))
    return runs


# ---- running ----
def run_all(runs: Sequence[Run]) -> int:
    """Make those runs that are not finished, two at a time. Returns 0, or an exit code where one did not end well."""
    left = [run for run in runs if not run.is_finished()]
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the workers' torch
    failed = 0
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), start_worker) as pool:
        try:
            futures = {pool.submit(run_one, run): run for run in left}
            for done, future in enumerate(as_completed(futures), start=1):
                run, (code, seconds) = futures[future], future.result()
                print(f"{done}/{len(left)}  {run.folder.name}: {seconds:.0f} s"
                      + (f", FAILED, see {run.log}" if code else ""), flush=True)
                failed = failed or code
        except KeyboardInterrupt:
            for worker in multiprocessing.active_children():
                worker.terminate()
            failed = 130
        except BrokenProcessPool:
            failed = 1
    if failed:
        print("demo.compare: not every run is finished; the same command goes on where it was.", file=sys.stderr)
    return failed


def start_worker() -> None:
    """Load what every run needs, and stop, with everything saved, when the parent is gone however that happened."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer; a run has a handler of its own

    def stop_with_parent() -> None:
        multiprocessing.parent_process().join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_with_parent, daemon=True).start()
    import build  # noqa: F401  torch and timm take seconds, which are no run's


def run_one(run: Run) -> tuple[int, float]:
    """Run main in this process. Returns its exit code and the seconds of processor time it took."""
    started = time.process_time()
    sys.argv = ["main.py", *run.words]  # what a run records as its command
    run.log.parent.mkdir(parents=True, exist_ok=True)
    with open(run.log, "a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        code = program.main(run.words)
        seconds = time.process_time() - started
        print(f"processor seconds: {seconds:.2f}")
    if code >= 128:
        os._exit(code)  # stopped by a signal: take no other run
    return code, seconds


# ---- the table ----
HEADER = ("method", "Acc@1", "per image", "forgetting", "just learned", "trained values", "kept", "checkpoint",
          "seconds")


def table(folders: Iterable[tuple[str, Sequence[Path]]]) -> str:
    """Rows of a name and the folders of its finished runs, mean ± standard deviation where these are several.

    `kept`: bytes of replayed images and of statistics that later tasks need; `checkpoint`: of the last task; `seconds`:
    of processor time where a log beside the folder tells it, else on the clock.
    """
    rows = [HEADER, *(row(name, [measured(folder) for folder in places]) for name, places in folders)]
    widths = [max(len(r[i]) for r in rows) for i in range(len(HEADER))]
    lines = ["| " + " | ".join(cell.ljust(w) if i == 0 else cell.rjust(w)
                               for i, (cell, w) in enumerate(zip(r, widths, strict=True))) + " |" for r in rows]
    rule = "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def measured(folder: Path) -> dict[str, Any]:
    """The summary of a run, and what lies in its folder."""
    summary = json.loads((folder / "summary.json").read_text())
    checkpoints = folder / "checkpoint"
    statistics_files = sorted(checkpoints.glob("statistics*.pth"))
    kept = summary["replay_bytes"] + (statistics_files[-1].stat().st_size if statistics_files else 0)
    log = folder.with_name(folder.name + ".log")
    seconds = summary["train_seconds"] + summary["eval_seconds"]
    if log.exists():
        seconds = sum(map(float, re.findall(r"^processor seconds: (.+)$", log.read_text(), re.MULTILINE)))
    return summary | {"kept": kept, "checkpoint": sorted(checkpoints.glob("task*.pth"))[-1].stat().st_size,
                      "seconds": seconds}


def row(name: str, runs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    first = runs[0]
    return (name, *(spread([run.get(key) for run in runs])
                    for key in ("acc@1", "acc@1_per_image", "forgetting", "learning_acc")),
            f"{first['trainable_parameters']:,}", size(first["kept"]), size(first["checkpoint"]),
            f"{statistics.mean(run['seconds'] for run in runs):.0f}")


def spread(values: Sequence[float | None]) -> str:
    if None in values:
        return "–"
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB" if count else "0"


def main(folders: Sequence[str]) -> int:
    if folders:
        print("\n" + table((Path(folder).name, [Path(folder)]) for folder in folders))
        return 0
    try:
        return compare(METHODS, SEEDS, FOLDER)
    except InputError as error:
        print(f"demo.compare: error: {error}", file=sys.stderr)
        return 2


def compare(methods: Mapping[str, str], seeds: Sequence[int], folder: Path, more: Sequence[str] = ()) -> int:
    """Run the methods, print their table and draw it into `folder`/compare.png. `more`: words for every run."""
    import plots

    runs = planned(methods, seeds, folder, more)
    if code := run_all(runs):
        return code
    places = {name: [run.folder for run in runs if run.method == name] for name in methods}
    print("\n" + table(places.items()))
    groups: dict[str, list[tuple[str, int, float, float]]] = {}
    for name, folders in places.items():
        found = [measured(place) for place in folders]
        accuracies = [summary["acc@1"] for summary in found]
        deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
        groups.setdefault(group_of(found[0]["config"]["options"]), []).append(
            (name, found[0]["trainable_parameters"], statistics.mean(accuracies), deviation))
    plots.plot_against_size(groups, folder / "compare.png")
    return 0


def group_of(options: Mapping[str, Any]) -> str:
    if options["joint"]:
        return "all tasks at once"
    return "no prompts" if options["prompt_method"] == "none" else "prompts"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
