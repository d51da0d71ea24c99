"""What the C library does with memory that numpy gives back.

glibc returns freed memory to the kernel as soon as 128 KiB at the end of its heap are free, and fetches it again for
the next array. A gradient whose temporary arrays have a few hundred KiB does so every time, or never, as chance has it:
it depends on what else lies at the heap's end. On a virtual machine that took as long as the gradient itself.
"""

from __future__ import annotations

import contextlib
import ctypes

#: Parameters of glibc's `mallopt`.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3

#: Bytes that a process may keep free at the end of its heap.
KEPT = 256 << 20

#: Arrays of fewer bytes come from the heap, not from the kernel: the most that glibc allows.
FROM_THE_HEAP = 32 << 20


def keep_freed_memory() -> None:
    """Let this process keep up to 256 MiB that it has freed, for as long as it lives; nothing where there is no glibc.

    For processes that belong to asyncsim: its command, its workers. No number depends on it, only how long a gradient
    takes, and how much that varies.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library, another system
        library = ctypes.CDLL(None)
        if library.gnu_get_libc_version:
            library.mallopt(M_MMAP_THRESHOLD, FROM_THE_HEAP)
            library.mallopt(M_TRIM_THRESHOLD, KEPT)
