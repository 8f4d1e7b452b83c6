"""Where and how wide it is computed, and what the allocator does meanwhile."""

from __future__ import annotations

import ctypes
import sys

import torch

from seqzoo.errors import UserError

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of malloc.h


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next step, instead of giving it back to the system.

    A training step frees all it has allocated. Given back, every page of it is zeroed again a step
    later: at 32,768 tokens a step that is a third to a half of the whole time. Elsewhere than with
    glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
        mallopt(M_TOP_PAD, 64 * 2**20)


def pick_device(name: str, key: str = "trainer.device") -> torch.device:
    """`auto` is CUDA where there is some, else the CPU. `key` is what the name was given as.

    Raises:
        UserError: the device is not there.
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


def pick_dtype(name: str, device: torch.device) -> str:
    """`auto` is bfloat16 where the hardware multiplies it, else float32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capable = torch.backends.cpu.get_cpu_capability()
        fast = capable.startswith("AVX512") and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if fast else "float32"
