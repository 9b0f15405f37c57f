"""predict.py: every prompt method and head answers as the test of its run did, photo by photo; what it refuses."""

import csv
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import ROOT, TINY, write_npz
from lab import Interrupting, call, timm_weights
from PIL import Image
from safetensors.torch import load_file, save_file

import predict
from continual_datasets import large_images
from loading import load_run
from utils import load_checkpoint

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox")
SETTINGS = ("--dataset", "Split-Folder", "--classes_per_task", 2, "--device", "cpu", *TINY, "--input_norm", "imagenet",
            "--embedding_key", "mean", "--lr", 1)  # queries that differ from image to image, and a head that learns
TOKEN = ("--head_type", "token")
NO_PROMPTS = ("--prompt_method", "none", *TOKEN)
STREAM = ("--schedule", "gaussian", "--classes_per_task", "none", "--gaussian_episodes", 2, "--gaussian_steps", 2,
          "--gaussian_width", 1, "--gaussian_eval_every", 1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """train/ and test/, six classes."""
    folder = tmp_path_factory.mktemp("photos")
    arrays = np.load(write_npz(folder / "data.npz", classes=len(CLASSES), train_per_class=6, test_per_class=3))
    for part in ("train", "test"):
        for number, (pixels, label) in enumerate(zip(arrays[f"x_{part}"], arrays[f"y_{part}"], strict=True)):
            path = folder / part / CLASSES[label] / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    (folder / "data.npz").unlink()
    return folder


def train(photos: Path, folder: Path, *words: object) -> Path:
    """A run, stopped at the table after its last task: all that predict.py reads is there, and plots take long."""
    code, _, errors = call(*SETTINGS, "--data-path", photos, "--output_dir", folder, *words,
                           out=Interrupting("\nafter "))
    assert code == 130, errors
    return folder


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory) -> Path:
    return train(photos, tmp_path_factory.mktemp("runs") / "run")


def ask(capsys, *words: object) -> tuple[int, list[str], str]:
    capsys.readouterr()
    code = predict.main([str(word) for word in words])
    printed = capsys.readouterr()
    return code, printed.out.splitlines(), printed.err


RUNS = {
    "l2p": (),
    "l2p, no key": ("--no-prompt_key",),
    "one fixed prompt": ("--no-prompt_pool",),
    "the first prompts": ("--prompt_choice", "fixed"),
    "dualprompt": ("--prompt_method", "dualprompt", *TOKEN, "--prompt_layers", 2),
    "coda": ("--prompt_method", "coda", *TOKEN, "--prompt_layers", 2, "--length", 4, "--size", 12),
    "oneprompt": ("--prompt_method", "oneprompt", *TOKEN, "--prompt_layers", 2),
    "no prompts, linear": NO_PROMPTS,
    "nearest mean": (*NO_PROMPTS, "--head", "ncm"),
    "ridge": (*NO_PROMPTS, "--head", "ridge", "--random_features", 50),
    "ridge behind prompts": ("--head", "ridge", "--random_features", 0, "--adapt", "first"),
    "aligned": ("--align", "--align_samples", 5, "--align_epochs", 1),
    "fine-tuned": ("--freeze", "--lr", 0.01),
    "a stream": STREAM,
    "joint": ("--joint",),
}


@pytest.mark.parametrize("name", RUNS)
def test_answers_are_those_of_the_run(name, photos, tmp_path, capsys):
    """From the folder of the run alone: how many test images it gets right, and whether prompts are chosen."""
    run = train(photos, tmp_path / "run", *RUNS[name])
    found = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    code, _, errors = ask(capsys, run, photos / "test", "--json", tmp_path / "answers.json", "--num_workers", 0,
                          "--device", "cpu", "--batch-size", 5)
    assert (code, errors) == (0, "")
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert len(answers) == 18
    right = [answer["classes"][0]["class"] == Path(answer["image"]).parent.name for answer in answers]
    expected = found.get("acc@1_per_image", found["acc@1"])
    assert 100 * np.mean(right) == pytest.approx(expected)  # as many test images in every task
    for answer in answers:
        values = [each["probability"] for each in answer["classes"]]
        assert len(values) == 5
        assert values == sorted(values, reverse=True)
        assert 0 < sum(values) <= 1.000001
    chooses = name in ("l2p", "l2p, no key", "the first prompts", "dualprompt", "ridge behind prompts", "aligned",
                       "fine-tuned", "a stream", "joint")
    assert all((answer["prompts"] is not None) == chooses for answer in answers)


