# SPDX-License-Identifier: MIT
"""The forward pass of `self_attention` by the kernel that is measured to be the fastest.

No GPU is needed: PyTorch's flash attention for CPUs stands for its kernels, and the clock tells
what a test says.
"""

import functools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from openseg import _ext, ops
from openseg.ops import _backend, _flops
from openseg.ops.self_attention import autograd, fastest
from tests.ops.attention_cases import arguments, gradient_slack, maps
from tests.ops.gradients import check_budget, check_graphs, random_gradient, with_gradients
from tests.ops.test_flops import count

pytestmark = pytest.mark.skipif(_ext.reason is not None, reason=str(_ext.reason))

SHAPE = (2, 16, 16, 5, 7)  # B, D, Dv, H, W
FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
either_key = pytest.mark.parametrize("shared", [False, True], ids=["own key", "key is query"])


class Clock:
    """Stands for the GPU's: a kernel takes its µs of `times`; `asked` has the names in order."""

    def __init__(self):
        self.times = {"cuda": 30.0, "first": 20.0, "second": 10.0}
        self.asked = []

    def microseconds(self, run):
        name = run.args[-1] if run.func is fastest._by_torch else "cuda"
        self.asked.append(name)
        run()
        return self.times[name]


@pytest.fixture
def clock(monkeypatch):
    """PyTorch offers two kernels, and may be asked for the time."""
    clock = Clock()
    monkeypatch.setattr(fastest, "_microseconds", clock.microseconds)
    monkeypatch.setattr(fastest, "_fastest", {})
    kernels = {name: (lambda params: True, FLASH, ()) for name in ("first", "second")}
    monkeypatch.setattr(fastest, "_OF_TORCH", kernels)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    return clock


def replace(monkeypatch, name, offers=lambda params: True, attention=FLASH):
    monkeypatch.setitem(fastest._OF_TORCH, name, (offers, attention, ()))


def given(layout="channels_last", shape=SHAPE, dtype=torch.float32):
    return maps(*shape, dtype, layout)


def attend(query, key, value, scale=0.25):
    other = None if key is query else key
    kernels = fastest.FORWARD["cuda"], autograd.BACKWARD["cuda"]
    return autograd.PixelAttention.apply(query, other, value, kernels, (scale, False))


def test_the_fastest_is_measured_once_and_told(clock, caplog):
    with caplog.at_level("INFO", logger="openseg"):
        attend(*given())
        attend(*[t.clone() for t in given()], scale=0.5)
    assert clock.asked == ["cuda"] * 3 + ["first"] * 3 + ["second"] * 3
    assert list(fastest._fastest.values()) == ["second"]
    assert [r.getMessage() for r in caplog.records] == [
        "self_attention of torch.float32 [[2, 16, 5, 7], [2, 16, 5, 7], [2, 16, 5, 7]]: "
        "forward by second (cuda 30 µs, first 20 µs, second 10 µs)"
    ]


@pytest.mark.parametrize("name", ["cuda", "first", "second"])
def test_the_fastest_is_what_runs(clock, monkeypatch, name):
    ran = []
    for other in ("first", "second"):
        replace(monkeypatch, other, attention=recorded(FLASH, other, ran))
    monkeypatch.setitem(autograd.FORWARD, "cuda", recorded(autograd.FORWARD["cuda"], "cuda", ran))
    clock.times[name] = 1.0
    attend(*given())
    del ran[:]
    attend(*given())
    assert ran == [name]


def recorded(function, name, ran):
    def run(*arguments, **options):
        ran.append(name)
        return function(*arguments, **options)

    return run


def test_the_least_of_several_times_counts(clock, monkeypatch):
    times = iter([9, 9, 2, 5, 5, 5, 6, 3, 6])
    monkeypatch.setattr(fastest, "_microseconds", lambda run: next(times))
    attend(*given())
    assert list(fastest._fastest.values()) == ["cuda"]


def test_the_second_of_two_runs_is_timed_in_microseconds(monkeypatch):
    steps = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            steps.append("record")

        def synchronize(self):
            steps.append("synchronize")

        def elapsed_time(self, end):
            """In milliseconds."""
            return 0.25

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert fastest._microseconds(lambda: steps.append("run")) == 250.0
    assert steps == ["run", "record", "run", "record", "synchronize"]


def test_one_that_raises_is_out(clock, monkeypatch, caplog):
    def broken(*arguments, **options):
        raise RuntimeError("no plan for this call")

    replace(monkeypatch, "second", attention=broken)
    with caplog.at_level("DEBUG", logger="openseg"):
        attend(*given())
    assert list(fastest._fastest.values()) == ["first"]
    assert "not by second: no plan for this call" in caplog.text
    assert "forward by first (cuda 30 µs, first 20 µs)" in caplog.text


