"""This program against the straightforward way (benchmarks/naive.py), measured side by side on this machine.

    python -m benchmarks.speed [--model vit_base_patch16_224 ...] [--batch_size 16] [--device cpu|cuda] [--whole_run]
    python -m benchmarks.speed --table         # writes the tables in benchmarks/README.md anew from the records

Each way is a process of its own, with the same images and model sizes and random weights, and they take turns batch by
batch, so that whatever else the machine does hits all alike. Medians over the turns, of rates and of each turn's ratio.
One record per hardware, model and batch size: benchmarks/speed_*.json. `--whole_run` also times ten tasks of 5,000
random images with all evaluations, for all of our ways or those named. Nothing is downloaded.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
CLASSES, PER_CLASS = 10, 64
KINDS = {"training": "training step with its data", "seen": "evaluation of a task seen before"}
NAIVE = "naive, fp32"
WAYS = {  # name: options of main.py; None for the naive way
    NAIVE: None,
    "fp32": ["--precision", "fp32"],
    "fp32, compiled": ["--precision", "fp32", "--compile"],
    "bf16": ["--precision", "bf16"],
    "bf16, compiled": ["--precision", "bf16", "--compile"],
}


# ---- a process that does as it is told ----
def serve(way: str, options: SimpleNamespace) -> None:
    """Read a kind of work per line, do it once, answer with its images, seconds and peak memory as JSON."""
    from speed_test import PeakMemory

    device = torch.device(options.device)
    work = (naive_work if WAYS[way] is None else our_work)(way, options, device)
    print(json.dumps({"checkpoint_bytes": work.pop("checkpoint_bytes")}), flush=True)
    memory = PeakMemory(device)
    for line in sys.stdin:
        started = time.perf_counter()
        images = work[line.strip()]()
        if device.type == "cuda":
            torch.cuda.synchronize()
        print(json.dumps({"images": images, "seconds": time.perf_counter() - started, "memory": memory.bytes()}),
              flush=True)


def naive_work(way: str, options: SimpleNamespace, device: torch.device) -> dict[str, Any]:
    from benchmarks.naive import NaiveL2P, NaiveTrainer

    trainer = NaiveTrainer(NaiveL2P(options.model, 10 * CLASSES, options.input_size),
                           random_images(CLASSES * PER_CLASS, CLASSES), list(range(CLASSES)),
                           batch_size=options.batch_size, input_size=options.input_size, device=device,
                           num_workers=options.num_workers)
    steps = options.steps_per_turn
    return {"training": lambda: sum(trainer.train_step() for _ in range(steps)),
            "seen": lambda: sum(trainer.test_step() for _ in range(steps)),
            "checkpoint_bytes": trainer.checkpoint_bytes()}


def our_work(way: str, options: SimpleNamespace, device: torch.device) -> dict[str, Any]:
    """The same steps by the program's own parts, built as main.py builds them for this command line."""
    from build import build_batches, build_recipe, choose_device, choose_precision
    from configs.command import parse
    from continual_datasets import images_in_memory
    from distributed import Processes
    from models import QueryCache, build_model
    from speed_test import WARM_UP, again_and_again
    from training import train_step
    from utils import checkpoint_bytes

    words = ["cifar100_l2p", "--model", options.model, "--no-pretrained", "--prompt_pos_embed", "none",
             "--batch_size", str(options.batch_size), "--device", str(device), "--input_size", str(options.input_size),
             *WAYS[way]]
    o = parse(words).options
    choose_device(o["device"], Processes())
    model = build_model(o, 10 * CLASSES, 10).to(device)
    if choose_precision(o["precision"], device) == "bf16":
        model.use_bfloat16()
    if o["compile"]:
        model.compile(o["batch_size"])
    batches, recipe, cache = build_batches(o, model, device, Processes()), build_recipe(o), QueryCache()
    optimizer = recipe.make_optimizer(model.trained_parameters())
    images = images_in_memory(*random_images(CLASSES * PER_CLASS, CLASSES))
    outside_K = torch.arange(10 * CLASSES, device=device) >= CLASSES
    training = again_and_again(lambda number: batches.training(images, 0, number))
    testing = again_and_again(lambda number: batches.evaluation(images), most=WARM_UP)

    def train() -> int:
        batch = next(training)
        train_step(model.train(), optimizer, batch, 0, outside_K, recipe.clip_grad)
        return len(batch.labels_B)

    @torch.no_grad()
    def test() -> int:
        batch = next(testing)
        query_BD = cache.query(model.eval(), images.fingerprint, o["batch_size"], batch.index, batch.images_BCHW)
        model(batch.images_BCHW, query_BD=query_BD).logits_BK.topk(5)
        return len(batch.labels_B)

    for _ in range(WARM_UP):  # fills the cache: the task was evaluated before
        test()
    return {"training": lambda: sum(train() for _ in range(options.steps_per_turn)),
            "seen": lambda: sum(test() for _ in range(options.steps_per_turn)),
            "checkpoint_bytes": len(checkpoint_bytes({"model": model.learned_state()}))}