def test_random_prompts_are_the_same_in_every_call(photos, tmp_path, capsys):
    run = train(photos, tmp_path / "run", "--prompt_choice", "random")
    first, second = (ask(capsys, run, photos / "test", "--num_workers", 0)[1] for _ in range(2))
    assert first == second
    assert len({line.split("(prompts ")[1] for line in first[1:]}) > 1


def test_each_image_alone_whatever_is_beside_it(trained, photos, capsys):
    """In any batch, from any number of workers, an image has the same answer; numbers are printed to 0.1 %."""
    _, alone, _ = ask(capsys, trained, photos / "test", "--batch-size", 1, "--num_workers", 0)
    _, together, _ = ask(capsys, trained, photos / "test", "--batch-size", 18, "--num_workers", 2)
    assert alone == together
    assert len({line.split("(prompts ")[1] for line in alone[1:]}) > 1, "not one choice for all"


def test_an_earlier_state_knows_fewer_classes(trained, photos, tmp_path, capsys):
    code, lines, _ = ask(capsys, trained, photos / "test" / "fox", "--task", 1, "--num_workers", 0, "--csv",
                         tmp_path / "answers.csv")
    assert code == 0
    assert lines[0] == "3 image(s); glyph_vit_tiny after task 1 of 3, 2 of 6 classes seen"
    assert lines[1] == "not seen yet, so never the answer: cat, dog, elk, fox"
    with open(tmp_path / "answers.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert list(rows[0]) == ["image", "class_1", "probability_1", "class_2", "probability_2", "prompts"]
    for row in rows:
        assert {row["class_1"], row["class_2"]} == {"ant", "bee"}
        assert float(row["probability_1"]) + float(row["probability_2"]) == pytest.approx(1)
        assert len(row["prompts"].split()) == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_read_is_named_and_skipped(workers, trained, photos, tmp_path, capsys):
    for number, path in enumerate(sorted((photos / "test" / "ant").iterdir())):
        (tmp_path / f"{number}.png").write_bytes(path.read_bytes())
    (tmp_path / "1a.jpg").write_bytes(b"no image")
    (tmp_path / "2a.jpg").symlink_to("nowhere")
    (tmp_path / "notes.txt").write_text("left alone in a folder")
    code, lines, errors = ask(capsys, trained, tmp_path, tmp_path / "notes.txt", "--num_workers", workers, "--csv",
                              tmp_path / "out.csv")
    assert code == 1
    assert [line.split(":")[0] for line in lines[1:]] == [str(tmp_path / f"{number}.png") for number in range(3)]
    skipped = errors.splitlines()
    assert [line.split()[1] for line in skipped[:3]] == [str(tmp_path / name) for name in ("1a.jpg", "2a.jpg",
                                                                                          "notes.txt")]
    assert skipped[3] == "predict.py: 3 of 6 images could not be read."
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 4


def test_nothing_that_can_be_read(trained, tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(b"")
    code, lines, errors = ask(capsys, trained, tmp_path / "a.jpg", "--num_workers", 0, "--json", tmp_path / "out.json")
    assert (code, len(lines), len(errors.splitlines())) == (1, 1, 2)
    assert json.loads((tmp_path / "out.json").read_text()) == []


def test_few_images_are_decoded_ahead(trained, photos, monkeypatch):
    """A thousand photos of a few megabytes each would not fit."""
    opened = []
    read = large_images.read_picture
    monkeypatch.setattr(large_images, "read_picture", lambda path, turned: opened.append(path) or read(path, turned))
    paths = sorted(map(str, (photos / "test").glob("*/*.png"))) * 60
    for number, (path, _) in enumerate(predict.answers(load_run(trained), paths, 4, 0)):
        assert path == paths[number]
        assert len(opened) <= number + 8
        if number == 50:
            break


@contextmanager
def at_most(more: int) -> Iterator[None]:
    """This process may take so many more bytes of memory."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_more_than_the_memory_holds(trained, photos, tmp_path, capsys):
    """A batch whose ViT needs hundreds of megabytes, where this process may take 64 more."""
    for number in range(1500):
        os.link(photos / "test" / "ant" / "00.png", tmp_path / f"{number:04d}.png")
    load_run(trained)  # what is loaded once is there
    with at_most(2**26):
        code, _, errors = ask(capsys, trained, tmp_path, "--num_workers", 0, "--batch_size", 1500, "--device", "cpu")
    assert (code, len(errors.splitlines())) == (1, 1), errors
    assert re.match(r"predict\.py: error: there is too little memory( \(.*\))?: use a smaller --batch_size, or fewer "
                    r"--num_workers", errors)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_photo_that_the_memory_does_not_hold(tmp_path):
    """One of 240 MB when decoded, where this process may take 64 more."""
    Image.new("RGB", (9_000, 9_000)).save(tmp_path / "huge.png")
    too_little = pytest.raises(large_images.UnreadableImageError, match="too little memory for its pixels")
    with at_most(2**26), too_little:
        large_images.read_picture(str(tmp_path / "huge.png"))


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is of another unit elsewhere")
def test_five_hundred_photos_take_no_more_memory_than_fifty(trained, tmp_path):
    """Photos of 3000 x 2000 pixels, 18 MB each when decoded, all in one process."""
    peaks = []
    draw = np.random.default_rng(0)
    photo = Image.fromarray(draw.integers(0, 256, (200, 300, 3), dtype=np.uint8)).resize((3000, 2000))
    photo.save(tmp_path / "photo.jpg")
    for count in (50, 500):
        folder = tmp_path / str(count)
        folder.mkdir()
        for number in range(count):
            os.link(tmp_path / "photo.jpg", folder / f"{number:04d}.jpg")
        command = [sys.executable, ROOT / "predict.py", trained, folder, "--device", "cpu", "--num_workers", "0"]
        asked = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
        answers = asked.stdout.read().splitlines()
        _, status, usage = os.wait4(asked.pid, 0)
        assert (status, len(answers)) == (0, count + 1)
        peaks.append(usage.ru_maxrss / 1024)
    print(f"at most {peaks[0]:.0f} MB for 50 photos, {peaks[1]:.0f} MB for 500")
    assert peaks[1] - peaks[0] < 100


def test_photos_are_turned_by_their_exif(trained, photos, tmp_path, capsys):
    upright = Image.open(next((photos / "test" / "ant").iterdir()))
    upright.save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter, so it was stored turned the other way
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.png", exif=exif)
    _, lines, _ = ask(capsys, trained, tmp_path, "--num_workers", 0)
    assert lines[1].split(": ")[1] == lines[2].split(": ")[1]
    config = json.loads((trained / "config.json").read_text())
    assert config["turn_photos"] is True
    del config["turn_photos"], config["tasks"]  # as a run of an older version
    old = tmp_path / "old"
    (old / "checkpoint").mkdir(parents=True)
    (old / "config.json").write_text(json.dumps(config))
    for path in trained.glob("checkpoint/task*.pth"):
        (old / "checkpoint" / path.name).write_bytes(path.read_bytes())
    _, stored, _ = ask(capsys, old, tmp_path / "a.png", tmp_path / "b.png", "--num_workers", 0)
    assert stored[:2] == ["2 image(s)" + lines[0].removeprefix("2 image(s)"), lines[1]]
    assert stored[2] != lines[2]
    code, _, errors = ask(capsys, old, tmp_path / "a.png", "--task", 1)
    assert code == 2
    assert "does not say which classes each task has: leave --task out" in errors


def test_weights_may_have_moved_but_not_changed(photos, tmp_path, capsys):
    weights = timm_weights("glyph_vit_tiny")
    save_file(weights, tmp_path / "here.safetensors")
    run = train(photos, tmp_path / "run", "--init_checkpoint", tmp_path / "here.safetensors")
    image = next((photos / "test" / "ant").iterdir())
    _, before, _ = ask(capsys, run, image, "--num_workers", 0)
    (tmp_path / "here.safetensors").rename(tmp_path / "there.safetensors")
    code, _, errors = ask(capsys, run, image, "--num_workers", 0)
    assert code == 2
    assert "--init_checkpoint" in errors
    assert "does not exist: check the path" in errors
    _, after, _ = ask(capsys, run, image, "--num_workers", 0, "--init_checkpoint", tmp_path / "there.safetensors")
    assert after == before
    other = load_file(tmp_path / "there.safetensors")
    other["norm.bias"] += 1
    save_file(other, tmp_path / "other.safetensors")
    code, _, errors = ask(capsys, run, image, "--num_workers", 0, "--init_checkpoint", tmp_path / "other.safetensors")
    assert code == 2
    assert "give the same --init_checkpoint" in errors


REFUSED = {
    "nothing": ([], "the folder of a run is missing: the command is predict.py RUN_DIR IMAGE_OR_FOLDER"),
    "no image": (["{run}"], "an image or a folder of images is missing"),
    "no run": (["{photos}", "{image}"], "holds no run: there is no"),
    "no such image": (["{run}", "gone.jpg"], "gone.jpg: there is no such file or folder"),
    "no images in it": (["{run}", "{tmp}"], "no images in this folder"),
    "unknown option": (["{run}", "{image}", "--tasks", "1"], "unknown option --tasks: did you mean --task?"),
    "no such task": (["{run}", "{image}", "--task", "4"], "--task 4: {run}/checkpoint has the states after 1, 2, 3"),
    "no number": (["{run}", "{image}", "--task", "last"], "--task: 'last' is not a whole number"),
    "no such device": (["{run}", "{image}", "--device", "gpu"], "--device gpu"),
    "folder as csv": (["{run}", "{image}", "--csv", "{tmp}"], "--csv {tmp}: no file can be written there"),
    "no folder for json": (["{run}", "{image}", "--json", "{tmp}/no/x"], "--json {tmp}/no/x: no file can be written"),
    "one file for both": (["{run}", "{image}", "--json", "{tmp}/x", "--csv", "{tmp}/x"], "name the same file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_one_sentence(name, trained, photos, tmp_path, capsys):
    words, sentence = REFUSED[name]
    places = {"run": trained, "photos": photos, "image": photos / "test" / "ant" / "00.png", "tmp": tmp_path}
    code, lines, errors = ask(capsys, *(word.format(**places) for word in words))
    assert (code, lines) == (2, [])
    assert len(errors.splitlines()) == 1
    assert errors.startswith("predict.py: error: ")
    assert sentence.format(**places) in errors
    assert not list(tmp_path.iterdir())


def test_a_run_without_a_finished_task(trained, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes((trained / "config.json").read_bytes())
    code, _, errors = ask(capsys, tmp_path, ROOT / "README.md")
    assert code == 2
    assert "holds no state after a task: finish one with main.py --resume" in errors


def test_a_run_that_is_not_finished(trained, photos, tmp_path, capsys):
    """The last state that there is; and of the classes what the run said at its start."""
    (tmp_path / "checkpoint").mkdir()
    for name in ("config.json", "checkpoint/task01.pth", "checkpoint/task02.pth"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    _, lines, _ = ask(capsys, tmp_path, photos / "test" / "ant", "--num_workers", 0)
    assert "after task 2 of 3, 4 of 6 classes seen" in lines[0]


def test_help(capsys):
    code, lines, _ = ask(capsys, "--help")
    assert code == 0
    assert lines[0] == "usage: predict.py RUN_DIR IMAGE_OR_FOLDER ... [--option value ...]"
    assert any(line.strip().startswith("--csv CSV") for line in lines)


def test_float32_is_float32_on_a_gpu_too(trained, monkeypatch):
    """torch by itself lets the patch embedding, a convolution, round to TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    load_run(trained)
    assert not torch.backends.cudnn.allow_tf32


def test_what_was_learned_is_not_changed(trained):
    before = torch.get_rng_state()
    run = load_run(trained)
    run.predict(torch.ones(2, 3, 32, 32))
    saved = load_checkpoint(trained / "checkpoint" / "task03.pth")["model"]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in run.model.learned_state().items())
