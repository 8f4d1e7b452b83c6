"""How long a call takes once it is warm, and which fused kernels it runs."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
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
