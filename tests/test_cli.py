# SPDX-License-Identifier: MIT
"""How entry points leave: statuses, and a reader that has gone away."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import openseg
from openseg.cli import run
from openseg.errors import DataError

PRINTS = "from openseg.cli import run; run(lambda: print('word ' * {words}))"
HELPS = (
    "import argparse; from openseg.cli import run; "
    "run(lambda: argparse.ArgumentParser().parse_args(['--help']))"
)
LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
ENTRY_POINTS = [
    f"openseg.{path.stem}"
    for path in Path(openseg.__file__).parent.glob("*.py")
    if "__main__" in path.read_text(encoding="utf-8")
]
# Whether the memory of a tensor was asked for in large pages, after all the imports.
ALLOCATES = f"""
import re
from pathlib import Path
import torch
import {", ".join(ENTRY_POINTS)}
from openseg.cli import run

def main():
    tensor = torch.ones(64 << 20, dtype=torch.uint8)
    place = tensor.data_ptr()
    mappings = re.compile("^([0-9a-f]+)-([0-9a-f]+) .*?^VmFlags:(.*?)$", re.MULTILINE | re.DOTALL)
    for begin, end, flags in mappings.findall(Path("/proc/self/smaps").read_text()):
        if int(begin, 16) <= place < int(end, 16):
            print("hg" in flags.split())

run(main)
"""


@pytest.mark.parametrize(
    "words",
    [
        ("-c", PRINTS.format(words=1)),  # in the buffer until the end
        ("-c", PRINTS.format(words=100_000)),  # more than a buffer and a pipe hold
        ("-c", HELPS),
        ("-m", "openseg.reproduce"),
    ],
)
def test_a_reader_that_goes_away_ends_a_command_quietly(words):
    reader, writer = os.pipe()
    os.close(reader)
    command, buffered = [sys.executable, *words], {**os.environ, "PYTHONUNBUFFERED": ""}
    with open(writer, "wb") as pipe:
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, env=buffered)
    assert done.stderr == b""
    assert done.returncode == 141


def _raise(error):
    raise error


@pytest.mark.parametrize(
    ("outcome", "status", "told"),
    [
        (lambda: None, None, ""),
        (lambda: 1, 1, ""),
        (lambda: _raise(DataError("a.png: no")), 2, "error: a.png: no\n"),
        (lambda: _raise(KeyboardInterrupt), 130, "interrupted\n"),
        (lambda: _raise(SystemExit(2)), 2, ""),
    ],
)
def test_statuses(outcome, status, told, capsys):
    with pytest.raises(SystemExit) as caught:
        run(outcome)
    assert caught.value.code == status
    assert capsys.readouterr().err == told


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // 0)


@pytest.mark.skipif(
    not LARGE_PAGES.exists() or "[never]" in LARGE_PAGES.read_text(),
    reason="this system has no transparent huge pages, or has them turned off",
)
@pytest.mark.parametrize(("own", "large"), [(None, "True"), ("0", "False")])
def test_large_tensors_get_large_pages_unless_the_user_says_otherwise(own, large):
    name = "THP_MEM_ALLOC_ENABLE"
    environment = {key: value for key, value in os.environ.items() if key != name}
    environment |= {} if own is None else {name: own}
    command = [sys.executable, "-c", ALLOCATES]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == f"{large}\n"
