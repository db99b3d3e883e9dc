# SPDX-License-Identifier: MIT
"""The CPU kernels of `inplace_abn`, whose gradients are those of the output that was kept."""

import pytest
import torch

from openseg import _ext
from openseg.ops import inplace_abn
from tests.ops.gradients import at_each_thread_count, check_budget, with_gradients
from tests.ops.oracle import laid_out
from tests.ops.test_inplace_abn import ACTIVATIONS, EPS, INVERTIBLE, SHAPES, abn, case, running

pytestmark = pytest.mark.skipif(_ext.reason is not None, reason=str(_ext.reason))


DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CASES = [(shape, layout) for shape in SHAPES for layout in ("contiguous", "channels_last")]
CASES.append((SHAPES[1], "strided"))


def inverted(z, grad, statistics, weight, bias, activation, training):
    """Gradients of x, weight and bias from the output alone, in the dtype of the statistics."""
    kind, parameter = activation
    dtype, unit = statistics.dtype, torch.finfo(z.dtype).eps / 2
    variance = statistics[1, :, None, None]
    count = z.numel() // z.shape[1]
    z, grad, gain, bias = (t.to(dtype) for t in (z, grad, weight.abs() + EPS, bias))
    gain, bias = gain[:, None, None], bias[:, None, None]
    if kind == "leaky_relu":
        y, grad = torch.where(z > 0, z, z / parameter), torch.where(z > 0, grad, grad * parameter)
    elif kind == "elu":
        y = torch.where(z > 0, z, (z / parameter).clamp(min=-1 + unit).log1p())
        grad = torch.where(z > 0, grad, grad * (z + parameter))
    else:
        y = z
    limit = max(count - 1, 0) ** 0.5 if training else float("inf")
    x_hat = ((y - bias) / gain).clamp(-limit, limit)
    grad_bias, grad_gain = grad.sum((0, 2, 3)), (grad * x_hat).sum((0, 2, 3))
    grad_x = grad
    if training:
        means = grad_bias[:, None, None] / count, grad_gain[:, None, None] / count
        grad_x = grad - means[0] - x_hat * means[1]
    grad_x = grad_x * gain * (variance + EPS).rsqrt()
    return grad_x, torch.where(weight < 0, -grad_gain, grad_gain), grad_bias


def batch_statistics(x, dtype):
    variance, mean = torch.var_mean(x.to(dtype), (0, 2, 3), correction=0)
    return torch.stack([mean, variance])


def test_the_inverse_of_the_tests_is_right():
    for training in (True, False):
        for activation in INVERTIBLE:
            x, weight, bias = case((2, 5, 4, 3))
            known = running(5)
            z, *grads = with_gradients(abn(activation, training, known), (x, weight, bias))
            generator = torch.Generator().manual_seed(0)
            grad = torch.randn(z.shape, generator=generator, dtype=torch.float64).bfloat16()
            statistics = batch_statistics(x, x.dtype) if training else torch.stack(running(5))
            found = inverted(z, grad, statistics, weight, bias, activation, training)
            torch.testing.assert_close(found, tuple(grads))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("shape", "layout"), CASES)
