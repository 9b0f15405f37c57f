"""What a run writes into `output_dir`, and what it prints.

    config.json           every option, versions, commit, command, hardware
    scenario.json         what of the tasks no option tells: images drawn for the test, a class order read from a file
    manifest.json.gz      which image is in which task, with hashes (continual_datasets/manifest.py)
    log.jsonl             one object per epoch and per evaluation; before the latter, where images choose by keys, one
                          of kind `keys`: `keys_to_keys`, the cosine similarity of key 0 with keys 1, 2 …, then of
                          key 1 with keys 2, 3 … and so on; `keys_to_queries`, for each test set the mean of every
                          key's cosine similarity with its images' queries
    accuracy_matrix.csv   Acc@1 of task i (row) after training task t (column), percent
    summary.json          the final metrics; `unusable_checkpoints` where a task's is missing or damaged
    confusion.npz         of the last evaluation, for numpy.load: `counts` [K, K], how many test images of each true
                          class (row) were given each class (column); `counts_per_image`, the same with prompts chosen
                          per image, where that was evaluated beside a batch vote; `task_of_class` [K], from 1, where
                          each class belongs to one task
    checkpoint/           task01.pth … (exactly what was learned); last.pth (what a resumed run needs), previous.pth;
                          statistics01.pth … (what a head gathers for later tasks)
    speed.json            what --speed_test measured
    tensorboard/, plots/

`--eval` writes eval_log.jsonl (of evaluations only), eval_accuracy_matrix.csv, eval_confusion.npz, eval_summary.json.
Where the data have sessions, or a stream its episodes, their names are in the place of `task`; and where there is one
test set for all, the matrix has one row.

Only the main process writes and prints; the others get a `Silent` reporter with the same interface.
"""

import csv
import errno
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from diagnosis import Found
from evaluation import RunState
from kept_files import KeptFiles
from metrics import AccuracyMatrix
from progress import Pass, Progress, duration
from tensorboard_file import TensorBoardFile
from utils import save_checkpoint, shown


class Silent:
    """The reporter of every process but the main one."""

    def say(self, text: str) -> None: ...
    def expect(self, passes) -> None: ...
    def begins(self, work) -> None: ...
    def advance(self, done) -> None: ...
    def close(self) -> None: ...
    def steps(self, task, epoch, done, total, loss, acc1, lr) -> None: ...
    def epoch(self, task, epoch, **values) -> None: ...
    def looked_before(self, task, seconds) -> None: ...
    def settled(self, task, seconds) -> None: ...
    def evaluated(self, column, run) -> None: ...
    def diagnosed(self, column, found) -> None: ...
    def save(self, name, content) -> None: ...
    def speed(self, found) -> None: ...


class SpeedReporter(Silent):
    """Prints, and writes speed.json alone."""

    def __init__(self, output_dir: str, config: dict[str, Any]):
        self.folder, self.config = Path(output_dir) if output_dir else None, config
        self.files = KeptFiles(self.folder, self.warn) if self.folder else None

    def say(self, text: str) -> None:
        print(text, flush=True)

    def warn(self, text: str) -> None:
        self.say(f"warning: {text}")

    def speed(self, found: dict[str, Any]) -> None:
        if self.files:
            self.files.write_json("speed.json", found | {"config": self.config})


