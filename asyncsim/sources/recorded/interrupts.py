"""Ctrl-C and SIGTERM end a real run in order.

A signal that raised wherever it struck could leave a model without the row of its last update. So it is noted, and
`check` raises it where model and rows agree.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: Seconds that nobody may wait longer before the next look.
LOOK_EVERY = 0.05


class _Asked:
    """Which signal has asked for an end, and whether the run has heard it. A process gets signals as a whole."""

    number: int | None = None
    heard = False


class Ended(BaseException):
    """A signal has asked the run to end."""

    def __str__(self) -> str:
        return f"ended by {signal.Signals(self.args[0]).name}"


def check() -> None:
    """Raise `Ended` if a signal has come."""
    if _Asked.number is not None:
        _Asked.heard = True
        raise Ended(_Asked.number)


def hold_back() -> None:
    """Let no signal disturb what follows, up to the end of `noted`; what is made by now must not be lost."""
    _Asked.heard = True


def held_back() -> bool:
    """Return whether a signal has come."""
    return _Asked.number is not None


@contextmanager
def noted() -> Iterator[None]:
    """Note Ctrl-C and SIGTERM, where the program has left them as Python has them; only the main thread can.

    A second one before the first was heard, which somebody's code may prevent, interrupts there and then. Once the
    first was heard the end is near, and nothing may disturb it. Within another `noted` this one does nothing.
    """
    usual: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    ours = []
    if threading.current_thread() is threading.main_thread():
        ours = [number for number, handler in usual.items() if signal.getsignal(number) == handler]
    if ours:
        _Asked.number, _Asked.heard = None, False
    for number in ours:
        signal.signal(number, _note)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, usual[number])


def _note(number: int, frame: Any) -> None:
    if _Asked.number is None:
        _Asked.number = number
    elif not _Asked.heard:
        raise KeyboardInterrupt


@contextmanager
def kept_from_children() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach: it is this process's to handle."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
