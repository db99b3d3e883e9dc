# SPDX-License-Identifier: MIT
"""Interpreted kernels against float64, by the error of plain torch in float32.

The interpreter is slow, and its products of half-precision numbers are wrong: shapes are tiny and
float32, and tests/gpu has the rest.
"""

import torch

from tests.ops.gradients import check_budget, with_gradients


def check(operator, tensors):
    """Result and gradients of `operator(*tensors, backend=…)`, within the budget."""

    def run(backend, tensors):
        return with_gradients(lambda *t: operator(*t, backend=backend), tensors)

    mine = run("triton", tensors)
    plain = run("reference", tensors)
    check_budget(mine, plain, run("reference", [t.double() for t in tensors]))
    for grad, tensor in zip(mine[1:], tensors, strict=True):
        for format in (torch.contiguous_format, torch.channels_last):
            if tensor.dim() == 4 and tensor.is_contiguous(memory_format=format):
                assert grad.is_contiguous(memory_format=format)


def check_compiled(operator, tensors):
    """A compiled graph has the operator, its gradients and their strides."""
    known = with_gradients(operator, tensors)
    compiled = torch.compile(operator, fullgraph=True, backend="aot_eager", dynamic=True)
    for ours, expected in zip(with_gradients(compiled, tensors), known, strict=True):
        assert torch.equal(ours, expected)
        assert ours.stride() == expected.stride()