class Reporter(SpeedReporter):
    """Prints, and writes the files of a run.

    Args:
        output_dir: the folder; '' writes nothing and only prints.
        scenario: for what training goes through: "task 3/10", "episode 30/200".
        epochs: for "epoch 2/5".
        config: the content of config.json.
        top_k: prompts chosen per image, for the plot of the choice; 0 without a pool.
        keep_log: go on with the first so many bytes of the log that is there (a resumed run); None: a new one.
        evaluation: write under names beginning with `eval_`, and no checkpoint or TensorBoard file.
        manifest: the content of manifest.json.gz; None for a stream.
        peak_memory: bytes so far, or None where the system does not tell.
        started: when the program began, in `time.monotonic()`'s seconds.
    """

    def __init__(self, output_dir: str, *, scenario: Any, epochs: int, config: dict[str, Any], top_k: int = 0,
                 keep_log: int | None = None, evaluation: bool = False, manifest: bytes | None = None,
                 stream: TextIO | None = None, peak_memory: Callable[[], int | None] = lambda: None,
                 started: float | None = None):
        super().__init__(output_dir, config)
        self.unit, self.num_tasks = scenario.setting.unit, len(scenario.tasks)
        self.names = {task: scenario.name_of(task) for task in scenario.evaluated_after}
        self.numbers = [task + 1 for task in scenario.evaluated_after]
        self.task_of_class = _task_of_class(scenario)
        self.replay_images, self.replay_bytes = scenario.replay_size
        self.epochs, self.top_k = epochs, top_k
        self.stream = stream or sys.stdout
        self.progress = Progress(self.say, peak_memory)
        self.started = time.monotonic() if started is None else started
        self._tensorboard = None
        self._said_missing: set[str] = set()
        self.trains, self.resumed = bool(self.folder) and not evaluation, keep_log is not None
        self.prefix = "eval_" if evaluation else ""
        if self.trains:
            self._begin(scenario, keep_log, manifest)
        elif self.files:
            self.files.begin_log("eval_log.jsonl")

    def _begin(self, scenario: Any, keep_log: int | None, manifest: bytes | None) -> None:
        if keep_log is None:
            self.files.write_json("config.json", self.config)
        else:
            self.files.keep("config.json")
        if scenario.record:
            self.files.write_json("scenario.json", scenario.record)
        if manifest is not None:
            self.files.write("manifest.json.gz", manifest)
        self.files.begin_log("log.jsonl", keep_log or 0)
        for path in [*self.folder.glob(".*.tmp"), *self.folder.glob("checkpoint/.*.tmp")]:
            path.unlink()  # half-written files of a run that was killed
        if scenario.stream:
            import plots  # matplotlib is slow to import

            plots.plot_class_probability(scenario.stream.probability(), scenario.stream.active_EK, self.folder / "plots"
                                         / "class_probability.png", scenario.stream.schedule.batches)
        self._tensorboard = TensorBoardFile(self.folder / "tensorboard", self.warn)

    # ---- what the engine calls ----
    def say(self, text: str) -> None:
        self.progress.printed()
        try:
            # In one piece: a lost worker's signal may come between a text and the end of its line.
            print(f"{text}\n", end="", file=self.stream, flush=True)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            # The terminal was closed, or `| tee` ended with Ctrl-C: no reason to lose the step. It is saved, as after
            # a SIGHUP; where that is ignored (nohup), the run goes on.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            signal.raise_signal(signal.SIGHUP)

    def expect(self, passes: Iterable[Pass]) -> None:
        self.progress.expect(passes)

    def begins(self, work: Pass) -> None:
        self.progress.begins(work)

    def advance(self, done: int) -> None:
        self.progress.advance(done)

    def close(self) -> None:
        """Take the bar away, before the program ends or something else prints."""
        self.progress.clear()

    def steps(self, task: int, epoch: int, done: int, total: int, loss: float, acc1: float, lr: float) -> None:
        self.progress.read(loss, acc1, lr)
        if not self.progress.on_terminal:
            self.say(f"{self._name(task + 1)} epoch {epoch + 1}/{self.epochs} step {done}/{total}  loss {loss:.4f}"
                     f"  acc {acc1:.2f}  lr {lr:.3g}")

    def epoch(self, task: int, epoch: int, **values: Any) -> None:
        self._log("epoch", **{self.unit: task + 1}, epoch=epoch + 1, **values)
        self.say(f"{self._name(task + 1)} epoch {epoch + 1}/{self.epochs} done  loss {values['loss']:.4f}"
                 f"  acc {values['acc@1']:.2f}  {values['seconds']:.1f} s  {self.progress.summary()}")
        if self._tensorboard:
            self._tensorboard.scalars(task * self.epochs + epoch, {
                "train_loss": values["loss"], "lr": values["lr"],  # official names
                **{f"train/{name}": value for name, value in values.items()}})

    def looked_before(self, task: int, seconds: float) -> None:
        self._log("looked_before", **{self.unit: task + 1}, seconds=seconds)

    def settled(self, task: int, seconds: float) -> None:
        self._log("settled", **{self.unit: task + 1}, seconds=seconds)

    def evaluated(self, column: int, run: RunState) -> None:
        found, number = run.accuracy.summary(column), self.numbers[column]
        each = " ".join(f"{a:.2f}" for a in found["per_task"]) + "\n  " if "per_task" in found else ""
        about_tasks = (f"  forgetting {found['forgetting']:.2f}  backward {found['backward']:.2f}"
                       if "forgetting" in found else "")
        self.say(f"after {self._name(number)}:  {each}Acc@1 {found['acc@1']:.2f}  Acc@5 {found['acc@5']:.2f}  "
                 f"loss {found['loss']:.4f}{about_tasks}")
        chosen = {"prompts": run.prompts_RM} if run.prompts_RM is not None else {}
        per_image = {"acc@1_per_image": run.per_image.acc_at_1(column)} if run.per_image.column_complete(column) else {}
        self._log("evaluation", **{self.unit: number}, **found, **per_image, **chosen)
        if self._tensorboard:
            self._draw_evaluation(number, column, run, found, per_image)
        self._write_matrix(run.accuracy)

    def _draw_evaluation(self, number: int, column: int, run: RunState, found: dict[str, Any],
                         per_image: dict[str, float]) -> None:
        """The evaluation in TensorBoard's file."""
        official = {"avg_acc": "acc@1", "test_loss": "loss", "forgetting": "forgetting", "backward": "backward",
                    "learning_acc": "learning_acc"}  # the names of the official code's tags
        measured = {name: value for name, value in (found | per_image).items() if not isinstance(value, list)}
        self._tensorboard.scalars(number, {
            **{tag: found[name] for tag, name in official.items() if name in found},
            **{f"test/{name}": value for name, value in measured.items()},
            **{f"accuracy_{i + 1}": a for i, a in enumerate(run.accuracy.per_task(column))}})
        if run.prompts_RM is not None:
            prompts_M = np.sum(run.prompts_RM, axis=0)
            indices = np.repeat(np.arange(len(prompts_M)), prompts_M)
            self._tensorboard.histogram("prompts_chosen", number, indices, np.arange(len(prompts_M) + 1) - 0.5)

    def diagnosed(self, column: int, found: Found) -> None:
        """Where images went, and how near keys are to each other and to queries."""
        if found.keys_MM is not None:
            of_pairs = found.keys_MM[np.triu_indices(len(found.keys_MM), k=1)]
            self._log("keys", **{self.unit: self.numbers[column]}, keys_to_keys=_rounded(of_pairs),
                      keys_to_queries=_rounded(found.keys_to_queries_RM))
        if found.confusion and self.folder:
            content = io.BytesIO()
            tasks = {} if self.task_of_class is None else {"task_of_class": self.task_of_class}
            np.savez_compressed(content, **found.confusion, **tasks)
            self.files.write(f"{self.prefix}confusion.npz", content.getvalue())

    def _name(self, number: int) -> str:
        return f"{self.unit} {number}/{self.num_tasks}"

    def save(self, name: str, content: dict[str, Any]) -> None:
        """Write a checkpoint: `last`, or a task's. Before `last`, look whether all that was written is there."""
        if not self.folder:
            return
        made_by = self.config["model"] | {key: self.config[key] for key in ("world_size", "data_sha256")}
        keep_as = None
        if name == "last":
            self.files.restore()
            self._look_for_checkpoints(content)
            content = content | {"log_bytes": self.files.log_bytes}
            keep_as = self._checkpoint("previous")
        save_checkpoint(self._checkpoint(name), content | {"made_by": made_by}, keep_as)
        gathered = sorted((self.folder / "checkpoint").glob("statistics*.pth"), key=lambda p: (len(p.name), p.name))
        for path in gathered[:-2]:
            path.unlink()  # last.pth and previous.pth need the newest two

    def _checkpoint(self, name: str) -> Path:
        return self.folder / "checkpoint" / f"{name}.pth"

    def _look_for_checkpoints(self, content: dict[str, Any]) -> None:
        """Say which of the tasks' checkpoints have gone. The newest is written again where `content` holds the same."""
        run = content["run"]
        for task, name in self.names.items():
            if task >= run["task"] or name in self._said_missing or self._checkpoint(name).is_file():
                continue
            if task == run["task"] - 1 and run["epoch"] == run["step"] == 0:
                self.save(name, {"model": content["model"], "task": task})
                self.warn(f"{self._checkpoint(name)} had gone and was written again.")
            else:
                self.warn(f"{self._checkpoint(name)} has gone: the run goes on, but --eval needs it.")
                self._said_missing.add(name)

    # ---- the end of a run ----
    def finish(self, run: RunState, unusable: Sequence[str] = ()) -> dict[str, Any]:
        """Print the whole matrix and both protocols; write the summary and the plots. Returns the summary.

        Args:
            unusable: checkpoints of tasks that are missing or damaged.
        """
        last = len(self.numbers) - 1
        summary = run.accuracy.summary(last) | {"evaluated_after": self.numbers} | {
            "train_seconds": run.train_seconds, "eval_seconds": run.eval_seconds,
            "train_images_per_second": run.images_trained / run.train_seconds if run.train_seconds else None,
            "trainable_parameters": self.config["model"]["trainable_parameters"],
            "replay_images": self.replay_images, "replay_bytes": self.replay_bytes,
            "seed": self.config["options"]["seed"], "protocol": self.config["protocol"], "config": self.config,
        }
        self.say("\n" + run.accuracy.format_table(self.unit, self.numbers))
        forgetting = f"  forgetting {summary['forgetting']:.2f}" if "forgetting" in summary else ""
        self.say(f"{shown(self.config['protocol'])}:  Acc@1 {summary['acc@1']:.2f}{forgetting}")
        if run.per_image.column_complete(last):
            summary["acc@1_per_image"] = run.per_image.acc_at_1(last)
            every = all(run.per_image.column_complete(column) for column in range(last + 1))
            line = f"prompts chosen per image:  Acc@1 {summary['acc@1_per_image']:.2f}"
            if every and "forgetting" in summary:
                summary["forgetting_per_image"] = run.per_image.forgetting(last)
                line += f"  forgetting {summary['forgetting_per_image']:.2f}"
            self.say(line)
        if unusable:
            summary["unusable_checkpoints"] = list(unusable)
        self._write_matrix(run.accuracy)
        if self.files:
            self.files.write_json(f"{self.prefix}summary.json", summary)
        if self.trains:
            self.files.restore()
            self._plot(run)
        if self._tensorboard:
            self._draw_hyper_parameters(summary)
            self._tensorboard.close()
        self._say_where_it_lies(run)
        return summary

    def _draw_hyper_parameters(self, summary: dict[str, Any]) -> None:
        """Options and final metrics, for TensorBoard's table of runs; in this run, not in one below it."""
        final = {f"hparam/{name}": value for name, value in summary.items()
                 if isinstance(value, float) and name not in ("train_seconds", "eval_seconds")}
        options = {name: value if isinstance(value, bool | int | float | str) else str(value)
                   for name, value in self.config["options"].items()}
        self._tensorboard.hyper_parameters(options | {"experiment": self.config["experiment"]}, final)
        self._tensorboard.scalars(self.numbers[-1], final)

    def _say_where_it_lies(self, run: RunState) -> None:
        memory = self.progress.memory()
        all_starts = "; these of all its starts" if self.resumed else ""
        self.say(f"took {duration(time.monotonic() - self.started)} (training {duration(run.train_seconds)}, tests "
                 f"{duration(run.eval_seconds)}{all_starts})" + (f", at most {memory} of memory" if memory else ""))
        written = [f"{self.prefix}summary.json", f"{self.prefix}accuracy_matrix.csv"]
        written += ["log.jsonl", "checkpoint/", "plots/", "tensorboard/"] if self.trains else []
        self.say(f"{self.folder} holds {', '.join(written)}" if self.folder else "nothing was written")

    def _plot(self, run: RunState) -> None:
        import plots  # matplotlib is slow to import, and needed only here

        columns = range(len(self.numbers))
        folder = self.folder / "plots"
        per_image = [run.per_image.acc_at_1(c) if run.per_image.column_complete(c) else float("nan") for c in columns]
        forgetting = None
        if run.accuracy.num_tests is None:
            forgetting = [run.accuracy.forgetting(c) for c in columns]
            plots.plot_accuracy_matrix(run.accuracy.acc1_RT, folder / "accuracy_matrix.png")
        plots.plot_over_tasks(run.accuracy.curve(columns[-1]), forgetting, folder / f"over_{self.unit}s.png",
                              per_image if np.isfinite(per_image).any() else None, self.unit,
                              None if self.numbers == list(range(1, len(columns) + 1)) else self.numbers)
        if run.prompts_RM is not None:
            plots.plot_prompt_selection(run.prompts_RM, folder / "prompts_per_task.png", self.top_k, self.unit)

    # ---- files ----
    def _write_matrix(self, accuracy: AccuracyMatrix) -> None:
        if self.files:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(accuracy.to_rows(self.unit, self.numbers))
            self.files.write(f"{self.prefix}accuracy_matrix.csv", text.getvalue().encode())

    def _log(self, kind: str, **values: Any) -> None:
        if self.files:
            self.files.log({"kind": kind, "time": round(time.time(), 3), **values})


def _task_of_class(scenario: Any) -> np.ndarray | None:
    """The task of each class [K], from 1; None where classes come back."""
    tasks = [(label, number) for number, task in enumerate(scenario.tested, start=1) for label in task.classes]
    if scenario.setting.one_test_set or sorted(label for label, _ in tasks) != list(range(scenario.num_classes)):
        return None
    return np.array([number for _, number in sorted(tasks)])


def _rounded(values: np.ndarray) -> list:
    return np.round(values.astype(float), 4).tolist()