def test_kernel_that_keeps_the_input_keeps_the_error_budget(
    shape, layout, activation, training, dtype
):
    x, weight, bias = case(shape, dtype)
    tensors = laid_out(x, layout), weight, bias
    known = running(shape[1], torch.float32)

    def run(tensors, backend):
        statistics = [t.to(tensors[1].dtype, copy=True) for t in known]
        options = {"keep": "input", "backend": backend}
        results = with_gradients(abn(activation, training, statistics, **options), tensors)
        return results + statistics

    check_budget(
        run(tensors, "cpp"),
        run(tensors, "reference"),
        run([t.double() for t in tensors], "reference"),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", INVERTIBLE)
@pytest.mark.parametrize(("shape", "layout"), CASES)
def test_kernel_has_the_gradients_of_its_output(shape, layout, activation, training, dtype):
    x, weight, bias = case(shape, dtype)
    tensors = [t.requires_grad_() for t in (laid_out(x, layout), weight, bias)]
    known = running(shape[1], torch.float32)
    z = abn(activation, training, known, keep="output", backend="cpp")(*tensors)
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    mine = torch.autograd.grad(z, tensors, grad)

    def expected(wide):
        statistics = batch_statistics(x, wide) if training else torch.stack(known).to(wide)
        vectors = weight.detach(), bias.detach()
        return inverted(z.detach(), grad, statistics, *vectors, activation, training)

    plain = [t.to(m.dtype) for t, m in zip(expected(torch.float32), mine, strict=True)]
    check_budget(mine, plain, expected(torch.float64))
    if training:
        return
    exact = abn(activation, training, [t.double() for t in known])(*(t.double() for t in tensors))
    plain = abn(activation, training, known, backend="reference")(*tensors)
    check_budget([z], [plain], [exact])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_kernel_keeps_the_layout(layout):
    x, weight, bias = case((2, 12, 5, 7), torch.float32)
    tensors = laid_out(x, layout), weight, bias
    other = laid_out(torch.randn_like(x), "channels_last" if layout == "contiguous" else "strided")
    leaves = [t.clone().requires_grad_() for t in tensors]
    z = abn(backend="cpp")(*leaves)
    grads = torch.autograd.grad(z, leaves, other, retain_graph=True)
    assert z.stride() == grads[0].stride() == tensors[0].stride()
    same = torch.autograd.grad(z, leaves, laid_out(other, layout))
    assert all(torch.equal(a, b) for a, b in zip(grads, same, strict=True))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_kernel_is_bit_equal_under_any_number_of_threads(layout):
    x, weight, bias = case((2, 20, 61, 43), torch.float32)
    run = abn(backend="cpp")
    tensors = laid_out(x, layout), weight, bias
    first, *others = at_each_thread_count(lambda: with_gradients(run, tensors))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("value", [float("inf"), -1e30])
def test_no_kept_output_is_further_out_than_a_value_can_be(value):
    """|x̂| is at most √(n - 1), whatever an output of few digits says."""
    z = torch.zeros(1, 1, 2, 2)
    z[0, 0, 0, 0] = value
    statistics = torch.tensor([[0.0], [1.0], [4.0]], dtype=torch.float64)
    affine = torch.tensor([[2.0], [0.5]])
    arguments = torch.ones_like(z), z, statistics, affine, EPS, "identity", 0.0, False
    sums = torch.ops.openseg.inplace_abn_backward_sums(*arguments)
    far = 2 * 3**0.5 if value > 0 else -2 * 3**0.5
    torch.testing.assert_close(sums.flatten().tolist(), [4.0, far - 3 * 0.5])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_saturated_elu_has_finite_gradients(dtype):
    x = torch.linspace(-40, 40, 256).view(1, 1, 16, 16).to(dtype).requires_grad_()
    bias = torch.full((1,), -20.0)
    z = abn(("elu", 1.0), False, (torch.zeros(1), torch.ones(1)), backend="cpp")(
        x, torch.ones(1, requires_grad=True), bias
    )
    assert (z == -1).any()
    grad_x = torch.autograd.grad(z, x, torch.ones_like(z))[0]
    assert grad_x.isfinite().all()
    assert (grad_x[z == -1] == 0).all()


def test_kernel_passes_nan_on_and_keeps_it_in_its_channel():
    for layout in ("contiguous", "channels_last"):
        x, weight, bias = case((2, 3, 5, 7), torch.float32)
        x[1, 1, 2, 3] = float("nan")
        for activation in ACTIVATIONS:
            results = with_gradients(abn(activation), (laid_out(x, layout), weight, bias))
            assert results[0][:, 1].isnan().all()
            assert results[1][:, 1].isnan().all()
            assert all(not t[:, ::2].isnan().any() for t in results[:2])
            assert results[2].isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_in_place_is_the_same_in_the_memory_of_x(layout):
    x, weight, bias = case((2, 3, 4, 5), torch.float32)
    leaves = [t.clone().requires_grad_() for t in (laid_out(x, layout), weight, bias)]
    grad = torch.randn_like(x)
    results = []
    for inplace in ("never", "auto"):
        made = leaves[0] * 1.5
        z = abn(inplace=inplace)(made, *leaves[1:])
        assert (z.data_ptr() == made.data_ptr()) == (inplace == "auto")
        results.append([z, *torch.autograd.grad(z, leaves, grad)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_what_may_not_be_overwritten_is_left_alone():
    leaf = torch.randn(2, 4, 3, 5, requires_grad=True)
    made = leaf * 1
    for x in (leaf, leaf.detach(), made[:, :2], made.view(2, 4, 5, 3), made[..., ::2]):
        before = x.detach().clone()
        abn(inplace="auto")(x, None, None)
        assert torch.equal(x, before)
    abn(("relu", 0.0), inplace="auto")(made, None, None)
    assert torch.equal(made, leaf)
    # a square keeps what it was given
    z = abn(inplace="auto")(hidden := leaf * 1, None, None) + 0
    torch.autograd.grad(z.sum(), leaf)
    hidden = leaf.exp()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        abn(inplace="auto")(hidden, None, None).sum().backward()


def test_kept_is_the_output_alone():
    x, weight, bias = case((2, 4, 8, 8), torch.float32)
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        z = abn()(x.requires_grad_(), weight, bias)
    large = [t.data_ptr() for t in kept if t.numel() >= x.numel()]
    assert large == [z.data_ptr()]


def test_opcheck():
    x, weight, bias = case((2, 4, 5, 7), torch.float32)
    affine = torch.stack([weight.abs(), bias])
    operators = torch.ops.openseg
    laid, options = laid_out(x, "strided"), (EPS, "elu", 1.0)
    torch.library.opcheck(operators.inplace_abn_statistics, (laid,))
    torch.library.opcheck(operators.inplace_abn, (laid, None, affine, *options))
    z, known = operators.inplace_abn(laid_out(x, "channels_last"), None, affine, *options)
    torch.library.opcheck(operators.inplace_abn, (z, known, affine, EPS, "relu", 0.0))
    arguments = torch.ones_like(x), z, known, affine
    torch.library.opcheck(operators.inplace_abn_backward_sums, (*arguments, *options, False))
    torch.library.opcheck(operators.inplace_abn_backward, (*arguments, None, *options, False))
    torch.library.opcheck(operators.inplace_abn_, (x.clone(), None, affine, *options))


class Layer(torch.nn.Module):
    def __init__(self, training):
        super().__init__()
        self.train(training)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x, weight, bias):
        return inplace_abn(
            x * 2, weight, bias, self.mean, self.var, training=self.training, inplace="auto",
            backend="cpp",
        )  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_kernel_compiles_with_its_gradients_and_exports(layout, training):
    x, weight, bias = case((2, 4, 5, 7), torch.float32)
    tensors = laid_out(x, layout), weight, bias
    eager, layer, third = Layer(training), Layer(training), Layer(training)
    known = with_gradients(eager, tensors)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for ours, expected in zip(with_gradients(compiled, tensors), known, strict=True):
        assert torch.equal(ours, expected)
        assert ours.stride() == expected.stride()
    assert torch.equal(layer.mean, eager.mean)
    assert torch.equal(layer.var, eager.var)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(third, tensors, dynamic_shapes=[{0: batch}, None, None])
    assert torch.equal(exported.module()(*tensors), known[0])


def test_kernel_by_name_says_what_it_cannot_take():
    with pytest.raises(RuntimeError, match="float64"):
        abn(backend="cpp")(*case((1, 4, 3, 3)))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("keep", ["output", "input"])
def test_maps_whose_pixels_share_their_memory(training, keep):
    """Neighbouring channels and neighbouring pixels are both side by side then."""
    x, weight, bias = case((2, 1, 1, 40), torch.float32)
    x = x[:, 0].unfold(2, 33, 1).transpose(1, 2)
    assert x.stride()[1:] == (1, 40, 1)
    weight, bias = (torch.cat([t + 0.1 * i for i in range(8)]) for t in (weight, bias))
    options = {"training": training, "statistics": running(8, torch.float32), "keep": keep}
    (mine, known) = (
        with_gradients(abn(**options, backend=backend), (x, weight, bias))
        for backend in ("cpp", "reference")
    )
    for ours, expected in zip(mine, known, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_known_statistics_keep_what_is_not_finite_where_it_is():
    x, weight, bias = case((2, 3, 4, 5), torch.float32)
    x[1, 2, 3, 4] = float("inf")
    function = abn(training=False, statistics=running(3, torch.float32), keep="input")
    _, grad, *_ = with_gradients(function, (x, weight, bias))
    assert grad.isfinite().sum() >= grad.numel() - 1
