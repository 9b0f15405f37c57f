"""A few images in the formats in which data sets are published: what their readers have to read.

Every writer takes the folder that --data-path is to name and returns what it wrote, part by part: pixels (or, where
they are stored as JPEG, names) and labels.
"""

import gzip
import http.server
import io
import json
import pickle
import struct
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

Written = dict[str, tuple[np.ndarray, list[int]]]


def pictures(count: int, height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """uint8 `[count, height, width, channels]` of coloured blocks, with noise."""
    draw = np.random.default_rng((seed, count, height, width))
    blocks = draw.integers(30, 226, (count, -(-height // 4), -(-width // 4), channels))
    whole = blocks.repeat(4, axis=1).repeat(4, axis=2)[:, :height, :width]
    return (whole + draw.integers(-30, 30, whole.shape)).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def write_files(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def write_cifar10(root: Path, archive: bool = False) -> Written:
    """`cifar-10-batches-py/`: five training batches, a test batch, and names."""
    written, files = {}, {}
    for part, batches in (("train", [f"data_batch_{n}" for n in range(1, 6)]), ("test", ["test_batch"])):
        pixels, labels = pictures(4 * len(batches), 32, 32), [n % 10 for n in range(4 * len(batches))]
        if part == "test":
            pixels, labels = pictures(10, 32, 32, seed=1), list(range(10))
        size = len(labels) // len(batches)
        for number, name in enumerate(batches):
            here = slice(number * size, (number + 1) * size)
            rows = pixels[here].transpose(0, 3, 1, 2).reshape(-1, 3072)
            files[f"cifar-10-batches-py/{name}"] = pickle.dumps({"data": rows, "labels": labels[here]}, protocol=2)
        written[part] = pixels, labels
    files["cifar-10-batches-py/batches.meta"] = pickle.dumps({"label_names": [f"thing {c}" for c in range(10)]}, 2)
    if archive:
        write_tar(root / "cifar-10-python.tar.gz", files)
    else:
        write_files(root, files)
    return written


def write_mnist(root: Path, name: str = "MNIST", archive: bool = True) -> Written:
    """`MNIST/raw/*-ubyte.gz` in the idx format: a magic number, sizes, bytes."""
    written = {}
    for part, prefix, count in (("train", "train", 20), ("test", "t10k", 10)):
        pixels = pictures(count, 28, 28, 1, seed=len(name))[..., 0]
        labels = [n % 10 for n in range(count)]
        files = {f"{prefix}-images-idx3-ubyte": struct.pack(">4i", 2051, count, 28, 28) + pixels.tobytes(),
                 f"{prefix}-labels-idx1-ubyte": struct.pack(">2i", 2049, count) + bytes(labels)}
        if archive:
            files = {f"{file}.gz": gzip.compress(content) for file, content in files.items()}
        write_files(root / name / "raw", files)
        written[part] = pixels[..., None].repeat(3, -1), labels
    return written


def write_svhn(root: Path) -> Written:
    """`train_32x32.mat` and `test_32x32.mat`: pixels [32, 32, 3, N], labels 1 … 10 where 10 stands for the digit 0."""
    from scipy.io import savemat

    written = {}
    root.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", 20), ("test", 10)):
        pixels, labels = pictures(count, 32, 32, seed=len(part)), [n % 10 for n in range(count)]
        savemat(root / f"{part}_32x32.mat", {"X": pixels.transpose(1, 2, 3, 0),
                                             "y": np.array([[label or 10] for label in labels], np.uint8)})
        written[part] = pixels, labels
    return written


def write_flowers102(root: Path) -> Written:
    """`flowers-102/`: an archive of all images, and two MATLAB files: labels from 1, and who belongs to which part."""
    from scipy.io import savemat

    folder = root / "flowers-102"
    images = [f"jpg/image_{number:05d}.jpg" for number in range(1, 307)]  # a class's three in a row: train, valid, test
    write_tar(folder / "102flowers.tgz", {
        name: encoded(pixels) for name, pixels in zip(images, pictures(306, 20, 26), strict=True)})
    savemat(folder / "imagelabels.mat", {"labels": np.arange(306)[None] // 3 + 1})
    ids = np.arange(1, 307)
    savemat(folder / "setid.mat", {"trnid": ids[None, 0::3], "valid": ids[None, 1::3], "tstid": ids[None, 2::3]})
    return {part: (np.array([f"flowers-102/{name}" for name in images[first::3]]), list(range(102)))
            for part, first in (("train", 0), ("test", 2))}


def write_food101(root: Path) -> Written:
    """`food-101.tar.gz` with `meta/{train,test}.json` (class -> names without suffix) and `images/<class>/*.jpg`."""
    classes, files, written = ["apple_pie", "pizza", "waffles"], {}, {}
    for part, count in (("train", 3), ("test", 2)):
        meta = {name: [f"{name}/{100 * len(part) + n}" for n in range(count)] for name in reversed(classes)}
        files[f"food-101/meta/{part}.json"] = json.dumps(meta).encode()
        names = [name for names in meta.values() for name in names]
        for name, pixels in zip(names, pictures(len(names), 30, 24), strict=True):
            files[f"food-101/images/{name}.jpg"] = encoded(pixels)
        written[part] = (np.array([f"food-101/images/{name}.jpg" for name in names]),
                         [classes.index(name.split("/")[0]) for name in names])
    write_tar(root / "food-101.tar.gz", files)
    return written


def write_dtd(root: Path) -> Written:
    """`dtd/dtd-r1.0.1.tar.gz` with `dtd/labels/{train,val,test}1.txt` and `dtd/images/<class>/*.jpg`."""
    classes, files, written = ["banded", "braided", "dotted", "grid", "woven"], {}, {}
    for start, part in ((0, "train"), (2, "val"), (4, "test")):
        names = [f"{name}/{name}_{start + n:04d}.jpg" for name in classes for n in range(2)]
        files[f"dtd/labels/{part}1.txt"] = "".join(f"{name}\n" for name in names).encode()
        for name, pixels in zip(names, pictures(len(names), 22, 28, seed=start), strict=True):
            files[f"dtd/images/{name}"] = encoded(pixels)
        written[part] = (np.array([f"dtd/dtd/images/{name}" for name in names]), [c for c in range(5) for _ in "12"])
    write_tar(root / "dtd" / "dtd-r1.0.1.tar.gz", files)
    return written


def class_folders(classes: list[str], per_class: int, size: tuple[int, int] = (32, 32), kind: str = "PNG",
                  seed: int = 0) -> dict[str, bytes]:
    """`<class>/<number>.<suffix>` -> an encoded image, each class with a pattern of its own."""
    suffix = {"PNG": "png", "JPEG": "jpg"}[kind]
    files = {}
    for number, name in enumerate(classes):
        pattern = pictures(1, *size, seed=number)[0].astype(int)
        noise = np.random.default_rng((seed, number)).integers(-20, 21, (per_class, *pattern.shape))
        for image in range(per_class):
            content = encoded(np.clip(pattern + noise[image], 0, 255).astype(np.uint8), kind)
            files[f"{name}/{name}_{image:02d}.{suffix}"] = content
    return files


def under(folder: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in files.items()}


@contextmanager
def served(root: Path, halfway: Callable[[str], object] = lambda name: None) -> Iterator[tuple[str, list[str]]]:
    """(address, names fetched so far) of a server on this machine with the files in `root`.

    `halfway` is called with the name of a file when half of it has been sent.
    """
    fetched: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = (root / self.path.lstrip("/")).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.headers["Method"] == "HEAD":  # so torchvision asks where an address leads to, and reads no more
                return
            fetched.append(self.path.lstrip("/"))
            self.wfile.write(content[:len(content) // 2])
            halfway(fetched[-1])
            self.wfile.write(content[len(content) // 2:])

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
