"""Ways to alter the files of a run: each a function of a random draw, which says in words what it did."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from utils import load_checkpoint, save_checkpoint

PLAIN = (None, True, False, -1, 0, 1, 3, 2**31, 10**15, 2**63, -0.5, 1e-300, 1e308, "", "x", "none", "a\0b", "\ud800",
         "long" * 30_000, "../../elsewhere", "/dev/zero", [], [1], [0.5, 0.5, 0.5], [[]], ["x", 1], {}, {"x": 1})
JSON_TEXTS = {"NaN": "NaN", "Infinity": "Infinity", "5,000 digits": "9" * 5000, "-5,000 digits": "-" + "9" * 5000,
              "10,000 lists deep": "[" * 10_000 + "]" * 10_000, "no JSON": "{,}",
              "10,000 objects deep": '{"a":' * 10_000 + "1" + "}" * 10_000}
# Would compile kernels, which takes longer than all others together.
LEFT_ALONE = ("compile",)


def tensors(draw: random.Random, old: Any) -> Any:
    """A tensor in the place of another value."""
    shape = tuple(old.shape) if isinstance(old, torch.Tensor) else (2, 3)
    return draw.choice((
        torch.full(shape, float("nan")), torch.full(shape, float("inf")), torch.zeros(shape).to_sparse(),
        torch.zeros(shape, device="meta"), torch.zeros(*shape, 2), torch.zeros(()), torch.zeros(0),
        torch.zeros(1).expand(10**12), torch.zeros(shape, dtype=torch.complex64), torch.zeros(shape, dtype=torch.bool),
        torch.zeros(shape, dtype=torch.int8), torch.quantize_per_tensor(torch.zeros(shape), 0.1, 0, torch.qint8)))


def places(content: Any, above: tuple = ()) -> list[tuple]:
    """The way to every value inside: names and numbers."""
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    found = []
    for name, value in inside:
        if name not in LEFT_ALONE:
            found += [(*above, name), *places(value, (*above, name))]
    return found


def alter_content(draw: random.Random, content: Any, new_value: Callable[[Any], Any]) -> str:
    """Replace, remove or add one value, in place. Values near the top are as likely as the many below."""
    every = places(content)
    depth = draw.choice(sorted({len(place) for place in every}))
    place = draw.choice([place for place in every if len(place) == depth])
    holder = content
    for name in place[:-1]:
        holder = holder[name]
    how = draw.choice(("replace", "replace", "replace", "remove", "add"))
    old = holder[place[-1]]
    if how == "remove":
        del holder[place[-1]]
        return f"without {place}"
    if how == "add" and isinstance(holder, dict):
        holder["more"] = new_value(old)
        return f"more beside {place}"
    holder[place[-1]] = new_value(old)
    return f"{place} = {str(holder[place[-1]])[:60]!a}"


def alter_json(draw: random.Random, path: Path) -> str:
    content = json.loads(path.read_text())
    if draw.random() < 0.3:
        name, text = draw.choice(sorted(JSON_TEXTS.items()))
        said = alter_content(draw, content, lambda old: "THE PLACE")
        path.write_text(json.dumps(content).replace('"THE PLACE"', text))
        return f"{said}, there: {name}"
    said = alter_content(draw, content, lambda old: draw.choice(PLAIN))
    path.write_text(json.dumps(content))
    return said


def alter_checkpoint(draw: random.Random, path: Path) -> str:
    """Its checksum is right."""
    content = load_checkpoint(path)
    said = alter_content(draw, content, lambda old: draw.choice(
        (tensors(draw, old), draw.choice(PLAIN), 10**4000, float("nan"), {3: 4}, ())))
    save_checkpoint(path, content)
    return said


def alter_folder(draw: random.Random, path: Path) -> str:
    how = draw.choice(("gone", "empty", "a file", "a pipe", "a link to nowhere"))
    shutil.rmtree(path)
    if how == "empty":
        path.mkdir()
    elif how == "a file":
        path.write_text("x")
    elif how == "a pipe":
        os.mkfifo(path)
    elif how != "gone":
        path.symlink_to("nowhere")
    return how


def alter_bytes(draw: random.Random, path: Path) -> str:
    content = bytearray(path.read_bytes())
    how = draw.choice(("empty", "gone", "halved", "a byte", "a pipe", "a folder", "a link to nowhere",
                       "a link to /dev/zero", "huge", "noise"))
    path.unlink()
    if how == "a pipe":
        os.mkfifo(path)
    elif how == "a folder":
        path.mkdir()
    elif how.startswith("a link"):
        path.symlink_to("/dev/zero" if "zero" in how else "nowhere")
    elif how == "huge":
        path.touch()
        os.truncate(path, 2**42)
    elif how != "gone":
        place = draw.randrange(len(content))
        content[place] ^= 1 << draw.randrange(8)
        path.write_bytes({"empty": b"", "halved": content[:len(content) // 2], "a byte": content,
                          "noise": draw.randbytes(1000)}[how])
    return how


FILES = ("config.json", "config.json", "scenario.json", "checkpoint/task01.pth", "checkpoint/task02.pth",
         "checkpoint/last.pth", "checkpoint/last.pth", "log.jsonl", "summary.json", "accuracy_matrix.csv",
         "checkpoint", "tensorboard", "plots")


def alter_one_file(draw: random.Random, folder: Path) -> str:
    path = folder / draw.choice([name for name in FILES if (folder / name).exists()])
    if path.is_dir():
        how = alter_folder
    elif path.suffix == ".json" and draw.random() < 0.75:
        how = alter_json
    elif path.suffix == ".pth" and draw.random() < 0.75:
        how = alter_checkpoint
    else:
        how = alter_bytes
    return f"{path.name}: {how(draw, path)}"
