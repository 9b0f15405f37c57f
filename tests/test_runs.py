"""Whole runs: what training leaves, --eval, --resume, several processes, the baselines, and a golden short run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import ROOT, TINY, run_program, write_npz
from test_bad_input import contents, copy_run, run, tiny

from configs import NOT_EXPERIMENTS
from models import build_model
from utils import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.pictures

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
# Enough for the small files below to be learned.
LEARNS = ("--lr", "0.1", "--epochs", 3, "--scale", 0.7, 1, "--initializer", "zero",
          "--init-checkpoint", ROOT / "demo" / "glyph_vit.safetensors")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_npz(tmp_path_factory.mktemp("data") / "data.npz", classes=6, train_per_class=9, test_per_class=5)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    assert run(*tiny(data, folder, "--num-tasks", 3, *LEARNS, "--eval_per_image", "always")) == 0
    return folder


def summary(folder: Path, name: str = "summary.json") -> dict:
    return json.loads((folder / name).read_text())


RESULTS = ("acc@1", "acc@5", "loss", "forgetting", "backward", "learning_acc", "average_incremental_acc", "per_task",
           "acc@1_per_image", "forgetting_per_image")


def results(folder: Path, name: str = "summary.json") -> dict:
    return {key: value for key, value in summary(folder, name).items() if key in RESULTS}


def tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "checkpoint" / f"{name}.pth")["model"]


# ---- what a run leaves ----
def test_the_files_of_a_run(finished):
    names = set(contents(finished))
    assert {"config.json", "log.jsonl", "accuracy_matrix.csv", "summary.json", "checkpoint/last.pth",
            *(f"checkpoint/task{t:02d}.pth" for t in (1, 2, 3)),
            *(f"plots/{p}.png" for p in ("accuracy_matrix", "over_tasks", "prompts_per_task"))} < names
    assert {name.split("/")[0] for name in names} == {"config.json", "manifest.json.gz", "log.jsonl",
                                                      "accuracy_matrix.csv", "summary.json", "confusion.npz",
                                                      "checkpoint", "plots", "tensorboard"}
    config = json.loads((finished / "config.json").read_text())
    assert config["options"]["lr"] == 0.1
    assert {"python", "torch", "timm", "torchvision", "numpy"} <= config["versions"].keys()
    log = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in log] == (["epoch"] * 3 + ["keys", "evaluation"]) * 3
    assert log[-1]["acc@1"] == summary(finished)["acc@1"]
    assert sum(map(sum, log[-1]["prompts"])) == 30 * 5, "each of 30 test images chose 5 prompts"
    needed = {*RESULTS, "train_seconds", "eval_seconds", "train_images_per_second", "trainable_parameters", "seed",
              "config"}
    assert needed <= summary(finished).keys()


def test_tensorboard_has_the_official_names(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished / "tensorboard")).Reload()
    assert {"accuracy_1", "accuracy_2", "accuracy_3", "avg_acc", "forgetting", "backward", "learning_acc",
            "train_loss", "lr"} <= set(events.Tags()["scalars"])
    assert events.Scalars("avg_acc")[-1].value == pytest.approx(summary(finished)["acc@1"], abs=1e-4)
    assert events.Tags()["histograms"] == ["prompts_chosen"]
    for ours, official in (("train/loss", "train_loss"), ("train/lr", "lr"), ("test/acc@1", "avg_acc"),
                           ("test/forgetting", "forgetting"), ("hparam/acc@1", "avg_acc")):
        assert events.Scalars(ours)[-1].value == events.Scalars(official)[-1].value
    from tensorboard.plugins.hparams import plugin_data_pb2

    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    known = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert known["lr"].number_value == pytest.approx(0.1)
    assert known["freeze"].string_value == "['backbone']"
    assert not [path for path in (finished / "tensorboard").iterdir() if path.is_dir()], "the run is one, not two"


def test_something_was_learned_and_nothing_frozen_moved(finished):
    """The backbone of a run is bit for bit what it was; prompts, keys and head are not."""
    config = json.loads((finished / "config.json").read_text())
    model = build_model(config["options"], 6, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    learned = tensors(finished, "task03")
    assert set(learned) == {"prompt.prompts_MLD", "prompt.keys_MD", "head.weight", "head.bias"}
    assert all(not torch.equal(before[name], tensor) for name, tensor in learned.items())
    assert summary(finished)["learning_acc"] > 60, "two classes a task; chance is 17 among six"


def test_the_exact_trainable_set_of_vit_b16():
    options = {"seed": 0} | vit_b16_options("cifar100_l2p")
    model = build_model(options, 100, 10)
    sizes = {name: tensor.numel() for name, tensor in model.trained_parameters()}
    assert sizes == {"prompt.prompts_MLD": 38_400, "prompt.keys_MD": 7_680, "head.weight": 76_800, "head.bias": 100}
    assert sum(sizes.values()) == 122_980
    assert sum(p.numel() for p in model.parameters()) - 122_980 == 85_798_656, "ViT-B/16 without a classifier, once"
    assert model.query_network is model.backbone


def vit_b16_options(experiment: str) -> dict:
    from configs.command import parse

    return parse([experiment, "--no-pretrained"]).options


# ---- --eval ----
def test_eval_equals_training(finished, tmp_path):
    """Also with the results deleted: the matrix comes from the task checkpoints alone."""
    folder = copy_run(finished, tmp_path)
    for name in ("accuracy_matrix.csv", "summary.json", "log.jsonl"):
        (folder / name).unlink()
    assert run("--eval", "--output_dir", folder) == 0
    assert (folder / "eval_accuracy_matrix.csv").read_text() == (finished / "accuracy_matrix.csv").read_text()
    assert results(folder, "eval_summary.json") == results(finished)
    assert not (folder / "summary.json").exists()


def test_eval_sees_a_perturbed_checkpoint(finished, tmp_path):
    folder = copy_run(finished, tmp_path)
    path = folder / "checkpoint" / "task02.pth"
    content = load_checkpoint(path)
    content["model"]["head.weight"] = -content["model"]["head.weight"]
    save_checkpoint(path, content)
    assert run("--eval", "--output_dir", folder) == 0
    column = [row.split(",")[2] for row in (folder / "eval_accuracy_matrix.csv").read_text().splitlines()]
    assert column != [row.split(",")[2] for row in (finished / "accuracy_matrix.csv").read_text().splitlines()]
    assert results(folder, "eval_summary.json")["per_task"] == results(finished)["per_task"], "task 3 is as it was"


def test_a_word_in_another_encoding_stops_no_run_at_its_end(data, tmp_path):
    """TensorBoard's table of runs has all options, and takes UTF-8 alone."""
    assert run(*tiny(data, tmp_path / "run", "--num-tasks", 2, "--predefined_key", os.fsdecode(b"caf\xe9"))) == 0
    assert (tmp_path / "run" / "summary.json").is_file()


