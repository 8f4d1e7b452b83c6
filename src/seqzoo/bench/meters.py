"""What a call costs once it is warm: seconds, bytes, and the fused kernels that it runs."""

from __future__ import annotations

import contextlib
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

T = TypeVar("T")
SHORTEST = 0.01  # seconds: shorter calls are timed several at once, as reading the clock costs time
MAX_SAMPLES = 100
FUSED = re.compile(r"mkldnn_rnn|cudnn_rnn|thnn_fused|scaled_dot_product|flash|efficient_attention")


def timed(call: Callable[[], T], device: torch.device, repeats: int = 1) -> tuple[float, T]:
    """Seconds a call, as a mean over the repeats, and the last result."""
    _synchronise(device)
    start = time.perf_counter()
    for _ in range(repeats):
        result = call()
    _synchronise(device)
    return (time.perf_counter() - start) / repeats, result


def sample(
    call: Callable[[], object], device: torch.device, *, first: float, seconds: float
) -> dict[str, Any]:
    """Time a call again and again for some seconds, after warming up.

    The call is warm when two in a row took the same within 10 %. The second of them is the first
    sample where it is long enough.

    Args:
        first: seconds that the very first call took.

    Returns:
        `times`, seconds a call each; `steady`: whether the second half took as long as the first
        within 10 %, None where there are too few samples to tell.
    """
    warm = [first, timed(call, device)[0]]
    while abs(warm[-1] / warm[-2] - 1) > 0.1 and (
        len(warm) < 4 or (len(warm) < 10 and sum(warm) < 4 * seconds)
    ):
        warm.append(timed(call, device)[0])
    repeats = max(1, round(SHORTEST / warm[-1]))
    times = [warm[-1]] if repeats == 1 else []
    while not times or (sum(times) * repeats < seconds and len(times) < MAX_SAMPLES):
        times.append(timed(call, device, repeats)[0])
    half = len(times) // 2
    if half < 2:
        return {"times": times, "steady": None}
    drift = statistics.median(times[-half:]) / statistics.median(times[:half]) - 1
    return {"times": times, "steady": abs(drift) <= 0.1}


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class FusedKernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects in `names` which of PyTorch's fused kernels run inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:  # an operation that consists of others is searched too
            made = func.decompose(*args, **(kwargs or {}))
        if made is not NotImplemented:
            return made
        name = func._schema.name.partition("::")[2].strip("_")
        if FUSED.search(name) and "backward" not in name:
            self.names.add(name)
        return func(*args, **(kwargs or {}))


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
