# SPDX-License-Identifier: MIT
"""Kernels as operators of torch: a graph that is compiled or exported knows what they return."""

from collections.abc import Callable
from typing import Any

import torch

from openseg import _ext
from openseg.ops import _flops, _triton


def registered(
    folder: str,
    schema: str,
    fake: Callable[..., Any],
    flops: Callable[..., int] = _flops.none,
) -> dict[str, Any]:
    """The operator that the schema names, by backend; None where the binary has none.

    Args:
        folder: openseg/ops/<folder>/triton.py has the function of that name.
        fake: what stands for it where tensors have no values.
        flops: a function of the shapes of its arguments in place of the tensors.
    """
    name = schema.partition("(")[0]
    binary = _ext.operator(name)
    if binary is not None:
        torch.library.register_fake(f"openseg::{name}")(fake)
    triton = _triton.operator(folder, schema, fake)
    _flops.register(flops, binary, triton)
    return {"cuda": binary, "cpp": binary, "triton": triton}