def test_eval_may_change_what_is_measured(finished, tmp_path):
    folder = copy_run(finished, tmp_path)
    assert run("--eval", "--output_dir", folder, "--task_inc", "--batch-size", 4) == 0
    found = summary(folder, "eval_summary.json")
    assert found["protocol"] == "batch vote over 4, task-incremental"
    assert found["acc@1"] > summary(finished)["acc@1"], "two classes compete instead of six"


def test_eval_may_cut_otherwise_where_the_head_has_not_learned_from_images_cut_so(finished, data, tmp_path, capsys):
    folder = copy_run(finished, tmp_path)
    assert run("--eval", "--output_dir", folder, "--crop_pct", 1) == 0
    assert summary(folder, "eval_summary.json")["loss"] != summary(finished)["loss"]
    means = tmp_path / "means"
    assert run("cifar100_ncm", "--data-path", data, *TINY, "--num-tasks", 3, "--output_dir", means) == 0
    assert run("--eval", "--output_dir", means, "--crop_pct", 1) == 2
    assert "with other values than --crop_pct 1.0" in capsys.readouterr().err


# ---- --resume ----
def test_resume_equals_the_run_that_was_never_stopped(finished, data, tmp_path):
    """Killed in the second task, then resumed: every number and every tensor as without."""
    words = tiny(data, tmp_path, "--num-tasks", 3, *LEARNS, "--eval_per_image", "always", "--resume")
    command = [sys.executable, str(ROOT / "main.py"), *map(str, words)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("task 2/3 epoch 2/3 done"):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "summary.json").exists()
    assert run(*words) == 0
    assert results(tmp_path) == results(finished)
    for name in ("task01", "task02", "task03", "last"):
        ours, theirs = tensors(tmp_path, name), tensors(finished, name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


def test_overwrite_removes_the_run_and_nothing_else(data, tmp_path):
    assert run(*tiny(data, tmp_path)) == 0
    (tmp_path / "notes.txt").write_text("mine")
    assert run(*tiny(data, tmp_path, "--overwrite", "--lr", 3)) == 0
    assert json.loads((tmp_path / "config.json").read_text())["options"]["lr"] == 3.0
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_empty_output_dir_saves_nothing(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*tiny(data, "")) == 0
    assert list(tmp_path.iterdir()) == []
    assert "Acc@1" in capsys.readouterr().out


# ---- several processes ----
@pytest.mark.long
def test_two_processes_agree_with_each_other_and_with_one(data, tmp_path):
    """2 × 4 images take the steps of 1 × 8: the same images, the same crops, the mean gradient over all of them."""
    words = ["cifar100_l2p", "--data-path", data, "--num-tasks", 3, "--device", "cpu", *TINY, *LEARNS,
             "--no-batchwise-prompt", "--no-unscale-lr", "--opt", "sgd", "--lr", 3]  # Adam would magnify rounding
    two = subprocess.run([sys.executable, *TORCHRUN, str(ROOT / "tests" / "save_each_rank.py"), str(tmp_path),
                          *map(str, words), "--batch-size", "4", "--output_dir", str(tmp_path / "two")],
                         cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
                         timeout=200)
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("after task 3/3") == 1, "only the main process prints"
    assert run(*words, "--output_dir", tmp_path / "one") == 0
    ranks = [torch.load(tmp_path / f"rank{rank}.pth") for rank in (0, 1)]
    one = tensors(tmp_path / "one", "task03")
    for name in one:
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        torch.testing.assert_close(ranks[0][name], one[name], atol=1e-5, rtol=0)
    assert results(tmp_path / "two")["per_task"] == results(tmp_path / "one")["per_task"]
    with np.load(tmp_path / "two" / "confusion.npz") as first, np.load(tmp_path / "one" / "confusion.npz") as second:
        assert first["counts"].tolist() == second["counts"].tolist(), "each process counted its share"
    keys = [json.loads(line) for name in ("two", "one")
            for line in (tmp_path / name / "log.jsonl").read_text().splitlines() if '"keys"' in line]
    for first, second in zip(keys[:3], keys[3:], strict=True):
        np.testing.assert_allclose(first["keys_to_keys"], second["keys_to_keys"], atol=2e-4)
        np.testing.assert_allclose(np.array(first["keys_to_queries"]), second["keys_to_queries"], atol=2e-4)


def test_the_number_of_processes_belongs_to_a_start_not_to_the_run(finished, tmp_path):
    """What was expected of the launcher that trained is not expected of the one that evaluates or resumes."""
    folder = copy_run(finished, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["options"]["world_size"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    assert run("--eval", "--output_dir", folder) == 0
    assert run("--resume", "--world_size", 1, "--output_dir", folder) == 0


@pytest.mark.long
@pytest.mark.parametrize("batch_size", [8, 16], ids=["a batch for each", "a test set of one batch"])
def test_the_speed_test_with_two_processes(batch_size, data, tmp_path):
    """Both take as many steps, whatever their clocks say: otherwise one would wait for the other's gradients."""
    words = ["cifar100_l2p", "--data-path", data, "--num-tasks", 3, "--device", "cpu", *TINY, "--dist_timeout", 20,
             "--batch-size", batch_size]
    done = subprocess.run([sys.executable, *TORCHRUN, str(ROOT / "tests" / "skewed_clocks.py"), *map(str, words),
                           "--speed_test", "--output_dir", str(tmp_path)], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "after task 3/3" in done.stdout
    assert json.loads((tmp_path / "speed.json").read_text())["processes"] == 2


@pytest.mark.long
def test_three_processes_evaluate_every_image_once(data, finished, tmp_path):
    """10 images a task in batches of 7: two batches, which three processes cannot share out evenly."""
    found = {}
    for count in (1, 2, 3):
        folder = copy_run(finished, tmp_path / str(count))
        done = run_program("--eval", "--output_dir", folder, "--batch-size", 7,
                           launcher=(*TORCHRUN[:-1], f"--nproc_per_node={count}"))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("after task 3/3") == 1
        found[count] = results(folder, "eval_summary.json")
    assert found[1]["per_task"] == found[2]["per_task"] == found[3]["per_task"]
    assert found[1]["acc@1_per_image"] == found[2]["acc@1_per_image"] == found[3]["acc@1_per_image"]
    assert found[2]["loss"] == pytest.approx(found[1]["loss"], abs=1e-5)
    assert found[3]["loss"] == pytest.approx(found[1]["loss"], abs=1e-5)


# ---- baselines and reproducibility ----
def test_class_means_do_not_hang_on_the_order_of_tasks(data, tmp_path):
    """Nearest class mean forgets nothing: after all tasks it is what one task with all classes gives."""
    words = [word if word != "cifar100_l2p" else "cifar100_ncm" for word in tiny(data, tmp_path / "a")]
    assert run(*words, "--num-tasks", 3) == 0
    words[words.index(tmp_path / "a")] = tmp_path / "b"
    assert run(*words, "--num-tasks", 1) == 0
    a, b = (tensors(tmp_path / folder, name) for folder, name in (("a", "task03"), ("b", "task01")))
    # Sums of nine float32 features of size 1, whose last bits depend on how many images share a batch.
    torch.testing.assert_close(a["head.sums_KD"], b["head.sums_KD"], atol=1e-5, rtol=0)
    assert torch.equal(a["head.counts_K"], torch.full((6,), 9))


def test_the_seed_and_nothing_else_draws(data, tmp_path):
    """The same command gives the same bits, whatever the number of data workers; another seed gives others."""
    for name, words in {"a": (), "b": ("--num-workers", 3), "c": ("--seed", 7)}.items():
        assert run(*tiny(data, tmp_path / name, *LEARNS, *words)) == 0
    a, b, c = (tensors(tmp_path / name, "last") for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert results(tmp_path / "a") == results(tmp_path / "b")
    assert not torch.equal(a["head.weight"], c["head.weight"])


def test_golden_run():
    """Five short tasks of L2P on glyphs: the numbers that were found when the naive reference first agreed."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp())
    try:
        assert run("demo_l2p", "--dataset", "Split-Glyphs", "--output_dir", folder, "--device", "cpu", "--lr", 0.005,
                   "--epochs", 1, "--subsample", 25, "--subsample_test", 10) == 0
        found = results(folder)
    finally:
        shutil.rmtree(folder)
    golden = json.loads((ROOT / "tests" / "golden.json").read_text())
    # One image of a test set of 40 is 2.5 points: other versions and processors may round it across the border.
    assert found["acc@1"] == pytest.approx(golden["acc@1"], abs=3.0)
    assert found["forgetting"] == pytest.approx(golden["forgetting"], abs=4.0)
    assert found["loss"] == pytest.approx(golden["loss"], rel=0.01)


def test_cost_of_a_task_is_flat(data, tmp_path):
    """Training sees as many images in the last task as in the first; evaluation sees one more test set each time."""
    assert run(*tiny(data, tmp_path, "--num-tasks", 3, "--eval_per_image", "never")) == 0
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [sum(map(sum, row["prompts"])) // 5 for row in log if row["kind"] == "evaluation"] == [10, 20, 30]
    sizes = [(tmp_path / "checkpoint" / f"task{t:02d}.pth").stat().st_size for t in (1, 2, 3)]
    assert max(sizes) - min(sizes) < 100


def test_list_names_every_experiment():
    found = run_program("--list")
    assert found.returncode == 0
    lines = found.stdout.splitlines()
    files = {p.stem for p in (ROOT / "configs").glob("*.py")} - {"__init__", *NOT_EXPERIMENTS}
    assert {line.split()[0] for line in lines} == files
    assert all(len(line.split()) > 3 for line in lines)
