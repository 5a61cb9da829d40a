"""Stopping a run without losing it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], signal.Signals | None]]:
    """Yields a function that tells which of SIGINT, SIGTERM and SIGUSR1 has asked for a stop first; None if none has.

    A second SIGINT raises KeyboardInterrupt at once, wherever the main thread is; a second SIGTERM or SIGUSR1 changes
    nothing. The former handlers come back at the end. A signal that the platform lacks (SIGUSR1 on Windows), or whose
    handler was not set by Python and could not come back, is left alone. Outside the main thread Python takes no
    signals, and nothing changes.
    """
    asked: list[signal.Signals] = []

    def stopping() -> signal.Signals | None:
        return asked[0] if asked else None

    def ask(number: int, frame: object) -> None:
        again = number == signal.SIGINT and signal.SIGINT in asked
        asked.append(signal.Signals(number))
        if again:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    former = {number: handler for number in numbers if (handler := signal.getsignal(number)) is not None}
    try:
        for number in former:
            signal.signal(number, ask)
        yield stopping
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
