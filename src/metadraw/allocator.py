"""How this process asks the operating system for memory."""

from __future__ import annotations

import ctypes

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD, _NEVER = 32 << 20, (1 << 31) - 1


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next tensor instead of giving it back.

    Every step of a training frees and asks again for the same memory, and fresh pages from the
    operating system cost more than the arithmetic on them. Does nothing on other C libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
