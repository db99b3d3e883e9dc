# SPDX-License-Identifier: MIT
"""Whole protocols, from the files' pixels to the confusion matrix, recomputed in plain NumPy."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from openseg.build import build_dataset
from openseg.config import load_config
from openseg.data import EvalTransform, Normalize
from openseg.data.datasets.lip import INFO as LIP
from openseg.engine.evaluation import evaluate
from openseg.engine.inference import Inference
from openseg.engine.submission import Submission
from openseg.errors import DataError
from tests.by_numpy import bicubic, bilinear
from tests.data import miniature
from tests.engine.pictures import CLASSES, NORMALIZE, WEIGHTS, Linear, Pictures


def linear_by_numpy(image):
    pixels = image[:, ::2, ::2] - np.roll(image, -1, -1)[:, ::2, ::2] / 2
    return np.einsum("kc,chw->khw", WEIGHTS.astype(np.float32), pixels)


def normalized(image):
    mean, std = np.array(NORMALIZE.mean), np.array(NORMALIZE.std)
    return np.moveaxis((image / 255 - mean) / std, -1, 0)


def multi_scale_by_numpy(image, scales, size):
    """Sum of logits at the size of the image, then its original size by a cubic resize."""
    height, width = image.shape[1:]
    total = 0
    for scale in scales:
        scaled = (int(height * scale), int(width * scale))
        inputs = bilinear(image, scaled)
        for mirror in (1, -1):
            logits = bilinear(linear_by_numpy(inputs[..., ::mirror]), scaled)[..., ::mirror]
            total = total + bilinear(logits, (height, width))
    return total if size == (height, width) else bicubic(total, size)


def count(counts, logits, label):
    """Adds to counts; the two best classes of a counted pixel may not be as good as equal."""
    best = np.sort(logits, 0)
    valid = label != 255
    assert (best[-1] - best[-2])[valid].min() > 1e-4
    np.add.at(counts, (label[valid], logits.argmax(0)[valid]), 1)


def test_multi_scale_and_flip():
    """The published one of Cityscapes: every image at its own size."""
    dataset, scales = Pictures(), (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    counts = np.zeros((CLASSES, CLASSES), dtype=int)
    for sample in dataset.samples:
        logits = multi_scale_by_numpy(normalized(sample.image), scales, sample.label.shape)
        count(counts, logits, sample.label)
    infer = Inference(Linear(), scales=scales, flip=True)
    metrics = evaluate(infer, dataset, EvalTransform(NORMALIZE))
    assert metrics.confusion.tolist() == counts.tolist()
    hits, union = counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal()
    assert metrics.mean_iou == pytest.approx((hits / union).mean(), rel=1e-12)
    assert metrics.pixel_accuracy == pytest.approx(hits.sum() / counts.sum(), rel=1e-12)


def resized(image, size):
    """As OpenCV: cubic, rounded to whole grey levels."""
    pixels = bicubic(np.moveaxis(image.astype(float), -1, 0), size)
    return np.moveaxis(np.clip(np.rint(pixels), 0, 255), 0, -1)


def test_shorter_side_and_padding():
    """That of ADE20K: shorter side, padding to a multiple, cubic resize of the logits."""
    dataset, counts = Pictures(), np.zeros((CLASSES, CLASSES), dtype=int)
    for sample in dataset.samples:
        height, width = sample.label.shape
        ratio = 30 / min(height, width)
        small = round(height * ratio), round(width * ratio)
        image = np.zeros((3, *(-(-side // 8) * 8 for side in small)))
        image[:, : small[0], : small[1]] = normalized(resized(sample.image, small))
        logits = bilinear(linear_by_numpy(image), image.shape[1:])[:, : small[0], : small[1]]
        count(counts, bicubic(logits, (height, width)), sample.label)
    infer = Inference(Linear(), multiple=8)
    metrics = evaluate(infer, dataset, EvalTransform(NORMALIZE, min_side=30))
    # A pixel that rounds to another grey level moves a logit by less than 0.1.
    assert np.abs(metrics.confusion.numpy() - counts).sum() <= 2


class Person(nn.Module):
    """Sees the class of each pixel, and left and right as they are in the picture.

    The first channel is the class; the second grows to the right, so a mirrored picture shows.
    """

    align_corners = True

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images):
        seen = (images[:, 0] * 255).round().long()
        if images[0, 1, 0, 0] > images[0, 1, 0, -1]:
            other = list(range(20))
            for left, right in LIP.flip_pairs:
                other[left], other[right] = right, left
            seen = torch.tensor(other)[seen]
        logits = nn.functional.one_hot(seen, 20).movedim(-1, 1).float()
        # The mirrored pass is surer: without the exchange it would win.
        return SimpleNamespace(main=logits * self.weight * (1 + 2 * images[:, 1:2].flip(-1)))


class People:
    info = LIP

    def __init__(self, swapped=False):
        self.swapped = swapped

    def __len__(self):
        return 1

    def load(self, index):
        label = np.resize(np.arange(20), (20, 33)).astype(np.uint8)
        ramp = np.broadcast_to(np.arange(33, dtype=np.uint8), label.shape)
        image = np.stack([label, ramp, ramp], -1)
        if self.swapped:
            label = np.where(label == 14, 15, np.where(label == 15, 14, label)).astype(np.uint8)
        return SimpleNamespace(image=image, label=label, name="person")


def mean_iou(dataset, **options):
    infer = Inference(Person(), **options)
    plain = EvalTransform(Normalize((0.0,) * 3, (1.0,) * 3))
    return evaluate(infer, dataset, plain)


def test_a_flipped_evaluation_of_lip_exchanges_left_and_right():
    assert mean_iou(People()).mean_iou == 1
    assert mean_iou(People(), flip=True, flip_pairs=LIP.flip_pairs).mean_iou == 1
    assert mean_iou(People(), flip=True).iou[14:].max() < 1


def test_labels_with_left_and_right_exchanged_are_found_out():
    metrics = mean_iou(People(swapped=True), flip=True, flip_pairs=LIP.flip_pairs)
    assert metrics.iou[14:16].tolist() == [0, 0]
    assert metrics.mean_iou == pytest.approx(18 / 20)


def test_a_submission_has_the_values_of_the_data_set(tmp_path):
    dataset, ids = Pictures(), (7, 8, 11, 33)
    transform = EvalTransform(NORMALIZE)
    metrics = evaluate(Inference(Linear()), dataset, transform, save=Submission(tmp_path, ids))
    counts = np.zeros((CLASSES, CLASSES), dtype=int)
    for sample in dataset.samples:
        with Image.open(tmp_path / f"{sample.name}.png") as file:
            assert file.mode == "L"
            values = np.array(file)
        assert set(np.unique(values)) <= set(ids)
        valid = sample.label != 255
        np.add.at(counts, (sample.label[valid], np.searchsorted(ids, values[valid])), 1)
    assert metrics.confusion.tolist() == counts.tolist()


@pytest.mark.parametrize("name", miniature.TREES)
def test_a_submission_of_the_labels_themselves_is_the_published_file(name, tmp_path):
    train_ids = torch.from_numpy(miniature.train_ids(name))
    root = miniature.TREES[name](tmp_path / "data")
    config = load_config("scenes/ocrnet_r18", [f"data.name={name}", f"data.root={root}"])
    info = build_dataset(config, "val").info
    valid = train_ids != info.ignore_index
    Submission(tmp_path / "maps", info.label_ids)("a", train_ids.where(valid, 0))
    with Image.open(tmp_path / "maps" / "a.png") as file:
        written = np.array(file)
    np.testing.assert_array_equal(written[valid], miniature.label(name)[valid])


def test_images_without_labels_are_written_and_not_counted(tmp_path):
    infer, transform = Inference(Linear()), EvalTransform(NORMALIZE)
    metrics = evaluate(infer, Pictures(labels=False), transform, save=Submission(tmp_path))
    assert not metrics.confusion.any()
    sizes = [Image.open(tmp_path / f"p/{index}.png").size for index in range(3)]
    assert sizes == [(31, 24), (22, 37), (45, 20)]
    with pytest.raises(DataError, match="no label map"):
        evaluate(infer, Pictures(labels=False), transform)
