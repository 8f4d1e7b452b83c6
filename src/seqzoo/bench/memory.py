"""Memory that a process holds, now and at its peak, and how much there is."""

from __future__ import annotations

import contextlib
import re
import resource
import sys
from pathlib import Path

import torch


def limit_to_available() -> None:
    """Let an allocation fail for which the machine has no memory, before the kernel kills some
    process."""
    available = _kilobytes("/proc/meminfo", "MemAvailable")
    used = _kilobytes("/proc/self/status", "VmSize")
    if available and used:
        soft = 1024 * (used + int(0.9 * available))
        resource.setrlimit(resource.RLIMIT_AS, (soft, resource.getrlimit(resource.RLIMIT_AS)[1]))


def held(device: torch.device) -> int:
    """Bytes held now: by the process, or by PyTorch's allocator on a GPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return 1024 * _kilobytes("/proc/self/status", "VmRSS")


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # not on Linux, or not allowed
            Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """The most bytes held since `reset_peak`; since the start, where that could do nothing."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if kilobytes := _kilobytes("/proc/self/status", "VmHWM"):
        return 1024 * kilobytes
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _kilobytes(path: str, field: str) -> int:
    """A field of a file in /proc; 0 where there is none."""
    try:
        found = re.search(rf"{field}:\s+(\d+) kB", Path(path).read_text())
    except OSError:
        return 0
    return int(found[1]) if found else 0
