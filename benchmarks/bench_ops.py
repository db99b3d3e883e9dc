# SPDX-License-Identifier: MIT
"""Operators against the usual formulations, in one run: `python benchmarks/bench_ops.py`.

The result is checked first, and no speed is printed for a wrong one. `--record` appends the figures
to benchmarks/results/.
"""

import argparse
import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import _timing
import torch
import torch.nn.functional as F
from _cases import Case, Floors, report

from openseg import ops


def _network_logits(shape: tuple[int, int, int, int], device: str) -> torch.Tensor:
    """Objects with noise, as a network gives them: most pixels have one clear class."""
    batch, classes, height, width = shape
    coarse = 8 * torch.randn(batch, classes, height // 16 + 1, width // 16 + 1, device=device)
    smooth = F.interpolate(coarse, (height, width), mode="bilinear")
    return smooth + 0.3 * torch.randn(shape, device=device)


def _plain_upsample_argmax(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=True).argmax(1)


def upsample_argmax_cases(device: str) -> Iterator[Case]:
    """Evaluation on Cityscapes: 129×257 logits at 1024×2048."""
    shape, size = (1, 19, 129, 257), (1024, 2048)
    pixels = size[0] * size[1]
    smooth, noise = _network_logits(shape, device), torch.randn(shape, device=device)
    variants = {
        "network": smooth,
        "noise": noise,
        "network channels_last": smooth.contiguous(memory_format=torch.channels_last),
        "network bfloat16": smooth.bfloat16(),
    }
    compiled = torch.compile(_plain_upsample_argmax)
    for name, logits in variants.items():

        def agrees(logits: torch.Tensor = logits) -> bool:
            labels = ops.upsample_argmax(logits, size)
            return (labels != _plain_upsample_argmax(logits.float(), size)).float().mean() < 1e-4

        yield Case(
            name,
            lambda logits=logits: ops.upsample_argmax(logits, size),
            {
                "eager": lambda logits=logits: _plain_upsample_argmax(logits, size),
                "compiled": lambda logits=logits: compiled(logits, size),
            },
            agrees,
            logits.numel() * logits.element_size() + pixels,
        )

    def plain_confidence() -> tuple[torch.Tensor, torch.Tensor]:
        values = F.interpolate(smooth, size, mode="bilinear", align_corners=True)
        probability, labels = values.softmax(1).max(1)
        return labels, probability

    def confidence_agrees() -> bool:
        mine, theirs = ops.upsample_argmax(smooth, size, True)[1], plain_confidence()[1]
        return bool((mine - theirs).abs().max() < 1e-4)

    yield Case(
        "network with confidence",
        lambda: ops.upsample_argmax(smooth, size, True),
        {"eager": plain_confidence},
        confidence_agrees,
        smooth.numel() * 4 + 5 * pixels,
    )


def confusion_matrix_cases(device: str) -> Iterator[Case]:
    """One image of Cityscapes' size, a twentieth of the target ignored."""
    shape = (1, 1024, 2048)

    def objects(classes: int) -> tuple[torch.Tensor, torch.Tensor]:
        logits = _network_logits((1, classes, 129, 257), device)
        target = ops.upsample_argmax(logits + 0.5 * torch.randn_like(logits), shape[1:])
        target[:, : shape[1] // 20] = 255
        return ops.upsample_argmax(logits, shape[1:]), target

    few, many = objects(19), objects(150)
    noise = torch.randint(0, 19, shape, dtype=torch.uint8, device=device)
    pairs = {
        "uint8": (19, *few),
        "int64": (19, *(labels.long() for labels in few)),
        "uint8 noise": (19, noise, noise.flip(1)),
        "uint8, 150 classes": (150, *many),
    }
    for name, (classes, ours, truth) in pairs.items():

        def counted(k: int = classes, ours: Any = ours, truth: Any = truth) -> torch.Tensor:
            kept = truth != 255
            cells = truth[kept].long() * k + ours[kept].long()
            return torch.bincount(cells, minlength=k**2).view(k, k)

        def run(k: int = classes, ours: Any = ours, truth: Any = truth) -> torch.Tensor:
            return ops.confusion_matrix(ours, truth, k)

        yield Case(
            name,
            run,
            {"bincount": counted},
            lambda run=run, counted=counted: torch.equal(run(), counted()),
            ours.numel() * (ours.element_size() + truth.element_size()),
        )


def _plain_cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, ohem: ops.Ohem | None
) -> torch.Tensor:
    """The published loss: the whole [B, K, H, W], and a sort of all pixels for the mining."""
    values = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=True)
    values = values.float()  # as autocast has it
    if ohem is None:
        return F.cross_entropy(values, target, ignore_index=255)
    losses = F.cross_entropy(values, target, ignore_index=255, reduction="none").flatten()
    known = torch.where(target == 255, 0, target).unsqueeze(1)
    valid = target.flatten() != 255
    probability = values.softmax(1).gather(1, known).flatten()[valid].detach()
    ordered, order = probability.sort()
    limit = ordered[min(ohem.min_kept, len(ordered) - 1)].clamp(min=ohem.thresh)
    return losses[valid][order][ordered < limit].mean()