def test_a_result_in_another_layout_is_put_right(clock, monkeypatch):
    def transposed(*arguments, **options):
        out, logsumexp = FLASH(*arguments, **options)
        return out.mT.contiguous().mT, logsumexp

    known = attend(*given())
    replace(monkeypatch, "second", attention=transposed)
    mine = attend(*given())
    assert torch.equal(mine, known)
    assert mine.stride() == known.stride()


def test_padded_statistics_are_out(clock, monkeypatch):
    def padded(*arguments, **options):
        out, logsumexp = FLASH(*arguments, **options)
        return out, torch.nn.functional.pad(logsumexp, (0, 13))

    replace(monkeypatch, "second", attention=padded)
    attend(*given())
    assert list(fastest._fastest.values()) == ["first"]


def test_one_that_is_not_offered_is_not_run(clock, monkeypatch):
    replace(monkeypatch, "second", offers=lambda params: params.query.dtype != torch.float32)
    attend(*given())
    assert "second" not in clock.asked
    assert list(fastest._fastest.values()) == ["first"]


STATES = {
    "no benchmark": (torch.backends.cudnn, "benchmark", False),
    "deterministic": (torch, "are_deterministic_algorithms_enabled", lambda: True),
    "captured": (torch.cuda, "is_current_stream_capturing", lambda: True),
}


@pytest.mark.parametrize("state", STATES)
def test_nothing_is_measured(clock, monkeypatch, state):
    with monkeypatch.context() as patch:
        patch.setattr(*STATES[state])
        mine, known = (k["cuda"](*given(), 0.25) for k in (fastest.FORWARD, autograd.FORWARD))
    assert all(torch.equal(a, b) for a, b in zip(mine, known, strict=True))
    assert not clock.asked
    assert not fastest._fastest
    attend(*given())
    assert clock.asked


@pytest.mark.parametrize(
    ("state", "name"), list(zip(STATES, ["cuda", "cuda", "second"], strict=True))
)
def test_what_is_known_runs_where_it_may(clock, monkeypatch, state, name):
    """In a graph that is captured after a call of its kind, too."""
    attend(*given())
    ran = []
    replace(monkeypatch, "second", attention=recorded(FLASH, "second", ran))
    monkeypatch.setattr(*STATES[state])
    attend(*given())
    assert ran == (["second"] if name == "second" else [])


def test_deterministic_algorithms_with_warnings_count_too(clock):
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        attend(*given())
    finally:
        torch.use_deterministic_algorithms(False)
    assert not clock.asked


def sliced(first):
    """16 of 20 channels, of 4 bytes: pixels begin on 16 bytes where `first` is a multiple of 4."""
    return [t[:, first : first + 16] for t in given(shape=(2, 20, 20, 5, 7))]


@pytest.mark.parametrize(
    ("tensors", "scale"),
    [
        (given("contiguous"), 0.25),
        (given("strided"), 0.25),
        ([*given()[:2], given("contiguous")[2]], 0.25),
        (given(shape=(2, 18, 18, 5, 7)), 0.25),
        (sliced(2), 0.25),
        (given(shape=(0, 16, 16, 5, 7)), 0.25),
        (given(), -0.25),
        (given(), 0.0),
    ],
    ids=[
        "NCHW",
        "strided",
        "value NCHW",
        "D = 18",
        "sliced",
        "no image",
        "negative scale",
        "no scale",
    ],
)
def test_our_own_where_maps_or_scale_do_not_suit(clock, tensors, scale):
    with torch.no_grad():
        mine, known = (k["cuda"](*tensors, scale) for k in (fastest.FORWARD, autograd.FORWARD))
    assert all(torch.equal(a, b) for a, b in zip(mine, known, strict=True))
    assert not clock.asked
    assert list(fastest._fastest.values()) == ["cuda"]


def test_slices_on_whole_vectors_are_taken_as_they_lie(clock):
    attend(*sliced(4))
    attend(*sliced(2))
    attend(*sliced(0))
    assert list(fastest._fastest.values()) == ["second", "cuda"]


def test_kinds_of_calls_are_measured_apart(clock):
    query, key, value = given()
    other = given("contiguous")[0]
    calls = [
        (query, key, value),
        (query, query, value),
        given(shape=(1, 16, 16, 5, 7)),
        given(shape=(2, 16, 16, 7, 5)),
        given(shape=(2, 8, 8, 5, 7)),
        given(dtype=torch.bfloat16),
        (other, key, value),
        [torch.cat([t, t], 1)[:, :16] for t in given()],
    ]
    for number, call in enumerate(calls, 1):
        attend(*call)
        attend(*call)
        assert len(fastest._fastest) == number
    attend(*given(), scale=-0.25)
    assert list(fastest._fastest.values()).count("cuda") == 2  # of the map in NCHW, and this one


