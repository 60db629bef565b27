"""Signals that ask a program to end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TypeAlias

END = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
)
"""Asks to end, that the terminal is gone, and a scheduler's warning that time is nearly over."""

Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | None


def handle(
    handler: Callable[[int, FrameType | None], None], numbers: tuple[signal.Signals, ...]
) -> Mapping[signal.Signals, Handler]:
    """Set a handler for signals, where there can be one: in the main thread.

    A hang-up or warning that is ignored stays ignored, as ``nohup`` wants it.

    Returns:
        The handlers before, for :func:`restore`.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {number: signal.getsignal(number) for number in numbers}
    before = {
        number: old
        for number, old in before.items()
        if old is not None and (number not in END[1:] or old is not signal.SIG_IGN)
    }
    for number in before:
        signal.signal(number, handler)
    return before


def restore(before: Mapping[signal.Signals, Handler]) -> None:
    """Set the handlers that were there before."""
    for number, old in before.items():
        signal.signal(number, old)


@contextmanager
def ending() -> Iterator[None]:
    """Within, the signals of :data:`END` interrupt like ctrl-C, so that a run can record it."""
    process = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a forked worker, which nobody waits for
            os._exit(128 + number)
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = handle(end, END)
    try:
        yield
    finally:
        restore(before)


@contextmanager
def stopping() -> Iterator[None]:
    """Within, ctrl-C and the signals of :data:`END` end the program with one line.

    Raises:
        SystemExit: with code 130.
    """
    with ending():
        try:
            yield
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            sys.exit(130)
