"""How this process asks the operating system for memory."""

from __future__ import annotations

import ctypes

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = (1 << 31) - 1


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for later tensors instead of returning it.

    Every training step frees and requests the same memory, and new pages from the operating system
    cost more than the arithmetic on them. Large tensors come from the heap as well: if mapped one
    by one, each would need new pages. Does nothing with other C libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
