# SPDX-License-Identifier: MIT
"""The confusion matrix of two label maps.

In eager mode a value out of range raises with its value. A compiled graph cannot read values: there
the same mistake is a RuntimeError without the value.
"""

import torch
from torch import Tensor

from openseg.ops import _backend
from openseg.ops._kernels import registered
from openseg.ops.confusion_matrix import reference

_DTYPES = (torch.uint8, torch.int32, torch.int64)
_MOST_CLASSES = (1 << 15) - 1  # of the kernels, which number the cells in 32 bits


def _fake(prediction, target, num_classes, ignore_index):
    matrix = target.new_empty((num_classes, num_classes), dtype=torch.int64)
    return matrix, target.new_empty((2,), dtype=torch.int64)


_KERNELS = registered(
    "confusion_matrix",
    "confusion_matrix(Tensor prediction, Tensor target, int num_classes, int ignore_index)"
    " -> (Tensor, Tensor)",
    _fake,
)


def confusion_matrix(
    prediction: Tensor,
    target: Tensor,
    num_classes: int,
    ignore_index: int = 255,
    *,
    backend: str = "auto",
) -> Tensor:
    """How often each target class was predicted as each class.

    Args:
        prediction: labels of any shape, uint8, int32 or int64, in 0..num_classes-1 wherever the
            target counts.
        target: labels of the same shape, uint8, int32 or int64; `ignore_index` does not count.
        num_classes: K.
        ignore_index: any integer, a class as well.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Returns:
        int64 [K, K] on the device of `target`; row = target, column = prediction.

    Raises:
        ValueError: a label is out of range (RuntimeError in a compiled graph).
    """
    for name, labels in (("prediction", prediction), ("target", target)):
        if labels.dtype not in _DTYPES:
            raise TypeError(
                f"confusion_matrix: {name} must be uint8, int32 or int64, got {labels.dtype}"
            )
    if prediction.shape != target.shape or prediction.device != target.device:
        raise ValueError(
            "confusion_matrix: prediction and target must have one shape and device, got "
            f"{tuple(prediction.shape)} on {prediction.device} and "
            f"{tuple(target.shape)} on {target.device}"
        )
    if num_classes < 1:
        raise ValueError(f"confusion_matrix: num_classes must be positive, got {num_classes}")
    many = None
    if num_classes > _MOST_CLASSES:
        many = f"it serves {_MOST_CLASSES} classes at most, got {num_classes}"
    obstacles = {
        "cuda": _backend.cuda_obstacle(_KERNELS["cuda"], target, _DTYPES) or many,
        "triton": _backend.triton_obstacle(target, _DTYPES) or many,
        "cpp": _backend.cpp_obstacle(_KERNELS["cpp"], target, _DTYPES) or many,
        "reference": None,
    }
    chosen = _backend.choose("confusion_matrix", backend, obstacles)
    run = _KERNELS.get(chosen, reference.confusion_matrix)
    matrix, invalid = run(prediction, target, num_classes, ignore_index)
    if torch.compiler.is_compiling():
        torch._assert_async(invalid[0] == 0, "confusion_matrix: a label is out of range")
    else:
        _raise_if_invalid(invalid.tolist(), prediction, target, num_classes, ignore_index)
    return matrix


def _raise_if_invalid(
    invalid: list[int], prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int
) -> None:
    count, position = invalid
    if count == 0:
        return
    value = int(target.reshape(-1)[position])
    name, also = "target", f" or {ignore_index} (ignored)"
    if 0 <= value < num_classes:
        name, value, also = "prediction", int(prediction.reshape(-1)[position]), ""
    raise ValueError(
        f"confusion_matrix: {name} has the value {value} at element {position}, expected "
        f"0..{num_classes - 1}{also}; {count} pixels are out of range"
    )
