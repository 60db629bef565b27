"""Lines on the terminal."""

from __future__ import annotations

import io
import logging

import pytest
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from rich.console import Console

from dwsep_zoo.report.render import say
from dwsep_zoo.terminal import fold
from dwsep_zoo.training.say import TerminalLines

LINE = "\nepoch   1/2   train loss 2.469 acc 6.25%   of mobilenet_v1-depthwise_separable"


@pytest.mark.parametrize("width", [20, 40, 200])
def test_lines_are_folded_between_words_only(width):
    folded = fold(LINE, width)
    assert folded.split() == LINE.split()
    assert folded.startswith("\n")
    for line in folded.split("\n"):
        assert len(line) <= width or len(line.split()) == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_a_report_folds_on_a_terminal_only(terminal):
    console = Console(file=io.StringIO(), width=30, force_terminal=terminal, color_system=None)
    say(console, LINE)
    printed = console.file.getvalue()
    assert printed.split() == LINE.split()
    assert (printed == f"{LINE}\n") != terminal


def test_a_line_of_the_log_clears_the_bar_before_it():
    stream = io.StringIO()
    handler = TerminalLines()
    handler.setStream(stream)
    with Tqdm(total=4, file=stream, leave=False, ncols=60) as bar:
        bar.update(2)
        bar.refresh()
        before = len(stream.getvalue())
        handler.emit(logging.makeLogRecord({"msg": "epoch 1/2"}))
        written = stream.getvalue()[before:]
    cleared, _, after = written.partition("epoch 1/2\n")
    assert cleared.split("\r")[-2].isspace()
    assert cleared.endswith("\r")
    assert "2/4" in after
