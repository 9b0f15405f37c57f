"""Options whose effect is no difference between two runs: a test for each of them, named in `OWN_TESTS`."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from fixtures import ROOT, run_program
from lab import BASE, STREAM, Interrupting, call, learned_in, measure_rates, measure_run, timm_weights
from safetensors.torch import save_file

import build
from configs.command import parse
from continual_datasets import Scenario
from continual_datasets.npz import read_npz
from records import opening_lines
from utils import Processes

pytestmark = pytest.mark.pictures


def test_device(lab):
    cpu = lab.measure(BASE)
    assert cpu["device"] == "cpu"
    assert "on cpu," in cpu["opening"]
    auto = lab.measure((*BASE, "--device", "auto"))
    assert auto["device"] == "cpu"
    for name in ["cuda:99", "cuda"]:
        code, out, err = call(*lab.words(*BASE, "--device", name, "--output_dir", ""))
        assert (code, out) == (2, "")
        assert f"--device {name} needs " in err


def test_precision_is_chosen_by_the_device(lab):
    """`auto` is told and stored as what it came to; what a device has not is refused before anything is written."""
    auto = lab.measure(BASE)
    assert ", fp32, " in auto["opening"]
    assert auto | {"opening": ""} == lab.measure((*BASE, "--precision", "fp32")) | {"opening": ""}
    code, out, err = call(*lab.words(*BASE, "--precision", "tf32", "--output_dir", ""))
    assert (code, out) == (2, "")
    assert "--precision tf32 is a mode of NVIDIA GPUs" in err


def test_adapt_none_trains_nothing(lab):
    """Prompts stay as they were drawn, and only what is computed in closed form is saved."""
    found = lab.measure((*BASE, "--adapt", "none", "--head", "ncm"))
    assert found["lr"] == []
    assert {name for state in found["shapes"] for name in state} == {"head.sums_KD", "head.counts_K"}


@pytest.mark.long
def test_compile(lab):
    """The same values to rounding."""
    base, compiled = lab.measure(BASE), lab.measure((*BASE, "--compile"))
    assert ", compiled, " in compiled["opening"]
    assert base["shapes"] == compiled["shapes"]
    for found, expected in ((compiled[name], base[name]) for name in ("first loss", "later loss")):
        assert found == pytest.approx(expected, abs=1e-4)
    assert base["learned"] != compiled["learned"], "nothing was compiled"


@pytest.mark.long
def test_compile_where_there_is_no_compiler(lab, tmp_path):
    """One sentence and no folder."""
    done = run_program(*lab.words(*BASE, "--compile", "--output_dir", str(tmp_path / "run")), CXX="/nowhere/g++",
                       TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    assert done.returncode == 2
    assert "--compile: torch cannot compile here" in done.stderr
    assert re.search("^--compile: torch makes kernels for batches of 4 now; .* later runs find them in /", done.stdout)
    assert len(done.stdout.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_schedule(lab):
    """Tasks or episodes: other units, other steps, one test set."""
    tasks, stream = lab.measure(BASE), lab.measure(STREAM)
    assert len(tasks["evaluation"]) == len(stream["evaluation"]) == 2
    assert [row["task"] for row in tasks["evaluation"]] == [1, 2]
    assert [row["episode"] for row in stream["evaluation"]] == [2, 4]
    assert "forgetting" in tasks["evaluation"][0]
    assert "forgetting" not in stream["evaluation"][0]


def test_speed_test(lab, tmp_path):
    """Measured before training, which then computes what it would have computed; or measured alone."""
    words = lab.words(*BASE, "--speed_test", "--output_dir", str(tmp_path / "run"))
    code, out, err = call(*words)
    assert code == 0, err
    expected = lab.measure(BASE)["learned"]
    assert [{k: v.numpy().tobytes() for k, v in state.items()} for state in learned_in(tmp_path / "run")] == expected

    code, out, err = call(*lab.words(*BASE, "--speed_test_only", "--output_dir", str(tmp_path / "alone")))
    assert code == 0, err
    assert "epoch" not in out
    assert [path.name for path in (tmp_path / "alone").iterdir()] == ["speed.json"]
    for folder in ("run", "alone"):
        found = json.loads((tmp_path / folder / "speed.json").read_text())
        parts = {part["name"]: part for part in found["parts"]}
        assert list(parts) == ["query pass", "prompted pass", "training step", "training with its data",
                               "evaluation, new task", "evaluation, task seen before"]
        assert all(part[value] > 0 for part in found["parts"] for value in (
            "images_per_second", "gflop_per_image", "fraction_of_peak", "peak_memory_bytes"))
        # Without weight gradients a step costs the query pass, and forward and backward of the prompted pass.
        query, prompted, step = (parts[n]["gflop_per_image"] for n in ("query pass", "prompted pass", "training step"))
        assert query + 1.9 * prompted < step < query + 2.4 * prompted
        assert parts["evaluation, new task"]["gflop_per_image"] == pytest.approx(query + prompted)
        assert found["checkpoint_bytes"] < 100_000
        assert found["config"]["precision"] == "fp32"
    for other in ("--eval", "--resume", "--overwrite"):
        code, out, err = call(*lab.words(*BASE, "--speed_test_only", other, "--output_dir", str(tmp_path / "run")))
        assert (code, out) == (2, "")
        assert "exclude each other" in err


def test_pretrained(lab, tmp_path, monkeypatch):
    """From the hub's cache when it is there, one sentence when it cannot be had, random without the option."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    words = (*BASE, "--model", "test_vit", "--input_size", "160", "--subsample", "1")
    code, out, err = call(*lab.words(*words, "--pretrained", "--output_dir", ""))
    assert (code, out) == (2, "")
    assert "pretrained weights of test_vit.r160_in1k could not be obtained" in err

    repository, revision = tmp_path / "models--timm--test_vit.r160_in1k", "0" * 40
    file = repository / "snapshots" / revision / "model.safetensors"
    file.parent.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    save_file(timm_weights("test_vit"), file)
    found = lab.measure_anew((*words, "--pretrained"))["backbone"]
    assert found != lab.measure(words)["backbone"]
    assert found == lab.measure((*words, "--init_checkpoint", str(file)))["backbone"]


