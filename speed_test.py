"""How fast and how large: what `--speed_test` measures, with the run's own model, data and options.

Training steps are taken and then undone: the run that follows computes what it would have computed anyway.
"""

import itertools
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from engine import Continual
from plan import passes_left
from progress import FIRST_TEST, OBSERVING, RECALL, TEST, TRAINING, duration
from training import train_step
from utils import checkpoint_bytes, peak_memory, sum_over_processes

WARM_UP = 2
MIN_REPEATS, MAX_REPEATS, SECONDS_PER_PART = 3, 30, 3.0
STEPS_PER_REPEAT = {"cuda": 5}  # so many between two waits for the GPU; elsewhere 1


def measure_speed(continual: Continual, fresh_query_cache: Callable[[], Any]) -> dict[str, Any]:
    """Measure each part of a run on its first task.

    Returns:
        "startup_seconds" from the start of the process; "matmul_peak_tflops" of the device in the ViT's precision;
        "parameters", "trainable_parameters", "checkpoint_bytes"; and "parts": for each its name, images per second over
        all processes (median of repeats), GFLOP per image (2 per multiplication, as torch counts them), the fraction of
        the matmul peak that these come to on one process, and its peak memory in bytes (of the GPU, or of the whole
        process; None where the system does not tell). "whole_run_seconds": what a whole run takes at these speeds,
        without its start and what a head computes when a task settles.
    """
    startup_seconds = seconds_since_start()
    model, device, world_size = continual.model, continual.device, continual.processes.world_size
    learned = model.learned_state()
    peak = matmul_peak(device, next(model.backbone.parameters()).dtype
                       if model.autocasts_to is None else model.autocasts_to)
    parts = []
    for name, flops, steps in parts_of(continual, fresh_query_cache):
        memory = PeakMemory(device)
        rates = images_per_second(steps, device)
        per_second = statistics.median(rates)
        parts.append({"name": name, "images_per_second": per_second * world_size, "repeats": len(rates),
                      "slowest": min(rates) * world_size, "fastest": max(rates) * world_size,
                      "gflop_per_image": flops / 1e9, "fraction_of_peak": flops * per_second / peak,
                      "peak_memory_bytes": memory.bytes()})
    model.load_learned_state(learned)
    return {"batch_size": continual.batches.batch_size, "processes": world_size, "startup_seconds": startup_seconds,
            "matmul_peak_tflops": peak / 1e12, "parameters": sum(p.numel() for p in model.parameters()),
            "trainable_parameters": sum(p.numel() for _, p in model.trained_parameters()),
            "checkpoint_bytes": len(checkpoint_bytes({"model": learned})), "parts": parts,
            "whole_run_seconds": whole_run_seconds(continual, parts)}


def whole_run_seconds(continual: Continual, parts: list[dict[str, Any]]) -> float:
    """Seconds of all passes of images through the ViT in a run that begins, each at the speed of its kind."""
    rates = {part["name"]: part["images_per_second"] for part in parts}
    new = rates["evaluation, new task"]
    kinds = {TRAINING: rates.get("training with its data", new), OBSERVING: new, FIRST_TEST: new,
             TEST: rates.get("evaluation, task seen before", new), RECALL: math.inf}
    return sum(work.images / kinds[work.kind] for work in passes_left(continual, continual.new_run()))


def parts_of(continual: Continual, fresh_query_cache: Callable[[], Any]
             ) -> Iterator[tuple[str, float, Callable[[], int]]]:
    """(name, FLOP per image, a function that works through one batch and returns its number of images)."""
    model, recipe, batches = continual.model, continual.recipe, continual.batches
    task = continual.scenario.tasks[0]
    with closing(batches.training(task.train, 0, 0)) as steps:
        batch = next(steps)
    images_BCHW = batch.images_BCHW
    few_BCHW = images_BCHW[:1].repeat(2 if batches.batch_size != 2 else 3, 1, 1, 1)  # never compiled: FLOPs are counted
    outside_K = ~continual.scenario.class_mask(task.classes).to(continual.device)

    def query(images: Tensor) -> Tensor | None:
        return model.query(images) if model.prompt.needs_query else None

    @torch.no_grad()
    def forward(images: Tensor, query_BD: Tensor | None) -> int:
        model.eval()
        model(images, query_BD=query_BD)
        return len(images)

    query_BD, few_query_BD = query(images_BCHW), query(few_BCHW)
    query_flops = flops_per_image(query, few_BCHW)
    # With gradients: torch's counter stumbles over a view of a parameter that was taken without.
    forward_flops = flops_per_image(lambda images: model.eval()(images, query_BD=few_query_BD), few_BCHW)
    if model.prompt.needs_query:
        yield "query pass", query_flops, lambda: len(query(images_BCHW))
    yield "prompted pass" if model.prompt.layers else "pass", forward_flops, lambda: forward(images_BCHW, query_BD)

    if list(model.trained_parameters()):
        learner = continual.distributed()
        optimizer = recipe.make_optimizer(model.trained_parameters())

        def step(batch: Any) -> int:
            learner.train()
            train_step(learner, optimizer, batch, 0, outside_K, recipe.clip_grad)
            return len(batch.labels_B)

        def forward_and_backward(images: Tensor) -> None:
            model.train()
            output = model(images, task=0)
            (output.logits_BK.sum() + (0 if output.aux_loss is None else output.aux_loss)).backward()
            optimizer.zero_grad()

        step_flops = flops_per_image(forward_and_backward, few_BCHW)
        yield "training step", step_flops, lambda: step(batch)
        with closing(again_and_again(lambda round: batches.training(task.train, 0, round))) as training:
            yield "training with its data", step_flops, lambda: step(next(training))

    cache = fresh_query_cache()

    def evaluate(test: Any, cache: Any) -> int:
        query_BD = cache.query(model, task.test.fingerprint, batches.batch_size, test.index, test.images_BCHW)
        return forward(test.images_BCHW, query_BD)

    # Not shared out: a small test set has no batch for some of the processes, and each of them measures.
    with closing(again_and_again(lambda round: batches.evaluation(task.test, shared_out=False), most=WARM_UP)) as test:
        yield "evaluation, new task", query_flops + forward_flops, lambda: evaluate(next(test), fresh_query_cache())
        if model.query_is_kept and not model.reads_query:  # one round of the warm-up fills the cache
            known_BD = model.query(few_BCHW)
            seen_flops = flops_per_image(lambda images: model.eval()(images, query_BD=known_BD), few_BCHW)
            yield "evaluation, task seen before", seen_flops, lambda: evaluate(next(test), cache)


