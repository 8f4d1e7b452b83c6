"""Forms of the recurrences in C++, for CPUs: `library` builds and loads them, `call` runs one.

The kernels get tensors as addresses and strides, so that they need nothing of torch's headers: they
build in seconds, and one build serves every release of torch. They use the threads of torch's own
OpenMP.
"""

from __future__ import annotations

import ctypes
import struct
from functools import cache

import torch
from torch import Tensor, nn

from seqzoo.ops.native.compiler import build

DIMENSIONS = 4  # strides that a kernel gets of each tensor


@cache
def library() -> ctypes.CDLL | None:
    """The kernels; None where they cannot be built, after one line on stderr."""
    path = build()
    return None if path is None else ctypes.CDLL(str(path))


def available(x: Tensor, length: int) -> bool:
    """Whether kernels take an input: a real one on a CPU, in float32 or float64, and not while
    torch.compile traces, which cannot look into them."""
    if torch.compiler.is_compiling() or type(x) not in (Tensor, nn.Parameter):
        return False
    wanted = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    return wanted and library() is not None


def available_for_bfloat16(x: Tensor, length: int) -> bool:
    """The same of kernels that take bfloat16 besides."""
    half = x.dtype == torch.bfloat16 and type(x) is Tensor
    return available(x.new_empty(0, dtype=torch.float32) if half else x, length)


def bits(x: float) -> int:
    """A number in float64 as the whole number of the same bits."""
    (whole,) = struct.unpack("q", struct.pack("d", x))
    return int(whole)


def call(name: str, *values: Tensor | float | None) -> None:
    """Run the kernel `name` for the type of the first tensor. A None stands for a tensor that is
    not there."""
    flat: list[int] = []
    dtype = None
    for value in values:
        if isinstance(value, int):
            flat.append(value)
        elif isinstance(value, float):
            flat.append(bits(value))
        elif value is None:
            flat += [0] * (1 + DIMENSIONS)
        else:
            dtype = dtype or value.dtype
            strides = value.stride()
            flat += [value.data_ptr(), *strides, *[0] * (DIMENSIONS - len(strides))]
    kernel = getattr(library(), f"{name}_{str(dtype).removeprefix('torch.')}")
    kernel((ctypes.c_int64 * len(flat))(*flat))
