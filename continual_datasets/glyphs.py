"""Images drawn by the project: random glyphs, moved, scaled, coloured, with noise and clutter.

A class is a shape: a few random strokes, fixed by the class id alone. Everything else about an image, its colours above
all, is drawn anew for every sample, so only the shape tells the class. There are as many classes as 64-bit ids and
as many samples per class as wanted, and nothing is downloaded.

Every random value is a hash of what it may depend on (no generator carries state from one sample to the next):
the shape of (class id), a sample of (seed, class id, sample index).

Shapes: N images, C classes, S line segments, R side of a distance field, P = 32 * 32 pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

IMAGE_SIZE = 32
# The two sets share no class: `demo/pretrain.py` learns from the first; the demo's tasks and every test of transfer
# take classes from the second.
PRETRAIN_CLASSES = range(0, 1_000_000)
DEMO_CLASSES = range(1_000_000, 2_000_000)


@dataclass(frozen=True)
class Style:
    """How a set of glyphs is drawn; what is not named here is drawn alike in every set.

    scale: the smallest and largest size, 1 for strokes of 1.6 of the image's 2 units. shift: how far a glyph's centre
    may lie from the image's, along x and along y. dark_share: the part, 0 to 1, of the images with dark ink on light
    paper; the others have light ink on dark paper.
    """

    scale: tuple[float, float]
    shift: float
    dark_share: float


CHALK = Style(scale=(0.7, 1.1), shift=0.25, dark_share=0.0)  # all that the demo's backbone saw in pretraining
CHALK_AND_INK = Style(scale=(0.9, 1.1), shift=0.1, dark_share=0.5)

# Image coordinates run from -1 to 1. A shape's strokes stay within +-0.8; its field reaches to +-1.2, so
# that a point outside it, read at the border, is still farther from every stroke than any pen is wide.
_FIELD_SIDE = 48
_FIELD_REACH = 1.2
_STROKE_REACH = 0.8
_SEGMENTS_PER_STROKE = 8
_CLUTTER = 2
# Images are drawn in groups whose intermediate arrays stay in the processor's cache.
_GROUP = 64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def glyph_images(
    classes: Sequence[int], per_class: int, seed: int, style: Style = CHALK
) -> tuple[np.ndarray, np.ndarray]:
    """Draw `per_class` images of every class, in the order of `classes`.

    Args:
        classes: class ids, each >= 0; an id names the same shape in every call, whatever the seed.
        per_class: images per class, >= 1. Asking for more leaves the first ones as they were.
        seed: >= 0; chooses the samples, not the shapes.
        style: how they are drawn; the shapes are the same in every style.

    Returns:
        images_NHWC uint8 [len(classes) * per_class, 32, 32, 3], and labels_N int64: the *position* of each image's
        class in `classes`. Image k of a class depends on (seed, class id, k) and the style only.

    Raises:
        ValueError: a class id or the seed is negative, or per_class is below 1.
    """
    if per_class < 1 or seed < 0 or any(class_id < 0 for class_id in classes):
        raise ValueError("glyph_images needs per_class >= 1 and class ids and a seed that are not negative.")
    ids_C = np.asarray(classes, dtype=np.uint64)
    labels_N = np.repeat(np.arange(len(ids_C), dtype=np.int64), per_class)
    sample_N = np.tile(np.arange(per_class, dtype=np.uint64), len(ids_C))
    keys_N = _hash(_hash(_hash(np.full(len(labels_N), seed, np.uint64)) + ids_C[labels_N]) + sample_N)

    images_NHWC = np.empty((len(labels_N), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for start in range(0, len(labels_N), _GROUP):
        group = slice(start, start + _GROUP)
        present, field_of_N = np.unique(labels_N[group], return_inverse=True)
        fields_CRR = np.stack([_distance_field(int(ids_C[position])) for position in present])
        images_NHWC[group] = _draw(keys_N[group], fields_CRR, field_of_N, style)
    return images_NHWC, labels_N


def _draw(keys_N: np.ndarray, fields_CRR: np.ndarray, field_of_N: np.ndarray, style: Style) -> np.ndarray:
    """One image per key, of the shape whose distance field is fields_CRR[field_of_N]: uint8 [N, 32, 32, 3]."""
    *others, dark_draw = _uniform(keys_N, 15 + 8 * _CLUTTER).T[:, :, None]
    draws = iter(others)

    def between(low: float, high: float) -> np.ndarray:
        return low + (high - low) * next(draws)  # [N, 1]

    def colour() -> np.ndarray:
        return np.stack([next(draws) for _ in range(3)], axis=-1)  # [N, 1, 3]

    angle, scale, shear = between(-0.3, 0.3), between(*style.scale), between(-0.2, 0.2)
    shift_x, shift_y = between(-style.shift, style.shift), between(-style.shift, style.shift)
    half_width, shade, noise = between(0.05, 0.11), between(-0.3, 0.3), between(0.02, 0.12)

    # Where each pixel lies in the shape's own coordinates: the inverse of shear, then scale and turn, then shift.
    x_P, y_P = _pixel_grid()
    x_NP, y_NP = x_P - shift_x, y_P - shift_y
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    glyph_y_NP = cos * y_NP - sin * x_NP
    glyph_x_NP = cos * x_NP + sin * y_NP - shear * glyph_y_NP
    ink_NP1 = _pen(scale * _read_field(fields_CRR, field_of_N, glyph_x_NP, glyph_y_NP), half_width)

    # Light ink on dark paper, or the reverse, in every channel.
    dark_N11 = (dark_draw < style.dark_share).astype(np.float32)[..., None]
    ink_N13, paper_N13 = 0.5 * (1 - dark_N11) + 0.5 * colour(), 0.5 * dark_N11 + 0.5 * colour()
    image_NP3 = paper_N13 + (shade * x_P)[..., None] * np.float32(0.5)
    for _ in range(_CLUTTER):
        x, y, turn, length = between(-1, 1), between(-1, 1), between(0, np.pi), between(0.05, 0.3)
        across = np.cos(turn) * (y_P - y) - np.sin(turn) * (x_P - x)
        along = np.cos(turn) * (x_P - x) + np.sin(turn) * (y_P - y)
        beyond = np.maximum(np.abs(along) - length, 0)
        mark_NP1 = _pen(np.sqrt(across * across + beyond * beyond), between(0.03, 0.09))
        image_NP3 += mark_NP1 * (colour() - image_NP3)
    image_NP3 += ink_NP1 * (ink_N13 - image_NP3)
    image_NP3 += noise[..., None] * _noise(keys_N)
    return (np.clip(image_NP3, 0, 1) * 255 + np.float32(0.5)).astype(np.uint8).reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 3)


def _pen(distance_NP: np.ndarray, half_width: np.ndarray) -> np.ndarray:
    """How far a line covers each pixel, [N, P, 1] from 0 to 1, falling off over the width of one pixel."""
    return np.clip((half_width - distance_NP) * (IMAGE_SIZE / 2) + np.float32(0.5), 0, 1)[..., None]


@lru_cache(maxsize=1)
def _pixel_grid() -> tuple[np.ndarray, np.ndarray]:
    """x and y of the pixel centres, float32 [1, P] each, from -1 to 1."""
    centres = (np.arange(IMAGE_SIZE, dtype=np.float32) + 0.5) * (2 / IMAGE_SIZE) - 1
    y, x = np.meshgrid(centres, centres, indexing="ij")
    return x.reshape(1, -1), y.reshape(1, -1)


def _read_field(fields_CRR: np.ndarray, field_of_N: np.ndarray, x_NP: np.ndarray, y_NP: np.ndarray) -> np.ndarray:
    """Distances at the given points, bilinear between the field's points, [N, P]."""
    to_index, last = (_FIELD_SIDE - 1) / (2 * _FIELD_REACH), _FIELD_SIDE - 1.001
    column, row = (np.clip((v_NP + _FIELD_REACH) * to_index, 0, last).astype(np.float32) for v_NP in (x_NP, y_NP))
    left, top = column.astype(np.int32), row.astype(np.int32)
    right_share, bottom_share = column - left, row - top
    corner = field_of_N.astype(np.int32)[:, None] * _FIELD_SIDE**2 + top * _FIELD_SIDE + left
    flat = fields_CRR.reshape(-1)
    upper, lower = flat[corner], flat[corner + _FIELD_SIDE]
    upper += right_share * (flat[corner + 1] - upper)
    lower += right_share * (flat[corner + _FIELD_SIDE + 1] - lower)
    return upper + bottom_share * (lower - upper)


