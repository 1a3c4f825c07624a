"""How this process asks the operating system for memory."""

from __future__ import annotations

import ctypes

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = (1 << 31) - 1


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next tensor instead of giving it back.

    Every step of a training frees and asks again for the same memory, and fresh pages from the
    operating system cost more than the arithmetic on them. Large tensors come from the heap as
    well: mapped one by one, each would be of fresh pages. Does nothing on other C libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
