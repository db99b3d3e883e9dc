# SPDX-License-Identifier: MIT
"""Weights of the classes for the loss, from how often each of them is seen."""

from typing import Literal

import numpy as np

Method = Literal["median", "log", "inverse"]


def class_weights(pixels: np.ndarray, pixels_around: np.ndarray, method: Method) -> list[float]:
    """A weight for each class, rounded to four decimals; 1 for a class without a pixel.

    pixels: of each class, int64 [K]. pixels_around: all counted pixels of the images with it.

    - median: the median frequency over that of the class, a frequency being pixels over
      pixels_around (Eigen, Fergus, "Predicting depth, surface normals and semantic labels with a
      common multi-scale convolutional architecture", ICCV 2015).
    - log: 1 / ln(1.02 + share of all pixels) (Paszke et al., "ENet", 2016).
    - inverse: 1 / share of all pixels, scaled to a mean of 1.
    """
    seen = pixels > 0
    weights = np.ones(len(pixels))
    if not seen.any():
        return weights.tolist()
    share = pixels[seen] / pixels.sum()
    if method == "median":
        frequency = pixels[seen] / pixels_around[seen]
        weights[seen] = np.median(frequency) / frequency
    elif method == "log":
        weights[seen] = 1 / np.log(1.02 + share)
    else:
        weights[seen] = (1 / share) / np.mean(1 / share)
    return weights.round(4).tolist()
