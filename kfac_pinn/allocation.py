"""Memory that a step frees stays with the process for the next one, on the CPU.

Every step asks for the same temporaries of some megabytes. glibc gives each back to the system when
it is freed, and the system hands out pages of zeros again in the next step: thousands of page
faults, about a tenth of a step (examples/reproduce/benchmark_allocation.py).
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

__all__ = ["reuse_freed_memory"]

# Of malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 2**25  # bytes of one block: glibc takes no more; larger ones come from the system
KEPT = 2**30  # bytes that are free, at most, before they are given back


@cache
def reuse_freed_memory() -> bool:
    """Let glibc keep freed blocks of up to 32 MiB, at most 1 GiB, and use them again.

    The first closure, jet or `fit` of a process calls it. What a process holds at most stays about
    what it was: it only holds it longer. Nothing is done where the user has decided, in the
    environment variables MALLOC_... or GLIBC_TUNABLES, and on other systems.

    Returns:
        Whether it was done.

    Source: mallopt(3).
    """
    decided = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if sys.platform != "linux" or decided:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST) and mallopt(M_TRIM_THRESHOLD, KEPT))
