# SPDX-License-Identifier: MIT
"""How entry points leave: statuses, and a reader that has gone away."""

import os
import subprocess
import sys

import pytest

from openseg.cli import run
from openseg.errors import DataError

PRINTS = "from openseg.cli import run; run(lambda: print('word ' * {words}))"
HELPS = (
    "import argparse; from openseg.cli import run; "
    "run(lambda: argparse.ArgumentParser().parse_args(['--help']))"
)


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
