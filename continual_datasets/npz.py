"""Data sets in one .npz file: our own names of arrays, and MedMNIST's."""

import zipfile
from pathlib import Path

import numpy as np

from continual_datasets.images import LabelledImages, images_in_memory
from continual_datasets.scenario import Dataset
from continual_datasets.torchvision_sets import NO_DATA_HINT
from errors import InputError
from paths import outside_path

# Images and labels for training, then for the test; and validation images, by which nothing is chosen here.
OURS = ("x_train", "y_train", "x_test", "y_test", "x_val")
MEDMNIST = ("train_images", "train_labels", "test_images", "test_labels", "val_images")
NAMES = "class_names"


def read_npz(data_path: str, download: bool = False) -> Dataset:
    """An .npz with x_train, y_train, x_test, y_test, or with MedMNIST's train_images, train_labels, …

    Images are uint8, (N, height, width, 3), or grey: (N, height, width) or (N, height, width, 1). Labels are whole
    numbers from 0, (N,) or (N, 1), or one-hot rows (N, classes). `class_names` may name the classes. Validation images
    are left out, and a note says so: a model is trained on the training part, and compared on the test part.

    Raises:
        InputError: no such file, or arrays of another kind; the text names the array.
    """
    where = f"--data_path {data_path}"
    path = outside_path("--data_path", data_path)
    if not path.is_file():
        raise InputError(f"{where}: there is no such file; give an .npz, which is never downloaded, {NO_DATA_HINT}")
    arrays, layout, notes = _read(where, path)
    class_names = None if NAMES not in arrays else _class_names(where, arrays[NAMES])

    num_classes = None if class_names is None else len(class_names)
    parts = []
    for images, labels in (layout[:2], layout[2:4]):
        labels_N, columns = _whole_numbers(arrays[labels])
        if columns is not None and num_classes not in (None, columns):
            raise InputError(f"{where}: {labels} has {columns} columns, for {num_classes} classes; give one for each.")
        num_classes = columns or num_classes
        parts.append(_checked(where, images, _in_colour(arrays[images]), labels, labels_N, num_classes))
        if num_classes is None:
            num_classes = _numbered_without_gaps(where, labels, labels_N)
    if parts[0].pixels_NHWC.shape[1:] != parts[1].pixels_NHWC.shape[1:]:
        raise InputError(f"{where}: {layout[0]} and {layout[2]} hold images of different sizes.")
    return Dataset(*parts, class_names or tuple(map(str, range(num_classes))), notes)


def _read(where: str, path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...], tuple[str, ...]]:
    """The arrays by name, the layout they have, and notes about what was left out."""
    try:
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile
        with np.load(path, allow_pickle=False) as archive:
            layout = MEDMNIST if MEDMNIST[0] in archive.files else OURS
            arrays = {name: archive[name] for name in (*layout[:4], NAMES) if name in archive.files}
            left_out = layout[4] in archive.files
    except Exception as error:  # numpy, zipfile, zlib and tokenize each have their own for damaged bytes
        raise InputError(f"{where} cannot be read as an .npz of plain arrays (no Python objects); make it anew with "
                         "numpy.savez.") from error
    if absent := [name for name in layout[:4] if name not in arrays]:
        raise InputError(f"{where} has no {', '.join(absent)}; an .npz data set has {', '.join(layout[:4])}.")
    note = f"{path.name}: {layout[4]} is left out; {layout[0]} is trained on and {layout[2]} tested."
    return arrays, layout, (note,) if left_out else ()


def _class_names(where: str, names: np.ndarray) -> tuple[str, ...]:
    if names.ndim != 1:
        raise InputError(f"{where}: {NAMES} has shape {names.shape}; give one name per class.")
    if names.dtype.kind == "S":
        try:
            names = np.char.decode(names, "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: {NAMES} holds bytes that are no UTF-8; store text.") from error
    return tuple(map(str, names))


def _in_colour(pixels: np.ndarray) -> np.ndarray:
    """Grey images with three equal channels; any other array as it is."""
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    return pixels.repeat(3, axis=-1) if pixels.ndim == 4 and pixels.shape[-1] == 1 else pixels


def _whole_numbers(labels: np.ndarray) -> tuple[np.ndarray, int | None]:
    """A column, and one-hot rows, as a row of labels, and how many columns the latter had; others as they are."""
    if labels.ndim != 2 or labels.dtype.kind not in "biuf":
        return labels, None
    if labels.shape[1] == 1:
        return labels[:, 0], None
    if len(labels) and ((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all():
        return labels.argmax(axis=1), labels.shape[1]
    return labels, None


def _numbered_without_gaps(where: str, name: str, labels_N: np.ndarray) -> int:
    """How many classes there are."""
    count = len(np.unique(labels_N))
    if labels_N.max() >= count:
        raise InputError(f"{where}: {name} holds {count} different labels up to {labels_N.max()}; number the classes "
                         f"from 0 without gaps, or give {NAMES}.")
    return count


def _checked(where: str, images: str, pixels: np.ndarray, labels: str, labels_N: np.ndarray,
             num_classes: int | None) -> LabelledImages:
    """`images`, `labels`: what the arrays are called."""
    if pixels.dtype != np.uint8:
        raise InputError(f"{where}: {images} is {pixels.dtype}; pixels must be uint8 from 0 to 255.")
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or 0 in pixels.shape[1:]:
        raise InputError(f"{where}: {images} has shape {pixels.shape}; images must be (N, height, width, 3), or grey.")
    if labels_N.ndim != 1 or len(labels_N) != len(pixels):
        raise InputError(f"{where}: {labels} has shape {labels_N.shape}; there must be one label for each of the "
                         f"{len(pixels)} images of {images}, or a one-hot row.")
    if not np.issubdtype(labels_N.dtype, np.integer):
        raise InputError(f"{where}: {labels} is {labels_N.dtype}; labels must be whole numbers.")
    if not len(labels_N):
        raise InputError(f"{where}: {images} holds no image.")
    low, high = labels_N.min(), labels_N.max()
    if low < 0 or (num_classes is not None and high >= num_classes):
        limit = "from 0" if num_classes is None else f"from 0 to {num_classes - 1}, with {num_classes} classes"
        raise InputError(f"{where}: {labels} holds labels from {low} to {high}; they must lie {limit}.")
    return images_in_memory(np.ascontiguousarray(pixels), labels_N.astype(np.int64))
