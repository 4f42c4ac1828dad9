"""The cores of the processor that this process may use: as many threads read and cut images."""

import os


def core_count() -> int:
    """Their number, at least 1; all of the machine's where the system does not tell."""
    if hasattr(os, 'sched_getaffinity'):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
