# SPDX-License-Identifier: MIT
import pytest
import torch
import torch.nn.functional as F

from openseg import _ext
from openseg.ops import inplace_abn
from tests.ops.gradients import with_gradients
from tests.ops.oracle import laid_out

needs_kernels = pytest.mark.skipif(_ext.reason is not None, reason=str(_ext.reason))

ACTIVATIONS = [("leaky_relu", 0.01), ("elu", 1.3), ("identity", 0.0), ("relu", 0.0)]
INVERTIBLE = ACTIVATIONS[:3]
# single pixels, an odd few, several chunks and tasks, many channels, no images
SHAPES = [(5, 3, 1, 1), (2, 21, 5, 7), (2, 9, 41, 43), (1, 130, 2, 3), (0, 4, 3, 3)]
EPS = 1e-5


def case(shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(shape))
    values = torch.randn(*shape, generator=generator, dtype=torch.float64)
    scale, offset, weight, bias = torch.randn(4, shape[1], generator=generator, dtype=torch.float64)
    x = values * (1 + scale.abs())[:, None, None] + offset[:, None, None]
    wide = torch.promote_types(dtype, torch.float32)
    return x.to(dtype), (weight + 0.3 * weight.sign()).to(wide), bias.to(wide)


def running(channels, dtype=torch.float64):
    return torch.linspace(-1, 1, channels, dtype=dtype), torch.linspace(
        0.5, 2, channels, dtype=dtype
    )


def abn(activation=("leaky_relu", 0.01), training=True, statistics=(None, None), **options):
    """A function of x, weight and bias."""
    name, parameter = activation
    return lambda x, weight, bias: inplace_abn(
        x, weight, bias, *statistics, training=training, eps=EPS, activation=name,
        activation_param=parameter, **options,
    )  # fmt: skip


def activate(y, activation, parameter):
    functions = {"leaky_relu": F.leaky_relu, "elu": F.elu, "identity": lambda y, _: y}
    return y.relu() if activation == "relu" else functions[activation](y, parameter)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES[:4])
def test_equals_batch_norm_and_activation(shape, activation, training):
    x, weight, bias = case(shape)
    mine, theirs = running(shape[1]), running(shape[1])
    options = {"momentum": 0.3, "backend": "reference"}
    z = abn(activation, training, mine, **options)(x, weight, bias)
    y = F.batch_norm(x, *theirs, weight.abs() + EPS, bias, training, momentum=0.3, eps=EPS)
    torch.testing.assert_close(z, activate(y, *activation))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients(activation, training):
    tensors = [t.requires_grad_() for t in case((2, 3, 3, 2))]
    assert torch.autograd.gradcheck(abn(activation, training, running(3)), tensors)


def test_a_weight_of_zero_moves_as_a_positive_one():
    x, _, bias = case((2, 3, 4, 4))
    grads = []
    for value in (0.0, 1e-12):
        weight = torch.full((3,), value, dtype=torch.float64, requires_grad=True)
        z = abn()(x, weight, bias)
        grads.append(torch.autograd.grad(z, weight, x)[0])
    torch.testing.assert_close(*grads)


def test_rounding_of_a_small_gain_beside_a_bias():
    """What bfloat16 keeps of x̂ beside a bias of 1, and that keeping the input helps."""
    x = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    errors = {}
    for keep in ("output", "input"):
        leaf = x.clone().requires_grad_()
        weight, bias = torch.full((1,), 1e-3), torch.ones(1)
        z = abn(keep=keep)(leaf, weight, bias)
        grad = x.flip(3)
        mine = torch.autograd.grad(z, leaf, grad)[0].double()
        wide = x.double().requires_grad_()
        known = abn(backend="reference")(wide, weight.double(), bias.double())
        expected = torch.autograd.grad(known, wide, grad.double())[0]
        errors[keep] = ((mine - expected).norm() / expected.norm()).item()
        assert mine.isfinite().all()
    assert errors["input"] < 0.01
    if _ext.reason is None:
        assert errors["input"] < errors["output"] < 1


