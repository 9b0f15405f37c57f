"""Random command lines, drawn from `OPTIONS` itself, over tiny files of every kind that people have, good and bad."""

import os
import random
import shutil
import stat
from pathlib import Path

import numpy as np
from fixtures import write_npz
from timm.optim import list_optimizers

from configs import experiment_names, load_experiment
from configs.base import OPTIONS
from configs.option import boolean

TINY = {"dataset": "Split-NPZ", "data_path": "data.npz", "model": "glyph_vit_tiny", "pretrained": "false",
        "input_size": "32", "batch_size": "4", "epochs": "1", "num_workers": "0", "num_tasks": "2", "device": "cpu",
        "output_dir": "out"}
TINY_STREAM = {"gaussian_episodes": "3", "gaussian_steps": "2", "gaussian_width": "5", "gaussian_eval_every": "2"}
FILES = ["data.npz", "medmnist.npz", "photos", "photos.tar", "weights.safetensors", "order.txt", "empty", "noise.npz",
         "noise.pth", "noise.safetensors", "noise.tar", "noise.txt", "pipe", "pipe.npz", "pipe.pth", "socket",
         "sparse.npz", "sparse.txt", "loop", "absent", "absent/deeper", "data.npz/inside", "café", "/dev/zero",
         "/dev/null", "../elsewhere", "~/home", "~nosuchuser/x", "x" * 300, "a\0b", "half\ud800", "latin\udce9"]
MEANT = {  # values by which an option of text can come to something
    "dataset": ["Split-NPZ", "Split-CIFAR100", "Split-Folder", "5-datasets", "NPZ,NPZ", "Split-Glyphs,", "CORe50", ","],
    "data_path": FILES, "output_dir": [*FILES, ""], "init_checkpoint": FILES,
    "class_order": [*FILES, "seed", "seed:3", "numpy:1993", "numpy:x", "seed:" + "9" * 5000, "numpy:4294967296"],
    "model": ["glyph_vit_tiny", "vit_tiny_patch16_224", "resnet18", "glyph_vit_tiny.tag", "vit_nosuch", "hf-hub:x/y",
              "local-dir:pipe", "deit_tiny_distilled_patch16_224"],
    "opt": [*sorted({*list_optimizers()} - {"kron", "kronc", "kronw"}), "ADAM", "nosuch"],  # kron: slow to begin
    "device": ["cpu", "auto", "cuda", "cuda:0", "cuda:99", "cuda:" + "9" * 30, "meta", "mps", "cpu:1", "cpu:-1", "gpu"],
    "freeze": ["backbone", "blocks", "norm", "head", "prompt", "pos_embed", "blocks.0"],
    "dist_url": ["env://", "tcp://localhost:1", "file:///dev/zero", "file://x/y", "file://", "tcp://", "x"],
}
ODD = ["", " ", "none", "None", "-", "--", "true", "nan", "inf", "-inf", "-1", "1e200", "-1e200", "1e-300", "1e999",
       "0x10", "1_0", "9" * 30, "9" * 5000, "é", "٣", "²", "\n", "\0", "\ud800", "x" * 300, "a b", "%s", "{}", "$HOME",
       "~", "*"]
NUMBERS = ["0", "1", "2", "3", "4", "5", "8", "12", "0.001", "0.1", "0.3", "0.5", "0.9", "1.5", "30",
           # the last that some option allows
           "1e-12", "1e-6", "0.01", "0.99", "0.999999", "10", "100", "10000", "1000000", "1e6", "1e9", "1e12",
           str(2**63 - 1)]
COSTLY = {  # what more is allowed, and takes long, is no fault
    "epochs", "input_size", "length", "num_workers", "gaussian_episodes", "gaussian_steps", "batch_size", "size",
    "replay_per_class", "random_features", "align_epochs", "align_samples"}
SLOW = {"compile", "speed_test", "speed_test_only"}  # never true: a minute for the smallest model


