# SPDX-License-Identifier: MIT
"""The published augmentation, recomputed in plain NumPy from the same chance."""

import math

import numpy as np
import pytest

from openseg.build import build_train_transform
from openseg.config import load_config
from openseg.data import DatasetInfo, Normalize, Sample, TrainTransform
from openseg.data.resampling import Window, resize_image, resize_label
from openseg.errors import ConfigError

PAIRS = ((1, 2),)
CAFFE = Normalize((102.9801, 115.9465, 122.7717), (1, 1, 1), 1, "BGR")


def make_sample(height, width, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Sample(image, rng.integers(0, 4, (height, width), dtype=np.uint8), "noise")


def weights(old, new, taps, kernel):
    """float64 [new, old]: bilinear or cubic, half-pixel centres, replicated border."""
    matrix = np.zeros((new, old))
    for i in range(new):
        center = (i + 0.5) * old / new - 0.5
        for j in range(math.floor(center) - taps // 2 + 1, math.floor(center) + taps // 2 + 1):
            matrix[i, min(max(j, 0), old - 1)] += kernel(abs(center - j))
    return matrix


def cubic(x, a=-0.75):
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a


def resized(image, label, size, taps=4, kernel=cubic):
    rows = weights(label.shape[0], size[0], taps, kernel)
    columns = weights(label.shape[1], size[1], taps, kernel)
    pixels = np.einsum("ih,hwc,jw->ijc", rows, image.astype(float), columns)
    nearest = [[label[i * label.shape[0] // size[0], j * label.shape[1] // size[1]]
                for j in range(size[1])] for i in range(size[0])]  # fmt: skip
    return np.clip(np.rint(pixels), 0, 255), np.array(nearest, dtype=np.uint8)


def flipped(image, label):
    label = label[:, ::-1].copy()
    ones, twos = label == 1, label == 2
    label[ones], label[twos] = 2, 1
    return image[:, ::-1], label


def finished(image, label, crop, chance, right_down=False, brightness=10, normalize=CAFFE):
    """Brightness, normalisation and padding of what the crop left."""
    if brightness:
        image = np.clip(image + chance.integers(-brightness, brightness, endpoint=True), 0, 255)
    values = image[..., ::-1] if normalize.channel_order == "BGR" else image
    values = (values / normalize.divisor - normalize.mean) / normalize.std
    spare = [c - s for c, s in zip(crop, label.shape, strict=True)]
    at = [0, 0]
    if max(spare) and not right_down:
        at = [int(chance.integers(s, endpoint=True)) for s in spare]
    before_after = [(a, s - a) for a, s in zip(at, spare, strict=True)]
    return (
        np.pad(values, (*before_after, (0, 0))).transpose(2, 0, 1),
        np.pad(label, before_after, constant_values=255),
    )


def cropped(image, label, crop, chance):
    height, width = (min(*pair) for pair in zip(crop, label.shape, strict=True))
    top = int(chance.integers(label.shape[0] - height, endpoint=True))
    left = int(chance.integers(label.shape[1] - width, endpoint=True))
    window = np.s_[top : top + height, left : left + width]
    return image[window], label[window]


def openseg_cityscapes(sample, crop, chance):
    image, label = sample.image, sample.label
    scale, aspect = chance.uniform(0.5, 2), chance.uniform(0.9, 1.1)
    height, width = label.shape
    size = int(height * scale / math.sqrt(aspect)), int(width * scale * math.sqrt(aspect))
    image, label = cropped(*resized(image, label, size), crop, chance)
    if chance.random() < 0.5:
        image, label = flipped(image, label)
    return finished(image, label, crop, chance)


def openseg_others(sample, crop, chance, first=None, min_side=None):
    image, label = sample.image, sample.label
    if chance.random() < 0.5:
        image, label = flipped(image, label)
    if min_side is not None:
        ratio = min_side / min(label.shape)
        first = tuple(round(side * ratio) for side in label.shape)
    image, label = resized(image, label, first)
    scale, aspect = chance.uniform(0.5, 2), chance.uniform(0.9, 1.1)
    size = int(first[0] * scale / math.sqrt(aspect)), int(first[1] * scale * math.sqrt(aspect))
    image, label = cropped(*resized(image, label, size), crop, chance)
    return finished(image, label, crop, chance)


def hrnet(sample, crop, chance, long_side=40):
    image, label = sample.image, sample.label
    side = int(long_side * (0.5 + int(chance.integers(0, 16, endpoint=True)) / 10) + 0.5)
    chance.uniform(1, 1)
    height, width = label.shape
    if height > width:
        size = side, int(width * side / height + 0.5)
    else:
        size = int(height * side / width + 0.5), side
    linear = resized(image, label, size, taps=2, kernel=lambda x: 1 - x)
    image, label = cropped(*linear, crop, chance)
    if chance.random() < 0.5:
        image, label = flipped(image, label)
    return finished(image, label, crop, chance, True, 0, Normalize())


CASES = {
    "cityscapes": (openseg_cityscapes, {"normalize": CAFFE}, (20, 40)),
    "ade20k": (
        lambda *a: openseg_others(*a, min_side=26),
        {"normalize": CAFFE, "order": "flip_first", "min_side": 26},
        (26, 26),
    ),
    "lip": (
        lambda *a: openseg_others(*a, first=(23, 23)),
        {"normalize": CAFFE, "order": "flip_first", "fixed_size": (23, 23)},
        (23, 23),
    ),
    "hrnet": (
        hrnet,
        {
            "scale_range": (0.5, 2.1),
            "scale_step": 0.1,
            "aspect_range": (1, 1),
            "long_side": 40,
            "interpolation": "linear",
            "brightness": 0,
            "padding": "right_down",
        },
        (24, 36),
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("height", "width"), [(25, 37), (33, 21)])
def test_against_plain_numpy(case, height, width):
    expect, options, crop = CASES[case]
    transform = TrainTransform(crop, flip_pairs=PAIRS, **options)
    level = 1 / (transform.normalize.divisor * np.min(transform.normalize.std))
    moved = 0
    for seed in range(6):
        sample = make_sample(height, width, seed)
        image, label = transform(sample, np.random.default_rng(seed))
        plain_image, plain_label = expect(sample, crop, np.random.default_rng(seed))
        np.testing.assert_array_equal(label, plain_label)
        difference = np.abs(image - plain_image)
        # Weights in float32 tip a tie here and there: one grey level, or two after two roundings.
        assert difference.max() < 2.01 * level
        moved += (difference > 0.5 * level).mean()
    assert moved / 6 < 0.002


def test_two_passes_compute_what_whole_images_would():
    sample = make_sample(30, 41)
    first, size, window = (26, 36), (45, 51), Window(7, 9, 20, 30)
    for interpolation in ("cubic", "linear"):
        whole = resize_image(sample.image, first, Window(0, 0, *first), interpolation)
        whole = resize_image(whole, size, window, interpolation)
        ours = resize_image(sample.image, size, window, interpolation, first)
        np.testing.assert_array_equal(ours, whole)
    whole = resize_label(sample.label, first, Window(0, 0, *first))
    whole = resize_label(whole, size, window)
    np.testing.assert_array_equal(resize_label(sample.label, size, window, first), whole)


def test_every_option_reaches_the_transform():
    words = {
        "order": "flip_first",
        "min_side": 77,
        "scale_range": (0.6, 1.6),
        "scale_step": 0.2,
        "aspect_range": (0.8, 1.2),
        "interpolation": "linear",
        "flip": False,
        "brightness": 3,
        "padding": "right_down",
        "crop_size": (40, 50),
    }
    overrides = [f"data.{key}={str(value).replace('(', '[').replace(')', ']')}"
                 for key, value in words.items()]  # fmt: skip
    info = DatasetInfo("x", tuple("abc"), ((0, 0, 0),) * 3, flip_pairs=PAIRS)
    transform = build_train_transform(load_config("scenes/ocrnet_r18", overrides), info)
    assert {key: getattr(transform, key) for key in words} == words
    assert transform.flip_pairs == PAIRS
    for word, value in {"fixed_size": (40, 30), "long_side": 99}.items():
        overrides = [f"data.{word}={value}".replace("(", "[").replace(")", "]")]
        overrides.append("data.aspect_range=[1, 1]")
        transform = build_train_transform(load_config("scenes/ocrnet_r18", overrides), info)
        assert getattr(transform, word) == value


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data.min_side=5", "data.long_side=5"], "one of fixed_size, min_side and long_side"),
        (["data.min_side=0"], "data.min_side: 0 given, pixels, 1 or more expected"),
        (["data.fixed_size=[4, 0]"], "data.fixed_size"),
        (["data.long_side=5", "data.aspect_range=[0.9, 1.1]"], "[1, 1] beside data.long_side"),
        (["data.scale_step=0"], "data.scale_step: 0.0 given, more than 0 expected"),
    ],
)
def test_options_that_do_not_go_together(words, expected):
    with pytest.raises(ConfigError) as caught:
        load_config("scenes/ocrnet_r18", words)
    assert expected in str(caught.value)
