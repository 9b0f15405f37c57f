"""The continual loop: tasks one after another, evaluated on everything seen so far.

A task has the phases learn (epochs of gradient steps), observe (its images are shown to the head once), settle (the
head learns from what it observed) and evaluate; a head says which of them it has. A head that follows features looks at
the images once more, before they are learned. A task may also be a session or an episode of a stream. Where these
differ, the scenario's `setting` says so; the loop is one.
Shapes: B images in a batch, D width, K classes.
"""

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from evaluation import CAUSES, Evaluation, NonFiniteLossError, RunState
from interruption import Interrupted
from progress import OBSERVING, TRAINING, Pass
from training import Sums, load_training_state, means, train_step, training_state
from utils import gathered_in_order, random_seed, same_everywhere, sum_over_processes

SUMMED = ("loss", "hits", "images")


class Continual(Evaluation):
    """One continual run: the model, its tasks, and what is needed to train and evaluate it."""

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
            if self.trains_on(run.task):
                if run.epoch == 0 and run.step == 0:
                    if self.looks_before(run.task):  # before anything changes, or the head would not be told of it
                        self._look_before(run, optimizer, schedule)
                    task = self._task_for_training(run.task)
                    if task is not None:
                        self.model.prompt.begin_task(task)
                    if optimizer is None or self._restarts:
                        optimizer, schedule = self._optimizer()
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
        same_everywhere(self.model.head.state_dict().values())
        seconds = time.perf_counter() - started
        run.train_seconds += seconds
        if not self.trains_on(run.task):
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
        seconds = time.perf_counter() - started
        run.train_seconds += seconds
        self.reporter.looked_before(run.task, seconds)

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
                                     f"{CAUSES}")
        return sum_D / images

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

    # ---- parts ----
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
