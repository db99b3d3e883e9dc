# SPDX-License-Identifier: MIT
"""What values do not show: order of sums, streams, graphs, host syncs, compiled graphs."""

import pytest
import torch

from openseg import create_model, ops
from openseg.losses import SegmentationLoss
from tests.gpu.operators import ALL, BACKENDS, DIFFERENTIABLE, MINED, or_skip

SHAPE = (2, 64, 19, (33, 65))
on_each = pytest.mark.parametrize(
    ("name", "backend"), [(name, backend) for name in ALL for backend in BACKENDS]
)
differentiable = pytest.mark.parametrize(
    ("name", "backend"),
    [(name, backend) for name in DIFFERENTIABLE | MINED for backend in BACKENDS],
)


def made(name, dtype=torch.bfloat16, layout="channels_last"):
    return ALL[name](*SHAPE, dtype, layout)


def equal(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@on_each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_runs_are_bit_equal(name, backend, dtype):
    call = made(name, dtype)
    first = or_skip(call, backend)
    for _ in range(3):
        assert equal(call.run(backend), first)


@on_each
def test_uninitialised_memory_does_not_show(name, backend):
    call = made(name)
    known = or_skip(call, backend)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert equal(call.run(backend), known)
    finally:
        torch.use_deterministic_algorithms(False)


@on_each
def test_runs_on_the_current_stream(name, backend):
    """The inputs are ready on that stream alone."""
    call = made(name)
    known = or_skip(call, backend)
    late = [torch.zeros_like(t) for t in call.tensors]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for target, source in zip(late, call.tensors, strict=True):
            target.copy_(source)
        mine = call.run(backend, late)
    torch.cuda.current_stream().wait_stream(stream)
    assert equal(mine, known)


@differentiable
def test_waits_for_nothing(name, backend):
    call = made(name)
    known = or_skip(call, backend)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        mine = call.run(backend)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert equal(mine, known)


@differentiable
def test_is_captured_in_a_graph(name, backend):
    call = made(name)
    known = or_skip(call, backend)
    given = [t.clone() for t in call.tensors]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call.run(backend, given)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call.run(backend, given)
    for result in captured:
        result.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert equal(captured, known)


@differentiable
def test_compiles_whole_with_its_gradients(name, backend):
    call = made(name)
    known = or_skip(call, backend)
    torch._dynamo.reset()
    eager = call.function
    call.function = torch.compile(
        lambda *tensors, backend: eager(*tensors, backend=backend), fullgraph=True
    )
    for ours, expected in zip(call.run(backend), known, strict=True):
        torch.testing.assert_close(ours, expected)
        assert ours.stride() == expected.stride()


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend):
    names = {"cuda": "openseg", "triton": "openseg_triton"}
    call = made("object_attention", torch.float32)
    or_skip(call, backend)
    operator = getattr(torch.ops, names[backend]).object_attention.default
    torch.library.opcheck(operator, (*call.tensors, 0.5))


def test_auto_takes_a_kernel(caplog):
    call = made("object_attention")
    with caplog.at_level("DEBUG", logger="openseg"):
        call.run("auto")
    assert "object_attention: cuda" in caplog.text or "object_attention: triton" in caplog.text


@pytest.mark.parametrize("name", ["ocrnet", "base_ocnet", "isanet"])
def test_a_training_step_learns(name):
    torch.manual_seed(0)
    model = create_model(name, backbone="resnet18c", num_classes=19).cuda()
    model = model.to(memory_format=torch.channels_last).train()
    criterion = SegmentationLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images = torch.randn(2, 3, 129, 257, device="cuda")
    target = torch.randint(0, 19, (2, 129, 257), device="cuda")
    losses = []
    for _ in range(5):
        with torch.autocast("cuda", torch.bfloat16):
            loss = criterion(model(images), target)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    labels = model.eval().predict(images)
    assert labels.shape == target.shape
    assert ops.confusion_matrix(labels, target, 19).sum() == target.numel()
