"""The batched transforms against torchvision's per-image ones on Pillow images."""

import dataclasses
import inspect

import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import transforms
from torchvision.transforms import functional
from torchvision.transforms.functional import InterpolationMode

from continual_datasets.transforms import (
    CROP_UNIFORMS,
    EvalTransform,
    TrainTransform,
    crop_taps,
    draw_crops,
    resample,
    resize_taps,
)
from errors import InputError

SCALE, RATIO = (0.05, 1.0), (3 / 4, 4 / 3)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def pictures(count: int, height: int, width: int) -> torch.Tensor:
    """Half of them noise, half with flat areas and hard edges, where resampling overshoots and is clamped."""
    images_BHWC = (numbers(count, height, width, 3) * 256).byte()
    blocks = (numbers(count, 3, 5, 5, seed=1) > 0.5).byte() * 255
    blocks_BHWC = torch.nn.functional.interpolate(blocks, (height, width)).permute(0, 2, 3, 1)
    return torch.where(torch.arange(count)[:, None, None, None] % 2 == 0, images_BHWC, blocks_BHWC)


def pillow(image_HWC: torch.Tensor) -> Image.Image:
    return Image.fromarray(image_HWC.numpy())


def goes_down_first(height: int, width: int, new_height: int, new_width: int) -> bool:
    """Pillow 13 and later resize these down before across, and so round (and clamp) otherwise than earlier ones."""
    return height - new_height > max(0, 2 * (width - new_width))


def resized_by_torchvision(images_BHWC: torch.Tensor, boxes_B4: torch.Tensor, size: int) -> torch.Tensor:
    crops = [
        functional.resized_crop(pillow(image), *box, [size, size], InterpolationMode.BILINEAR)
        for image, box in zip(images_BHWC, boxes_B4.tolist(), strict=True)
    ]
    return torch.stack([functional.pil_to_tensor(crop) for crop in crops]).float()


def crop_and_resize(images_BHWC: torch.Tensor, boxes_B4: torch.Tensor, flip_B: torch.Tensor, size: int) -> torch.Tensor:
    return resample(images_BHWC, *crop_taps(boxes_B4, flip_B, *images_BHWC.shape[1:3], size))


def no_flip(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.bool)


@pytest.mark.parametrize(
    ("height", "width", "size"), [(32, 32, 224), (28, 28, 32), (32, 32, 32), (40, 64, 96), (150, 130, 48), (9, 200, 31)]
)
def test_crop_and_resize_equals_pillow(height, width, size):
    drawn = draw_crops(numbers(24, CROP_UNIFORMS), height, width, (0.001, 1), (0.2, 5))
    corners = [
        (0, 0, height, width),
        (0, 0, 1, 1),
        (height - 1, width - 1, 1, 1),
        (height // 2, 0, 1, width),
        (0, width // 2, height, 1),
        (0, 0, 5, 7),
        (height - 5, width - 7, 5, 7),
    ]
    boxes_B4 = torch.cat([drawn, torch.tensor(corners)])
    images_BHWC = pictures(len(boxes_B4), height, width)
    ours = crop_and_resize(images_BHWC, boxes_B4, no_flip(len(boxes_B4)), size)
    difference = (ours - resized_by_torchvision(images_BHWC, boxes_B4, size)).abs()
    assert difference.max() <= 1
    same_order = torch.tensor([not goes_down_first(h, w, size, size) for _, _, h, w in boxes_B4.tolist()])
    assert difference[same_order].max() == 0


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 224), (90, 70, 20)])
def test_no_pixel_from_outside_the_crop(height, width, size):
    boxes_B4 = draw_crops(numbers(40, CROP_UNIFORMS), height, width, (0.001, 0.5), (0.2, 5))
    images_BHWC = torch.full((40, height, width, 3), 255, dtype=torch.uint8)
    for image, (top, left, box_height, box_width) in zip(images_BHWC, boxes_B4.tolist(), strict=True):
        image[top : top + box_height, left : left + box_width] = 7
    assert (crop_and_resize(images_BHWC, boxes_B4, no_flip(40), size) == 7).all()


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
def test_taps_lie_in_the_box_and_sum_to_one(kind):
    start_B, length_B = torch.tensor([0, 3, 49, 20]), torch.tensor([50, 40, 1, 2])
    for size in (1, 7, 50, 224):
        taps = resize_taps(start_B, length_B, 50, size, kind)
        assert (taps.pixel_BOK >= start_B[:, None, None]).all()
        assert (taps.pixel_BOK < (start_B + length_B)[:, None, None]).all()
        assert (taps.weight_BOK.sum(2) - 2**22).abs().max() <= 50  # each tap is rounded