def command_words(values: dict[str, str]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", value)]


def draw_command(seed: str) -> list[str]:
    """A command line of one to three options beside those that keep it tiny."""
    draw = random.Random(seed)
    chosen = draw.sample(list(OPTIONS), draw.choice((1, 2, 2, 3, 3)))
    experiment = draw.choice(experiment_names()) if draw.random() < 0.2 else None
    given = {name: draw_values(draw, name) for name in chosen}

    base = dict(TINY)
    gaussian = given.get("schedule") == ["gaussian"] or (
        experiment and load_experiment(experiment).defaults.get("schedule") == "gaussian")
    if gaussian:
        base = base | TINY_STREAM
        del base["num_tasks"]
    if any(name.startswith("gaussian_") for name in chosen) and draw.random() < 0.7:
        base = base | TINY_STREAM | {"schedule": "gaussian", "num_tasks": "none"}
    defaults = load_experiment(experiment).defaults if experiment else {}
    if given.get("head", [defaults.get("head")]) == ["ridge"]:
        base["random_features"] = "20"  # of 10,000, which take their time
    words = [experiment] if experiment else []
    words += command_words({name: value for name, value in base.items() if name not in given})
    for name, values in given.items():
        shown = name.replace("_", "-") if draw.random() < 0.3 else name
        words += [f"--{shown}={values[0]}"] if len(values) == 1 and draw.random() < 0.5 else [f"--{shown}", *values]
    return words


def draw_values(draw: random.Random, name: str) -> list[str]:
    """Words for an option; mostly such as it accepts, the last values that it does among them."""
    option = OPTIONS[name]
    meant = list(map(str, option.choices or MEANT.get(name) or (
        text for text in NUMBERS if _accepts(option.type, text))))
    if option.type is boolean:
        meant = ["true", "false"]
    pool = meant if draw.random() < 0.85 else ODD + NUMBERS + FILES
    if name in COSTLY:
        pool = [text for text in pool if not _accepts(option.type, text) or float(text) <= 12]
    if name in SLOW:
        pool = ["false"]
    count = option.nargs if isinstance(option.nargs, int) else 1
    if option.nargs in ("*", "+"):
        count = draw.choice((1, 1, 2, 3) if option.nargs == "+" else (0, 1, 1, 2))
    return [draw.choice(pool) for _ in range(count)]


def _accepts(parse, text: str) -> bool:
    try:
        parse(text)
    except Exception:
        return False
    return True


def make_surroundings(folder: Path) -> Path:
    """A working folder with files of every kind under `folder`; beside it a home."""
    from lab import timm_weights
    from PIL import Image
    from safetensors.torch import save_file

    work = folder / "work"
    work.mkdir()
    (folder / "home").mkdir()
    write_npz(work / "data.npz", train_per_class=3, test_per_class=2)
    draw = np.random.default_rng(0)
    np.savez(work / "medmnist.npz", **{
        f"{part}_{kind}": array for part in ("train", "val", "test")
        for kind, array in (("images", draw.integers(0, 256, (8, 28, 28), np.uint8)),
                            ("labels", np.arange(8, dtype=np.uint8)[:, None] % 4))})
    for number in range(24):
        path = work / "photos" / f"class{number % 4}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (40, 30, 3), np.uint8)).save(path)
    shutil.make_archive(str(work / "photos2"), "tar", work / "photos")
    (work / "photos2.tar").rename(work / "photos.tar")
    save_file(timm_weights("glyph_vit_tiny"), work / "weights.safetensors")
    (work / "order.txt").write_text("3\n1\n2\n0\n")
    (work / "empty").touch()
    for suffix in ("npz", "pth", "safetensors", "tar", "txt"):
        (work / f"noise.{suffix}").write_bytes(draw.bytes(1000))
    for name in ("pipe", "pipe.npz", "pipe.pth"):
        os.mkfifo(work / name)
    os.mknod(work / "socket", stat.S_IFSOCK | 0o600)
    for name in ("sparse.npz", "sparse.txt"):
        (work / name).touch()
        os.truncate(work / name, 2**40)
    (work / "loop").symlink_to("loop")
    return work


def listing(folder: Path) -> dict[str, tuple]:
    """Everything under `folder` and what would show that it was touched."""
    found = {}
    for where, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            about = os.lstat(os.path.join(where, name))
            written = None if stat.S_ISDIR(about.st_mode) else (about.st_size, about.st_mtime_ns, about.st_ino)
            found[os.path.relpath(os.path.join(where, name), folder)] = (stat.S_IFMT(about.st_mode), written)
    return found
