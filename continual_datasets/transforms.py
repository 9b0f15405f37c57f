"""Image transforms for a whole uint8 batch at once, on the batch's own device, each image with its own random draw.

A resize is a weighted sum of a few pixels across and then of a few rows down, in Pillow's own weights and integer
arithmetic. So the 8-bit pixels are Pillow's, and the same on every device, beside any other images. No shape depends on
the data, and nothing makes the CPU wait for the GPU. The weights are small tables that need float64, which not every
device has: they are always made on the CPU, and copied.

Across always goes first, as in every Pillow before 13. From 13 on, a height that shrinks by more than twice what the
width does goes first: crops then differ by at most 1/255, evaluated images (those taller than twice their width, when
shrunk) by more at hard edges. Neither concerns images that are enlarged.

Shape suffixes: B images of a batch, H and W height and width given, C = 3 channels, S side of the output, O positions
of the output along one axis, I those of the input, K pixels that make one of the output, X positions of the other axis,
T tries, U uniform numbers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from errors import InputError

CROP_TRIES = 10  # torchvision's RandomResizedCrop: so many boxes are tried before it falls back to a central one
CROP_UNIFORMS = 2 * CROP_TRIES + 2  # an area and a ratio for each try; top and left for the first try that fits

CROP_PCT = 224 / 256  # timm's name: the side of the central crop over the shorter side of the resized image
WEIGHT_BITS = 22  # Pillow holds the weight 1 as 2**22
CHUNK_VALUES = 300_000  # int32 values of a chunk of images, two of 224 pixels: its steps then stay in a CPU's cache

Filter = Literal["bilinear", "bicubic"]
SUPPORT = {"bilinear": 1, "bicubic": 2}  # how far from its centre a filter reaches, in pixels


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop (bilinear), random horizontal flip, pixels to [0, 1], then (x − mean) / std where given.

    The fields say all that it computes, so an instance or its `repr` can serve as the key of a cache. `scale` is the
    range of the crop's area over the image's, `ratio` that of width over height, `hflip` the probability of a flip;
    `mean` and `std` are one value per channel for pixels in [0, 1]. The defaults are the L2P ones.
    """

    input_size: int = 224
    scale: tuple[float, float] = (0.05, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    num_uniforms: ClassVar[int] = CROP_UNIFORMS + 1  # the crop's, then one for the flip

    def __post_init__(self) -> None:
        _check_fields(self.input_size, self.mean, self.std)

    def __call__(self, images_BHWC: Tensor, uniforms_BU: Tensor, copy: Callable[[Tensor], Tensor] | None = None
                 ) -> Tensor:
        """uint8 `[B, H, W, 3]` and uniform numbers in [0, 1) `[B, num_uniforms]` -> float32 `[B, 3, S, S]`.

        S is `input_size`. Row b of the uniform numbers, which lie on the CPU, is all the randomness of image b. `copy`
        brings a tensor from the CPU to the images' device; a plain copy when not given. Raises ValueError for another
        dtype or shape.
        """
        _check_images(images_BHWC)
        if uniforms_BU.shape != (len(images_BHWC), self.num_uniforms) or uniforms_BU.device.type != "cpu":
            raise ValueError(
                f"expected uniform numbers [{len(images_BHWC)}, {self.num_uniforms}] on the CPU, got "
                f"{[*uniforms_BU.shape]} on {uniforms_BU.device}"
            )
        height, width = images_BHWC.shape[1:3]
        boxes_B4 = draw_crops(uniforms_BU[:, :CROP_UNIFORMS], height, width, self.scale, self.ratio)
        flip_B = uniforms_BU[:, CROP_UNIFORMS] < self.hflip
        rows, columns = crop_taps(boxes_B4, flip_B, height, width, self.input_size)
        copy = copy or (lambda tensor: tensor.to(images_BHWC.device))
        return self.normalised(resample(images_BHWC, rows.copied(copy), columns.copied(copy)))

    def of_picture(self, picture: Image.Image, uniforms_U: Tensor) -> Tensor:
        """The same pixels from one RGB picture of any size, before `normalised`: uint8 `[3, S, S]`."""
        crop_1U, size = uniforms_U[None, :CROP_UNIFORMS], (picture.height, picture.width)
        ((top, left, height, width),) = draw_crops(crop_1U, *size, self.scale, self.ratio).tolist()
        cut = picture.crop((left, top, left + width, top + height))
        cut = _resized(cut, self.input_size, self.input_size, Image.Resampling.BILINEAR)
        if uniforms_U[CROP_UNIFORMS] < self.hflip:
            cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return _planes(cut)

    def normalised(self, pixels_BCHW: Tensor) -> Tensor:
        """float32 from 0 to 255 -> to [0, 1], then (x − mean) / std where given. In place."""
        return _normalised(pixels_BCHW, self.mean, self.std)


@dataclass(frozen=True)
class EvalTransform:
    """Shorter side to int(input_size / crop_pct) (bicubic), central crop, pixels to [0, 1], then (x − mean) / std.

    An image that is not square keeps its aspect ratio. A `crop_pct` of 1 keeps the whole of a square image. Sizes and
    offsets are rounded as torchvision's `Resize` and `CenterCrop` round them. The fields say all that it computes, as
    `TrainTransform`'s do.
    """

    input_size: int = 224
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    crop_pct: float = CROP_PCT

    def __post_init__(self) -> None:
        _check_fields(self.input_size, self.mean, self.std)

    def __call__(self, images_BHWC: Tensor) -> Tensor:
        """uint8 `[B, H, W, 3]` -> float32 `[B, 3, input_size, input_size]`. Raises ValueError as `TrainTransform`."""
        _check_images(images_BHWC)
        height, width = images_BHWC.shape[1:3]
        rows, columns = _eval_taps(height, width, self.input_size, self.crop_pct, images_BHWC.device)
        return self.normalised(resample(images_BHWC, rows, columns))

    def of_picture(self, picture: Image.Image) -> Tensor:
        """The same pixels from one RGB picture of any size, before `normalised`: uint8 `[3, S, S]`."""
        width, height = (_eval_size(size, min(picture.size), self.input_size, self.crop_pct) for size in picture.size)
        left, top = (round((size - self.input_size) / 2) for size in (width, height))
        whole = _resized(picture, width, height, Image.Resampling.BICUBIC)
        return _planes(whole.crop((left, top, left + self.input_size, top + self.input_size)))

    def normalised(self, pixels_BCHW: Tensor) -> Tensor:
        """float32 from 0 to 255 -> to [0, 1], then (x − mean) / std where given. In place."""
        return _normalised(pixels_BCHW, self.mean, self.std)


def draw_crops(
    uniforms_BU: Tensor, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Tensor:
    """Boxes of torchvision's RandomResizedCrop from given uniform numbers in [0, 1): `[B, CROP_UNIFORMS]`.

    Returns int64 `[B, 4]`: top, left, height, width, in pixels, inside the image. Up to ten tries draw an area (uniform
    in `scale`) and a ratio of width to height (log-uniform in `ratio`); the first box that fits gets a uniform place.
    Where none fits, the largest central box whose ratio lies in the range.
    """
    uniforms_BU = uniforms_BU.double()  # a float32 product could round up to the bound that the floor below excludes
    area_BT = height * width * (scale[0] + (scale[1] - scale[0]) * uniforms_BU[:, :CROP_TRIES])
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    ratio_BT = torch.exp(log_low + (log_high - log_low) * uniforms_BU[:, CROP_TRIES : 2 * CROP_TRIES])
    width_BT = torch.sqrt(area_BT * ratio_BT).round()
    height_BT = torch.sqrt(area_BT / ratio_BT).round()
    fits_BT = (width_BT > 0) & (width_BT <= width) & (height_BT > 0) & (height_BT <= height)

    first_B1 = fits_BT.int().argmax(dim=1, keepdim=True)  # argmax gives the first of equals
    height_B = height_BT.gather(1, first_B1).squeeze(1)
    width_B = width_BT.gather(1, first_B1).squeeze(1)
    top_B = (uniforms_BU[:, -2] * (height - height_B + 1)).floor()
    left_B = (uniforms_BU[:, -1] * (width - width_B + 1)).floor()

    central = _central_box(height, width, ratio)
    any_fits_B = fits_BT.any(dim=1)
    drawn = (top_B, left_B, height_B, width_B)
    return torch.stack([torch.where(any_fits_B, d, c) for d, c in zip(drawn, central, strict=True)], dim=1).long()


def _central_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """What RandomResizedCrop falls back to: (top, left, height, width)."""
    box_height, box_width = height, width
    if width / height < ratio[0]:
        box_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        box_width = round(height * ratio[1])
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


class Taps(NamedTuple):
    """Which pixels along one axis make each pixel of the output, and how much of each (B or 1 image)."""

    pixel_BOK: Tensor
    """int64, positions in the input."""
    weight_BOK: Tensor
    """int32, 2**WEIGHT_BITS for a weight of 1."""

    def copied(self, copy: Callable[[Tensor], Tensor]) -> "Taps":
        return Taps(copy(self.pixel_BOK), copy(self.weight_BOK))


def crop_taps(boxes_B4: Tensor, flip_B: Tensor, height: int, width: int, out_size: int) -> tuple[Taps, Taps]:
    """Rows and columns that resize each image's box (top, left, height, width) to a square of `out_size` (bilinear).

    The images have `height` and `width`; they are mirrored where `flip_B` is true. Only pixels inside the box count,
    as if the image had been cut before it was resized.
    """
    top_B, left_B, box_height_B, box_width_B = boxes_B4.unbind(1)
    rows = resize_taps(top_B, box_height_B, height, out_size, "bilinear")
    columns = resize_taps(left_B, box_width_B, width, out_size, "bilinear")
    # The columns' taps in reverse order give the mirrored image, without a pass over its pixels.
    columns = columns.copied(lambda taps: torch.where(flip_B[:, None, None], taps.flip(1), taps))
    return rows, columns


def resize_taps(start_B: Tensor, length_B: Tensor, in_size: int, out_size: int, kind: Filter) -> Taps:
    """How Pillow resizes the pixels `start … start + length − 1` of an axis to `out_size` pixels.

    `start_B` and `length_B` are int64 `[B]`, inside an axis of `in_size` pixels. No tap lies outside `start … start +
    length − 1`; the weights of an output pixel sum to 1. Where the box is larger than the output, the filter is widened
    by as much, which is Pillow's antialiasing.
    """
    step_B1 = length_B.double()[:, None] / out_size  # input pixels per output pixel
    stretch_B1 = step_B1.clamp(min=1)
    centre_BO = (torch.arange(out_size, device=start_B.device) + 0.5) * step_B1
    first_BO = (centre_BO - SUPPORT[kind] * stretch_B1 + 0.5).floor_().clamp_(min=0).long()
    taps = math.ceil(2 * SUPPORT[kind] * max(1, in_size / out_size))  # what the longest box needs
    pixel_BOK = first_BO[:, :, None] + torch.arange(taps, device=start_B.device)

    distance_BOK = ((pixel_BOK - centre_BO[:, :, None] + 0.5) / stretch_B1[:, :, None]).abs_()
    weight_BOK = _triangle(distance_BOK) if kind == "bilinear" else _cubic(distance_BOK)
    weight_BOK = weight_BOK * (pixel_BOK < length_B[:, None, None])
    weight_BOK /= weight_BOK.sum(dim=2, keepdim=True)

    pixel_BOK = start_B[:, None, None] + torch.minimum(pixel_BOK, length_B[:, None, None] - 1)
    return Taps(pixel_BOK, weight_BOK.mul_(1 << WEIGHT_BITS).round_().int())


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance).clamp_(min=0)


def _cubic(distance: Tensor) -> Tensor:
    """Cubic convolution with a = −0.5, which is Pillow's bicubic."""
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * -0.5
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def resample(images_BHWC: Tensor, rows: Taps, columns: Taps) -> Tensor:
    """uint8 `[B, H, W, C]` -> float32 `[B, C, rows, columns]`, whole numbers from 0 to 255.

    Across first, then down, rounded to 8 bits after each.
    """
    count, height, _, channels = images_BHWC.shape
    sizes = rows.pixel_BOK.shape[1], columns.pixel_BOK.shape[1]
    resized_BCOO = torch.empty(count, channels, *sizes, device=images_BHWC.device)
    chunk = max(1, CHUNK_VALUES // (channels * max(height, sizes[0]) * sizes[1]))
    if images_BHWC.device.type != "cpu":
        chunk = max(1, count)  # a GPU wants few, large kernels

    taps = [tensor.expand(count, -1, -1) for tensor in (*rows, *columns)]
    tensors = (images_BHWC, resized_BCOO, *taps)
    for images, resized, row, row_weight, column, column_weight in zip(*(t.split(chunk) for t in tensors), strict=True):
        planes_BCWH = images.permute(0, 3, 2, 1).int()
        planes_BCHO = _weighted_sum(planes_BCWH, column, column_weight).mT
        resized.copy_(_weighted_sum(planes_BCHO, row, row_weight))
    return resized_BCOO


def _weighted_sum(planes_BCIX: Tensor, pixel_BOK: Tensor, weight_BOK: Tensor) -> Tensor:
    """Taps of the axis I, rounded to 8 bits: int32 `[B, C, I, X]` -> int32 `[B, C, O, X]`."""
    batch, channels, size, width = planes_BCIX.shape
    lines_NX = planes_BCIX.reshape(-1, width)  # whole lines are copied at a time, N = B · C · I
    plane_BC1 = torch.arange(0, batch * channels * size, size, device=lines_NX.device).view(batch, channels, 1)
    half = 1 << (WEIGHT_BITS - 1)  # the shift below cuts off, so with it a sum is rounded
    sums_BCOX = lines_NX.new_full((batch, channels, pixel_BOK.shape[1], width), half)
    for pixel_BO, weight_BO in zip(pixel_BOK.unbind(2), weight_BOK.unbind(2), strict=True):
        line_BCO = plane_BC1 + pixel_BO[:, None]
        tap_BCOX = lines_NX.index_select(0, line_BCO.flatten()).view_as(sums_BCOX)
        sums_BCOX.addcmul_(tap_BCOX, weight_BO[:, None, :, None])
    return sums_BCOX.bitwise_right_shift_(WEIGHT_BITS).clamp_(0, 255)


def _normalised(
    images_BCHW: Tensor, mean: tuple[float, float, float] | None, std: tuple[float, float, float] | None
) -> Tensor:
    """float32 from 0 to 255 -> to [0, 1], then (x − mean) / std per channel unless these are None. In place."""
    images_BCHW.div_(255)
    if mean is not None and std is not None:
        # Plain numbers per channel: a tensor of them would have to be copied to the device in every call.
        for channel, (centre, spread) in enumerate(zip(mean, std, strict=True)):
            images_BCHW[:, channel].sub_(centre).div_(spread)
    return images_BCHW


@lru_cache(maxsize=16)
def _eval_taps(height: int, width: int, input_size: int, crop_pct: float, device: torch.device) -> tuple[Taps, Taps]:
    """Taps for rows and columns: the resize, less what the central crop cuts off."""
    def axis(size: int) -> Taps:
        resized = _eval_size(size, min(height, width), input_size, crop_pct)
        first = round((resized - input_size) / 2)
        start_1, length_1 = torch.tensor([[0], [size]])
        whole = resize_taps(start_1, length_1, size, resized, "bicubic")
        return whole.copied(lambda taps: taps[:, first : first + input_size].to(device))

    return axis(height), axis(width)


def _eval_size(size: int, shorter: int, input_size: int, crop_pct: float) -> int:
    """A side of `size` pixels after the resize, in an image whose shorter side has `shorter`."""
    return int(int(input_size / crop_pct) * size / shorter)


def _resized(picture: Image.Image, width: int, height: int, kind: Image.Resampling) -> Image.Image:
    """Pillow's resize in two calls: across first whatever its version, as `resample` does it."""
    return picture.resize((width, picture.height), kind).resize((width, height), kind)


def _planes(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def _check_fields(input_size: int, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> None:
    if input_size < 1:
        raise InputError(f"--input-size is {input_size}, but an image needs a side of at least 1 pixel.")
    if (mean is None) != (std is None):
        raise ValueError("mean and std go together: give both or neither")


def _check_images(images_BHWC: Tensor) -> None:
    if images_BHWC.dtype != torch.uint8 or images_BHWC.ndim != 4 or images_BHWC.shape[3] != 3:
        raise ValueError(f"expected uint8 images [B, H, W, 3], got {images_BHWC.dtype} {[*images_BHWC.shape]}")