def random_images(count: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), np.arange(count) % classes


# ---- the measurement ----
def compare(options: SimpleNamespace) -> dict[str, Any]:
    """All ways, turn and turn about: for each its images per second by kind of work, memory and checkpoint size."""
    processes, found = {}, {}
    try:
        for way in options.ways:  # one after another, so that no way is built while another one is measured
            processes[way] = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.speed", "--serve", way, "--model", options.model, "--batch_size",
                 str(options.batch_size), "--device", options.device, "--steps_per_turn", str(options.steps_per_turn),
                 "--input_size", str(options.input_size), "--num_workers", str(options.num_workers)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE.parent)
            found[way] = {**answer(processes[way]), "rates": {kind: [] for kind in KINDS}, "memory": {}}
        for turn in range(options.turns + 1):
            for kind in KINDS:
                for way, process in processes.items():
                    print(kind, file=process.stdin, flush=True)
                    did = answer(process)
                    if turn:  # the first turn warms up
                        found[way]["rates"][kind].append(did["images"] / did["seconds"])
                    found[way]["memory"].setdefault(kind, did["memory"])
            print(f"{options.model}: turn {turn} of {options.turns} done", file=sys.stderr, flush=True)
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    return found


def answer(process: subprocess.Popen) -> dict[str, Any]:
    for line in process.stdout:  # whatever a library prints is not the answer
        if line.startswith("{"):
            return json.loads(line)
    raise RuntimeError(f"{' '.join(process.args[3:5])} stopped; its message is above")


def own_report(options: SimpleNamespace, way: str) -> dict[str, Any]:
    """What `main.py --speed_test_only` says: FLOPs, fraction of the matmul peak, memory of each part."""
    with tempfile.TemporaryDirectory() as folder:
        write_npz(Path(folder) / "data.npz", CLASSES, PER_CLASS)
        run_main(folder, options, "--batch_size", options.batch_size, "--speed_test_only", "--num_tasks", 1, *WAYS[way])
        return json.loads((Path(folder) / "run" / "speed.json").read_text())


def whole_run(options: SimpleNamespace, way: str) -> dict[str, Any]:
    """Ten tasks of ten classes, 500 training and 100 test images each, five epochs, all evaluations."""
    with tempfile.TemporaryDirectory() as folder:
        write_npz(Path(folder) / "data.npz", 100, 500, 100)
        run_main(folder, options, "--batch_size", options.batch_size, *WAYS[way])
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
        return {name: summary[name] for name in ("train_seconds", "eval_seconds", "train_images_per_second")}


def startup_seconds(options: SimpleNamespace) -> float:
    """From the command to the line that tells of the first step, at batch size 1, with weights from a file."""
    import timm
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder:
        weights = f"{folder}/weights.safetensors"
        save_file(timm.create_model(options.model, img_size=options.input_size).state_dict(), weights)
        write_npz(Path(folder) / "data.npz", 100, 5)
        started = time.perf_counter()
        process = subprocess.Popen(main_command(folder, options, "--init_checkpoint", weights, "--batch_size", 1,
                                                "--print_freq", 1),
                                   stdout=subprocess.PIPE, text=True, cwd=HERE.parent)
        try:
            for line in process.stdout:
                if re.match(r"task 1/10 epoch 1/5 step 1/", line):
                    return time.perf_counter() - started
        finally:
            process.kill()
            process.wait()
    raise RuntimeError("the program ended before its first step; its message is above")


def main_command(folder: str, options: SimpleNamespace, *words: object) -> list[str]:
    random_weights = [] if "--init_checkpoint" in words else ["--no-pretrained"]
    return [sys.executable, "main.py", "cifar100_l2p", "--model", options.model, "--device", options.device,
            "--input_size", str(options.input_size), "--data-path", f"{folder}/data.npz", "--output_dir",
            f"{folder}/run", "--prompt_pos_embed", "none", *random_weights, *map(str, words)]


def run_main(folder: str, options: SimpleNamespace, *words: object) -> None:
    subprocess.run(main_command(folder, options, *words), check=True, cwd=HERE.parent, stdout=sys.stderr)


def write_npz(path: Path, classes: int, train_per_class: int, test_per_class: int | None = None) -> None:
    arrays = {}
    for part, per_class in (("train", train_per_class), ("test", test_per_class or train_per_class)):
        arrays[f"x_{part}"], arrays[f"y_{part}"] = random_images(classes * per_class, classes)
    np.savez(path, **arrays)


