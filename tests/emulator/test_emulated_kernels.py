# SPDX-License-Identifier: MIT
"""Every CUDA kernel, compiled as C++: right values, no sanitizer's report, every mutant caught."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.emulator import build, operators
from tests.emulator.kernels import SHARED_LIMITS, Kernels
from tests.emulator.mutants import Mutant

OPERATORS = operators.names()

pytestmark = pytest.mark.skipif(
    shutil.which(build.COMPILER[0]) is None or os.uname().machine != "x86_64",
    reason="the emulator needs g++ on x86-64",
)


def test_every_operator_has_cases() -> None:
    folders = {source.parts[-3] for source in build.kernel_sources()} - {"common"}
    assert folders <= set(OPERATORS)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(("seed", "architecture"), list(enumerate(SHARED_LIMITS)))
def test_values_in_any_order_of_threads(operator: str, seed: int, architecture: str) -> None:
    run_here("plain", operator, seed, architecture)


@pytest.mark.parametrize("operator", OPERATORS)
def test_no_races(operator: str) -> None:
    run_here("race", operator, 0, "8.6")


@pytest.mark.parametrize("operator", OPERATORS)
def test_no_errors_of_memory(operator: str) -> None:
    done = run_apart("asan", operator, build.library("asan"))
    assert done.returncode == 0, done.stdout + done.stderr


MUTANTS = [(name, mutant) for name in OPERATORS for mutant in operators.module(name).MUTANTS]
# The first of each operator and mode.
CHOSEN = {(name, mutant.mode): mutant for name, mutant in reversed(MUTANTS)}.values()


def source_of(operator: str, mutant: Mutant) -> Path:
    if operator.startswith("primitives"):
        return build.HERE / f"{operator}.cu"
    return build.ROOT / "csrc" / (mutant.source or f"{operator}/cuda/{operator}.cu")


def test_mistakes_are_of_the_present_sources() -> None:
    counts = {
        (operator, mutant.mistake): source_of(operator, mutant).read_text().count(mutant.old)
        for operator, mutant in MUTANTS
    }
    assert {mistake: count for mistake, count in counts.items() if count != 1} == {}
    assert len(MUTANTS) >= 30
    assert min(sum(name == operator for name, _ in MUTANTS) for operator in OPERATORS) >= 3


@pytest.mark.parametrize(
    ("operator", "mutant"), MUTANTS, ids=[f"{name}-{mutant.mistake}" for name, mutant in MUTANTS]
)
def test_mutant_is_caught(operator: str, mutant: Mutant) -> None:
    if mutant not in CHOSEN and not build.THOROUGH:
        pytest.skip(build.WHY_NOT_THOROUGH)
    source = source_of(operator, mutant)
    text = source.read_text()
    broken = build.library(mutant.mode, {source: text.replace(mutant.old, mutant.new)})
    done = run_apart(mutant.mode, operator, broken)
    assert done.returncode != 0
    output = done.stdout + done.stderr
    assert re.search(mutant.report, output), output


def run_here(mode: str, operator: str, seed: int, architecture: str) -> None:
    operators.module(operator).check(Kernels(str(build.library(mode)), seed, architecture))


def run_apart(mode: str, operator: str, library: os.PathLike) -> subprocess.CompletedProcess:
    environment = dict(os.environ, PYTHONPATH=str(build.ROOT), OMP_NUM_THREADS="1")
    if mode == "asan":
        # Python itself leaks, and has to start with the sanitizer in place.
        runtimes = [
            build.run([*build.COMPILER, f"-print-file-name={name}.so"]).strip()
            for name in ("libasan", "libstdc++")
        ]
        environment |= {"LD_PRELOAD": ":".join(runtimes), "ASAN_OPTIONS": "detect_leaks=0"}
    command = [sys.executable, "-m", "tests.emulator.run", str(library), operator, "0", "1"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
