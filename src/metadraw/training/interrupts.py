"""Ctrl-C at a moment at which nothing is half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """Within this context, the first Ctrl-C takes effect at its end, a second one at once.

    ``torch.func`` exchanges a module's parameters for a task's and back. An exception between two
    exchanges, which only a signal can cause, would leave a module with some of each.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals do not come here
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