# ---- the table ----
def table(records: list[dict[str, Any]]) -> str:
    """Markdown: one table per record, every figure from the record."""
    text = []
    for record in records:
        ways = record["ways"]
        base = ways[NAIVE]
        threads = f", {record['hardware']['threads']} threads" if record["device"] == "cpu" else ""
        text += [f"### {record['model']}, batch {record['batch_size']}, {record['hardware']['device']}{threads}", "",
                 f"torch {record['versions']['torch']}, timm {record['versions']['timm']}, commit "
                 f"{(record['commit'] or 'unknown')[:7]}; medians of {record['turns']} turns, slowest to fastest in "
                 "brackets.", "",
                 "| way | " + " | ".join(f"{name}, images/s | ratio" for name in KINDS.values())
                 + " | peak memory, training | checkpoint |", "|---|" + "---|" * (2 * len(KINDS) + 2)]
        for way, found in ways.items():
            cells = []
            for kind in KINDS:
                rates = found["rates"][kind]
                ratios = [ours / naive for ours, naive in zip(rates, base["rates"][kind], strict=True)]
                cells += [f"{statistics.median(rates):.3g} ({min(rates):.3g}–{max(rates):.3g})",
                          f"{statistics.median(ratios):.2f}"]
            memory = found["memory"]["training"]
            text.append(f"| {way} | {' | '.join(cells)} | {'' if memory is None else f'{memory / 1e9:.2f} GB'} | "
                        f"{found['checkpoint_bytes'] / 1e6:.2f} MB |")
        text.append("")
        for way, report in record["own_reports"].items():
            step = next(part for part in report["parts"] if part["name"] == "training step")
            text.append(f"- {way}: the training step needs {step['gflop_per_image']:.1f} GFLOP per image and runs at "
                        f"{step['fraction_of_peak']:.0%} of the measured matmul peak of "
                        f"{report['matmul_peak_tflops']:.3g} TFLOP/s.")
        if "startup_seconds" in record:
            text.append(f"- Start of the program until its first step is done: {record['startup_seconds']:.1f} s.")
        for way, run in record.get("whole_runs", {}).items():
            text.append(f"- Ten tasks, five epochs, 50,000 images, all evaluations, {way}: "
                        f"{run['train_seconds'] + run['eval_seconds']:.0f} s after the start.")
        text.append("")
    return "\n".join(text)


def write_tables(folder: Path) -> None:
    readme = folder / "README.md"
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("speed_*.json"))]
    begin, end = "<!-- speed tables -->", "<!-- end of speed tables -->"
    before, rest = readme.read_text().split(begin)
    readme.write_text(f"{before}{begin}\n\n{table(records)}\n{end}{rest.split(end)[1]}")


def read(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["vit_tiny_patch16_224", "vit_base_patch16_224"])
    parser.add_argument("--input_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--num_workers", type=int, default=4, help="workers that transform images for the naive way")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps_per_turn", type=int, default=1, help="steps between two waits for the device")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    ours = [way for way, options in WAYS.items() if options is not None]
    parser.add_argument("--reports", nargs="*", choices=ours, help="ways that also report on themselves; all")
    parser.add_argument("--whole_run", nargs="*", choices=ours, help="ways that also make a whole run; all")
    parser.add_argument("--records", type=Path, default=HERE, help="folder of the records and of their README.md")
    parser.add_argument("--table", action="store_true", help="only write the tables from the records")
    parser.add_argument("--serve", choices=list(WAYS), help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if NAIVE not in options.ways:
        parser.error(f"--ways: all are compared with {NAIVE!r}; name it too.")
    return options


def main() -> None:
    options = read(sys.argv[1:])
    if options.serve:
        serve(options.serve, SimpleNamespace(**vars(options) | {"model": options.model[0]}))
        return
    for model in [] if options.table else options.model:
        measure(SimpleNamespace(**vars(options) | {"model": model}))
    write_tables(options.records)


def measure(options: SimpleNamespace) -> None:
    """One record."""
    from records import environment_record, without_folders

    ours = [way for way in options.ways if WAYS[way] is not None]
    reports = ours if options.reports is None else options.reports
    record = {"model": options.model, "batch_size": options.batch_size, "device": options.device,
              "input_size": options.input_size,
              "turns": options.turns, "steps_per_turn": options.steps_per_turn, "ways": compare(options),
              "own_reports": {way: own_report(options, way) for way in reports},
              "startup_seconds": startup_seconds(options)}
    if options.whole_run is not None:
        record["whole_runs"] = {way: whole_run(options, way) for way in options.whole_run or ours}
    record |= environment_record(torch.device(options.device))
    name = f"{record['hardware']['device']}_{options.model}_batch{options.batch_size}"
    if options.input_size != 224:
        name += f"_input{options.input_size}"
    name = re.sub(r"\W+", "_", name).lower()
    path = options.records / f"speed_{name}.json"
    path.write_text(json.dumps(without_folders(record | {"options": {}}), indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