@pytest.fixture
def gpu_of_fakes(clock, monkeypatch):
    """Tensors without values can be on a GPU that is not there."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(_ext, "with_cuda", True)
    monkeypatch.setattr(_backend, "AUTO", "auto")
    with FakeTensorMode():
        yield [torch.empty(2, 16, 4, 4, device="cuda", dtype=torch.bfloat16) for _ in range(3)]


def operators(graph):
    return [str(node.target) for node in graph.nodes if "self_attention" in str(node.target)]


def traced(tensors, backend="auto"):
    return operators(make_fx(lambda *t: ops.self_attention(*t, backend=backend))(*tensors).graph)


OWN, CHOSEN = ["openseg.self_attention.default"], ["openseg_fastest.self_attention_cuda.default"]


def test_a_call_that_leaves_the_choice_has_it(gpu_of_fakes):
    assert traced(gpu_of_fakes) == CHOSEN
    assert not fastest._fastest


def test_our_own_by_name(gpu_of_fakes, monkeypatch):
    assert traced(gpu_of_fakes, backend="cuda") == OWN
    monkeypatch.setattr(_backend, "AUTO", "cuda")
    assert traced(gpu_of_fakes) == OWN


@pytest.mark.parametrize("state", ["no benchmark", "deterministic"])
def test_our_own_without_the_switch(gpu_of_fakes, monkeypatch, state):
    monkeypatch.setattr(*STATES[state])
    assert traced(gpu_of_fakes) == OWN


def test_our_own_on_other_devices(gpu_of_fakes, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    chosen = fastest.forward("triton", "auto", gpu_of_fakes[0])
    assert chosen is autograd.FORWARD["triton"]
    assert traced([torch.empty(2, 16, 4, 4) for _ in range(3)]) == OWN


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_graph_has_our_own(gpu_of_fakes, strict):
    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return ops.self_attention(*tensors)

    exported = torch.export.export(Module(), tuple(gpu_of_fakes), strict=strict)
    assert operators(exported.graph) == OWN


def test_a_compiled_graph_has_the_choice(gpu_of_fakes):
    graphs = []

    def compiler(graph, inputs):
        graphs.append(graph.graph)
        return graph

    torch.compile(ops.self_attention, fullgraph=True, backend=compiler)(*gpu_of_fakes)
    assert [operators(graph) for graph in graphs] == [CHOSEN]


# one pixel, one row, primes, a pair of blocks of pixels and four of them
SHAPES = [(1, 8, 1, 1), (2, 16, 1, 61), (2, 16, 7, 5), (1, 40, 17, 19), (1, 64, 23, 29)]


@either_key
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])  # what PyTorch offers on GPUs
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_keep_the_error_budget(clock, shape, dtype, shared):
    """Those of our backward pass, given the result and log-sum-exp of PyTorch's forward pass."""
    batch, channels, *size = shape
    tensors = given(shape=(batch, channels, channels, *size), dtype=dtype)
    scale = channels**-0.5
    mine = with_gradients(*arguments(attend, tensors, shared, scale=scale))
    assert list(fastest._fastest.values()) == ["second"]
    reference = functools.partial(ops.self_attention, scale=scale, backend="reference")
    function, leaves = arguments(reference, tensors, shared)
    exact = with_gradients(function, [t.double() for t in leaves])
    slack = gradient_slack(random_gradient(exact[0].shape), mine, exact, leaves)
    check_budget(mine, with_gradients(function, leaves), exact, slack)


@pytest.mark.parametrize("shape", SHAPES)
def test_statistics_give_the_weights(clock, shape):
    """But for the rounding of the log-sum-exp, which is as large as the scores."""
    batch, channels, *size = shape
    query, key, value = given(shape=(batch, channels, channels, *size))
    _, (greatest, inverse) = fastest.FORWARD["cuda"](query, key, value, 0.25)
    scores = 0.25 * query.double().flatten(2).mT @ key.double().flatten(2)
    weights = (scores - greatest[:, :, None]).exp() * inverse[:, :, None]
    rounding = 2.0**-24 * max(1.0, scores.abs().max())
    torch.testing.assert_close(weights, scores.softmax(2), rtol=4 * rounding, atol=0)


@either_key
@pytest.mark.parametrize("shape", [(2, 16, 16, 5, 7), (1, 8, 8, 1, 1), (2, 8, 8, 3, 1)])
def test_opcheck(clock, shape, shared):
    query, key, value = given(shape=shape)
    arguments = query, None if shared else key, value, 0.5
    torch.library.opcheck(fastest.FORWARD["cuda"], arguments)
    assert set(fastest._fastest.values()) == {"second"}


@either_key
def test_compiles_with_its_gradients_and_exports(clock, shared):
    check_graphs(*arguments(attend, given(), shared), dynamic=True)


def test_counts_the_operations_of_our_own(clock):
    batch, channels, _, height, width = SHAPE
    pairs = batch * (height * width) ** 2
    found = count(attend, given())
    assert clock.asked
    assert found == (
        _flops.attention(pairs, channels, channels),
        _flops.attention_backward(pairs, channels, channels),
    )
    assert count(attend, given()) == found
