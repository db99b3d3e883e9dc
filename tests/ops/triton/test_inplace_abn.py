# SPDX-License-Identifier: MIT
import importlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from openseg.ops import _triton
from tests.ops.gradients import with_gradients
from tests.ops.oracle import LAYOUTS, laid_out
from tests.ops.test_inplace_abn import ACTIVATIONS, INVERTIBLE, abn, case, running
from tests.ops.triton.interpreted import check, check_compiled


def keeping(activation):
    return lambda *t, backend: abn(activation, keep="input", backend=backend)(*t)


# single pixels, several blocks of pixels and of channels
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(5, 3, 1, 1), (2, 5, 9, 7), (2, 4, 13, 11), (1, 70, 2, 3)])
def test_error_budget(shape, activation):
    check(keeping(activation), case(shape, torch.float32))


def test_parts_go_from_image_to_image(monkeypatch):
    """Four of them share the 15 blocks of five images."""
    monkeypatch.setattr(_triton, "_PROGRAMS", 4)
    check(keeping(("elu", 1.3)), case((5, 4, 13, 11), torch.float32))


@pytest.mark.parametrize("activation", INVERTIBLE)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("keep", ["input", "output"])
def test_either_is_kept(activation, training, keep):
    """Beside gains above 0.3 and biases below 3 the rounded output says enough of the input."""
    tensors = case((2, 5, 3, 4), torch.float32)
    results = []
    for backend in ("triton", "reference"):
        statistics = running(5, torch.float32)
        function = abn(activation, training, statistics, keep=keep, backend=backend)
        results.append([*with_gradients(function, tensors), *statistics])
    for ours, known in zip(*results, strict=True):
        torch.testing.assert_close(ours, known, rtol=2e-5, atol=5e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    x, weight, bias = case((2, 5, 3, 4), torch.float32)
    check(keeping(("leaky_relu", 0.01)), [laid_out(x, layout), weight, bias])


def test_launches(monkeypatch):
    """Small ones take longer than what they do: torch adds up the parts of the backward pass."""
    norm = importlib.import_module("openseg.ops.inplace_abn.triton")
    launched, allocations = [], ("aten.new_empty.default", "aten.permute.default")

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if str(function) not in allocations:
                launched.append(str(function))
            return function(*args, **(kwargs or {}))

    monkeypatch.setattr(norm, "launch", lambda kernel, *_, **__: launched.append(kernel.__name__))
    x, weight, bias = case((2, 5, 3, 4), torch.float32)
    affine, options = torch.stack([weight.abs(), bias]), (1e-5, "elu", 1.0)
    with Record():
        z, statistics = norm.inplace_abn(x, None, affine, *options)
        norm.inplace_abn_backward(z, z, statistics, affine, None, *options, False)
    assert launched == [
        "inplace_abn_statistics_kernel",
        "inplace_abn_coefficients_kernel",
        "inplace_abn_kernel",
        "inplace_abn_sums_kernel",
        "aten.sum.dim_IntList",
        "inplace_abn_backward_coefficients_kernel",
        "inplace_abn_backward_kernel",
    ]


def test_overwrites():
    tensors = case((2, 5, 3, 4), torch.float32)
    known = with_gradients(abn(backend="triton"), tensors)
    inside = abn(backend="triton", inplace="auto")
    mine = with_gradients(lambda x, w, b: inside(x + 0, w, b), tensors)
    assert all(torch.equal(a, b) for a, b in zip(mine, known, strict=True))


def test_a_large_mean_of_a_small_deviation_and_nan():
    x, weight, bias = case((2, 3, 5, 7), torch.float32)
    x = 1e4 + 0.1 * x
    x[0, 1, 2, 3] = float("nan")
    out = torch.ops.openseg_triton.inplace_abn_statistics(x)
    exact = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(out[:2], torch.stack(exact[::-1]), rtol=1e-5, atol=0, equal_nan=True)
    z = abn(("elu", 1.0), backend="triton")(x, weight, bias)
    assert z[:, 1].isnan().all()
    assert not z[:, ::2].isnan().any()


def test_compiles_with_its_gradients():
    x, weight, bias = case((2, 5, 3, 4), torch.float32)
    check_compiled(abn(backend="triton"), (laid_out(x, "channels_last"), weight, bias))


def test_opcheck():
    x, weight, bias = case((2, 5, 2, 3), torch.float32)
    operators, options = torch.ops.openseg_triton, (1e-5, "elu", 1.0)
    affine = torch.stack([weight.abs(), bias])
    torch.library.opcheck(operators.inplace_abn.default, (x, None, affine, *options))
    z, statistics = operators.inplace_abn(x, None, affine, *options)
    arguments = (torch.ones_like(z), z, statistics, affine)
    torch.library.opcheck(
        operators.inplace_abn_backward.default, (*arguments, None, *options, False)
    )
    torch.library.opcheck(
        operators.inplace_abn_backward_sums.default, (*arguments, *options, False)
    )
