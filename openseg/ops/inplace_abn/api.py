# SPDX-License-Identifier: MIT
"""`inplace_abn`: batch norm and activation that keep nothing but their output for the gradient.

By default the output is a tensor of its own: the memory is saved by not keeping the input, which
dies as soon as nothing else holds it.
"""

from typing import Literal

import torch
from torch import Tensor

from openseg.ops import _backend
from openseg.ops.inplace_abn import autograd, reference, synchronise

_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_ACTIVATIONS = ("leaky_relu", "elu", "identity", "relu")


def inplace_abn(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "leaky_relu",
    activation_param: float = 0.01,
    group: synchronise.Group | Literal["world"] = None,
    keep: str = "auto",
    inplace: str = "never",
    backend: str = "auto",
) -> Tensor:
    """Activated batch norm, `activation((|weight| + eps) · x̂ + bias)` of the normalised x̂.

    For the gradient it inverts the activation and the affine map of the output (Rota Bulò, Porzi,
    Kontschieder: In-Place Activated BatchNorm, CVPR 2018), instead of keeping the input too.

    Args:
        x: [B, C, H, W], contiguous or channels_last.
        weight, bias: [C], or None for a gain of 1, a bias of 0. The weight's sign has no effect.
        running_mean, running_var: [C], updated in place in training; or both None.
        training: normalise by the statistics of the batch, else by the running ones.
        momentum: share of the batch in the running statistics, whose variance is unbiased.
        eps: added to the variance, and to |weight|.
        activation: "leaky_relu", "elu", "identity" or "relu".
        activation_param: the negative slope, or the α of ELU.
        group: whose batches are one in training: a process group of `torch.distributed`, "world"
            for all processes, or None for this one alone. A process may have an empty batch.
        keep: for the gradient, the "output"; or the "input", as "auto" for activations without
            inverse, and as is wise where |weight| is so small that rounding |bias| loses x̂.
        inplace: "auto" overwrites x where it has a gradient and no gaps, and is no leaf and no
            view, in eager kernels; what made x must not keep it, as a convolution does not.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Returns:
        As x, in its memory format.

    Raises:
        ValueError: shapes or options that do not fit, or training with one value a channel (of all
            processes together: RuntimeError in a compiled graph and on a GPU).
    """
    keep_input = _keeps_input(activation, activation_param, keep)
    _check(x, (weight, bias, running_mean, running_var), training, eps, inplace)
    group = _others(x, group) if training else None
    given = _given(running_mean, running_var, training, group)
    arguments = (x, weight, bias, *given, eps, activation, activation_param, group)
    if (chosen := _backend.choose("inplace_abn", backend, _obstacles(x))) == "reference":
        z, statistics = reference.inplace_abn(*arguments)
    else:
        overwrite = inplace == "auto" and not keep_input and _may_overwrite(x)
        z, statistics = autograd.InPlaceABN.apply(*arguments, keep_input, overwrite, chosen)
    if training:
        _check_total(statistics, group)
        _update(running_mean, running_var, statistics.detach(), momentum)
    return z


def _obstacles(x: Tensor) -> dict[str, str | None]:
    return {
        "cuda": _backend.cuda_obstacle(autograd.KERNELS["cuda"].inplace_abn, x, _KERNEL_DTYPES),
        "triton": _backend.triton_obstacle(x, _KERNEL_DTYPES),
        "cpp": _backend.cpp_obstacle(autograd.KERNELS["cpp"].inplace_abn, x, _KERNEL_DTYPES),
        "reference": None,
    }


def _keeps_input(activation: str, parameter: float, keep: str) -> bool:
    if activation not in _ACTIVATIONS:
        expected = ", ".join(map(repr, _ACTIVATIONS))
        raise ValueError(f"activation must be one of {expected}, got {activation!r}")
    if keep not in ("auto", "output", "input"):
        raise ValueError(f'keep must be "auto", "output" or "input", got {keep!r}')
    invertible = activation == "identity" or (activation != "relu" and parameter > 0)
    if keep == "output" and not invertible:
        given = "" if activation == "relu" else f" with activation_param {parameter}"
        raise ValueError(
            f'keep="output" needs an activation that has an inverse, {activation}{given} has none: '
            'give a positive activation_param, or keep="input"'
        )
    return keep == "input" or not invertible


def _may_overwrite(x: Tensor) -> bool:
    if torch.compiler.is_compiling() or not x.requires_grad or x.is_leaf or x._is_view():
        return False
    return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)


def _check(
    x: Tensor, vectors: tuple[Tensor | None, ...], training: bool, eps: float, inplace: str
) -> None:
    if x.dim() != 4 or x.shape[1] == 0 or not x.is_floating_point():
        raise ValueError(
            "x must be a floating-point map [B, C, H, W] with channels, got "
            f"{x.dtype} of shape {tuple(x.shape)}"
        )
    names = ("weight", "bias", "running_mean", "running_var")
    for name, vector in zip(names, vectors, strict=True):
        if vector is None:
            continue
        if vector.shape != x.shape[1:2] or vector.device != x.device:
            raise ValueError(
                f"{name} must be [{x.shape[1]}], an entry for each channel of x, on {x.device}, "
                f"got shape {tuple(vector.shape)} on {vector.device}"
            )
    *_, running_mean, running_var = vectors
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var go together: give both, or None for both")
    if not training and running_mean is None:
        raise ValueError("without training=True, running_mean and running_var are needed")
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}")
    if inplace not in ("never", "auto"):
        raise ValueError(f'inplace must be "never" or "auto", got {inplace!r}')


def _given(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    group: synchronise.Group,
) -> tuple[Tensor | None, Tensor | None]:
    """Statistics [3, C] that are known beforehand, or a shift [C] near the mean of a group's.

    Both are copies: the update of the running statistics must not reach them.
    """
    if running_mean is None or running_var is None:
        return None, None
    if training:
        return None, None if group is None else running_mean.clone()
    count = torch.full_like(running_mean, torch.inf)  # they do not depend on the batch
    return torch.stack([running_mean, running_var, count]).double(), None


def _others(x: Tensor, group: synchronise.Group | Literal["world"]) -> synchronise.Group:
    """The processes to add up with, or None; then x has to have a variance by itself."""
    group = synchronise.group_of(group)
    if group is None and x.numel() == x.shape[1]:
        raise ValueError(_too_few(f"x of shape {tuple(x.shape)}"))
    return group


def _too_few(what: str) -> str:
    return (
        f"inplace_abn: training needs more than one value for each channel, got {what}: give more "
        "images or larger ones, or use training=False"
    )


def _check_total(statistics: Tensor, group: synchronise.Group) -> None:
    """How many values there are in all processes is known on the device alone."""
    if group is None:
        return
    one = statistics[2, 0] == 1
    if torch.compiler.is_compiling() or statistics.device.type != "cpu":
        torch._assert_async(~one, "inplace_abn: training with one value for each channel")
    elif one:
        raise ValueError(_too_few("one in all processes together"))


@torch.no_grad()
def _update(
    running_mean: Tensor | None, running_var: Tensor | None, statistics: Tensor, momentum: float
) -> None:
    """An empty batch leaves them as they are."""
    if running_mean is None or running_var is None:
        return
    mean, variance, count = statistics
    some = count > 0
    unbiased = variance * (count / (count - 1))
    for running, batch in ((running_mean, mean), (running_var, unbiased)):
        moved = torch.lerp(running.to(batch.dtype), batch, momentum)
        running.copy_(torch.where(some, moved, running))
