# SPDX-License-Identifier: MIT
"""Augmentation and normalisation against the published arithmetic."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from openseg.data import (
    DatasetInfo,
    EvalTransform,
    Normalize,
    ResumableSampler,
    Sample,
    TrainSet,
    TrainTransform,
)
from openseg.data.resampling import Window, resize_image, resize_label

PLAIN = Normalize(mean=(0, 0, 0), std=(1, 1, 1), divisor=1)


def make_sample(height=23, width=31, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Sample(image, rng.integers(0, classes, (height, width), dtype=np.uint8), "noise")


class Noise:
    info = DatasetInfo("noise", tuple("abcde"), ((0, 0, 0),) * 5)

    def __len__(self):
        return 6

    def load(self, index):
        return make_sample(seed=index)


def fixed(crop_size, **options):
    """A transform without chance, except for what `options` turn on."""
    calm = {"scale_range": (1, 1), "aspect_range": (1, 1), "flip": False, "brightness": 0}
    return TrainTransform(crop_size, PLAIN, **{**calm, **options})


@pytest.mark.parametrize(("interpolation", "mode"), [("cubic", "bicubic"), ("linear", "bilinear")])
@pytest.mark.parametrize("size", [(23, 31), (40, 29), (11, 17), (1, 1), (23, 60)])
def test_resize_is_half_pixel_without_antialiasing(interpolation, mode, size):
    image = make_sample().image
    ours = resize_image(image, size, Window(0, 0, *size), interpolation)
    theirs = F.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None].double(), size, mode=mode
    ).clamp(0, 255)[0].permute(1, 2, 0)  # fmt: skip
    # Half a level by rounding; float32 weights can tip a tie.
    assert np.abs(ours - theirs.numpy()).max() < 0.5 + 1e-3


@pytest.mark.parametrize("size", [(46, 50), (12, 20), (23, 31)])
def test_window_is_cut_from_the_whole(size):
    sample = make_sample()
    window = Window(3, 5, 8, 9)
    for interpolation in ("cubic", "linear"):
        whole = resize_image(sample.image, size, Window(0, 0, *size), interpolation)
        part = resize_image(sample.image, size, window, interpolation)
        np.testing.assert_array_equal(part, whole[3:11, 5:14])
    whole = resize_label(sample.label, size, Window(0, 0, *size))
    np.testing.assert_array_equal(resize_label(sample.label, size, window), whole[3:11, 5:14])


def test_label_is_nearest_as_in_opencv():
    label = np.arange(5, dtype=np.uint8)[None]
    np.testing.assert_array_equal(
        resize_label(label, (1, 8), Window(0, 0, 1, 8)), [[0, 0, 1, 1, 2, 3, 3, 4]]
    )


def test_size_follows_scale_and_aspect():
    sample = make_sample(100, 200)
    transform = fixed((400, 400), scale_range=(1.7, 1.7), aspect_range=(1.1, 1.1))
    _, label = transform(sample, np.random.default_rng(0))
    inside = np.argwhere(label != 255)
    height, width = inside.max(axis=0) - inside.min(axis=0) + 1
    assert (height, width) == (int(170 / math.sqrt(1.1)), int(340 * math.sqrt(1.1)))


def test_image_and_label_stay_together():
    """A label drawn into the image must be found again after every step."""
    label = make_sample(40, 50).label
    sample = Sample(np.repeat(label[..., None] * 50, 3, axis=-1), label, "both")
    transform = fixed((33, 60), flip=True)
    for seed in range(20):
        image, label = transform(sample, np.random.default_rng(seed))
        inside = label != 255
        np.testing.assert_array_equal(image[0][inside], label[inside] * 50.0)
        assert inside.sum() == 33 * 50
        assert (image[:, ~inside] == 0).all()


def test_padding_follows_normalisation_and_is_random():
    sample = make_sample(4, 6)
    transform = TrainTransform((9, 9), scale_range=(1, 1), aspect_range=(1, 1))
    offsets = set()
    for seed in range(30):
        image, label = transform(sample, np.random.default_rng(seed))
        assert image.shape == (3, 9, 9)
        assert image.dtype == np.float32
        assert label.dtype == np.uint8
        assert (image[:, label == 255] == 0).all()
        offsets.add(tuple(np.argwhere(label != 255)[0]))
    assert len(offsets) > 8


def test_flip_mirrors_and_swaps_pairs():
    sample = make_sample()
    transform = fixed((23, 31), flip=True, flip_pairs=((1, 3),))
    swapped = np.array([0, 3, 2, 1, 4], dtype=np.uint8)[sample.label]
    seen = set()
    for seed in range(12):
        image, label = transform(sample, np.random.default_rng(seed))
        flipped = not np.array_equal(label, sample.label)
        seen.add(flipped)
        expected = swapped[:, ::-1] if flipped else sample.label
        np.testing.assert_array_equal(label, expected)
        pixels = sample.image[:, ::-1] if flipped else sample.image
        np.testing.assert_array_equal(image, pixels.transpose(2, 0, 1))
    assert seen == {True, False}


def test_brightness_is_one_clipped_integer():
    sample = make_sample()
    shifts = set()
    for seed in range(60):
        image, _ = fixed((23, 31), brightness=2)(sample, np.random.default_rng(seed))
        difference = image.transpose(1, 2, 0) - sample.image
        shift = int(np.median(difference))
        np.testing.assert_array_equal(
            image.transpose(1, 2, 0), np.clip(sample.image.astype(int) + shift, 0, 255)
        )
        shifts.add(shift)
    assert shifts == {-2, -1, 0, 1, 2}


@pytest.mark.parametrize(
    ("normalize", "channels"),
    [
        (Normalize(), (0, 1, 2)),
        (Normalize((102.98, 115.95, 122.77), (1, 1, 1), 1, "BGR"), (2, 1, 0)),
    ],
)
def test_normalize_and_undo(normalize, channels):
    image = make_sample().image
    pixels = normalize(image)
    assert pixels.dtype == np.float32
    assert pixels.flags.c_contiguous
    for out, source in enumerate(channels):
        exact = image[..., source] / normalize.divisor - normalize.mean[out]
        exact /= normalize.std[out]
        # scale, shift and sum are each rounded once to float32; the largest term is about 123
        np.testing.assert_allclose(pixels[out], exact, atol=256 * 2**-22)
    np.testing.assert_array_equal(normalize.undo(pixels), image)
    again = Normalize.from_dict(normalize.to_dict())
    assert again == normalize
    assert all(isinstance(v, (list, float, str)) for v in normalize.to_dict().values())


def test_samples_depend_on_seed_epoch_and_index_alone():
    transform = TrainTransform((16, 16))
    dataset = TrainSet(Noise(), transform, seed=5)
    first = dataset[(1, 2)]
    assert first["image"].dtype == torch.float32
    assert first["label"].dtype == torch.uint8
    assert torch.equal(first["image"], TrainSet(Noise(), transform, seed=5)[(1, 2)]["image"])
    for other in (dataset[(2, 2)], TrainSet(Noise(), transform, seed=6)[(1, 2)]):
        assert not torch.equal(first["image"], other["image"])


def test_workers_change_nothing():
    dataset = TrainSet(Noise(), TrainTransform((16, 16)), seed=5)

    def batches(workers):
        sampler = ResumableSampler(len(dataset), batch_size=2, seed=1)
        loader = torch.utils.data.DataLoader(dataset, batch_sampler=sampler, num_workers=workers)
        return [batch for _, batch in zip(range(5), loader, strict=False)]

    for alone, shared in zip(batches(0), batches(2), strict=True):
        assert torch.equal(alone["image"], shared["image"])
        assert torch.equal(alone["label"], shared["label"])


def test_evaluation_sees_the_whole_image():
    sample = make_sample()
    image, label = EvalTransform(PLAIN)(sample)
    np.testing.assert_array_equal(image, sample.image.transpose(2, 0, 1))
    assert label is sample.label
    assert EvalTransform()(sample._replace(label=None))[1] is None


@pytest.mark.parametrize("options", [{"fixed_size": (20, 50)}, {"min_side": 20}])
def test_evaluation_resizes_the_image_and_not_the_label(options):
    sample = make_sample()
    size = options.get("fixed_size") or tuple(
        round(side * 20 / min(sample.label.shape)) for side in sample.label.shape
    )
    image, label = EvalTransform(PLAIN, **options)(sample)
    known = resize_image(sample.image, size, Window(0, 0, *size), "cubic")
    np.testing.assert_array_equal(image, known.transpose(2, 0, 1))
    assert label is sample.label


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_size": (0, 4)},
        {"scale_range": (0, 1)},
        {"aspect_range": (2, 1)},
        {"interpolation": "nearest"},
        {"order": "crop_first"},
        {"padding": "left_up"},
        {"fixed_size": (4, 4), "min_side": 4},
        {"fixed_size": (0, 4)},
        {"aspect_range": (0.9, 1.1), "long_side": 9},
        {"scale_step": 0},
        {"brightness": 300},
    ],
)
def test_impossible_arguments(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: "):
        TrainTransform(**{"crop_size": (8, 8), **wrong})
