# SPDX-License-Identifier: MIT
"""Helpers of the operators with gradients: results with all gradients, and the error budget."""

import torch


def random_gradient(shape, seed=0):
    """float64, of values that every dtype has."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).bfloat16().double()


def with_gradients(function, tensors, seed=0):
    """[result, gradient of each tensor] for a random gradient of the result; layouts are kept."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = function(*leaves)
    grad = random_gradient(out.shape, seed).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def check_budget(mine, plain, exact, slack=None):
    """Each error against float64 is at most twice that of plain torch in the same precision.

    Plain torch can be right by luck where few terms are added: one unit in the last place of the
    largest value is always allowed. `slack`: what is allowed besides, for each.
    """
    slack = slack or [0.0] * len(mine)
    for ours, theirs, known, more in zip(mine, plain, exact, slack, strict=True):
        assert ours.shape == known.shape
        assert ours.dtype == theirs.dtype
        if known.numel():
            unit = torch.finfo(ours.dtype).eps * known.abs().max()
            allowed = 2 * (theirs.double() - known).abs().max() + unit + more
            error = (ours.double() - known).abs().max()
            assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"


def at_each_thread_count(function):
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            yield function()
    finally:
        torch.set_num_threads(before)


def check_graphs(function, tensors, dynamic=None):
    """A compiled graph has the kernel, its gradients and their strides; so has an exported one."""

    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return function(*tensors)

    known = with_gradients(Module(), tensors)
    compiled = torch.compile(Module(), fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for ours, expected in zip(with_gradients(compiled, tensors), known, strict=True):
        assert torch.equal(ours, expected)
        assert ours.stride() == expected.stride()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(
        Module(), tuple(tensors), dynamic_shapes=[tuple({0: batch} for _ in tensors)]
    )
    assert torch.equal(exported.module()(*tensors), known[0])
