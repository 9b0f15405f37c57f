"""Files of a run that are lost, damaged, replaced or not ours: told at once and at the end, or written again."""

import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fixtures import ROOT
from lab import BASE, Interrupting, call
from safetensors.torch import load_file, save_file

from tensorboard_file import TensorBoardFile
from utils import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.pictures

WORDS = (*BASE, "--class_order", "{order}")


class Acting(io.StringIO):
    """A terminal beside which something happens once a text that begins with `text` was printed."""

    def __init__(self, text: str, act: Callable[[], object]):
        super().__init__()
        self.text, self.act = text, act

    def write(self, printed: str) -> int:
        if self.act and printed.startswith(self.text):
            act, self.act = self.act, None
            act()
        return super().write(printed)


@pytest.fixture(scope="module")
def made(lab, tmp_path_factory) -> dict[str, Path]:
    """One run three times: finished, stopped behind its first task, and stopped in the evaluation of its second."""
    folders = {}
    for name, text in (("finished", "never"), ("between", "task 2/2"), ("in task 2", "after task 2/2")):
        folders[name] = tmp_path_factory.mktemp("made") / "run"
        assert call(*lab.words(*WORDS), "--output_dir", folders[name], out=Interrupting(text))[0] in (0, 130)
    return folders


@pytest.fixture
def copied(made, tmp_path) -> Callable[[str], Path]:
    return lambda name: shutil.copytree(made[name], tmp_path / "run")


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    if how == "a pipe":
        os.mkfifo(path)
    elif how != "gone":
        path.write_bytes({"halved": content[:len(content) // 2], "a bit": content}[how])


# ---- checkpoints ----
def often(values: tuple[str, ...], *rarely: str) -> list:
    """Of the values of a parameter, some for `make test-long` alone."""
    return [*values, *(pytest.param(value, marks=pytest.mark.long) for value in rarely)]


@pytest.mark.parametrize("how", often(("gone", "a bit"), "halved", "a pipe"))
def test_a_lost_checkpoint_of_an_earlier_task_is_told_at_once_and_at_the_end(how, copied, made):
    folder = copied("in task 2")
    damage(folder / "checkpoint" / "task01.pth", how)
    for _ in range(2):  # the second time the run is finished, and its checkpoint still lost
        code, out, err = call("--resume", "--output_dir", folder)
        assert code == 1
        said = next(line for line in out.splitlines() if line.startswith("warning: ") and "task01.pth" in line)
        assert "--eval needs this checkpoint" in said
        assert out.index(said) < out.index("after")
        assert "error: the run is finished and its numbers are good" in err
        assert "task01.pth" in err.splitlines()[-1]
        assert err.splitlines()[-1].endswith("without one, only --overwrite, which trains anew, makes it again.")
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["unusable_checkpoints"] == ["task01.pth"]
    whole = json.loads((made["finished"] / "summary.json").read_text())
    assert "unusable_checkpoints" not in whole
    assert summary["per_task"] == whole["per_task"]
    assert call("--eval", "--output_dir", folder)[0] == 2


@pytest.mark.parametrize("how", ["gone", "a bit"])
@pytest.mark.parametrize(("state", "name"), [("between", "task01"), ("finished", "task02")])
def test_the_newest_checkpoint_is_written_again(state, name, how, copied, made):
    folder = copied(state)
    path = folder / "checkpoint" / f"{name}.pth"
    damage(path, how)
    code, out, err = call("--resume", "--output_dir", folder)
    assert code == 0, err
    assert "It was written again from last.pth." in out
    good, again = (load_checkpoint(place / "checkpoint" / f"{name}.pth") for place in (made[state], folder))
    assert good.keys() == again.keys()
    assert all(torch.equal(good["model"][key], again["model"][key]) for key in good["model"])
    assert call("--eval", "--output_dir", folder)[0] == 0


def test_weights_that_are_not_finite_are_not_evaluated(copied):
    folder = copied("finished")
    path = folder / "checkpoint" / "task01.pth"
    content = load_checkpoint(path)
    content["model"]["head.weight"][0, 0] = float("nan")
    save_checkpoint(path, content)
    code, _, err = call("--eval", "--output_dir", folder)
    assert code == 2
    assert "task01.pth is damaged: model.head.weight must be finite in every value" in err


# ---- small files ----
@pytest.mark.parametrize("how", often(("gone",), "halved", "a pipe"))
@pytest.mark.parametrize("name", ["accuracy_matrix.csv", "summary.json", "plots/over_tasks.png"])
def test_what_follows_from_the_checkpoint_is_written_again(name, how, copied, made):
    folder = copied("finished")
    damage(folder / name, how)
    code, _, err = call("--resume", "--output_dir", folder)
    assert code == 0, err
    if name == "summary.json":
        one, other = (json.loads((place / name).read_text()) for place in (made["finished"], folder))
        assert {k: v for k, v in one.items() if k != "config"} == {k: v for k, v in other.items() if k != "config"}
    else:
        assert (folder / name).read_bytes() == (made["finished"] / name).read_bytes()


def test_a_damaged_line_of_the_log_is_named(copied):
    path = (folder := copied("finished")) / "log.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = b"\xff" + lines[1][1:]
    path.write_bytes(b"".join(lines))
    code, out, _ = call("--resume", "--output_dir", folder)
    assert code == 0
    assert "log.jsonl is damaged in line 2" in out
    assert path.read_bytes() == b"".join(lines)


# ---- while the run goes on ----
@pytest.mark.parametrize("name", ["config.json", "scenario.json", "log.jsonl", "accuracy_matrix.csv"])
def test_a_small_file_that_goes_while_the_run_goes_on_is_written_again(name, lab, made, tmp_path):
    code, out, err = call(*lab.words(*WORDS), "--output_dir", tmp_path / "run",
                          out=Acting("task 2/2 epoch 1/1 step", (tmp_path / "run" / name).unlink))
    assert code == 0, err
    assert f"{name} had gone, or was changed, and was written again" in out
    again, whole = ((folder / name).read_text().splitlines() for folder in (tmp_path / "run", made["finished"]))
    assert len(again) == len(whole)
    assert call("--eval", "--output_dir", tmp_path / "run")[0] == 0


@pytest.mark.parametrize("inside", ["checkpoint", "."])
def test_a_folder_that_goes_while_the_run_goes_on(inside, lab, tmp_path):
    folder = tmp_path / "run"
    code, out, err = call(*lab.words(*WORDS), "--output_dir", folder,
                          out=Acting("task 2/2 epoch 1/1 step", lambda: shutil.rmtree(folder / inside)))
    assert code == 1
    assert out.index("task01.pth has gone") < out.index("after task 2/2")
    assert "task01.pth is missing" in err
    assert sorted(path.name for path in (folder / "checkpoint").iterdir()) == ["last.pth", "previous.pth", "task02.pth"]
    assert len((folder / "log.jsonl").read_text().splitlines()) == 6
    assert json.loads((folder / "summary.json").read_text())["unusable_checkpoints"] == ["task01.pth"]
    assert call("--resume", "--output_dir", folder)[0] == 1  # what is there is enough for that


# ---- TensorBoard ----
def test_a_run_whose_tensorboard_file_goes(lab, tmp_path):
    code, out, err = call(*lab.words(*WORDS), "--output_dir", tmp_path,
                          out=Acting("task 2/2", lambda: shutil.rmtree(tmp_path / "tensorboard")))
    assert code == 0, err
    assert out.count("the run goes on without it") == 1
    assert not err


def test_a_run_whose_tensorboard_folder_cannot_be_made(copied):
    shutil.rmtree((folder := copied("between")) / "tensorboard")
    (folder / "tensorboard").write_text("in its place")
    code, out, err = call("--resume", "--output_dir", folder)
    assert code == 0, err
    assert out.count("the run goes on without it") == 1


def test_a_full_disk_ends_tensorboards_file_alone(tmp_path):
    import resource

    said = []
    file = TensorBoardFile(tmp_path / "tensorboard", said.append)
    file.scalars(0, {"value": 1.0})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        for step in range(100):
            file.scalars(step, {"value": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    file.close()
    assert len(said) == 1
    assert "TensorBoard's file" in said[0]


# ---- in the place of a file ----
PIPES = {  # file -> exit codes of --eval and of --resume of a finished run
    "config.json": (2, 2), "scenario.json": (2, 2), "log.jsonl": (0, 2), "checkpoint/task01.pth": (2, 1),
    "checkpoint/last.pth": (0, 0), "summary.json": (0, 0), "eval_summary.json": (0, 0), ".lock": (0, 2)}


@pytest.mark.parametrize("name", PIPES)
@pytest.mark.timeout(60)
def test_a_named_pipe_is_never_waited_for(name, copied):
    path = (folder := copied("finished")) / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    for mode, expected in zip(("--eval", "--resume"), PIPES[name], strict=True):
        code, _, err = call(mode, "--output_dir", folder)
        assert code == expected, (mode, err)
        if code:
            assert f"{path} is a named pipe" in err


# ---- of another user ----
@pytest.mark.parametrize("theirs", [".", "checkpoint", "log.jsonl", "checkpoint/last.pth"])
def test_a_run_of_another_user_is_refused_before_anything_is_computed(theirs, made, lab):
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as around:
        os.chmod(around, 0o755)
        folder = shutil.copytree(made["finished"], Path(around) / "run")
        for path in [folder, *folder.rglob("*")]:
            os.chmod(path, 0o777 if path.is_dir() else 0o666)
        words = ["--resume", "--output_dir", folder, "--data_path", shutil.copy(lab.files["data"], around),
                 "--class_order", shutil.copy(lab.files["order"], around)]
        os.chmod(folder / theirs, 0o755 if (folder / theirs).is_dir() else 0o644)
        os.setresuid(65534, 65534, 0)
        try:
            code, out, err = call(*words)
        finally:
            os.setresuid(0, 0, 0)
        assert (code, out) == (2, "")
        assert "name another folder" in err
        assert str(folder / theirs if theirs != "." else folder) in err
        assert not (folder / ".lock").exists()


# ---- a loss that is not finite ----
def test_weights_too_large_for_the_test_stop_the_run(lab, tmp_path):
    """One step in each epoch, each multiplying the head by -8.4e9: finite in every loss, but for that of the test."""
    words = lab.words("cifar100_linear", *BASE[1:], "--epochs", "4", "--batch_size", "64", "--opt", "momentum",
                      "--momentum", "0", "--lr", "33600", "--weight_decay", "1e6", "--clip_grad", "none")
    code, out, err = call(*words, "--output_dir", tmp_path)
    assert (code, err) == (1, "")
    assert "task 1/2 epoch 4/4 done" in out
    assert "error: the loss in the test of task 1 is not finite" in out.splitlines()[-1]
    assert [path.name for path in (tmp_path / "checkpoint").iterdir() if load_checkpoint(path)] != []


def test_features_that_are_not_finite_are_not_saved(lab, tmp_path):
    """The nearest class mean trains nothing, so no loss tells."""
    weights = {name: tensor.float() for name, tensor in load_file(ROOT / "demo" / "glyph_vit.safetensors").items()}
    weights["norm.weight"].fill_(3e38)  # finite itself, and no longer so when it is multiplied
    save_file(weights, tmp_path / "nan.safetensors")
    words = [word for word in lab.words("cifar100_ncm", *BASE[1:]) if word != "--no-pretrained"]
    code, out, err = call(*words, "--init_checkpoint", tmp_path / "nan.safetensors", "--output_dir", tmp_path / "run")
    assert (code, err) == (1, "")
    assert "error: the features of task 1 are not finite" in out.splitlines()[-1]
    assert not (tmp_path / "run" / "checkpoint").exists()
