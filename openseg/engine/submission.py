# SPDX-License-Identifier: MIT
"""Label maps for the servers and tools that score a data set, in the values of its own files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from openseg.engine.files import make_folder, replacing


class Submission:
    """Writes `folder`/NAME.png, grey, for each prediction that it is called with.

    label_ids: the value of each class in the files of the data set; None keeps the train ids.
    """

    def __init__(self, folder: str | Path, label_ids: Sequence[int] | None = None) -> None:
        self.folder = make_folder(folder)
        self.values = np.arange(256) if label_ids is None else np.array(label_ids)

    def __call__(self, name: str, labels: Tensor) -> None:
        """labels: [H, W] of train ids. Raises OutputError where the file cannot be written."""
        path = self.folder / f"{name}.png"
        make_folder(path.parent)
        with replacing(path) as temporary:
            Image.fromarray(self.values[labels.cpu().numpy()].astype(np.uint8)).save(temporary)
