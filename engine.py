"""The continual loop: tasks one after another, evaluated on everything seen so far.

A task has the phases learn (epochs of gradient steps), observe (its images are shown to the head once), settle (the
head learns from what it observed) and evaluate; a head says which of them it has. A task may also be a session or an
episode of a stream. Where these differ, the scenario's `setting` says so; the loop is one.
Shapes: B images in a batch, K classes, M prompts in the pool, R test sets.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from continual_datasets import Batches, Scenario
from diagnosis import Diagnosis, Found
from interruption import Interrupted, StopRequest
from metrics import AccuracyMatrix
from models import PromptedViT, QueryCache
from progress import FIRST_TEST, OBSERVING, RECALL, TEST, TRAINING, Pass
from training import Recipe, Sums, load_training_state, masked, means, train_step, training_state
from utils import Processes, gathered_in_order, random_seed, sum_over_processes


class NonFiniteLossError(Exception):
    """A run cannot go on: the text names the task, and the epoch and the step or the test."""


_CAUSES = ("the pretrained weights or what was learned hold values that are not finite or far too large; checkpoints "
           "saved before are still good. Look at --init_checkpoint, or begin anew with --overwrite and a lower --lr.")


class Reporter(Protocol):
    """Where results go while a run is under way."""

    def begins(self, work: Pass) -> None: ...
    def advance(self, done: int) -> None: ...
    def steps(self, task: int, epoch: int, done: int, total: int, loss: float, acc1: float, lr: float) -> None: ...
    def epoch(self, task: int, epoch: int, **values: Any) -> None: ...
    def settled(self, task: int, seconds: float) -> None: ...
    def evaluated(self, column: int, run: "RunState") -> None: ...
    def diagnosed(self, column: int, found: Found) -> None: ...
    def save(self, name: str, content: dict[str, Any]) -> None: ...


SUMMED = ("loss", "hits", "images")


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
    mean_before_D: Tensor | None = None
    """The mean feature of the task's images before it was learned, where the head is told how far they moved."""

    def state(self) -> dict[str, Any]:
        return {**vars(self), "accuracy": self.accuracy.state(), "per_image": self.per_image.state()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "RunState":
        return cls(**state | {name: AccuracyMatrix.from_state(state[name]) for name in ("accuracy", "per_image")})


@dataclass
class Continual:
    """One continual run: the model, its tasks, and what is needed to train and evaluate it."""

    model: PromptedViT
    scenario: Scenario
    batches: Batches
    recipe: Recipe
    processes: Processes
    reporter: Reporter
    device: torch.device
    query_cache: QueryCache
    stop: StopRequest

    # ---- the loop ----
    def run(self, resume_from: dict[str, Any] | None = None) -> RunState:
        """Train on every task in turn, evaluating after each.

        Args:
            resume_from: the content of last.pth: goes on at the step after which it was saved.

        Raises:
            Interrupted: a signal asked to stop; last.pth holds all that was done.
            NonFiniteLossError: the loss is not finite; last.pth is from before.
        """
        run = self.new_run()
        optimizer = schedule = None
        trained = dict(self.model.trained_parameters())
        if resume_from is not None:
            run = RunState.from_state(resume_from["run"])
            self.model.load_learned_state(resume_from["model"])
            self._load_statistics(resume_from["statistics"])
            if resume_from["optimizer"] is not None:
                optimizer, schedule = self._optimizer()
                load_training_state(optimizer, schedule, resume_from)
        learner = self.distributed() if trained else self.model
        while run.task < len(self.scenario.tasks):
            if trained and self.recipe.adapts_to(run.task):
                if run.epoch == 0 and run.step == 0:
                    task = self._task_for_training(run.task)
                    if task is not None:
                        self.model.prompt.begin_task(task)
                    if optimizer is None or self._restarts:
                        optimizer, schedule = self._optimizer()
                    if self.looks_before(run.task):
                        self._look_before(run, optimizer, schedule)
                self._learn(learner, run, optimizer, schedule)
            if self.model.head.observes:
                self._observe_and_settle(run, optimizer, schedule)
            if run.task in self.scenario.evaluated_after:
                self.evaluate_till_now(run.task, run)
                self.reporter.save(self.scenario.name_of(run.task),
                                   {"model": self.model.learned_state(), "task": run.task})
            run.task, run.epoch, run.step = run.task + 1, 0, 0
            self._save_last(run, optimizer, schedule, settled=True)
        return run

    def new_run(self) -> RunState:
        """The state in which a run begins: nothing is measured yet."""
        shape = len(self.scenario.evaluated_after), self.scenario.num_shared_tests
        return RunState(AccuracyMatrix(*shape), AccuracyMatrix(*shape))

    def _task_for_training(self, task: int) -> int | None:
        """The task as training may know it: None in a stream without tasks."""
        return task if self.scenario.setting.known_in_training else None

    @property
    def _restarts(self) -> bool:
        """Whether optimizer and schedule begin anew with every task."""
        return self.recipe.reinit_optimizer and self.scenario.setting.known_in_training

    # ---- learn ----
    def _learn(self, learner: nn.Module, run: RunState, optimizer: torch.optim.Optimizer, schedule: Any) -> None:
        """The epochs of a task, or those that are left of it."""
        while run.epoch < self.recipe.epochs:
            started = time.perf_counter()
            try:
                values, stop = self._train_one_epoch(learner, run, optimizer)
            except Interrupted:
                run.train_seconds += time.perf_counter() - started
                self._save_last(run, optimizer, schedule)
                raise
            if schedule is not None:
                before = 0 if self._restarts else run.task * self.recipe.epochs
                schedule.step(before + run.epoch + 1, metric=values["loss"])
            run.train_seconds += time.perf_counter() - started
            data = self.scenario.tasks[run.task].train
            run.images_trained += self.batches.images_per_epoch(data, self._steps)
            self.reporter.epoch(run.task, run.epoch, seconds=time.perf_counter() - started, **values)
            run.epoch, run.step, run.sums = run.epoch + 1, 0, []
            self._save_last(run, optimizer, schedule)
            if stop:
                raise Interrupted(stop)

    def _train_one_epoch(self, learner: nn.Module, run: RunState,
                         optimizer: torch.optim.Optimizer) -> tuple[dict[str, float], int]:
        """One pass over a task, or what is left of it. Nothing in a step waits for the device; sums are read every
        `print_freq` steps. Returns what to log, and the signal that came too late to stop before the epoch's end."""
        task, epoch, print_freq = run.task, run.epoch, self.recipe.print_freq
        data, replay = self.scenario.tasks[task].train, self.scenario.tasks[task].replay
        total = self.batches.steps_per_epoch(data, self._steps)
        outside_K = self._outside(self.scenario.tasks[task].classes) if self.recipe.train_mask else None
        learner.train()
        sums = Sums(self.device, **self._summed_before(run))
        losses: dict[int, Tensor] = {}  # step, counted from 1, -> its loss, until it is looked at
        stop = 0
        lr = optimizer.param_groups[0]["lr"]
        first_step = run.step
        self.reporter.begins(self.training_pass(task, epoch, first_step))
        for batch in self.batches.training(data, task, epoch, first_step=run.step, steps=self._steps,
                                           replay=replay):
            if self.model.draws:  # from the global generator: tie it to this step
                torch.manual_seed(random_seed(self.recipe.seed, "dropout", task, epoch, batch.index,
                                              self.processes.rank))
            loss, hits = train_step(learner, optimizer, batch, self._task_for_training(task), outside_K,
                                    self.recipe.clip_grad)
            if batch.share:
                sums.add(loss=loss * batch.num_new, hits=hits, images=batch.num_new)
            run.step = batch.index + 1
            losses[run.step] = loss
            stop = self.stop.agreed()
            if run.step % print_freq == 0 or run.step == total or stop:
                self._stop_if_not_finite(losses, task, epoch)
                losses.clear()
                self.reporter.steps(task, epoch, run.step, total, *means(sums.here()), lr)
            self.reporter.advance(run.step - first_step)
            if stop and run.step < total:  # after the last step the epoch is finished
                self._stop_if_parameters_are_not_finite(task, epoch, run.step)
                run.sums = sums.of_each_process()
                raise Interrupted(stop)
        self._stop_if_parameters_are_not_finite(task, epoch, total)
        loss_mean, acc1 = means(sums.over_processes())
        return {"loss": loss_mean, "acc@1": acc1, "lr": lr}, stop

    def _summed_before(self, run: RunState) -> dict[str, float]:
        """What this process begins an epoch's sums with; with another number of processes the main one takes all."""
        summed_RS = torch.tensor(run.sums, dtype=torch.float64).reshape(-1, len(SUMMED))
        if len(summed_RS) == self.processes.world_size:
            mine_S = summed_RS[self.processes.rank]
        else:
            mine_S = summed_RS.sum(0) * self.processes.is_main
        return dict(zip(SUMMED, mine_S.tolist(), strict=True))

    def _stop_if_parameters_are_not_finite(self, task: int, epoch: int, step: int) -> None:
        """The last step's loss was finite before its update: what the update made must be so too, or it is saved."""
        if not all(torch.stack([p.isfinite().all() for _, p in self.model.trained_parameters()]).tolist()):
            raise self._not_finite(task, epoch, step)

    def _stop_if_not_finite(self, losses: dict[int, Tensor], task: int, epoch: int) -> None:
        finite = torch.isfinite(sum_over_processes(torch.stack(list(losses.values())))).tolist()
        for step, is_finite in zip(losses, finite, strict=True):
            if not is_finite:
                raise self._not_finite(task, epoch, step)

    def _not_finite(self, task: int, epoch: int, step: int) -> NonFiniteLossError:
        return NonFiniteLossError(
            f"the loss is not finite at {self.scenario.setting.unit} {task + 1}, epoch {epoch + 1}, step {step}; "
            "checkpoints saved before are still good. Begin anew with --overwrite and a lower --lr or --clip-grad.")

    # ---- observe and settle ----
    def _observe_and_settle(self, run: RunState, optimizer: torch.optim.Optimizer | None, schedule: Any) -> None:
        """Show the head the task's images once, as a test would see them; then let it learn from them.

        What is observed is remembered apart until the head settles, so a stop in between loses nothing but that.
        """
        started = time.perf_counter()
        try:
            mean_D = self._observe(run.task)
        except Interrupted:
            self._save_last(run, optimizer, schedule)
            raise
        if run.mean_before_D is not None:
            self.model.head.move(mean_D - run.mean_before_D.to(mean_D))
            run.mean_before_D = None
        self.model.head.settle(run.task)
        seconds = time.perf_counter() - started
        run.train_seconds += seconds
        if not self.recipe.adapts_to(run.task) or not self.model.head.learns_by_gradient:
            run.images_trained += len(self.scenario.tasks[run.task].train)
        self.reporter.settled(run.task, seconds)

    def looks_before(self, task: int) -> bool:
        """Whether a task's images are looked at before it is learned, to see how far their features move."""
        return task > 0 and self.recipe.follows_drift

    def _look_before(self, run: RunState, optimizer: torch.optim.Optimizer | None, schedule: Any) -> None:
        """The drift of features is estimated by images of the task at hand, old ones being gone, and taken to be the
        same for all (after semantic drift compensation, Yu et al., CVPR 2020, whose weights by distance are left out).
        """
        started = time.perf_counter()
        try:
            run.mean_before_D = self._observe(run.task, before=True).cpu()
        except Interrupted:
            self._save_last(run, optimizer, schedule)
            raise
        run.train_seconds += time.perf_counter() - started

    @torch.no_grad()
    def _observe(self, task: int, before: bool = False) -> Tensor:
        """Show the head the task's images; returns their mean feature [D], in float32.

        Args:
            before: only find the mean, before the task is learned.
        """
        self.model.eval()
        finite = torch.ones((), dtype=torch.bool, device=self.device)
        sum_D, images = 0.0, 0
        self.reporter.begins(self.observing_pass(task, before))
        for batch in self.batches.training(self.scenario.tasks[task].train, task, 0, augment=False):
            if stop := self.stop.agreed():
                raise Interrupted(stop)
            if self.model.prompt.draws:
                torch.manual_seed(random_seed(self.recipe.seed, "observing", task, batch.index, self.processes.rank))
            features_BD = self.model.features(batch.images_BCHW)
            count = len(batch.labels_B) if batch.share else 0  # a process without images repeats one
            # Each process computes its share of the features, and every head sees all of them in one order.
            features_BD, labels_B = (gathered_in_order(part[:count], self.batches.batch_size)
                                     for part in (features_BD, batch.labels_B))
            if not before:
                self.model.head.observe(features_BD, labels_B)
            sum_D += features_BD.sum(0)
            images += len(labels_B)
            finite &= features_BD.isfinite().all()
            self.reporter.advance(batch.index + 1)
        if not finite:  # before anything of it is saved
            raise NonFiniteLossError(f"the features of {self.scenario.setting.unit} {task + 1} are not finite: "
                                     f"{_CAUSES}")
        return sum_D / images

    # ---- evaluation ----
    def evaluate_till_now(self, task: int, run: RunState) -> None:
        """Evaluate what `tests_after` the task into a column of the matrices (paper section 5.1), and report."""
        started = time.perf_counter()
        counts = []
        column = self.scenario.evaluated_after.index(task)
        also_per_image = self._also_per_image(task)
        holds = self.query_cache.holds_readings if self._readings_stay else self.query_cache.holds
        passes = self.test_passes(task, lambda images: holds(self.model, images))
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
        for batch in self.batches.evaluation(test):
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
                                     f"{_CAUSES}")
        return 100 * found["hits"] / images, 100 * found["hits_among_5"] / images, found["loss"] / images, chosen

    # ---- passes over images ----
    def training_pass(self, task: int, epoch: int, first_step: int) -> Pass:
        """What is left of an epoch from a step on."""
        data = self.scenario.tasks[task].train
        total = self.batches.steps_per_epoch(data, self._steps)
        done = min(first_step * self.batches.global_batch_size, self.batches.images_per_epoch(data, self._steps))
        return Pass(TRAINING, f"{self._place(task)} epoch {epoch + 1}/{self.recipe.epochs}", total - first_step,
                    self.batches.images_per_epoch(data, self._steps) - done, before=first_step, total=total)

    def observing_pass(self, task: int, before: bool = False) -> Pass:
        """`before`: the pass before the task is learned."""
        data = self.scenario.tasks[task].train
        steps = self.batches.steps_per_epoch(data)
        where = f"{self._place(task)} observing{' before training' * before}"
        return Pass(OBSERVING, where, steps, len(data), total=steps)

    def test_passes(self, task: int, is_known: Callable[[str], bool]) -> Iterator[Pass]:
        """The passes of an evaluation in their order.

        Args:
            is_known: whether these images were tested before with the weights as they are, so that their queries are
                known (or what the head reads of them, where that stays); asked once for each pass.
        """
        votes = self._also_per_image(task) and self.model.prompt.votes
        tests = [self.scenario.tested[row].test for row in self.scenario.tests_after(task) for _ in range(1 + votes)]
        total, before = sum(map(self.batches.steps_per_test, tests)), 0
        for test in tests:
            steps = self.batches.steps_per_test(test)
            known = is_known(test.fingerprint)
            first = FIRST_TEST if self.model.query_is_kept else TEST
            kind = first if not known else RECALL if self._readings_stay else TEST
            yield Pass(kind, f"testing after {self._place(task)}", steps, len(test), before, total)
            before += steps

    def _place(self, task: int) -> str:
        return f"{self.scenario.setting.unit} {task + 1}/{len(self.scenario.tasks)}"

    # ---- parts ----
    @property
    def _readings_stay(self) -> bool:
        """Whether what the head reads of a test image stays from one evaluation to the next: only the first task, or
        none, trains what makes it."""
        return not self.recipe.adapts_to(len(self.scenario.tasks) - 1) and not self.model.prompt.draws

    def _also_per_image(self, task: int) -> bool:
        """Whether the evaluation after a task also looks at the choice per image."""
        when, final = self.recipe.eval_per_image, task == self.scenario.evaluated_after[-1]
        return bool(self.model.prompt.pool_size) and (when == "always" or (final and when == "final"))

    def _outside(self, classes: tuple[int, ...]) -> Tensor:
        """[K] bool: true for all other classes."""
        return ~self.scenario.class_mask(classes).to(self.device)

    @property
    def _steps(self) -> int | None:
        return self.scenario.steps_of_an_epoch(self.batches.global_batch_size)

    def _optimizer(self) -> tuple[torch.optim.Optimizer, Any]:
        optimizer = self.recipe.make_optimizer(self.model.trained_parameters())
        epochs = self.recipe.epochs * (1 if self._restarts else len(self.scenario.tasks))
        return optimizer, self.recipe.make_schedule(optimizer, epochs)

    def distributed(self) -> nn.Module:
        """The model, its gradients averaged over the processes."""
        if self.processes.world_size == 1:
            return self.model
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        # Buffers are the same in all processes: what heads and prompts keep there follows from what all of them see.
        return DistributedDataParallel(self.model, device_ids=device_ids, broadcast_buffers=False)

    def _save_last(self, run: RunState, optimizer: torch.optim.Optimizer | None, schedule: Any,
                   settled: bool = False) -> None:
        """Save what a resumed run needs. `settled`: the head's statistics are new, and go into a file of their own."""
        statistics = self.model.head.statistics()
        if settled and statistics:
            self.reporter.save(f"statistics{run.task:02d}", {"statistics": {
                name: tensor.detach().cpu() for name, tensor in statistics.items()}})
        self.reporter.save("last", {
            "model": self.model.learned_state(), "run": run.state(),
            **training_state(optimizer, schedule),
            "statistics": f"statistics{run.task:02d}" if statistics and run.task else None})

    @torch.no_grad()
    def _load_statistics(self, saved: dict[str, Tensor]) -> None:
        for name, tensor in self.model.head.statistics().items():
            if name in saved:  # nothing before the first task has settled
                tensor.copy_(saved[name])
