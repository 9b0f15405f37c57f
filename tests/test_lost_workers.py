"""Processes that decode images and die, or have no room to work in: one sentence, and the run can go on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures import ROOT, TINY
from killing import Run
from published import class_folders, under, write_files


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    files = class_folders(["ant", "bee", "cat", "dog"], 24)
    write_files(folder, under("train", files) | under("test", class_folders(["ant", "bee", "cat", "dog"], 2)))
    return folder


def words(photos: Path, workers: int) -> list[object]:
    return ["--dataset", "Split-Folder", "--data-path", photos, "--num_tasks", 2, *TINY, "--num-workers", workers,
            "--batch-size", 4, "--print-freq", 1, "--device", "cpu", "--eval_per_image", "never"]


def children(number: int) -> list[int]:
    return [int(each) for task in Path(f"/proc/{number}/task").iterdir()
            for each in (task / "children").read_text().split()]


def test_a_run_whose_worker_is_killed_ends_with_one_sentence_and_goes_on_with_resume(photos, tmp_path):
    """As the system kills a process when memory is short."""
    run = Run(tmp_path / "run", *words(photos, 2), "--epochs", 40)
    assert run.wait_for("task 1/2 epoch 2/40 step 2/")
    os.kill(children(run.process.pid)[0], signal.SIGKILL)
    assert run.end(timeout=60) == 1
    line = run.lines[-1]
    assert line.startswith("main.py: error: a process that decodes images has ended")
    assert "Traceback" not in run.text()
    assert "--resume" in line
    assert "--num_workers 0" in line
    again = Run(tmp_path / "run", *words(photos, 1), "--epochs", 40, "--resume")
    assert again.wait_for("task 1/2 epoch 3/40 step 1/")
    assert "task 1/2 epoch 1/40" not in again.text()
    os.killpg(again.process.pid, signal.SIGTERM)  # to all its processes, as clusters do
    assert again.end(timeout=60) == 143
    assert "stopped by SIGTERM; everything done is saved" in again.lines[-1]


READ_ALL = """
import sys
import torch
from continual_datasets import Batches
from continual_datasets.readers import CATALOGUE
from continual_datasets.transforms import EvalTransform, TrainTransform

images = CATALOGUE["Split-Folder"](sys.argv[1], False, 0)
batches = Batches(TrainTransform(224), EvalTransform(224), batch_size=8, seed=0, device=torch.device("cpu"), prefetch=2)
print(sum(len(batch.labels_B) for part in (images.train, images.test) for batch in batches.evaluation(part)))
"""


def test_batches_need_no_shared_memory(photos, tmp_path):
    """A container's /dev/shm may be smaller than a batch: here it is 64 KiB, and a batch more than 1 MB."""
    small = ["unshare", "--map-root-user", "--mount", "sh", "-c",
             'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"', "sh"]
    try:
        able = subprocess.run([*small, "true"], capture_output=True, timeout=20).returncode == 0
    except OSError:
        able = False
    if not able:
        pytest.skip("a /dev/shm of one's own cannot be had here")
    done = subprocess.run([*small, sys.executable, "-c", READ_ALL, str(photos / "train")], cwd=ROOT, text=True,
                          capture_output=True, timeout=60, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout) == (0, "96\n"), done.stderr
