"""Defers Ctrl-C until nothing is half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """Within this context, a first Ctrl-C takes effect at the end, a second one immediately.

    ``torch.func`` swaps a module's parameters for a task's and back. An exception between two
    swaps, which only a signal can cause, would leave the module with a mix of both.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only
        return
    usual = signal.getsignal(signal.SIGINT)
    received = []

    def wait(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, usual)

    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if received:
        signal.raise_signal(signal.SIGINT)
