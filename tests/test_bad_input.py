"""Bad input gets one clear sentence, exit code 2, and touches nothing (a case table; each through the real `main`)."""

import argparse
import json
import os
import re
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from fixtures import TINY, write_npz

import main
import models.glyph_vit  # noqa: F401 -- registers the demo's backbone with timm
from utils import load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_npz(tmp_path_factory.mktemp("data") / "data.npz")


def run(*words: object) -> int:
    return main.main([str(word) for word in words])


def tiny(data: Path, output: Path, *words: object) -> tuple[object, ...]:
    return ("cifar100_l2p", "--data-path", data, "--output-dir", output, "--num-tasks", 2, "--device", "cpu", *TINY,
            *words)


def refused(capsys, *words: object) -> str:
    """Run, and check what holds for every refusal: exit code 2, nothing on stdout, one sentence on stderr."""
    assert run(*words) == 2
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if "warning" not in line]
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("main.py: error: ")
    assert not printed.out
    return lines[0]


OPTIONS = {
    "unknown experiment": (["cifar10_l2p"], "unknown experiment 'cifar10_l2p': did you mean cifar100_l2p"),
    "unknown option": (["--bach-size", 8], "unknown option --bach_size: did you mean --batch_size?"),
    "unknown word": (["cifar100_l2p", "fast"], "unexpected word 'fast'"),
    "unknown value": (["--initializer", "gauss"], "--initializer: invalid choice: 'gauss'"),
    "unknown data set": (["--dataset", "Split-CIFAR10O"], "unknown --dataset 'Split-CIFAR10O': did you mean Split-"),
    "unknown optimizer": (["--opt", "adamm"], "unknown --opt 'adamm': did you mean"),
    "unknown model": (["--model", "vit_bass_patch16_224"], "did you mean"),
    "unknown freeze word": (["--freeze", "blockz"], "--freeze blockz"),
    "top_k > size": (["--top_k", 11], "--top_k 11 is more than --size 10"),
    "batch size 0": (["--batch-size", 0], "--batch_size: '0' is not a whole number of at least 1"),
    "lr nan": (["--lr", "nan"], "--lr: 'nan' is not a finite number"),
    "lr infinite": (["--lr", "inf"], "--lr: 'inf' is not a finite number"),
    "not a boolean": (["--train-mask", "maybe"], "--train_mask: 'maybe' is neither true nor false"),
    "cuda without a GPU": (["--device", "cuda:99"], "--device cuda:99 needs 100 GPU(s) for 1 process(es)"),
    "no such device": (["--device", "gpu"], "--device gpu"),
    "prompt head, no prompts": (["--prompt_method", "none"], "--head_type prompt reads prompt outputs"),
    "eval without a folder": (["--eval", "--output_dir", ""], "--eval needs the run in --output_dir"),
    "eval and resume": (["--eval", "--resume"], "--eval and --resume exclude each other"),
    "not a ViT": (["--model", "resnet18"], "--model resnet18"),
    "launcher's number": (["--world_size", 3], "--world_size 3, but the launcher started 1 process"),
}


@pytest.mark.parametrize(("words", "message"), OPTIONS.values(), ids=OPTIONS)
def test_options(words, message, data, tmp_path, capsys):
    whole = not str(words[0]).startswith("--")  # a whole command line, or options added to a good one
    assert message in refused(capsys, *(words if whole else [*tiny(data, tmp_path / "output"), *words]))
    assert not (tmp_path / "output").exists()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("option", ["--data_path", "--init_checkpoint", "--class_order", "--output_dir", "--dist_url"])
def test_paths_that_never_end(option, data, tmp_path, capsys):
    """Nothing waits at a named pipe or reads a device to its end, whichever option leads to it."""
    os.mkfifo(tmp_path / "pipe.npz")
    for path, kind in ((tmp_path / "pipe.npz", "a named pipe"), ("/dev/zero", "a device")):
        text = f"file://{path}" if option == "--dist_url" else path
        message = refused(capsys, *tiny(data, tmp_path / "output", option, text))
        assert re.search(f"{option} (file://)?{path} is {kind}", message.replace("--dist_url /", "--dist_url file:///"))
    assert not (tmp_path / "output").exists()


