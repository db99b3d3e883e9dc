# SPDX-License-Identifier: MIT
"""CamVid: the shared copy of the real data, where there is one."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openseg.data import CamVid

ROOT = Path(__file__).resolve().parents[3] / "shared" / "data" / "camvid"
pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason=f"there is no {ROOT}")


@pytest.mark.parametrize(("split", "length"), [("train", 367), ("val", 101), ("test", 233)])
def test_split_and_void(split, length):
    dataset = CamVid(ROOT, split)
    assert len(dataset) == length
    assert dataset.info.num_classes == len(dataset.info.palette) == 11
    sample = dataset[length // 2]
    assert sample.image.shape == (360, 480, 3)
    stored = np.array(Image.open(ROOT / "labels" / split / f"{sample.name}.png"))
    np.testing.assert_array_equal(sample.label, np.where(stored == 11, 255, stored))