@lru_cache(maxsize=4096)
def _distance_field(class_id: int) -> np.ndarray:
    """Distance of every point of a grid to the nearest stroke of the class's shape, float32 [R, R], row = y."""
    start_S2, end_S2 = _strokes(class_id)
    axis = np.linspace(-_FIELD_REACH, _FIELD_REACH, _FIELD_SIDE, dtype=np.float32)
    point_RR12 = np.stack(np.meshgrid(axis, axis), axis=-1)[:, :, None, :]
    step_S2 = end_S2 - start_S2
    from_start = point_RR12 - start_S2
    share_RRS = np.clip((from_start * step_S2).sum(-1) / np.maximum((step_S2**2).sum(-1), 1e-9), 0, 1)
    apart = from_start - share_RRS[..., None] * step_S2
    return np.sqrt((apart**2).sum(-1).min(-1))


def _strokes(class_id: int) -> tuple[np.ndarray, np.ndarray]:
    """The shape: three or four curves as short lines, centred; the lines' starts and ends, float32 [S, 2] each."""
    draws = _uniform(_hash(np.asarray([class_id], np.uint64)), 1 + 4 * 6)[0]
    count = 3 if draws[0] < 0.5 else 4
    control = draws[1 : 1 + count * 6].reshape(count, 3, 1, 2)
    t = np.linspace(0, 1, _SEGMENTS_PER_STROKE + 1, dtype=np.float32)[:, None]
    curve = (1 - t) ** 2 * control[:, 0] + 2 * t * (1 - t) * control[:, 1] + t**2 * control[:, 2]  # quadratic Bezier
    low, high = curve.min((0, 1)), curve.max((0, 1))
    curve = (curve - (low + high) / 2) * (2 * _STROKE_REACH / (high - low).max())
    return curve[:, :-1].reshape(-1, 2), curve[:, 1:].reshape(-1, 2)


def _hash(values: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele, Lea, Flood 2014): 64-bit integers to 64-bit integers without visible pattern."""
    mixed = values + _GOLDEN
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _uniform(keys_N: np.ndarray, count: int) -> np.ndarray:
    """`count` numbers in [0, 1) for every key, float32 [N, count]."""
    bits = _hash(keys_N[:, None] + np.arange(count, dtype=np.uint64) * _GOLDEN)
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def _noise(keys_N: np.ndarray) -> np.ndarray:
    """Noise for every value of an image, float32 [N, P, 3] in [-1, 1): sum of two uniform bytes, so mostly small."""
    values = IMAGE_SIZE**2 * 3
    words = _hash(_hash(keys_N)[:, None] + np.arange(values // 4, dtype=np.uint64) * _GOLDEN)
    bytes_N2V = words.astype("<u8").view(np.uint8).reshape(len(keys_N), 2, values)
    total = bytes_N2V[:, 0].astype(np.float32) + bytes_N2V[:, 1]
    return ((total - 255) * np.float32(1 / 255)).reshape(len(keys_N), IMAGE_SIZE**2, 3)