def test_num_tasks_that_does_not_divide(data, tmp_path, capsys):
    message = refused(capsys, *tiny(data, tmp_path / "output", "--num-tasks", 3))
    assert "--num_tasks 3 does not divide 4 classes equally; one of 1, 2, 4 would" in message
    assert not (tmp_path / "output").exists()


DATA = {
    "wrong dtype": ({"x_train": np.zeros((24, 32, 32, 3), np.float32)}, "x_train is float32; pixels must be uint8"),
    "wrong shape": ({"x_test": np.zeros((12, 3, 32, 32), np.uint8)}, "images must be (N, height, width, 3)"),
    "label too high": ({"y_test": np.full(12, 9)}, "they must lie from 0 to 3, with 4 classes"),
    "label below 0": ({"y_train": np.full(24, -1)}, "y_train holds labels from -1 to -1"),
    "too few labels": ({"y_train": np.zeros(3, int)}, "one label for each of the 24 images"),
    "labels not whole": ({"y_train": np.zeros(24)}, "labels must be whole numbers"),
}


@pytest.mark.parametrize(("arrays", "message"), DATA.values(), ids=DATA)
def test_npz_content(arrays, message, tmp_path, capsys):
    path = write_npz(tmp_path / "bad.npz", **arrays)
    assert message in refused(capsys, *tiny(path, tmp_path / "output"))
    assert not (tmp_path / "output").exists()


def test_data_path_missing_or_empty_or_damaged(data, tmp_path, capsys):
    for path in (tmp_path / "nowhere", tmp_path):
        message = refused(capsys, *tiny(path, tmp_path / "output"))
        for part in (f"--data_path {path}", str(path / "cifar-100-python"), "train, test, meta", "--download",
                     "main.py demo_l2p"):
            assert part in message
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(data.read_bytes()[:500])
    assert "cannot be read as an .npz" in refused(capsys, *tiny(damaged, tmp_path / "output"))
    assert "there is no such file" in refused(capsys, *tiny(tmp_path / "no.npz", tmp_path / "output"))
    assert "neither a folder nor an .npz" in refused(capsys, *tiny(Path(__file__), tmp_path / "output"))
    assert not (tmp_path / "output").exists()


def test_weights_that_cannot_be_read(data, tmp_path, capsys):
    absent = tmp_path / "absent.safetensors"
    assert "--init_checkpoint" in refused(capsys, *tiny(data, tmp_path / "output", "--init-checkpoint", absent))
    state = timm.create_model("glyph_vit_tiny").state_dict()
    state["norm.bias"][3] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    words = tiny(data, tmp_path / "output", "--init-checkpoint", tmp_path / "nan.pth")
    assert "NaN or infinite, or too large for float32, in norm.bias" in refused(capsys, *words)
    assert not (tmp_path / "output").exists()


def test_what_is_left_out_of_a_weight_file_is_said_once(data, tmp_path, capsys):
    torch.save({"model": timm.create_model("glyph_vit_tiny", num_classes=3).state_dict()}, tmp_path / "vit.pth")
    assert run(*tiny(data, tmp_path / "output", "--init-checkpoint", tmp_path / "vit.pth")) == 0
    warning = f"main.py: warning: --init_checkpoint {tmp_path}/vit.pth holds more than a backbone; left out: head.\n"
    assert capsys.readouterr().err.count(warning) == 1


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    assert run(*tiny(data, folder)) == 0
    return folder


def test_a_folder_that_holds_a_run(finished, data, capsys):
    before = contents(finished)
    message = refused(capsys, *tiny(data, finished))
    assert all(word in message for word in ("already holds a run", "--resume", "--overwrite", "--eval"))
    message = refused(capsys, *tiny(data, finished, "--resume", "--lr", 0.5, "--epochs", 3))
    assert "--lr 0.5" in message
    assert "--epochs 3" in message
    message = refused(capsys, "cifar100_l2p_jax", "--output_dir", finished, "--eval")
    assert "cifar100_l2p_jax" in message
    assert contents(finished) == before