@pytest.mark.parametrize(
    ("height", "width", "scale", "count"), [(32, 32, SCALE, 20_000), (26, 40, (0.7, 1.0), 10_000)]
)
def test_crops_follow_torchvisions_law(height, width, scale, count):
    ours = draw_crops(numbers(count, CROP_UNIFORMS), height, width, scale, RATIO)
    image = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        theirs = torch.tensor(
            [transforms.RandomResizedCrop.get_params(image, list(scale), list(RATIO)) for _ in range(count)]
        )
    for quantity in (
        lambda t, l, h, w: h * w,
        lambda t, l, h, w: w / h,
        lambda t, l, h, w: t,
        lambda t, l, h, w: l,
        lambda t, l, h, w: t + h,
        lambda t, l, h, w: l + w,
        lambda t, l, h, w: t / (height - h + 1),
        lambda t, l, h, w: t * width + l,
    ):
        # Kolmogorov and Smirnov's distance of two samples of one law is as large once in 150,000 times.
        limit = 2.5 * (2 / count) ** 0.5
        assert ks_distance(quantity(*ours.T), quantity(*theirs.T)) < limit, inspect.getsource(quantity)


def ks_distance(first: torch.Tensor, second: torch.Tensor) -> float:
    values = torch.cat([first, second]).unique()
    shares = [torch.searchsorted(x.sort().values, values, right=True) / len(x) for x in (first, second)]
    return (shares[0] - shares[1]).abs().max().item()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 2), (32, 32), (50, 17), (300, 260)])
def test_crops_lie_inside_the_image(height, width):
    uniforms_BU = numbers(2000, CROP_UNIFORMS)
    uniforms_BU[0], uniforms_BU[1] = 0, 1 - 2**-24  # the least and the greatest that torch.rand gives
    top, left, box_height, box_width = draw_crops(uniforms_BU, height, width, SCALE, RATIO).T
    assert min(top.min(), left.min()) >= 0
    assert min(box_height.min(), box_width.min()) >= 1
    assert (top + box_height).max() <= height
    assert (left + box_width).max() <= width


@pytest.mark.parametrize(("height", "width"), [(10, 100), (100, 10), (31, 17)])
def test_where_no_try_fits_the_crop_is_torchvisions_central_one(height, width):
    ours = draw_crops(numbers(5, CROP_UNIFORMS), height, width, (1, 1), RATIO)
    theirs = transforms.RandomResizedCrop.get_params(torch.empty(3, height, width), [1, 1], list(RATIO))
    assert ours.tolist() == [list(theirs)] * 5


def test_the_first_try_that_fits_is_taken():
    uniforms_1U = torch.full((1, CROP_UNIFORMS), 0.99)
    uniforms_1U[0, 10:20] = 0  # ten tries of nearly the whole area at ratio 3/4: too tall
    assert draw_crops(uniforms_1U, 32, 32, SCALE, RATIO).tolist() == [[0, 0, 32, 32]]
    uniforms_1U[0, 3], uniforms_1U[0, 6] = 0.2, 0.1
    area = 32 * 32 * (0.05 + 0.95 * 0.2)
    (_, _, box_height, box_width) = draw_crops(uniforms_1U, 32, 32, SCALE, RATIO)[0].tolist()
    assert (box_height, box_width) == (round((area * 4 / 3) ** 0.5), round((area * 3 / 4) ** 0.5))


def test_train_transform_equals_torchvision():
    images_BHWC = pictures(12, 32, 40)
    uniforms_BU = numbers(12, TrainTransform.num_uniforms)
    uniforms_BU[:, -1] = torch.tensor([0.1, 0.9] * 6)
    boxes_B4 = draw_crops(uniforms_BU[:, :CROP_UNIFORMS], 32, 40, SCALE, RATIO)
    expected = resized_by_torchvision(images_BHWC, boxes_B4, 64) / 255
    expected[::2] = expected[::2].flip(3)
    ours = TrainTransform(64)(images_BHWC, uniforms_BU)
    assert ours.dtype == torch.float32
    assert ours.shape == (12, 3, 64, 64)
    assert (ours - expected).abs().max() < 1e-6
    normalised = TrainTransform(64, mean=MEAN, std=STD)(images_BHWC, uniforms_BU)
    torch.testing.assert_close(normalised, functional.normalize(ours, list(MEAN), list(STD)))


def test_flips_have_the_given_probability():
    images_BHWC = pictures(400, 8, 8)
    uniforms_BU = numbers(400, TrainTransform.num_uniforms)
    plain, mirrored = (TrainTransform(8, hflip=p)(images_BHWC, uniforms_BU) for p in (0.0, 1.0))
    assert torch.equal(mirrored, plain.flip(3))
    some = TrainTransform(8, hflip=0.3)(images_BHWC, uniforms_BU)
    flip_B = uniforms_BU[:, -1] < 0.3
    assert torch.equal(some, torch.where(flip_B[:, None, None, None], mirrored, plain))
    assert 0.2 < flip_B.float().mean() < 0.4


