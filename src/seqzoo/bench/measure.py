"""What the machine, a model and one point are. Each function runs in a process of its own, forked
from one that has torch loaded and has computed nothing, so that no point spoils the next."""

from __future__ import annotations

import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch._dynamo  # noqa: F401 (optimisers load it at their first use: a second a process)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from seqzoo import ops
from seqzoo.bench import memory
from seqzoo.bench.plan import BenchSettings, Point
from seqzoo.decoding.step import WORTH
from seqzoo.decoding.step import prepare as prepare_step
from seqzoo.models.cost import flops_of_token
from seqzoo.models.width import solved
from seqzoo.models.zoo import build
from seqzoo.state import State, nbytes
from seqzoo.tasks.next_token import TokenBatch, next_token_loss
from seqzoo.training.device import (
    float32_products,
    keep_freed_memory,
    pick_device,
    pick_dtype,
    synchronise,
)
from seqzoo.training.forward import Forward
from seqzoo.training.optimizers import adamw
from seqzoo.training.peak import measure_peak
from seqzoo.training.step import take_step

T = TypeVar("T")
SHORTEST = 0.01  # seconds: shorter calls are timed several at once, as reading the clock costs time
MAX_SAMPLES = 100
FUSED = re.compile(r"mkldnn_rnn|cudnn_rnn|thnn_fused|scaled_dot_product|flash|efficient_attention")


class TooSlow(Exception):
    """A step took longer than `bench.max_step_seconds`; the message gives both."""


def prepare(settings: BenchSettings) -> tuple[torch.device, str]:
    """Set up this process; returns the device and the dtype to compute on."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device = pick_device(settings.device, key="bench.device")
    if device.type == "cpu":
        keep_freed_memory()
        memory.limit_to_available()
    return device, pick_dtype(settings.dtype, device)


# ---- measured once


def machine(settings: BenchSettings) -> dict[str, Any]:
    """The machine, its software, and the speed of matrix products that it reaches, in FLOP/s."""
    device, dtype = prepare(settings)
    peak = measure_peak(device, dtype, seconds=1.0)
    return {
        "device": device.type,
        "name": device_name(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "dtype": dtype,
        "peak_flops": peak.flops,
        "peak_measured_by": peak.measured_by,
        "versions": {name: version(name) for name in ("seqzoo", "torch", "numpy")}
        | {"python": platform.python_version(), "system": platform.system()},
    }


def survey(keys: Mapping[str, Any], settings: BenchSettings) -> dict[str, Any]:
    """A model's size and cost; its width is solved for where `parameters` is set.

    FLOPs of token t are those of `TokenFlops`, with `flops_` before the names. They are counted on
    the definition, read token by token, which spends none on what a mask removes.
    """
    whole = {**keys, "vocab_size": settings.vocab_size}
    whole = solved(whole, parameters=settings.parameters)
    model = build(**whole).eval()
    keys = {key: whole[key] for key in keys}
    flops = flops_of_token(model)
    return {
        "keys": keys,
        "parameters": model.n_parameters(),
        "grows": model.state_grows,
        **{f"flops_{name}": value for name, value in flops._asdict().items()},
    }


def device_name(device: torch.device) -> str:
    """The name of a GPU, or of this machine's CPU."""
    if device.type != "cpu":
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


# ---- one point


def point(at: Point, keys: Mapping[str, Any], settings: BenchSettings) -> dict[str, Any]:
    """Measure one point.

    Returns:
        `times`, seconds a call each; `steady`; `state_bytes` of one sequence; `peak_bytes`;
        `base_bytes`, held before there was a model; `backend`, the forms and kernels that ran.

    Raises:
        TooSlow: the first step took longer than `max_step_seconds`.
    """
    device, dtype = prepare(settings)
    base = memory.held(device)
    torch.manual_seed(0)
    model = build(vocab_size=settings.vocab_size, **keys).to(device)
    shape = (at.batch_size, at.length + 1)
    tokens = torch.randint(settings.vocab_size, shape, device=device)
    call = CALLS[at.mode](Forward(model, device, dtype, compile=settings.compile), tokens)
    memory.reset_peak(device)
    with float32_products(device, dtype):
        if settings.compile:
            call()  # compiles, which is no part of a step
        with ops.recording() as forms, FusedKernels() as kernels:
            first, state = timed(call, device)
        limit = settings.max_step_seconds
        if limit < first < max(1.0, 3 * limit):  # the first step also initialises
            first, state = timed(call, device)
        if first > limit:
            raise TooSlow(f"{first:.2g} s a step, more than bench.max_step_seconds={limit:g}")
        state_bytes = nbytes(state) // at.batch_size
        del state
        times = sample(call, device, first=first, seconds=settings.seconds)
    return {
        **times,
        "state_bytes": state_bytes,
        "peak_bytes": memory.peak(device),
        "base_bytes": base,
        "backend": ", ".join([*sorted(forms), *sorted(kernels.names)]),
    }


Call = Callable[[], State]  # does the work once; returns the state after it


def training_step(forward: Forward, tokens: Tensor) -> Call:
    """A step as the trainer takes it, with AdamW, from the empty state."""
    parameters = list(forward.model.parameters())
    optimizer = adamw(forward.model, lr=1e-3, weight_decay=0.1, betas=[0.9, 0.99])
    n = tokens[:, 1:].numel()
    batch = TokenBatch(tokens[:, :-1], tokens[:, 1:], fresh=True, n_tokens=n, n_targets=n)

    def step() -> State:
        return take_step(
            forward,
            next_token,
            optimizer,
            parameters,
            [batch],
            None,
            device=tokens.device,
            carries=True,
            grad_clip=1.0,
        ).state

    return step


def next_token(
    forward: Forward, batch: TokenBatch, state: State, *, progress: float
) -> tuple[Tensor, State]:
    """The objective of the training step: the summed loss of every next token."""
    logits, state = forward(batch.inputs, state)
    return next_token_loss(logits, batch.targets), state


def prefill(forward: Forward, tokens: Tensor) -> Call:
    """Reading T tokens from the empty state."""
    forward.model.eval()

    def read() -> State:
        with torch.inference_mode():
            return forward(tokens[:, :-1], None)[1]

    return read


def decoding_step(forward: Forward, tokens: Tensor) -> Call:
    """One token after T - 1 others, and each time so: the cost of token T. By the prepared step
    that `generate` uses, in float32, where there is one."""
    model: Any = forward.model.eval()
    first = tokens[:, :-2]
    with torch.inference_mode():
        state = model(first)[1] if first.shape[1] else None
        prepared = state and prepare_step(model, state, len(tokens), WORTH)
        if first.shape[1] and not prepared:
            state = forward(first, None)[1]

    def step() -> State:
        with torch.inference_mode():
            if not prepared:
                return forward(tokens[:, -1:], state)[1]
            prepared.rewind()
            prepared(tokens[:, -1])
            return state

    return step


CALLS = {"train": training_step, "prefill": prefill, "decode": decoding_step}


# ---- timing a call, and what runs in it


def timed(call: Callable[[], T], device: torch.device, repeats: int = 1) -> tuple[float, T]:
    """Seconds a call, as a mean over the repeats, and the last result."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(repeats):
        result = call()
    synchronise(device)
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
