"""Forms of the recurrences in C++, for CPUs: `library` builds and loads them, `call` runs one.

The kernels get tensors as addresses and strides, so that they need nothing of torch's headers: they
build in seconds, and one build serves every release of torch. They use the threads of torch's own
OpenMP.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from seqzoo.ops.native.compiler import load

DIMENSIONS = 4  # strides that a kernel gets of each tensor
PARTS = 16  # of the rows of a batch, each with a sum of its own for the gradient of a parameter
OTHERWISE = "choose another form than native"
TO = {torch.float32: "", torch.float64: "", torch.bfloat16: "_to_bfloat16"}  # types written


@cache
def library() -> ctypes.CDLL | None:
    """The kernels; None where they cannot be built or loaded, after one line on stderr."""
    return load()


def available(x: Tensor, length: int, kernel: str = "matrix_state_forward") -> bool:
    """Whether a kernel takes an input: a real one on a CPU, of a type it is built for, and not
    while torch.compile traces, which cannot look into it."""
    if torch.compiler.is_compiling() or type(x) not in (Tensor, nn.Parameter):
        return False
    return x.device.type == "cpu" and has(kernel, x.dtype)


def takes(kernel: str) -> Callable[[Tensor, int], bool]:
    """`available` for one kernel: some take bfloat16 besides."""
    return partial(available, kernel=kernel)


def has(kernel: str, dtype: torch.dtype) -> bool:
    """Whether this CPU has a kernel for numbers of a type."""
    return library() is not None and hasattr(library(), _named(kernel, dtype))


def _named(kernel: str, dtype: torch.dtype) -> str:
    return f"{kernel}_{str(dtype).removeprefix('torch.')}"


def bits(x: float) -> int:
    """A number in float64 as the whole number of the same bits."""
    (whole,) = struct.unpack("q", struct.pack("d", x))
    return int(whole)


def expect(state: Tensor, *shape: int) -> None:
    """Refuse a state of another shape, of which a kernel would read beyond the end.

    Raises:
        ValueError: both shapes.
    """
    if state.shape != shape:
        raise ValueError(
            f"a state of shape {tuple(state.shape)}, where these tokens need one of {shape} here: "
            "give the state that the same model left for the same rows"
        )


def call(name: str, *values: Tensor | float | None, of: torch.dtype | None = None) -> None:
    """Run the kernel `name` for the type `of`; None: that of the first tensor. A None among the
    values stands for a tensor that is not there.

    Raises:
        TypeError: there is no such kernel here, or a tensor is not on the CPU.
    """
    flat: list[int] = []
    dtype = of
    for value in values:
        if isinstance(value, int):
            flat.append(value)
        elif isinstance(value, float):
            flat.append(bits(value))
        elif value is None:
            flat += [0] * (1 + DIMENSIONS)
        elif not value.is_cpu:
            raise TypeError(f"{name}: a tensor on {value.device}: {OTHERWISE}")
        else:
            dtype = dtype or value.dtype
            strides = value.stride()
            flat += [value.data_ptr(), *strides, *[0] * (DIMENSIONS - len(strides))]
    assert dtype is not None
    kernel = getattr(library(), _named(name, dtype), None)
    if kernel is None:
        why = "no kernels in C++" if library() is None else f"no kernel for {dtype} on this CPU"
        raise TypeError(f"{name}: {why}: {OTHERWISE}")
    kernel((ctypes.c_int64 * len(flat))(*flat))


def run(function: Any, *inputs: Any) -> Any:
    """The outputs of an autograd function. Without gradients it sees inputs that need none, and so
    keeps nothing; autograd itself tells it otherwise of parameters."""
    if not torch.is_grad_enabled():
        inputs = tuple(x.detach() if isinstance(x, Tensor) else x for x in inputs)
    return function.apply(*inputs)


def type_of_products(x: Tensor) -> torch.dtype:
    """In which matrix products of x are: that of autocast, if it is on."""
    half = x.dtype == torch.float32 and torch.is_autocast_enabled("cpu")
    return torch.get_autocast_dtype("cpu") if half else x.dtype


def backward_pass(function: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass of ours: without autocast, as its products are in the types of the forward
    pass, and not to be differentiated again."""

    @once_differentiable
    def apart(ctx: Any, *given: Tensor | None) -> Any:
        with torch.autocast("cpu", enabled=False):
            return function(ctx, *given)

    return apart


def in_rows(x: Tensor) -> Tensor:
    """x with its last dimension contiguous, as the kernels read it."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
