# SPDX-License-Identifier: MIT
import itertools

import pytest
import torch

from openseg.ops import confusion_matrix
from tests.ops.test_confusion_matrix import DTYPES, counted, label_maps


@pytest.mark.parametrize(
    ("shape", "classes", "ignored"),
    [((1,), 1, 255), ((40, 61), 19, 255), ((41, 3), 300, -1), ((2, 0), 2, 255), ((9,), 19, 3)],
)
def test_as_numpy(shape, classes, ignored):
    prediction, target = label_maps(shape, classes, ignored=ignored)
    matrix = confusion_matrix(
        torch.from_numpy(prediction), torch.from_numpy(target), classes, ignored, backend="triton"
    )
    assert torch.equal(matrix, counted(prediction, target, classes, ignored))


@pytest.mark.parametrize(("first", "second"), list(itertools.product(DTYPES, DTYPES)))
def test_dtypes_and_layouts(first, second):
    prediction, target = (torch.from_numpy(t) for t in label_maps((13, 15), 19))
    matrix = confusion_matrix(prediction.to(first).t(), target.to(second).t(), 19, backend="triton")
    assert torch.equal(matrix, counted(prediction.numpy(), target.numpy(), 19))


@pytest.mark.parametrize("place", [3, 2400])
def test_a_label_out_of_range_is_named(place):
    prediction = torch.zeros(2500, dtype=torch.int64)
    target = prediction.clone()
    target[place] = target[2450] = 7
    text = f"target has the value 7 at element {place}, .*; 2 pixels are out of range"
    with pytest.raises(ValueError, match=text):
        confusion_matrix(prediction, target, 5, backend="triton")


def test_opcheck():
    labels = torch.zeros(9, dtype=torch.uint8)
    operator = torch.ops.openseg_triton.confusion_matrix.default
    torch.library.opcheck(operator, (labels, labels, 3, 255))
