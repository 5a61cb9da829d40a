"""Stopping a run without losing it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether SIGINT or SIGTERM has come; a second SIGINT interrupts at once.

    The former handlers come back at the end. Outside the main thread Python takes no signals, and nothing changes.
    """
    asked = threading.Event()

    def ask(number: int, frame: object) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    former = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
