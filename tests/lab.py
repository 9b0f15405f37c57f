"""Command lines over small files, and what they compute: for tests that compare one option's values."""

import contextlib
import io
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from fixtures import write_npz
from safetensors.torch import save_file

import build
import main
from configs.command import parse
from utils import load_checkpoint

# {data}, {other}, {weights} and {order} stand for files of the `Lab`.
BASE = ("cifar100_l2p", "--data_path", "{data}", "--num_tasks", "2", "--epochs", "1", "--batch_size", "4",
        "--num_workers", "0", "--model", "glyph_vit_tiny", "--no-pretrained", "--input_size", "32",
        "--eval_per_image", "never", "--device", "cpu")
# A stream without tasks: BASE without its --num_tasks.
STREAM = (*BASE[:3], *BASE[5:], "--schedule", "gaussian", "--reinit_optimizer", "false", "--gaussian_episodes", "4",
          "--gaussian_steps", "2", "--gaussian_width", "2", "--gaussian_eval_every", "2")
NO_PROMPTS = ("--prompt_method", "none", "--head_type", "token")
DUAL = (*BASE, "--prompt_method", "dualprompt", "--head_type", "token", "--prompt_layers", "2")
CODA = (*BASE, "--prompt_method", "coda", "--head_type", "token", "--prompt_layers", "2", "--length", "4")
ALIGNED = (*BASE, "--align", "--align_samples", "5", "--align_epochs", "1")
SGD = ("--opt", "sgd")
# Queries that differ from image to image, whatever the weights: an untrained ViT's cls outputs are all alike.
DIVERSE = ("--embedding_key", "mean", "--input_norm", "imagenet")


def measure_run(words: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Run the program and collect what it computed, without times; values of one name can be compared by ==."""
    # Stopped at the table after the last task: every value is there by then, and plots would take as long again.
    code, out, err = call(*words, "--output_dir", folder, out=Interrupting("\nafter "))
    assert code == 130, err
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    epochs = [row for row in log if row["kind"] == "epoch"]
    evaluations = [row for row in log if row["kind"] == "evaluation"]
    learned = learned_in(folder)
    config = json.loads((folder / "config.json").read_text())
    return {
        "warnings": [line for line in err.splitlines() if "interrupted" not in line],
        "opening": re.search(r"^seed .*(?=, writing)", out, re.MULTILINE)[0],
        "steps": re.findall(r"^(?:task|episode) (\S+) epoch (\S+) step (\S+)", out, re.MULTILINE),
        "first loss": [row.get("loss") for row in epochs if (row.get("task") or row["episode"]) == 1],
        "later loss": [row.get("loss") for row in epochs if (row.get("task") or row["episode"]) > 1],
        "lr": [row.get("lr") for row in epochs],
        "evaluation": [{k: v for k, v in row.items() if k not in ("time", "acc@1_per_image")} for row in evaluations],
        "per image": [row.get("acc@1_per_image") for row in evaluations],
        "shapes": [{name: tensor.shape for name, tensor in state.items()} for state in learned],
        "learned": [{name: tensor.numpy().tobytes() for name, tensor in state.items()} for state in learned],
        "backbone": config["model"]["backbone_sha256"],
        "device": config["device"],
    }


def measure_rates(words: tuple[str, ...], folder: Path | None = None) -> dict[str, Any]:
    """The learning rate of each epoch of a task whose loss never falls; `folder` stays empty."""
    options = parse(words).options
    recipe = build.build_recipe(options)
    optimizer = recipe.make_optimizer([("weight", torch.nn.Parameter(torch.zeros(1, 1)))])
    schedule = recipe.make_schedule(optimizer, options["epochs"])
    found = []
    for epoch in range(options["epochs"]):
        found.append(optimizer.param_groups[0]["lr"])
        if schedule is not None:
            schedule.step(epoch + 1, metric=1.0)
    return {"rates": found}


def call(*words: object, out: io.StringIO | None = None) -> tuple[int, str, str]:
    """Run the program in this process: exit code (130 after Ctrl-C, as shells have it), stdout, stderr."""
    out, err = out or io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main.main([str(word) for word in words])
    return code, out.getvalue(), err.getvalue()


class Interrupting(io.StringIO):
    """A terminal whose user presses Ctrl-C before a text that begins with `text` is printed."""

    def __init__(self, text: str):
        super().__init__()
        self.text = text

    def write(self, printed: str) -> int:
        if printed.startswith(self.text):
            raise KeyboardInterrupt
        return super().write(printed)


def learned_in(folder: Path) -> list[dict[str, torch.Tensor]]:
    return [load_checkpoint(path)["model"] for unit in ("task", "episode")
            for path in sorted(folder.glob(f"checkpoint/{unit}*.pth"))]


class Lab:
    """Small files, and what command lines over them compute; the same words are measured once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files = {"data": folder / "data.npz", "other": folder / "other.npz",
                      "weights": folder / "weights.safetensors", "order": folder / "order.txt"}
        write_npz(self.files["data"], train_per_class=4, test_per_class=2)
        write_npz(self.files["other"], train_per_class=5, test_per_class=2)
        save_file(timm_weights("glyph_vit_tiny"), self.files["weights"])
        self.files["order"].write_text("3\n1\n2\n0\n")
        self.known: dict[tuple, dict[str, Any]] = {}

    def words(self, *words: str) -> tuple[str, ...]:
        return tuple(word.format(**self.files) for word in words)

    def measure(self, words: tuple[str, ...], how: Callable = measure_run) -> dict[str, Any]:
        if (words, how) not in self.known:
            self.known[words, how] = self.measure_anew(words, how)
        return self.known[words, how]

    def measure_anew(self, words: tuple[str, ...], how: Callable = measure_run) -> dict[str, Any]:
        return how(self.words(*words), Path(tempfile.mkdtemp(dir=self.folder)))


def timm_weights(model: str) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return timm.create_model(model).state_dict()
