"""The device and the precision of a computation, and how memory is allocated for it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from seqzoo.errors import UserError

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of malloc.h


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next step, instead of returning it to the system.

    A training step frees all memory it has allocated. The system zeroes every page that it hands
    out again: at 32,768 tokens a step that takes a third to a half of the whole time. Without glibc
    this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
        mallopt(M_TOP_PAD, 64 * 2**20)


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has computed what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def cpu_threads(n: int | None) -> Iterator[None]:
    """Inside, torch computes on this many threads, or if None on as many as before, whatever sets
    their number there; afterwards on as many as before."""
    before = torch.get_num_threads()
    if n is not None:
        torch.set_num_threads(n)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def pick_device(name: str, key: str = "trainer.device") -> torch.device:
    """The device of a name; `auto` is CUDA if the machine has it, else the CPU.

    Args:
        key: what the name was given as, for the message.

    Raises:
        UserError: the machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception:
        known = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise UserError(
            f"{key}={name}: not on this machine: use auto, {', '.join(known)}"
        ) from None
    return device


def autocast(device: torch.device, dtype: str) -> torch.autocast:
    """Inside, the model computes in this precision; its parameters stay in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")


@contextmanager
def float32_products(device: torch.device, dtype: str) -> Iterator[None]:
    """How CUDA computes products of float32 numbers inside: beside bfloat16 in TF32, and by kernels
    that round to bfloat16 (`ops.registry.fla_takes`); in a float32 run exactly, also in cuDNN,
    which by default does not."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    if device.type == "cuda":
        rounded = dtype == "bfloat16"
        torch.set_float32_matmul_precision("medium" if rounded else "highest")
        torch.backends.cudnn.allow_tf32 = rounded
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def pick_dtype(name: str, device: torch.device) -> str:
    """The precision of a name; `auto` is bfloat16 if the hardware multiplies it, else float32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # The first is true of every CPU with AVX-512, where oneDNN multiplies by way of float32.
        known = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        fast = known and torch.cpu._is_avx512_bf16_supported()  # as every CPU with AMX has it too
    return "bfloat16" if fast else "float32"
