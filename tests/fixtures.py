"""Small inputs in the true formats, and a way to run the program as a user does."""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
TINY = ["--model", "glyph_vit_tiny", "--no-pretrained", "--input-size", "32", "--batch-size", "8", "--epochs", "1",
        "--num-workers", "0"]


def write_cifar100(root: Path, train_per_class: int, test_per_class: int, seed: int = 0) -> Path:
    """CIFAR-100's own files with few images: python pickles of rows of 3072 bytes, colour planes one after another.

    Each class has a mean colour and a pattern of its own, so that something can be learned.
    """
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    patterns = draw.integers(0, 256, (100, 3, 32, 32))
    for name, per_class in (("train", train_per_class), ("test", test_per_class)):
        labels = np.tile(np.arange(100), per_class)
        noise = draw.integers(-30, 31, (len(labels), 3, 32, 32))
        data = np.clip(patterns[labels] + noise, 0, 255).astype(np.uint8).reshape(len(labels), 3072)
        content = {"data": data, "fine_labels": labels.tolist(), "coarse_labels": (labels // 5).tolist(),
                   "filenames": [f"{name}_{i}.png" for i in range(len(labels))], "batch_label": f"{name} batch 1 of 1"}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    names = {"fine_label_names": [f"fine_{c:02d}" for c in range(100)],
             "coarse_label_names": [f"coarse_{c}" for c in range(20)]}
    (folder / "meta").write_bytes(pickle.dumps(names, protocol=2))
    return folder


def write_npz(path: Path, classes: int = 4, train_per_class: int = 6, test_per_class: int = 3, size: int = 32,
              **replaced: np.ndarray) -> Path:
    """An .npz data set: each class a pattern of 4 × 4 coloured blocks, which a crop does not destroy, and noise."""
    draw = np.random.default_rng(1)
    blocks = draw.integers(30, 226, (classes, 4, 4, 3))
    patterns = blocks.repeat(size // 4, axis=1).repeat(size // 4, axis=2)
    arrays = {}
    for part, per_class in (("train", train_per_class), ("test", test_per_class)):
        labels = np.tile(np.arange(classes), per_class)
        arrays[f"x_{part}"] = (patterns[labels] + draw.integers(-30, 30, (len(labels), size, size, 3))).astype(np.uint8)
        arrays[f"y_{part}"] = labels
    np.savez(path, **arrays | replaced)
    return path


def run_program(*words: object, launcher: tuple[str, ...] = (), cifar100: Path | None = None, cwd: Path | None = None,
                timeout: float = 280, **environment: str) -> subprocess.CompletedProcess:
    """`python [launcher] main.py words`, in the repository or, with `cwd`, as from another folder."""
    env = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    if cifar100 is not None:
        env |= {"PYTHONPATH": f"{ROOT / 'tests' / 'site'}:{ROOT}", "TEST_CIFAR100_FOLDER": str(cifar100)}
    return subprocess.run([sys.executable, *launcher, str(ROOT / "main.py"), *map(str, words)], cwd=cwd or ROOT,
                          env=env, capture_output=True, text=True, timeout=timeout)


@contextmanager
def compiled_anew() -> Iterator[None]:
    """torch stops compiling a function that it has compiled often, without a word: so from the beginning, and seen."""
    import torch._dynamo.utils  # late, as in conftest.py

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"], "nothing was compiled"
