# SPDX-License-Identifier: MIT
"""The forward pass of `self_attention` by PyTorch's kernels, and the choice of one."""

import pytest
import torch

from openseg import ops
from openseg.ops.self_attention import fastest
from tests.gpu.operators import DIFFERENTIABLE, Call, gradient_of, map_
from tests.ops.attention_cases import gradient_slack
from tests.ops.gradients import check_budget

SHARED = "self_attention of a query that is the key"
either_key = pytest.mark.parametrize("name", ["self_attention", SHARED])
# images, channels, size: one pixel, primes, blocks, what networks have
SHAPES = [(1, 8, (1, 1)), (3, 104, (15, 4)), (2, 64, (13, 31)), (8, 128, (60, 60))]
SHAPES += [(1, 256, (65, 65)), (2, 256, (97, 97))]


@pytest.fixture(autouse=True)
def switched_on(monkeypatch):
    monkeypatch.setattr(fastest, "_fastest", {})
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)


def made(name, images, channels, size, dtype=torch.bfloat16):
    """Values have as many channels as keys, which flash asks for."""
    call = DIFFERENTIABLE[name](images, channels, 0, size, dtype, "channels_last")
    value = map_(images, channels, size, dtype, "channels_last", 2)
    return Call(call.function, [*call.tensors[:-1], value], call.with_gradients)


def chosen(call):
    """The one kernel that was chosen since the test began."""
    call.run("auto")
    if not fastest._fastest:
        pytest.skip("no kernel of ours runs here")
    (name,) = fastest._fastest.values()
    return name


@either_key
@pytest.mark.parametrize("kernel", fastest._OF_TORCH)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_result_and_gradients(monkeypatch, shape, dtype, kernel, name):
    monkeypatch.setattr(
        fastest, "_measured", lambda call, runs: kernel if kernel in runs else next(iter(runs))
    )
    call = made(name, *shape, dtype)
    if chosen(call) != kernel:
        pytest.skip("PyTorch does not offer it here")
    mine = call.run("auto")
    exact = [t.double() for t in call.run("reference", call.wide())]
    slack = gradient_slack(gradient_of(exact[0]), mine, exact, call.tensors)
    check_budget(mine, call.run("reference"), exact, slack)
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in mine if t.shape[1] > 1)


@either_key
def test_a_choice_is_kept_and_waits_for_nothing(monkeypatch, caplog, name):
    call = made(name, 2, 64, (33, 65))
    with caplog.at_level("INFO", logger="openseg"):
        kernel = chosen(call)
    assert f"forward by {kernel} (" in caplog.text
    known = call.run("auto")
    monkeypatch.setattr(fastest, "_microseconds", None)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            mine = call.run("auto")
            assert len(fastest._fastest) == 1
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, expected in zip(mine, known, strict=True):
        assert torch.equal(ours, expected)


@either_key
@pytest.mark.parametrize("before", [False, True], ids=["unknown", "known"])
def test_is_captured_in_a_graph(monkeypatch, name, before):
    """Where its kind is not known yet, nothing is measured: our own kernel is captured."""
    call = made(name, 2, 64, (33, 65))
    if before:
        chosen(call)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), monkeypatch.context() as patch:
        patch.setattr(torch.backends.cudnn, "benchmark", before)
        known = call.run("auto")
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call.run("auto")
    assert len(fastest._fastest) == before
    for result in captured:
        result.zero_()
    graph.replay()
    torch.cuda.synchronize()
    for ours, expected in zip(captured, known, strict=True):
        assert torch.equal(ours, expected)


@either_key
def test_compiles_whole_with_its_gradients(name):
    call = made(name, 2, 64, (33, 65))
    chosen(call)
    known = call.run("auto")
    torch._dynamo.reset()
    eager = call.function
    call.function = torch.compile(
        lambda *tensors, backend: eager(*tensors, backend=backend), fullgraph=True
    )
    for ours, expected in zip(call.run("auto"), known, strict=True):
        torch.testing.assert_close(ours, expected)
        assert ours.stride() == expected.stride()
    assert len(fastest._fastest) == 1


@pytest.mark.parametrize("layout", ["contiguous", "sliced"])
def test_other_layouts_are_ours(layout):
    """Pixels of slices begin 6 bytes behind a multiple of 16: vectors of them would fault."""
    tensors = [map_(2, 64, (33, 65), torch.bfloat16, layout, seed) for seed in range(3)]
    assert chosen(Call(ops.self_attention, tensors, 3)) in fastest.FORWARD
