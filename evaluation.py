"""Evaluation on everything seen so far, and what a run has found.

Shapes: B images in a batch, D width, K classes, M prompts in the pool, R test sets.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from continual_datasets import Batches, Scenario
from diagnosis import Diagnosis, Found
from interruption import Interrupted, StopRequest
from metrics import AccuracyMatrix
from models import PromptedViT, QueryCache
from progress import FIRST_TEST, RECALL, TEST, Pass
from training import Recipe, Sums, masked
from utils import Processes, random_seed, sum_over_processes


class NonFiniteLossError(Exception):
    """A run cannot go on: the text names the task, and the epoch and the step or the test."""


CAUSES = ("the pretrained weights or what was learned hold values that are not finite or far too large; checkpoints "
          "saved before are still good. Look at --init_checkpoint, or begin anew with --overwrite and a lower --lr.")


class Reporter(Protocol):
    """Where results go while a run is under way."""

    def begins(self, work: Pass) -> None: ...
    def advance(self, done: int) -> None: ...
    def steps(self, task: int, epoch: int, done: int, total: int, loss: float, acc1: float, lr: float) -> None: ...
    def epoch(self, task: int, epoch: int, **values: Any) -> None: ...
    def looked_before(self, task: int, seconds: float) -> None: ...
    def settled(self, task: int, seconds: float) -> None: ...
    def evaluated(self, column: int, run: "RunState") -> None: ...
    def diagnosed(self, column: int, found: Found) -> None: ...
    def save(self, name: str, content: dict[str, Any]) -> None: ...


@dataclass
class RunState:
    """What a run has found so far."""

    accuracy: AccuracyMatrix
    per_image: AccuracyMatrix
    """The same under the choice per image; columns stay empty where it was not measured."""
    task: int = 0
    epoch: int = 0
    step: int = 0
    """Where training goes on: `epoch` epochs of `task` are done, and `step` steps of the next."""
    sums: list[list[float]] = field(default_factory=list)
    """Loss, hits and images of those steps in each process: added in another order, they would be rounded differently.
    """
    prompts_RM: list[list[int]] | None = None
    """How often each prompt was chosen for each test set, at the last evaluation."""
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    images_trained: int = 0
    """Images of gradient steps; of a task that has none, those that the head observed."""
    mean_before_D: Tensor | None = None
    """The mean feature of the task's images before it was learned, where the head is told how far they moved."""

    def state(self) -> dict[str, Any]:
        return {**vars(self), "accuracy": self.accuracy.state(), "per_image": self.per_image.state()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "RunState":
        return cls(**state | {name: AccuracyMatrix.from_state(state[name]) for name in ("accuracy", "per_image")})


@dataclass
class Evaluation:
    """A model, its tasks, and what is needed to evaluate it."""

    model: PromptedViT
    scenario: Scenario
    batches: Batches
    recipe: Recipe
    processes: Processes
    reporter: Reporter
    device: torch.device
    query_cache: QueryCache
    stop: StopRequest

    def new_run(self) -> RunState:
        """The state in which a run begins: nothing is measured yet."""
        shape = len(self.scenario.evaluated_after), self.scenario.num_shared_tests
        return RunState(AccuracyMatrix(*shape), AccuracyMatrix(*shape))

    def evaluate_till_now(self, task: int, run: RunState) -> None:
        """Evaluate what `tests_after` the task into a column of the matrices (paper section 5.1), and report."""
        started = time.perf_counter()
        counts = []
        column = self.scenario.evaluated_after.index(task)
        also_per_image = self._also_per_image(task)
        passes = self.test_passes(task, functools.partial(self.query_cache.holds, self.model),
                                  functools.partial(self.query_cache.holds_readings, self.model))
        final = column + 1 == len(self.scenario.evaluated_after)
        diagnosis = Diagnosis(self.scenario.num_classes if final else 0, self.model.prompt.keys(), self.device)
        for row in self.scenario.tests_after(task):
            self.reporter.begins(next(passes))
            acc1, acc5, loss, chosen_M = self.evaluate(row, per_image=False, diagnosis=diagnosis)
            run.accuracy.record(row, column, acc1, acc5, loss)
            if also_per_image:
                # Without a vote the two protocols are one.
                values = acc1, acc5, loss
                if self.model.prompt.votes:
                    self.reporter.begins(next(passes))
                    values = self.evaluate(row, per_image=True, diagnosis=diagnosis)[:3]
                run.per_image.record(row, column, *values)
            counts.append(chosen_M)
        found = diagnosis.over_processes()
        run.eval_seconds += time.perf_counter() - started
        run.prompts_RM = torch.stack(counts).tolist() if counts[0] is not None else None
        self.reporter.diagnosed(column, found)
        self.reporter.evaluated(column, run)

    @torch.no_grad()
    def evaluate(self, task: int, per_image: bool,
                 diagnosis: Diagnosis | None = None) -> tuple[float, float, float, Tensor | None]:
        """One task's test set: Acc@1, Acc@5 (percent), loss, and how often each prompt was chosen [M] (or None).

        All K logits compete, or the task's own where the setting tells it. Every image counts once, over all processes.
        """
        model, outside_K = self.model, None
        if self.scenario.setting.known_in_test:
            outside_K = self._outside(self.scenario.tested[task].classes)
        model.eval()
        sums = Sums(self.device, loss=0.0, hits=0.0, hits_among_5=0.0, images=0.0)
        pool_size = model.prompt.pool_size
        chosen_M = torch.zeros(pool_size, dtype=torch.long, device=self.device)
        test = self.scenario.tested[task].test
        diagnosis = diagnosis or Diagnosis(0, None, self.device)
        add_queries = diagnosis.begin_test_set(per_image)
        steps = self.batches.steps_per_test(test)
        needs_no_images = functools.partial(self.query_cache.needs_no_images, model, test.fingerprint,
                                            self.batches.batch_size, per_image=per_image, query_too=add_queries)
        for batch in self.batches.evaluation(test, needs_no_images):
            if self.stop.received:
                break
            if model.prompt.draws:
                torch.manual_seed(random_seed(self.recipe.seed, "evaluation", task, batch.index))
            query_BD = self.query_cache.query(model, test.fingerprint, self.batches.batch_size, batch.index,
                                              batch.images_BCHW)
            if add_queries:
                query_BD = model.query(batch.images_BCHW) if query_BD is None else query_BD
                diagnosis.add_queries(query_BD)
            if self._readings_stay:
                output = model.answer(self.query_cache.reading(model, test.fingerprint, self.batches.batch_size,
                                                               batch.index, batch.images_BCHW, query_BD, per_image))
            else:
                output = model(batch.images_BCHW, query_BD=query_BD, per_image=per_image)
            logits_BK = masked(output.logits_BK, outside_K)
            best_B5 = logits_BK.topk(min(5, logits_BK.shape[1])).indices
            diagnosis.add_predictions(batch.labels_B, best_B5[:, 0])
            top5 = best_B5 == batch.labels_B[:, None]
            sums.add(loss=F.cross_entropy(logits_BK, batch.labels_B, reduction="sum"), hits=top5[:, 0].sum(),
                     hits_among_5=top5.sum(), images=len(top5))
            if output.selected_BN is not None:
                selected = output.selected_BN.flatten()
                chosen_M.scatter_add_(0, selected, torch.ones_like(selected))
            self.reporter.advance(min(batch.index + self.processes.world_size, steps))
        if stop := self.stop.agreed_now():  # nothing to save: the evaluation is made anew
            raise Interrupted(stop)
        found = sums.over_processes()
        self.reporter.advance(steps)  # now the device has done them, too
        images = found["images"]
        chosen = sum_over_processes(chosen_M).cpu() if pool_size else None
        if not math.isfinite(found["loss"]):
            raise NonFiniteLossError(f"the loss in the test of {self.scenario.setting.unit} {task + 1} is not finite: "
                                     f"{CAUSES}")
        return 100 * found["hits"] / images, 100 * found["hits_among_5"] / images, found["loss"] / images, chosen

    def test_passes(self, task: int, is_known: Callable[[str], bool],
                    is_read: Callable[[str, bool], bool]) -> Iterator[Pass]:
        """The passes of an evaluation in their order.

        Args:
            is_known: whether the queries of these images are known when their pass begins; asked once for each pass.
            is_read: whether what the head reads of them is known, with the batch's choice of prompts (False) or each
                image's own (True); likewise.
        """
        votes = self._also_per_image(task) and self.model.prompt.votes
        tests = [(self.scenario.tested[row].test, per_image) for row in self.scenario.tests_after(task)
                 for per_image in ((False, True) if votes else (False,))]
        total, before = sum(self.batches.steps_per_test(test) for test, _ in tests), 0
        for test, per_image in tests:
            steps = self.batches.steps_per_test(test)
            known, read = is_known(test.fingerprint), is_read(test.fingerprint, per_image)
            if self._readings_stay and read:
                kind = RECALL
            else:
                kind = FIRST_TEST if not known and self.model.query_is_kept else TEST
            yield Pass(kind, f"testing after {self._place(task)}", steps, len(test), before, total)
            before += steps

    def _place(self, task: int) -> str:
        return f"{self.scenario.setting.unit} {task + 1}/{len(self.scenario.tasks)}"

    # ---- parts ----
    @property
    def _readings_stay(self) -> bool:
        """Whether what the head reads of a test image stays from one evaluation to the next: it is the query, or only
        the first task, or none, trains what makes it."""
        return self.model.reads_query or not (
            self.trains_on(len(self.scenario.tasks) - 1) or self.model.prompt.draws)

    def trains_on(self, task: int) -> bool:
        """Whether a task is learned by gradient."""
        return self.recipe.adapts_to(task) and any(True for _ in self.model.trained_parameters())

    def _also_per_image(self, task: int) -> bool:
        """Whether the evaluation after a task also looks at the choice per image."""
        when, final = self.recipe.eval_per_image, task == self.scenario.evaluated_after[-1]
        return bool(self.model.prompt.pool_size) and (when == "always" or (final and when == "final"))

    def _outside(self, classes: tuple[int, ...]) -> Tensor:
        """[K] bool: true for all other classes."""
        return ~self.scenario.class_mask(classes).to(self.device)