def test_download(lab, tmp_path, monkeypatch):
    """Without it the folder is only read; with it the archive is asked for (here of a port where nobody answers)."""
    from torchvision.datasets import CIFAR100

    monkeypatch.setattr(CIFAR100, "url", f"http://127.0.0.1:9/{CIFAR100.filename}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    words = lab.words(*BASE, "--data_path", str(tmp_path / "data"), "--output_dir", "")
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert "add --download" in err
    code, out, err = call(*words, "--download")
    assert (code, out) == (2, "")
    assert "--download could not fetch CIFAR-100" in err


def test_num_workers(lab):
    """Batches made ahead by a thread of their own: another line, and not one value differs."""
    base, ahead = lab.measure(BASE), lab.measure((*BASE, "--num_workers", "2"))
    assert ", 0 batches ahead," in base["opening"]
    assert ", 2 batches ahead," in ahead["opening"]
    assert base | {"opening": ""} == ahead | {"opening": ""}

    images = read_npz(str(lab.files["data"])).train
    for workers in (0, 2):
        options = parse((*BASE, "--batch_size", "1", "--num_workers", str(workers))).options
        before = set(threading.enumerate())
        batches = build.build_batches(options, None, torch.device("cpu"), Processes()).training(images, 0, 0)
        next(batches)
        assert [t.name for t in threading.enumerate() if t not in before] == ["batches"] * bool(workers)
        batches.close()


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_pin_mem(device):
    """For copies to a GPU only. Whether to pin, and the line about it, are decided without touching the GPU."""
    for pinned in (True, False):
        options = parse((*BASE, "--pin_mem", str(pinned))).options
        batches = build.build_batches(options, None, torch.device(device), Processes())
        assert batches.pin_memory == (pinned and device != "cpu")
        config = {"experiment": "any", "options": options, "protocol": "any", "world_size": 1, "device": device,
                  "precision": "fp32", "model": {"name": "any", "parameters": 1, "trainable_parameters": 1}}
        line = opening_lines(config, Scenario((), ()))[1]
        assert ("pinned memory on" in line) == batches.pin_memory


def test_output_dir(lab, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    code, out, _ = call(*lab.words(*BASE, "--output_dir", ""))
    assert code == 0
    assert "nothing is written" in out
    assert list(tmp_path.rglob("*")) == [tmp_path / "here"]
    code, out, _ = call(*lab.words(*BASE, "--output_dir", "there"))
    assert code == 0
    assert "writing there" in out
    assert sorted(path.name for path in Path("there").iterdir()) == [
        "accuracy_matrix.csv", "checkpoint", "config.json", "confusion.npz", "log.jsonl", "manifest.json.gz", "plots",
        "summary.json", "tensorboard"]


def test_resume_and_overwrite(lab, tmp_path):
    """A run stopped in its second task: refused without either, continued by the one, begun anew by the other."""
    expected = lab.measure(BASE)
    words = lab.words(*BASE, "--output_dir", str(tmp_path))
    assert call(*words, out=Interrupting("task 2/2"))[0] == 130
    note = tmp_path / "note.txt"
    note.write_text("the user's own")
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert "already holds a run" in err

    code, out, err = call(*words, "--resume")
    assert code == 0, err
    assert re.findall(r"^task (\S+) epoch .*done", out, re.MULTILINE) == ["2/2"]
    assert [{k: v.numpy().tobytes() for k, v in state.items()} for state in learned_in(tmp_path)] == expected["learned"]

    of_an_evaluation = [tmp_path / f"eval_{name}" for name in ("summary.json", "log.jsonl", "confusion.npz")]
    for path in of_an_evaluation:
        path.write_text("of the run to be removed")
    code, out, err = call(*words, "--overwrite", "--seed", "1")
    assert code == 0, err
    assert not any(path.exists() for path in of_an_evaluation)
    assert re.findall(r"^task (\S+) epoch .*done", out, re.MULTILINE) == ["1/2", "2/2"]
    assert json.loads((tmp_path / "config.json").read_text())["options"]["seed"] == 1
    assert note.read_text() == "the user's own"


def test_eval(lab, tmp_path):
    """Nothing is trained, and the task checkpoints are measured again."""
    expected = lab.measure(BASE)
    measure_run(lab.words(*BASE), tmp_path)
    checkpoints = {path: path.read_bytes() for path in tmp_path.glob("checkpoint/*")}
    code, out, err = call("--eval", "--output_dir", tmp_path)
    assert code == 0, err
    assert "epoch" not in out
    assert json.loads((tmp_path / "eval_summary.json").read_text())["acc@1"] == expected["evaluation"][-1]["acc@1"]
    assert {path: path.read_bytes() for path in tmp_path.glob("checkpoint/*")} == checkpoints


def test_unscale_lr(monkeypatch):
    """The rate grows with the batch of all processes together, or of one."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    one, all_of_them = (measure_rates((*BASE, "--unscale_lr", value))["rates"][0] for value in ("true", "false"))
    assert all_of_them == 2 * one == 2 * 0.03 * 4 / 256


@pytest.mark.long
def test_world_size_and_dist_url(lab, tmp_path):
    """Two processes meet where --dist_url says (the environment names no place), and are as many as expected."""
    code, out, err = call(*lab.words(*BASE, "--world_size", "2", "--output_dir", ""))
    assert (code, out) == (2, "")
    assert "--world_size 2, but the launcher started 1 process(es)" in err

    words = lab.words(*BASE, "--world_size", "2", "--dist_url", f"file://{tmp_path}/meeting", "--output_dir", "")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MASTER_")}
    processes = [subprocess.Popen([sys.executable, ROOT / "main.py", *words], stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True,
                                  env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"})
                 for rank in range(2)]
    try:
        printed = [process.communicate(timeout=200)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], printed
    assert "seed 42, 2 process(es) on cpu" in printed[0]
    assert "task" not in printed[1]


def test_dist_timeout(lab):
    """The process that waits for one that never comes gives up after so many seconds, and says where it waited."""
    words = lab.words(*BASE, "--output_dir", "", "--dist_timeout", "1")
    environment = {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    done = subprocess.run([sys.executable, ROOT / "main.py", *words], capture_output=True, text=True, timeout=100,
                          env=os.environ | environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert "main.py: error: --dist_url env:// (MASTER_ADDR=127.0.0.1 MASTER_PORT=9): the 2 processes could not meet " \
           "there" in done.stderr
    assert re.search("timed out after 1s|timed out after 1000 ?ms|[Tt]imeout.* 1000 ?ms", done.stderr), done.stderr


OWN_TESTS: dict[str, Callable] = {
    "device": test_device,
    "compile": test_compile,
    "schedule": test_schedule,
    "speed_test": test_speed_test,
    "speed_test_only": test_speed_test,
    "pretrained": test_pretrained,
    "unscale_lr": test_unscale_lr,
    "download": test_download,
    "num_workers": test_num_workers,
    "pin_mem": test_pin_mem,
    "output_dir": test_output_dir,
    "overwrite": test_resume_and_overwrite,
    "resume": test_resume_and_overwrite,
    "eval": test_eval,
    "world_size": test_world_size_and_dist_url,
    "dist_url": test_world_size_and_dist_url,
    "dist_timeout": test_dist_timeout,
}
