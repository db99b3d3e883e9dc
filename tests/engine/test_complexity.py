# SPDX-License-Identifier: MIT
"""Counts by hand, by the references, and those that were published."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from openseg import complexity
from openseg.engine.complexity import Part, measure, table
from openseg.errors import ConfigError
from openseg.layers import ConvNormAct

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_by_hand():
    """The first convolution keeps nothing: its input is the image. Norm and ReLU keep a map each,
    and the second convolution has its input from there."""
    parts = measure(lambda: nn.Sequential(ConvNormAct(3, 8, 3), nn.Conv2d(8, 2, 1)), (2, 3, 5, 10))
    one = 2 * 8 * 50 * 4
    assert parts == [
        Part("0", 3 * 8 * 9 + 8 + 16, 2 * 2 * 50 * 3 * 8 * 9, 2 * one),
        Part("1", 18, 2 * 2 * 50 * 8 * 2, 0),
        Part("total", 258, 2 * 2 * 50 * (216 + 16), 2 * one),
    ]
    assert len({len(line) for line in table(parts).splitlines()}) == 1


def test_what_is_kept_twice_is_counted_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(4))

        def forward(self, x):
            y = x + self.shift
            return y.sin() + y.cos() + y.exp()  # they keep y, y, and the result of the last

    assert measure(Twice, (4,)) == [Part("total", 4, 0, 2 * 16)]


@pytest.mark.parametrize(
    "head", ["PPM", "ASPP", "self-attention", "shared self-attention", "OCR", "ISA"]
)
def test_heads_cost_what_was_published(monkeypatch, head):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    bench = runpy.run_path(str(BENCHMARKS / "bench_complexity.py"))
    assert head in bench["HEADS"]
    bench["count"](head)  # raises where parameters or operations are off by a per cent


def test_published_comparison_of_attentions(monkeypatch):
    """Without the convolution before them, ISA costs 27 % of self-attention, OCR 9 %."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    heads = runpy.run_path(str(BENCHMARKS / "bench_complexity.py"))["HEADS"]
    cost = {}
    for name, known in (("self-attention", 313.5), ("OCR", 28.6), ("ISA", 85.4)):
        *_, context, _total = measure(heads[name].build, *heads[name].shapes)
        cost[name] = context.flops / 1e9
        assert cost[name] == pytest.approx(known, rel=0.01)
    assert round(100 * cost["ISA"] / cost["self-attention"]) == 27


def test_command(monkeypatch, capsys):
    words = ["--model", "ocrnet", "--backbone", "resnet18c", "--size", "64", "96"]
    monkeypatch.setattr(sys, "argv", ["complexity", *words, "--num-classes", "4"])
    complexity.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ocrnet on resnet18c, images 1 × 3 × 64 × 96"
    names = [line.split()[0] for line in lines[2:]]
    assert names == ["backbone", "reduce", "context", "classifier", "aux_head", "total"]
    monkeypatch.setattr(sys, "argv", ["complexity", "--model", "orcnet"])
    with pytest.raises(ConfigError, match="did you mean ocrnet"):
        complexity.main()
