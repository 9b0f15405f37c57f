"""Finished runs in the true format, made up: for what reads runs by the hundred."""

import csv
import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

import report
from configs import load_experiment
from configs.command import default_options
from metrics import AccuracyMatrix


def write_run(folder: Path, seed: int = 1, *, level: float = 80.0, tasks: int = 3, classes: int = 6,
              choice: str = "batch vote over 20", setting: str = "class-incremental", weights: str = "a" * 64,
              data: str | None = "d" * 64, prompts: int = 4, pool: bool = True, experiment: str = "demo_l2p",
              prefix: str = "", **options: Any) -> Path:
    """A run of which everything is a function of the arguments; around `level` percent."""
    draw = np.random.default_rng([seed, zlib.crc32(folder.name.encode())])
    shared = setting in ("task-agnostic", "domain-incremental")
    accuracy = AccuracyMatrix(tasks, 1 if shared else None)
    for t in range(tasks):
        for i in range(accuracy.rows(t)):
            accuracy.record(i, t, float(np.clip(level + draw.normal(0, 2), 0, 100)), 99.0, 1.5)
    config = {
        "experiment": experiment, "protocol": f"{choice}, {setting}",
        "options": default_options(load_experiment(experiment)) | {"seed": seed, "top_k": 2, "size": prompts} | options,
        "model": {"name": "glyph_vit_tiny", "parameters": 830612, "trainable_parameters": 10260,
                  "backbone_sha256": weights},
        "class_names": [f"class {k}" for k in range(classes)], "world_size": 1, "device": "cpu", "precision": "fp32",
        "command": ["main.py", experiment, "--seed", str(seed)], "commit": "c" * 40,
        "versions": {"python": "3.11.7", "torch": "2.15.0"}, "hardware": {"device": "AMD EPYC", "threads": 1},
    } | ({"data_sha256": data} if data else {})
    votes = {"acc@1_per_image": level - 1.0, "forgetting_per_image": 3.0} if "vote" in choice else {}
    summary = accuracy.summary(tasks - 1) | {
        "evaluated_after": list(range(1, tasks + 1)), "train_seconds": 10 + draw.random(),
        "eval_seconds": 2 + draw.random(), "train_images_per_second": 200.0, "trainable_parameters": 10260,
        "replay_images": 0, "replay_bytes": 0, "seed": seed, "protocol": config["protocol"], "config": config} | votes
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(accuracy.to_rows(unit_of(setting)))
    (folder / f"{prefix}accuracy_matrix.csv").write_text(text.getvalue())
    (folder / f"{prefix}summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    if not prefix:
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (folder / "checkpoint").mkdir(exist_ok=True)
        (folder / "checkpoint" / f"task{tasks:02d}.pth").write_bytes(b"0" * 1000)
    (folder / f"{prefix}log.jsonl").write_text("".join(
        json.dumps(row) + "\n" for row in _log(accuracy, draw, unit_of(setting), prompts if pool else 0)))
    counts_KK = draw.integers(0, 5, (classes, classes)) + 20 * np.eye(classes, dtype=int)
    own = {} if shared else {"task_of_class": 1 + np.arange(classes) * tasks // classes}
    np.savez_compressed(folder / f"{prefix}confusion.npz", counts=counts_KK, **own)
    return folder


def unit_of(setting: str) -> str:
    return {"task-agnostic": "episode", "domain-incremental": "session"}.get(setting, "task")


def _log(accuracy: AccuracyMatrix, draw: np.random.Generator, unit: str, prompts: int) -> list[dict[str, Any]]:
    rows = []
    for t in range(accuracy.num_tasks):
        tests = accuracy.rows(t)
        rows.append({"kind": "epoch", "time": 1.0, unit: t + 1, "epoch": 1, "seconds": 1.0, "loss": 1.0, "acc@1": 50.0,
                     "lr": 0.1})
        chosen = {}
        if prompts:
            pairs = prompts * (prompts - 1) // 2
            rows.append({"kind": "keys", "time": 1.0, unit: t + 1, "keys_to_keys": draw.uniform(-1, 1, pairs).tolist(),
                         "keys_to_queries": draw.uniform(-1, 1, (tests, prompts)).tolist()})
            counts_RM = np.zeros((tests, prompts), dtype=int)
            counts_RM[:, :2] = 30
            chosen = {"prompts": counts_RM.tolist()}
        rows.append({"kind": "evaluation", "time": 1.0, unit: t + 1, **accuracy.summary(t), **chosen})
    return rows


def run_report(*words: object, capsys) -> tuple[int, str, str]:
    code = report.main([str(word) for word in words])
    return code, *capsys.readouterr()
