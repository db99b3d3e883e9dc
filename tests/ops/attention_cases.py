# SPDX-License-Identifier: MIT
"""What the tests of `self_attention` and of `interlaced_attention` have in common."""

import torch

from tests.ops.gradients import check_budget, random_gradient, with_gradients
from tests.ops.oracle import laid_out


def maps(b, d, dv, h, w, dtype=torch.float64, layout="contiguous"):
    """Random query, key and value."""
    generator = torch.Generator().manual_seed(b + d + dv + h + w)
    shapes = (b, d, h, w), (b, d, h, w), (b, dv, h, w)
    tensors = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    return [laid_out(t.to(dtype), layout) for t in tensors]


def arguments(operator, tensors, shared, **options):
    """(function, its tensors): the operator of three maps, or of two when the key is the query."""
    if shared:
        query, _, value = tensors
        return lambda q, v: operator(q, q, v, **options), (query, value)
    return lambda q, k, v: operator(q, k, v, **options), tuple(tensors)


def check_kernel(operator, tensors, shared, **options):
    """The CPU kernel's result and gradients keep the error budget."""
    results = {}
    for backend in ("cpp", "reference"):
        function, given = arguments(operator, tensors, shared, backend=backend, **options)
        results[backend] = with_gradients(function, given)
    exact = with_gradients(function, [t.double() for t in given])
    slack = gradient_slack(random_gradient(exact[0].shape), results["cpp"], exact, given)
    check_budget(results["cpp"], results["reference"], exact, slack)


def gradient_slack(grad, mine, exact, tensors):
    """What a kernel's gradients of query and key may be off besides: a list for check_budget.

    From the gradient of a weight it subtracts Σ_c grad_out · out, where plain code subtracts
    Σ_m weight · grad_weight: at a weight near 1 that is nearly the number itself, error and all.
    The error of `out`, which has a budget of its own, and the rounding of the kernel's sum stay,
    and reach gradients of query and key: that of a map which is both, twice.
    """
    slack = [0.0] * len(exact)
    if exact[0].numel():
        rounding = torch.finfo(tensors[0].dtype).eps * (grad * exact[0]).abs().sum(1).max()
        off = (grad * (mine[0].double() - exact[0])).sum(1).abs().max()
        vectors = max(t.abs().max() for t in tensors[:-1]) * tensors[0].shape[1] ** -0.5
        uses = 2 if len(tensors) == 2 else 1
        slack[1:-1] = [uses * max(rounding, off) * vectors] * (len(exact) - 2)
    return slack
