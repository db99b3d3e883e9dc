# SPDX-License-Identifier: MIT
"""Progress on a terminal and in a log."""

import io

from openseg.engine.progress import show_progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run_through(stream, total):
    with show_progress("predicting", stream) as progress:
        for done in range(1, total + 1):
            progress(done, total)
    return stream.getvalue()


def test_a_log_gets_a_line_each_tenth():
    lines = run_through(io.StringIO(), 25).splitlines()
    assert lines == [f"predicting: {n}/25" for n in (3, 5, 8, 10, 13, 15, 18, 20, 23, 25)]


def test_a_log_of_few_images_gets_a_line_each():
    assert run_through(io.StringIO(), 2) == "predicting: 1/2\npredicting: 2/2\n"


def test_a_terminal_gets_a_bar():
    text = run_through(Terminal(), 4)
    assert "predicting" in text
    assert "4/4" in text
