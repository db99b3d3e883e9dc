# SPDX-License-Identifier: MIT
"""Known outputs of the published networks, and the weights and the image that they are for.

A file holds the key names of a network and its float64 outputs, rounded to float32, at every n-th
row and column. The weights are drawn, each tensor from its own name, so that the files are small.
"""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from openseg import create_model, load_weights

FOLDER = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Golden:
    """Published outputs [1, K, h, w] in their published order, `steps` giving rows kept of each."""

    weights: dict[str, Tensor]
    image: Tensor
    outputs: list[np.ndarray]
    sizes: list[tuple[int, int]]
    steps: list[int]


def read(name: str) -> Golden:
    with np.load(FOLDER / f"{name}.npz") as file:
        spec = json.loads(file["spec"].tobytes())
        names = sorted(file.keys() - {"spec"})
        outputs = [file[name] for name in names]
    return Golden(
        weights={k: _draw(v["seed"], v["shape"]) for k, v in spec["keys"].items()},
        image=torch.from_numpy(np.random.default_rng(0).standard_normal(spec["input_shape"])),
        outputs=outputs,
        sizes=[tuple(spec["output_shape"][name][2:]) for name in names],
        steps=[spec["output_stride_kept"][name] for name in names],
    )


def _draw(name: str, shape: list[int]) -> Tensor:
    """He normal for convolutions, 0.6 + 0.06 n for gains, 1 + 0.1 |n| for variances, else 0.1 n."""
    normal = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("running_var"):
        normal = 1 + 0.1 * np.abs(normal)
    elif name.endswith(".weight") and len(shape) > 1:
        normal *= np.sqrt(2.0 / np.prod(shape[1:]))
    elif name.endswith(".weight"):
        normal = 0.6 + 0.06 * normal
    else:
        normal = 0.1 * normal
    return torch.from_numpy(normal)


def assert_equals_golden(golden_name: str, order: tuple[str, ...], **arguments) -> None:
    """Build, load and run a network in float64; compare outputs with the published ones.

    order: the names of our outputs in the published order, "main" and keys of `aux`.
    """
    golden = read(golden_name)
    with torch.device("meta"):
        model = create_model(**arguments)
    model = model.to_empty(device="cpu").double().eval()
    load_weights(model, golden.weights)
    with torch.no_grad():
        output = model(golden.image)
    found = {"main": output.main, **output.aux}
    assert found.keys() == set(order)
    known = zip(order, golden.outputs, golden.sizes, golden.steps, strict=True)
    for name, values, size, step in known:
        ours = F.interpolate(found[name], size, mode="bilinear", align_corners=True)
        error = np.abs(ours[:, :, ::step, ::step].numpy() - values).max() / np.abs(values).max()
        # What is left is the rounding of the stored values to float32.
        assert error < 2**-23, f"{name}: {error:.2e} of the largest value"


def parameters(**arguments) -> int:
    """How many parameters a network has, without making them."""
    with torch.device("meta"):
        return sum(p.numel() for p in create_model(**arguments).parameters())