# No image taller than twice its width: Pillow's order would depend on its version.
@pytest.mark.parametrize("size", [224, 32])
@pytest.mark.parametrize(
    ("height", "width"), [(32, 32), (28, 28), (40, 64), (64, 40), (300, 260), (260, 300), (33, 171), (500, 251)]
)
def test_eval_transform_equals_torchvision(height, width, size):
    images_BHWC = pictures(2, height, width)
    theirs = transforms.Compose([
        transforms.Resize(int(256 / 224 * size), interpolation=InterpolationMode.BICUBIC),
        transforms.CenterCrop(size),
        transforms.ToTensor(),
    ])
    expected = torch.stack([theirs(pillow(image)) for image in images_BHWC])
    ours = EvalTransform(size)(images_BHWC)
    assert ours.dtype == torch.float32
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() < 1e-6
    normalised = EvalTransform(size, MEAN, STD)(images_BHWC)
    torch.testing.assert_close(normalised, functional.normalize(ours, list(MEAN), list(STD)))


@pytest.mark.parametrize("crop_pct", [1.0, 0.9, 0.5])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 64), (33, 171)])
def test_crop_pct_is_timms(height, width, crop_pct):
    images_BHWC = pictures(2, height, width)
    theirs = create_transform(48, interpolation="bicubic", crop_pct=crop_pct, mean=(0, 0, 0), std=(1, 1, 1))
    expected = torch.stack([theirs(pillow(image)) for image in images_BHWC])
    ours = EvalTransform(48, crop_pct=crop_pct)
    assert (ours(images_BHWC) - expected).abs().max() < 1e-6
    assert torch.equal(ours.of_picture(pillow(images_BHWC[0])), (expected[0] * 255).round().byte())


def test_an_image_is_transformed_alike_in_any_batch():
    images_BHWC, uniforms_BU = pictures(11, 32, 32), numbers(11, TrainTransform.num_uniforms)
    train, evaluation = TrainTransform(160), EvalTransform(160)
    together = train(images_BHWC, uniforms_BU), evaluation(images_BHWC)
    assert torch.equal(train(images_BHWC, uniforms_BU), together[0])
    for i in range(11):
        alone = slice(i, i + 1)
        assert torch.equal(train(images_BHWC[alone], uniforms_BU[alone]), together[0][alone])
        assert torch.equal(evaluation(images_BHWC[alone]), together[1][alone])


class OnMeta(TorchDispatchMode):
    """Collects the types of all that is computed on the meta device."""

    def __init__(self):
        super().__init__()
        self.types = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        parts = result if isinstance(result, tuple | list) else [result]
        self.types |= {part.dtype for part in parts if isinstance(part, torch.Tensor) and part.is_meta}
        return result


def test_shapes_do_not_depend_on_data_and_a_device_needs_no_double():
    """A tensor on the meta device has no values: reading one, as a wait for the GPU would, raises."""
    images_BHWC = torch.empty(5, 32, 40, 3, dtype=torch.uint8, device="meta")
    with OnMeta() as found:
        train = TrainTransform(64, mean=MEAN, std=STD)(images_BHWC, numbers(5, TrainTransform.num_uniforms))
        assert train.shape == (5, 3, 64, 64)
        assert EvalTransform(64)(images_BHWC).shape == (5, 3, 64, 64)
    assert torch.float32 in found.types
    assert torch.float64 not in found.types, "which Apple's mps has not"


def test_equal_fields_make_equal_keys():
    made = [EvalTransform(32), EvalTransform(32), EvalTransform(32, MEAN, STD), EvalTransform(64),
            EvalTransform(32, crop_pct=1)]
    assert len(set(made)) == 4
    assert repr(TrainTransform(32)) == repr(TrainTransform(32)) != repr(TrainTransform(32, hflip=0.0))
    assert dataclasses.asdict(EvalTransform(32, MEAN, STD)) == {
        "input_size": 32, "mean": MEAN, "std": STD, "crop_pct": 0.875}


def test_wrong_arguments_are_refused():
    images_BHWC, uniforms_BU = pictures(2, 8, 8), numbers(2, TrainTransform.num_uniforms)
    with pytest.raises(InputError, match="--input-size"):
        TrainTransform(0)
    with pytest.raises(ValueError, match="mean and std"):
        EvalTransform(8, mean=MEAN)
    with pytest.raises(ValueError, match="uint8"):
        EvalTransform(8)(images_BHWC.float())
    with pytest.raises(ValueError, match="3\\]"):
        EvalTransform(8)(images_BHWC[..., :1])
    for wrong in (uniforms_BU[:, 1:], uniforms_BU.to("meta")):
        with pytest.raises(ValueError, match="uniform numbers"):
            TrainTransform(8)(images_BHWC, wrong)