def again_and_again(batches: Callable[[int], Iterator[Any]], most: int | None = None) -> Iterator[Any]:
    """Rounds without end, each of the first `most` batches. Raises ValueError for a round without a batch."""
    for number in itertools.count():
        with closing(batches(number)) as whole_round:
            first = next(whole_round, None)
            if first is None:
                raise ValueError(f"round {number} has no batch: the next ones would be looked through for ever")
            yield from itertools.islice(itertools.chain([first], whole_round), most)


def images_per_second(step: Callable[[], int], device: torch.device) -> list[float]:
    """Rates of repeats after a warm-up; a repeat ends when the device is done."""
    on_gpu = device.type == "cuda"

    def repeat() -> float:
        started = time.perf_counter()
        images = sum(step() for _ in range(STEPS_PER_REPEAT.get(device.type, 1)))
        if on_gpu:
            torch.cuda.synchronize(device)
        return images / (time.perf_counter() - started)

    for _ in range(WARM_UP):
        repeat()
    rates: list[float] = []
    until = time.perf_counter() + SECONDS_PER_PART
    while len(rates) < MIN_REPEATS or (len(rates) < MAX_REPEATS and all_are_before(until)):
        rates.append(repeat())
    return rates


def all_are_before(until: float) -> bool:
    """The same answer in every process: one that made a repeat more would wait for the others' gradients."""
    return sum_over_processes(torch.tensor(float(time.perf_counter() >= until))).item() == 0


def flops_per_image(run: Callable[[Tensor], Any], images_BCHW: Tensor) -> float:
    with FlopCounterMode(display=False) as counter:
        run(images_BCHW)
    return counter.get_total_flops() / len(images_BCHW)


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP per second of a large matrix product, the fastest of several, in the precision that the run has set."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def once() -> int:
        torch.mm(a, b)
        return 2 * size**3

    return max(images_per_second(once, device))


class PeakMemory:
    """Peak memory from here on: allocated on the GPU by torch, or resident in the whole process."""

    def __init__(self, device: torch.device):
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif sys.platform == "linux" and os.access("/proc/self/clear_refs", os.W_OK):
            Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back

    def bytes(self) -> int | None:
        return peak_memory(self.device)


def seconds_since_start() -> float | None:
    """How long this process has been running; None where the system does not tell."""
    try:
        begun_ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return float(Path("/proc/uptime").read_text().split()[0]) - begun_ticks / os.sysconf("SC_CLK_TCK")
    except OSError:
        return None


def format_speed(found: dict[str, Any]) -> str:
    lines = [f"batch {found['batch_size']} x {found['processes']} process(es), matmul peak "
             f"{found['matmul_peak_tflops']:.3g} TFLOP/s, {found['trainable_parameters']:,} of {found['parameters']:,} "
             f"values train, a task checkpoint has {found['checkpoint_bytes'] / 1e6:.2f} MB"
             + (f", ready after {found['startup_seconds']:.1f} s" if found["startup_seconds"] is not None else ""),
             f"{'':30}{'images/s':>10}{'GFLOP/image':>13}{'of peak':>9}{'memory MB':>11}"]
    for part in found["parts"]:
        memory = part["peak_memory_bytes"]
        lines.append(f"{part['name']:30}{part['images_per_second']:10.2f}{part['gflop_per_image']:13.2f}"
                     f"{part['fraction_of_peak']:9.1%}{'' if memory is None else f'{memory / 1e6:.0f}':>11}")
    lines.append(f"a whole run takes about {duration(found['whole_run_seconds'])} at these speeds")
    return "\n".join(lines)
