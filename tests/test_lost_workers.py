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


@pytest.mark.long
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
from errors import DamagedFileError

images = CATALOGUE["Split-Folder"](sys.argv[1], False)
batches = Batches(TrainTransform(224), EvalTransform(224), batch_size=8, seed=0, device=torch.device("cpu"), prefetch=2)
try:
    print(sum(len(batch.labels_B) for part in (images.train, images.test) for batch in batches.evaluation(part)))
except DamagedFileError as error:
    print(error)
    sys.exit(1)
"""


def in_small_shared_memory(then: str, photos: Path) -> subprocess.CompletedProcess:
    """Read all photos where /dev/shm has 64 KiB, after the shell's commands `then`."""
    small = ["unshare", "--map-root-user", "--mount", "sh", "-c",
             f'mount -t tmpfs -o size=64k tmpfs /dev/shm && {then} && exec "$@"', "sh"]
    try:
        able = subprocess.run([*small, "true"], capture_output=True, timeout=20).returncode == 0
    except OSError:
        able = False
    if not able:
        pytest.skip("a /dev/shm of one's own cannot be had here")
    return subprocess.run([*small, sys.executable, "-c", READ_ALL, str(photos / "train")], cwd=ROOT, text=True,
                          capture_output=True, timeout=60, env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_batches_need_no_shared_memory(photos):
    """A container's /dev/shm may be smaller than a batch, which here has more than 1 MB."""
    done = in_small_shared_memory("true", photos)
    assert (done.returncode, done.stdout) == (0, "96\n"), done.stderr


@pytest.mark.long
def test_workers_that_cannot_be_started(photos):
    """They are told what to do through semaphores, for which a full /dev/shm has no room."""
    done = in_small_shared_memory("{ head -c 100000 /dev/zero > /dev/shm/full || true; }", photos)
    assert done.returncode == 1
    assert "--num_workers 2: the processes that decode images cannot be started (" in done.stdout
    assert "--num_workers 0" in done.stdout
    assert not done.stderr.replace("head: error writing 'standard output': No space left on device\n", "")
