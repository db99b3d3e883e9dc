# SPDX-License-Identifier: MIT
"""What test_inplace_abn_processes.py starts twice: batches split unevenly over two processes.

Every process writes what it found to a file of its own.
"""

import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from openseg import _ext
from openseg.ops import inplace_abn

CHANNELS = 5
SPLITS = ((3, 1), (4, 0), (0, 4))  # images of each process
BACKENDS = ("reference", "cpp") if _ext.reason is None else ("reference",)


def problem() -> tuple[torch.Tensor, ...]:
    """x, weight, bias and the gradient of the result; the running mean is not near the mean."""
    generator = torch.Generator().manual_seed(0)
    x, grad = torch.randn(2, 4, CHANNELS, 3, 7, generator=generator)
    weight, bias = torch.randn(2, CHANNELS, generator=generator)
    return 2 * x + 30, weight, bias, grad


def run(x, weight, bias, grad, backend, compiled=False, **options) -> list[torch.Tensor]:
    """The result, gradients of x, weight and bias, and the running statistics."""
    running = torch.zeros(CHANNELS), torch.ones(CHANNELS)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]

    def function(*leaves):
        return inplace_abn(*leaves, *running, training=True, backend=backend, **options)

    if compiled:
        function = torch.compile(function, fullgraph=True, backend="aot_eager")
    z = function(*leaves)
    return [z.detach(), *torch.autograd.grad(z, leaves, grad), *running]


def main() -> None:
    folder, rank, told = sys.argv[1], int(sys.argv[2]), {}
    dist.init_process_group(
        "gloo", f"file://{folder}/store", timedelta(seconds=120), world_size=2, rank=rank
    )
    x, weight, bias, grad = problem()
    for split in SPLITS:
        mine = slice(0, split[0]) if rank == 0 else slice(split[0], None)
        for backend in BACKENDS:
            arguments = x[mine], weight, bias, grad[mine], backend
            told[split, backend] = run(*arguments, group="world")
    arguments = x[mine], weight, bias, grad[mine], BACKENDS[-1]
    told["compiled"] = run(*arguments, compiled=True, group="world")
    told["alone"] = run(x, weight, bias, grad, "reference", group=None)
    each = [dist.new_group([i]) for i in range(2)]
    told["group of one"] = run(x, weight, bias, grad, "reference", group=each[rank])
    try:
        count = 1 if rank == 0 else 0
        run(x[:count, :, :1, :1], weight, bias, grad[:count, :, :1, :1], "reference", group="world")
    except ValueError as error:
        told["too few"] = str(error)
    torch.save(told, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
