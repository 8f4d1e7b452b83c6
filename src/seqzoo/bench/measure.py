"""What one point costs. Everything here runs in a process of its own, forked from one that has
torch loaded and has computed nothing, so that no point spoils the next."""

from __future__ import annotations

import contextlib
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch._dynamo  # noqa: F401 (optimisers load it when first used: a second in every process)
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from seqzoo import ops
from seqzoo.bench.plan import Point
from seqzoo.models import cost as info
from seqzoo.models.language_model import LanguageModel
from seqzoo.models.zoo import build
from seqzoo.state import State, detach, nbytes
from seqzoo.training.device import keep_freed_memory, pick_device, pick_dtype
from seqzoo.training.optim import adamw

T = TypeVar("T")
KERNELS = re.compile(
    r"mkldnn_rnn|cudnn_rnn|thnn_fused|scaled_dot_product|flash|efficient_attention"
)
SAMPLE = 0.01  # seconds: the least that is timed at once, many times what reading the clock costs


class TooSlow(Exception):
    """A step took longer than the budget of one; `args[0]` says so."""


# ---- what is measured once


def machine(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The machine, its software, and the matrix-product peak it reaches, in FLOP/s."""
    device, dtype = _begin(settings)
    kind = getattr(torch, dtype)
    size = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    first, _ = timed(lambda: a @ b, device)
    times = sample(lambda: a @ b, device, first=first, seconds=1.0)["times"]
    name = _cpu_name() if device.type == "cpu" else torch.cuda.get_device_name(device)
    return {
        "device": device.type,
        "name": name,
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "dtype": dtype,
        "peak_flops": 2 * size**3 / statistics.median(times),
        "peak_measured_by": f"{size} x {size} matrix product, median of {len(times)}",
        "versions": {name: version(name) for name in ("seqzoo", "torch", "numpy")}
        | {"python": platform.python_version(), "system": platform.system()},
    }


def survey(keys: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A model's width, solved for where a number of parameters is asked; its parameters; FLOPs of
    token t as ``flops_first + (t - 1) * flops_growth``, counted on the definition read token by
    token, which spends none on what a mask throws away."""
    keys = dict(keys)
    if settings["parameters"] is not None:
        keys["dim"] = _solve(keys, settings["parameters"], settings["vocab_size"])
    model = build(vocab_size=settings["vocab_size"], **keys).eval()
    first, growth = info.flops_of_token(model)
    return {
        "keys": keys,
        "parameters": model.n_parameters(),
        "grows": model.state_grows,
        "flops_first": first,
        "flops_growth": growth,
    }


def _solve(keys: Mapping[str, Any], target: int, vocab_size: int) -> int:
    """The width whose number of parameters is nearest to the target."""
    unit = 2 * keys.get("n_heads", 4)  # divisible, into heads of an even size

    def distance(dim: int) -> int:
        with torch.device("meta"):
            return build(vocab_size=vocab_size, **{**keys, "dim": dim}).n_parameters() - target

    low = high = unit
    while distance(high) < 0:
        low, high = high, 2 * high
    while high - low > unit:
        middle = (low + high) // (2 * unit) * unit
        low, high = (middle, high) if distance(middle) < 0 else (low, middle)
    return min(low, high, key=lambda dim: abs(distance(dim)))


# ---- a point


def point(at: Point, keys: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Measure one point.

    Returns:
        `times`, seconds a call each; `steady`; `state_bytes` of one sequence; `peak_bytes`, and
        `base_bytes` before there was a model; `backend`, what ran.

    Raises:
        TooSlow: the first step took longer than ``max_step_seconds``.
    """
    device, dtype = _begin(settings)
    base = _resident(device)
    torch.manual_seed(0)
    model = build(vocab_size=settings["vocab_size"], **keys).to(device)
    if settings["compile"]:
        for layer in model.blocks:
            layer.compile()
    shape = (at.batch_size, at.length + 1)
    tokens = torch.randint(settings["vocab_size"], shape, device=device)
    narrow = torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")
    call = _CALLS[at.mode](model, tokens, narrow)
    _forget_peak(device)
    if settings["compile"]:
        call()  # compiling is nobody's step
    with ops.recording() as forms, Kernels() as kernels:
        first, state = timed(call, device)
    limit = settings["max_step_seconds"]
    if limit < first < max(1.0, 3 * limit):  # the first one does more than a step
        first, state = timed(call, device)
    if first > limit:
        raise TooSlow(f"{first:.2g} s a step, more than bench.max_step_seconds={limit:g}")
    state_bytes = nbytes(state) // at.batch_size
    del state
    measured = sample(call, device, first=first, seconds=settings["seconds"])
    peak = _peak(device)
    return {
        **measured,
        "state_bytes": state_bytes,
        "peak_bytes": peak,
        "base_bytes": base,
        "backend": ", ".join([*sorted(forms), *sorted(kernels.seen)]),
    }


Call = Callable[[], State]  # does the work once; the state after it


def _train(model: LanguageModel, tokens: Tensor, narrow: torch.autocast) -> Call:
    """A step as the trainer takes it: forward, backward, clipping, AdamW."""
    optimizer = adamw(model, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].flatten()

    def step() -> State:
        with narrow:
            logits, state = model(inputs)
        F.cross_entropy(logits.flatten(0, 1).float(), targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return detach(state)

    return step


def _prefill(model: LanguageModel, tokens: Tensor, narrow: torch.autocast) -> Call:
    """Reading T tokens from the empty state."""
    model.eval()

    def read() -> State:
        with torch.inference_mode(), narrow:
            return model(tokens[:, :-1])[1]

    return read


def _decode(model: LanguageModel, tokens: Tensor, narrow: torch.autocast) -> Call:
    """One token after T - 1 others, time and again from the same state: the cost of token T. The
    state it leaves has read T."""
    model.eval()
    with torch.inference_mode(), narrow:
        before = model(tokens[:, :-2])[1] if tokens.shape[1] > 2 else None

    def step() -> State:
        with torch.inference_mode(), narrow:
            return model(tokens[:, -1:], before)[1]

    return step


_CALLS = {"train": _train, "prefill": _prefill, "decode": _decode}


def timed(call: Callable[[], T], device: torch.device, repeats: int = 1) -> tuple[float, T]:
    """Seconds a call, and what the last one returned."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        result = call()
    _wait(device)
    return (time.perf_counter() - start) / repeats, result


def sample(
    call: Callable[[], object], device: torch.device, *, first: float, seconds: float
) -> dict[str, Any]:
    """Times of a call until `seconds` are over, after warming up until two calls in a row took the
    same within 10 %; the second of them counts if it is long enough to. `first` is what the very
    first call took."""
    warm = [first, timed(call, device)[0]]
    while abs(warm[-1] / warm[-2] - 1) > 0.1 and (
        len(warm) < 4 or (len(warm) < 10 and sum(warm) < 4 * seconds)
    ):
        warm.append(timed(call, device)[0])
    repeats = max(1, round(SAMPLE / warm[-1]))
    times = [warm[-1]] if repeats == 1 else []
    while not times or (sum(times) * repeats < seconds and len(times) < 100):
        times.append(timed(call, device, repeats)[0])
    half = len(times) // 2
    if half < 2:  # too few to say
        return {"times": times, "steady": None}
    drift = statistics.median(times[-half:]) / statistics.median(times[:half]) - 1
    return {"times": times, "steady": abs(drift) <= 0.1}


class Kernels(TorchDispatchMode):
    """Collects which of torch's fused kernels run: those a form leaves its work to."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:  # what is made of other operations is looked into
            made = func.decompose(*args, **(kwargs or {}))
        if made is not NotImplemented:
            return made
        name = func._schema.name.partition("::")[2].strip("_")
        if KERNELS.search(name) and "backward" not in name:
            self.seen.add(name)
        return func(*args, **(kwargs or {}))


# ---- the device


def _begin(settings: Mapping[str, Any]) -> tuple[torch.device, str]:
    if settings["threads"] is not None:
        torch.set_num_threads(settings["threads"])
    device = pick_device(settings["device"], key="bench.device")
    if device.type == "cpu":
        keep_freed_memory()
        _refuse_too_much_memory()
    return device, pick_dtype(settings["dtype"], device)


def _refuse_too_much_memory() -> None:
    """Let an allocation fail that the machine has no memory for, before the kernel kills at
    random."""
    available = _kilobytes("/proc/meminfo", "MemAvailable")
    used = _kilobytes("/proc/self/status", "VmSize")
    if available and used:
        soft = 1024 * (used + int(0.9 * available))
        resource.setrlimit(resource.RLIMIT_AS, (soft, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _resident(device: torch.device) -> int:
    """Bytes held now: by the process, or by the allocator of CUDA."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return 1024 * _kilobytes("/proc/self/status", "VmRSS")


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # elsewhere than on Linux, or not allowed
            Path("/proc/self/clear_refs").write_text("5")


def _peak(device: torch.device) -> int:
    """The most bytes held since `_forget_peak`; where that is not to be had, since the start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if peak := _kilobytes("/proc/self/status", "VmHWM"):
        return 1024 * peak
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _kilobytes(path: str, field: str) -> int:
    try:
        found = re.search(rf"{field}:\s+(\d+) kB", Path(path).read_text())
    except OSError:
        return 0
    return int(found[1]) if found else 0


def _cpu_name() -> str:
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()