@pytest.mark.parametrize("activation", [("relu", 0.0), ("leaky_relu", 0.0), ("elu", -1.0)])
def test_an_activation_without_inverse_keeps_the_input(activation):
    x, weight, bias = case((2, 3, 4, 5), torch.float32)
    exact = with_gradients(abn(activation), [t.double() for t in (x, weight, bias)])
    for mine, known in zip(with_gradients(abn(activation), (x, weight, bias)), exact, strict=True):
        torch.testing.assert_close(mine.double(), known, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=f"{activation[0]}.* has none"):
        abn(activation, keep="output")(x, weight, bias)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_statistics_of_values_far_from_zero(layout):
    """Mean 1e4, standard deviation 1e-2: ten steps of float32."""
    generator = torch.Generator().manual_seed(0)
    x = laid_out((1e4 + 1e-2 * torch.randn(2, 3, 40, 40, generator=generator)), layout)
    x[0, 0, 0, 0] = 1e4 + 3  # the first value is no measure of the others
    running_mean, running_var = torch.zeros(3), torch.ones(3)
    z = inplace_abn(
        x, None, None, running_mean, running_var, training=True, momentum=1.0, activation="identity"
    )
    variance, mean = torch.var_mean(x.double(), (0, 2, 3), correction=1)
    torch.testing.assert_close(running_mean, mean.float(), rtol=1e-7, atol=0)
    torch.testing.assert_close(running_var, variance.float(), rtol=1e-4, atol=0)
    if _ext.reason is None:
        exact = abn(("identity", 0.0))(x.double(), None, None)
        assert (z - exact).abs().max() < 1e-4 * exact.abs().max()


def test_constant_channels_are_finite():
    x = torch.full((2, 3, 4, 4), 7.0, requires_grad=True)
    z = abn()(x, torch.ones(3), torch.full((3,), 0.5))
    assert (z == 0.5).all()
    assert (torch.autograd.grad(z, x, torch.rand_like(z))[0].abs() < 1e3).all()


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (0, 4, 1, 1)])
def test_one_value_a_channel_has_no_variance(shape):
    known = running(4, torch.float32)
    x = torch.randn(shape)
    if shape[0] == 0:
        assert abn(statistics=known)(x, None, None).shape == x.shape
        assert torch.equal(torch.stack(known), torch.stack(running(4, torch.float32)))
        return
    with pytest.raises(ValueError, match=r"more than one value.*\(1, 4, 1, 1\).*training=False"):
        abn(statistics=known)(x, None, None)
    assert abn(training=False, statistics=known)(x, None, None).shape == x.shape


def test_without_weight_and_bias():
    x, _, _ = case((2, 3, 4, 5), torch.float32)
    z, grad = with_gradients(lambda x: abn()(x, None, None), [x])
    other = with_gradients(lambda x: abn()(x, torch.full((3,), 1 - EPS), torch.zeros(3)), [x])
    torch.testing.assert_close([z, grad], other)


@needs_kernels
def test_autocast_changes_nothing():
    x, weight, bias = case((2, 4, 5, 7), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        z = abn()(x, weight, bias)
    assert torch.equal(z, abn()(x, weight, bias))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation": "gelu"}, "'leaky_relu', 'elu', 'identity', 'relu', got 'gelu'"),
        ({"keep": "both"}, "keep must be .* got 'both'"),
        ({"inplace": "always"}, "inplace must be .* got 'always'"),
        ({"eps": 0.0}, "eps must be positive, got 0.0"),
        ({"weight": torch.ones(5)}, r"weight must be \[3\].* got shape \(5,\)"),
        ({"running_var": None}, "go together"),
        ({"running_mean": None, "running_var": None, "training": False}, "running_var are needed"),
        ({"x": torch.ones(2, 3, 4)}, r"\[B, C, H, W\].*\(2, 3, 4\)"),
        ({"x": torch.ones(2, 3, 4, 4).int()}, "floating-point map .*int32"),
    ],
)
def test_mistakes_have_messages(arguments, message):
    defaults = {
        "x": torch.randn(2, 3, 4, 4), "weight": torch.ones(3), "bias": torch.zeros(3),
        "running_mean": torch.zeros(3), "running_var": torch.ones(3), "training": True,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        inplace_abn(**(defaults | arguments))