def upsample_cross_entropy_cases(device: str) -> Iterator[Case]:
    """Forward and backward of one head: ADE20K crops, Cityscapes crops with hard pixels mined."""
    workloads = {
        "150 classes, 513x513": ((2, 150, 65, 65), (513, 513), None),
        "19 classes, 512x1024": ((2, 19, 65, 129), (512, 1024), None),
        "19 classes, OHEM": ((2, 19, 65, 129), (512, 1024), ops.Ohem(0.7, 100_000)),
    }
    large: Any = (16, 150, 65, 65), (520, 520), None
    if device == "cuda":
        workloads["150 classes, batch of 16"] = large
        workloads["150 classes, batch of 16, bfloat16"] = large
    compiled = torch.compile(_plain_cross_entropy, dynamic=False)
    for name, (shape, size, ohem) in workloads.items():
        dtype = torch.bfloat16 if name.endswith("bfloat16") else torch.float32
        logits = _network_logits(shape, device).to(dtype).requires_grad_()
        target = ops.upsample_argmax(logits + 0.5 * torch.randn_like(logits), size).long()
        target[:, : size[0] // 20] = 255

        def ours(logits: Any = logits, target: Any = target, ohem: Any = ohem) -> Any:
            loss = ops.upsample_cross_entropy(logits, target, ohem=ohem)
            return torch.autograd.grad(loss, logits)[0]

        def plain(logits: Any = logits, target: Any = target, ohem: Any = ohem) -> Any:
            return torch.autograd.grad(_plain_cross_entropy(logits, target, ohem), logits)[0]

        def fused(logits: Any = logits, target: Any = target, ohem: Any = ohem) -> Any:
            return torch.autograd.grad(compiled(logits, target, ohem), logits)[0]

        def agrees(ours: Any = ours, plain: Any = plain, logits: Any = logits) -> bool:
            # on average: rounding puts single pixels on the other side of the limit of OHEM
            known = plain(logits.detach().float().requires_grad_())
            allowed = 1e-4 if logits.dtype == torch.float32 else torch.finfo(logits.dtype).eps
            return bool((ours() - known).abs().mean() < allowed * known.abs().mean())

        yield Case(
            name,
            ours,
            {"eager": plain, "compiled": fused},
            agrees,
            2 * logits.numel() * logits.element_size() + target.numel() * 8,
        )


def inplace_abn_cases(device: str) -> Iterator[Case]:
    """Forward and backward of a head's norm in training, leaky ReLU, on a crop of 769x769."""
    shape = (8 if device == "cuda" else 2, 512, 97, 97)
    plain_norm = torch.nn.Sequential(torch.nn.BatchNorm2d(512), torch.nn.LeakyReLU(0.01))
    plain_norm.to(device).train()
    compiled = torch.compile(plain_norm)
    exact_norm = copy.deepcopy(plain_norm).double()
    norm = plain_norm[0]
    weight = (
        norm.weight.detach() - norm.eps
    ).requires_grad_()  # of a norm that scales by |w| + eps
    bias = norm.bias.detach().requires_grad_()
    variants = {
        "float32": (torch.float32, torch.contiguous_format),
        "float32 channels_last": (torch.float32, torch.channels_last),
        "bfloat16 channels_last": (torch.bfloat16, torch.channels_last),
    }
    for name, (dtype, memory_format) in variants.items():
        x, grad = (
            torch.randn(shape, device=device).to(dtype, memory_format=memory_format)
            for _ in range(2)
        )
        x.requires_grad_()

        def ours(x: Any = x, grad: Any = grad) -> Any:
            z = ops.inplace_abn(x, weight, bias, None, None, training=True)
            return torch.autograd.grad(z, (x, weight, bias), grad)

        def plain(x: Any = x, grad: Any = grad, norm: Any = plain_norm) -> Any:
            return torch.autograd.grad(norm(x), (x, *norm.parameters()), grad)

        def agrees(ours: Any = ours, plain: Any = plain, x: Any = x, grad: Any = grad) -> bool:
            wide = x.detach().double().requires_grad_()
            known = plain(wide, grad.double(), exact_norm)[0]
            mine, theirs = ((run()[0] - known).norm() for run in (ours, plain))
            return bool(mine < max(2 * theirs, 4 * torch.finfo(x.dtype).eps * known.norm()))

        yield Case(
            name,
            ours,
            {"eager": plain, "compiled": lambda plain=plain: plain(norm=compiled)},
            agrees,
            5 * x.numel() * x.element_size(),
        )


def with_peers(cases: Iterable[Case], names: list[str]) -> Iterator[Case]:
    for case in cases:
        case.peers = {name: peer for name, peer in case.peers.items() if name in names}
        yield case


CASES: dict[str, Callable[[str], Iterator[Case]]] = {
    "upsample_argmax": upsample_argmax_cases,
    "confusion_matrix": confusion_matrix_cases,
    "upsample_cross_entropy": upsample_cross_entropy_cases,
    "inplace_abn": inplace_abn_cases,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--peers", nargs="*", default=["eager", "bincount", "compiled"])
    parser.add_argument(
        "--record", nargs="?", const="ops", help="append to benchmarks/results/RECORD.jsonl"
    )
    arguments = parser.parse_args()
    cuda = arguments.device == "cuda"
    seconds = _timing.cuda_seconds if cuda else _timing.median_seconds
    facts = _timing.machine(arguments.device)
    print(facts)

    def keep(figures: dict[str, Any]) -> None:
        if arguments.record:
            _timing.append({**facts, **figures}, arguments.record)

    failures = 0
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        floors = Floors.measured(arguments.device, [torch.float32])
        print(f"{threads} threads: {floors}")
        for operator in arguments.only:
            cases = with_peers(CASES[operator](arguments.device), arguments.peers)
            failures += report(operator, cases, arguments.device, floors, seconds, keep)
    if failures:
        raise SystemExit(f"{failures} cases fail")


if __name__ == "__main__":
    main()