@pytest.mark.parametrize("words", [("--head", "ncm"), ("--drift", "shift"), ("--joint", "--schedule", "gaussian")])
@pytest.mark.parametrize("mode", ["--eval", "--resume"])
def test_options_that_would_make_it_another_run_are_told_as_such(mode, words, finished, capsys):
    """And not by what they contradict in the defaults, which the run need not have."""
    assert run(mode, "--output_dir", finished, *words) == 2
    message = capsys.readouterr().err
    assert f"{mode}: the run in {finished} was made by" in message
    assert all(word in message for word in words)


def test_a_folder_that_cannot_be_written(data, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("mine")
    assert "no files can be made" in refused(capsys, *tiny(data, file / "output"))
    for words in (tiny(data, file), tiny(data, file, "--overwrite"), ["--resume", "--output_dir", file],
                  ["--eval", "--output_dir", file]):
        assert f"--output_dir {file} is a file, and a run needs a folder" in refused(capsys, *words)
    assert file.read_text() == "mine"


def test_eval_without_a_run(tmp_path, capsys):
    assert "holds no run" in refused(capsys, "--eval", "--output_dir", tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "config.json is damaged" in refused(capsys, "--eval", "--output_dir", tmp_path)


def copy_run(finished: Path, folder: Path) -> Path:
    for name, data in contents(finished).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_eval_names_the_missing_files(finished, tmp_path, capsys):
    folder = copy_run(finished, tmp_path)
    (folder / "checkpoint" / "task02.pth").unlink()
    assert "lacks task02.pth" in refused(capsys, "--eval", "--output_dir", folder)


def test_damaged_and_foreign_checkpoints(finished, tmp_path, capsys):
    folder = copy_run(finished, tmp_path)
    path = folder / "checkpoint" / "task01.pth"
    good = path.read_bytes()
    for damaged in (good[:100] + b"?" + good[101:], good[:-40], b""):
        path.write_bytes(damaged)
        assert re.search("damaged|cut short", refused(capsys, "--eval", "--output_dir", folder))
    # What the PyTorch re-implementation writes: a pickle with argparse's options in it.
    torch.save({"model": {"prompt.prompt": torch.zeros(3)}, "epoch": 4, "args": argparse.Namespace(lr=0.1)}, path)
    assert "import_run.py makes a run of it" in refused(capsys, "--eval", "--output_dir", folder)
    torch.save({"prompts": torch.zeros(3)}, path)
    assert "not a checkpoint of this program" in refused(capsys, "--eval", "--output_dir", folder)


def test_a_checkpoint_of_another_model(finished, tmp_path, capsys):
    folder = copy_run(finished, tmp_path)
    path = folder / "checkpoint" / "task01.pth"
    content = load_checkpoint(path)
    content["made_by"] = content["made_by"] | {"backbone_sha256": "0" * 64}
    save_checkpoint(path, content)
    assert "is a checkpoint of another model" in refused(capsys, "--eval", "--output_dir", folder)
    content = load_checkpoint(finished / "checkpoint" / "task01.pth")
    content["model"]["head.weight"] = torch.zeros(3, 3)
    save_checkpoint(path, content)
    assert "head.weight" in refused(capsys, "--eval", "--output_dir", folder)


def test_a_loss_that_is_not_finite_stops_the_run(data, tmp_path, capsys):
    """A learning rate far too high: the run stops in its first task, says where, and leaves good checkpoints."""
    words = tiny(data, tmp_path, "--lr", "1e6", "--weight-decay", "1e6", "--opt", "sgd", "--clip-grad", "none",
                 "--epochs", 4, "--print-freq", 1)
    assert run(*words) == 1
    text = capsys.readouterr().out
    place = re.search(r"the loss is not finite at task (\d+), epoch (\d+), step (\d+)", text)
    assert place, text
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    done = [(row["task"], row["epoch"]) for row in log if row["kind"] == "epoch"]
    assert (int(place[1]), int(place[2])) not in done
    if done:
        load_checkpoint(tmp_path / "checkpoint" / "last.pth")


def test_a_loss_that_is_not_finite_first_in_the_test(data, tmp_path, capsys):
    """The only update of a task makes finite values, whose products are not."""
    words = tiny(data, tmp_path, "--lr", "1e6", "--weight-decay", "1e6", "--opt", "adamw", "--clip-grad", "none",
                 "--batch-size", 64)
    assert run(*words) == 1
    assert "main.py: error: the loss in the test of task 1 is not finite: " in capsys.readouterr().out
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_more_than_the_memory_holds(data, tmp_path, capsys):
    """A batch of 5 GB, where this process may take one more."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2**30, before[1]))
    try:
        code = run(*tiny(data, tmp_path, "--batch_size", 24, "--input_size", 4096))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert code == 1
    assert re.search(r"^main\.py: error: there is too little memory \(.*\): use a smaller --batch_size",
                     capsys.readouterr().err, re.MULTILINE)


@pytest.mark.parametrize(("words", "message"), [
    (["cifar100_ncm", "--freeze", "blocks"], "--head ncm needs features that stay, but 27264 values train"),
    (["cifar100_l2p", "--freeze", "backbone", "head", "prompt"], "--freeze leaves nothing to train"),
    (["cifar100_oneprompt", "--g_prompt_layers", *"0123"],
     "--g_prompt_layers 0 1 2 3 leaves no layer for --prompt_layers: give fewer."),
    *((["cifar100_oneprompt", "--prompt_layers", *layers],
       f"--prompt_layers {' '.join(layers)}: name layers of glyph_vit_tiny from 0 to 3, each once and none of "
       "--g_prompt_layers 0 1.") for layers in ("234", "123")),
    (["cifar100_l2p", "--freeze", "blocksX"], "--freeze blocksX"),
    (["cifar100_ncm", "--drift", "shift"], "--drift shift: no feature moves here"),
    (["cifar100_linear", "--align", "--drift", "shift"], "--drift shift: no feature moves here"),
])
def test_what_freeze_leaves(words, message, data, tmp_path, capsys):
    assert message in refused(capsys, words[0], *tiny(data, tmp_path / "output")[1:], *words[1:])
    assert not (tmp_path / "output").exists()


def test_a_checkpoint_in_the_place_of_another(finished, tmp_path, capsys):
    folder = copy_run(finished, tmp_path)
    checkpoints = folder / "checkpoint"
    first, second, last = ((checkpoints / f"{name}.pth").read_bytes() for name in ("task01", "task02", "last"))
    for wrong in (second, last):
        (checkpoints / "task01.pth").write_bytes(wrong)
        assert "is not the checkpoint of task01" in refused(capsys, "--eval", "--output_dir", folder)
    (checkpoints / "last.pth").write_bytes(first)
    assert "is the checkpoint of a task" in refused(capsys, "--resume", "--output_dir", folder)
    for name in ("last", "previous"):  # one alone is made up for by the other
        (checkpoints / f"{name}.pth").unlink()
    assert "last.pth is missing beside task01.pth" in refused(capsys, "--resume", "--output_dir", folder)


def test_resume_with_another_number_of_processes(finished, tmp_path, capsys):
    folder = copy_run(finished, tmp_path)
    path = folder / "checkpoint" / "last.pth"
    content = load_checkpoint(path)
    save_checkpoint(path, content | {"made_by": content["made_by"] | {"world_size": 2}})
    assert "the run had 2 process(es) and would go on with 1" in refused(capsys, "--resume", "--output_dir", folder)


@pytest.mark.parametrize(("name", "value"), [
    ("batch_size", "abc"), ("batch_size", 0), ("scale", None), ("head_type", "foo"), ("lr", "x"), ("colour", 1)])
def test_an_edited_config(name, value, finished, tmp_path, capsys):
    folder = copy_run(finished, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["options"][name] = value
    (folder / "config.json").write_text(json.dumps(config))
    message = refused(capsys, "--eval", "--output_dir", folder)
    assert "config.json is damaged" in message
    assert name in message
    config["experiment"] = "base"
    (folder / "config.json").write_text(json.dumps(config))
    assert "there is no experiment 'base'" in refused(capsys, "--eval", "--output_dir", folder)


def test_overwrite_leaves_what_no_run_wrote(data, finished, tmp_path, capsys):
    mine = tmp_path / "output" / "checkpoint" / "precious.pt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert "holds files of a run but no" in refused(capsys, *tiny(data, tmp_path / "output", "--overwrite"))
    copy_run(finished, tmp_path / "output")
    assert run(*tiny(data, tmp_path / "output", "--overwrite")) == 0
    assert mine.read_text() == "mine"
