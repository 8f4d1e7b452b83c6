"""How each operation of a recorded step is written down for program.cpp.

An instruction is a name, then its words: sizes, tensors as addresses and strides, numbers. `FORMS`
has a function for each of torch's operations: it gets the recorder, the output and the operation's
arguments, and returns instructions, or raises `Unknown`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from seqzoo.ops.native.program import Recorder

# In the order of program.cpp.
CODES = {
    name: code
    for code, name in enumerate(
        "copy neg exp sigmoid tanh relu silu gelu gelu_tanh rsqrt sqrt square cos sin log "
        "log_sigmoid softplus elu abs reciprocal clamp power power_of affine ge gt le lt "
        "add sub mul div maximum minimum lerp addcmul where "
        "matmul sum mean amax softmax layer_norm group_norm embedding attend".split()
    )
}
TYPES = {torch.float32: 0, torch.float64: 1, torch.int64: 2, torch.bool: 3}
TYPES |= {torch.bfloat16: 4, torch.int8: 5}  # of weights and caches only
NUMBERS = {torch.float32, torch.float64, torch.int64}
COMPARED = ("ge", "gt", "le", "lt")
DIMS = 4
LANES = 16  # numbers of a vector, to which rows in fewer bits are padded
aten = torch.ops.aten


class Unknown(Exception):
    """The operation has a shape or type that C++ does not know."""


def narrow(W: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Rows (..., N, K) in bfloat16, or in int8 with a scale for each row: W is about the rows times
    their scales.

    A number in bfloat16 is off by at most 2^-8 of itself, one in int8 by half a scale, which is the
    row's largest absolute value / 127.

    Returns:
        rows (..., N, K), and scales (..., N) in float32 of int8, otherwise None.
    """
    if dtype == torch.bfloat16:
        return W.to(dtype), None
    scales = W.abs().amax(-1) / 127  # NaN where a number is
    return (W / scales.clamp(min=1e-30)[..., None]).round().to(torch.int8), scales


def padded(rows: Tensor) -> Tensor:
    """Rows (..., K) with zeros up to whole vectors."""
    return F.pad(rows, (0, -rows.shape[-1] % LANES)).contiguous()


def operand(x: Tensor | None) -> list[int]:
    if x is None:
        return [0] * (2 + DIMS)
    if x.dtype not in TYPES or x.dim() > DIMS:
        raise Unknown
    return [x.data_ptr(), TYPES[x.dtype], *x.stride(), *[0] * (DIMS - x.dim())]


def _aligned(out: Tensor, *inputs: Tensor) -> list[Tensor]:
    """Tensors of one shape as tensors of DIMS dimensions, the last the innermost of `out`;
    neighbours that lie in one row are joined."""
    tensors = [out, *(x.expand(out.shape) for x in inputs)]
    order = sorted(range(out.dim()), key=out.stride, reverse=True)
    dims = [(out.shape[d], [x.stride(d) for x in tensors]) for d in order if out.shape[d] != 1]
    joined: list[tuple[int, list[int]]] = []
    for size, strides in dims:
        if joined and all(a == size * b for a, b in zip(joined[-1][1], strides, strict=True)):
            joined[-1] = (joined[-1][0] * size, strides)
        else:
            joined.append((size, strides))
    if len(joined) > DIMS:
        raise Unknown
    joined = [(1, [0] * len(tensors))] * (DIMS - len(joined)) + joined
    sizes = [size for size, _ in joined]
    return [
        x.as_strided(sizes, [strides[i] for _, strides in joined], x.storage_offset())
        for i, x in enumerate(tensors)
    ]


def one_input(name: str, p: float = 0.0, q: float = 0.0) -> Any:
    """An operation of one input."""

    def write(_: Recorder, out: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not _one_input_takes(name, out.dtype, x.dtype):
            raise Unknown
        to, x = _aligned(out, x)
        return [(name, *to.shape, to, x, float(p), float(q))]

    return write


def _one_input_takes(name: str, to: torch.dtype, of: torch.dtype) -> bool:
    if name == "copy":
        return {to, of} <= {*NUMBERS, torch.bool}
    return of in NUMBERS and to == (torch.bool if name in COMPARED else of)


def _affine(recorder: Recorder, out: Tensor, x: Tensor, scale: float, shift: float) -> Any:
    return one_input("affine", scale, shift)(recorder, out, x)


def _two(name: str) -> Any:
    """An operation of two inputs, one of which may be a number."""

    def write(
        recorder: Recorder, out: Tensor, x: Any, y: Any, *, alpha: float = 1, **more: Any
    ) -> Any:
        if more:
            raise Unknown
        if not isinstance(y, Tensor):
            scale, shift = {
                "add": (1.0, alpha * y),
                "sub": (1.0, -alpha * y),
                "mul": (y, 0.0),
                "div": (1 / y if y else 0.0, 0.0),
            }.get(name, (0.0, 0.0))
            if not scale:
                raise Unknown
            return _affine(recorder, out, x, scale, shift)
        to, x, y = _aligned(out, *_alike(recorder, out, x, y))
        return [(name, *to.shape, to, x, y, None, float(alpha))]

    return write


def _alike(recorder: Recorder, out: Tensor, *inputs: Any) -> list[Tensor]:
    """Inputs of the type of the output: constants are converted now."""
    if out.dtype not in NUMBERS:
        raise Unknown
    found = []
    for x in inputs:
        if not isinstance(x, Tensor) or x.dtype != out.dtype:
            if isinstance(x, Tensor) and recorder.changes(x):
                raise Unknown
            x = torch.as_tensor(x, dtype=out.dtype)
            recorder.keep(x)
        found.append(x)
    return found


def _three(name: str) -> Any:
    """An operation of three inputs: lerp(x, y, z), or addcmul(x, y, z)."""

    def write(recorder: Recorder, out: Tensor, *inputs: Any, value: float = 1) -> Any:
        to, x, y, z = _aligned(out, *_alike(recorder, out, *inputs))
        return [(name, *to.shape, to, x, y, z, float(value))]

    return write


def _where(recorder: Recorder, out: Tensor, condition: Tensor, x: Any, y: Any) -> Any:
    if out.dtype != torch.float32 or condition.dtype != torch.bool:
        raise Unknown
    to, is_x, x, y = _aligned(out, condition, *_alike(recorder, out, x, y))
    return [("where", *to.shape, to, is_x, x, y)]


def _masked_fill(recorder: Recorder, out: Tensor, x: Tensor, mask: Tensor, value: Any) -> Any:
    return _where(recorder, out, mask, value, x)


def _matmul(
    recorder: Recorder, out: Tensor, x: Tensor, W: Tensor, bias: Tensor | None = None
) -> Any:
    if any(t.dtype != torch.float32 for t in (out, x, W, bias) if t is not None):
        raise Unknown
    if x.dim() == 2:
        out, x, W = out[None], x[None], W[None]
    (A, M, K), N = x.shape, W.shape[-1]
    if bias is not None and bias.shape != (N,):
        raise Unknown
    scales = None
    constant = not recorder.changes(W)
    if recorder.weights != torch.float32 and constant and x.stride(2) == 1:
        rows, scales = narrow(W.mT, recorder.weights)
        W = padded(rows).mT
        recorder.keep(W, *([] if scales is None else [scales]))
    return [("matmul", A, M, K, N, out, x, W, bias, scales)]


def _addmm(
    recorder: Recorder, out: Tensor, bias: Tensor, x: Tensor, W: Tensor, **scales: Any
) -> Any:
    if scales:
        raise Unknown
    return _matmul(recorder, out, x, W, bias)


def _reduced(name: str) -> Any:
    """A reduction over one dimension."""

    def write(
        _: Recorder, out: Tensor, x: Tensor, dims: Any, keepdim: bool = False, **more: Any
    ) -> Any:
        dims = [dims] if isinstance(dims, int) else dims
        if not dims or len(dims) > 1 or more or {out.dtype, x.dtype} != {torch.float32}:
            raise Unknown
        dim = dims[0] % x.dim()
        to = out if keepdim else out.unsqueeze(dim)
        x, to = x.movedim(dim, -1), to.movedim(dim, -1)
        if x.dim() > DIMS:
            raise Unknown
        lead = (1,) * (DIMS - x.dim())
        x, to = x.reshape(lead + x.shape), to.reshape(lead + to.shape)  # views: 1 dimensions
        return [(name, *x.shape, to, x)]

    return write


def _plain(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.is_contiguous()


def _softmax(_: Recorder, out: Tensor, x: Tensor, dim: int, half: bool) -> Any:
    if dim % x.dim() != x.dim() - 1 or not _plain(x):
        raise Unknown
    D = x.shape[-1]
    return [("softmax", x.numel() // D, D, out.view(-1, D), x.view(-1, D))]


def _layer_norm(_: Recorder, out: Tensor, x: Tensor, shape: Any, w: Any, b: Any, eps: float) -> Any:
    if len(shape) > 1 or not all(t is None or _plain(t) for t in (x, w, b)):
        raise Unknown
    D = x.shape[-1]
    return [("layer_norm", x.numel() // D, D, 1, out, x, w, b, float(eps))]


def _group_norm(
    _: Recorder,
    out: Tensor,
    x: Tensor,
    w: Any,
    b: Any,
    N: int,
    C: int,
    HxW: int,
    G: int,
    eps: float,
) -> Any:
    if HxW != 1 or not all(t is None or _plain(t) for t in (x, w, b)):
        raise Unknown
    return [("group_norm", N * G, C // G, G, out, x, w, b, float(eps))]


def _embedding(_: Recorder, out: Tensor, table: Tensor, index: Any, *more: Any) -> Any:
    least = 0
    if isinstance(index, list | tuple):  # of aten.index, which counts from the end too
        (index,) = index if len(index) == 1 else (None,)
        least = -len(table)
    if index is None or not index.is_contiguous() or table.dim() != 2 or index.dtype != torch.int64:
        raise Unknown
    if table.dtype != torch.float32 or table.stride(1) != 1:
        raise Unknown
    N, D = table.shape
    return [("embedding", index.numel(), D, least, N, out.view(-1, D), table, index.view(-1))]


def _cat(recorder: Recorder, out: Tensor, parts: Sequence[Tensor], dim: int = 0) -> Any:
    words, start = [], 0
    for x in parts:
        if x.numel() == 0:
            continue
        to = out.narrow(dim, start, x.shape[dim])
        words += one_input("copy")(recorder, to, x)
        start += x.shape[dim]
    return words


def _stack(recorder: Recorder, out: Tensor, parts: Sequence[Tensor], dim: int = 0) -> Any:
    copy = one_input("copy")
    return [word for i, x in enumerate(parts) for word in copy(recorder, out.select(dim, i), x)]


def _gelu(recorder: Recorder, out: Tensor, x: Tensor, *, approximate: str = "none") -> Any:
    return one_input("gelu" if approximate == "none" else "gelu_tanh")(recorder, out, x)


def _softplus(recorder: Recorder, out: Tensor, x: Tensor, beta: float = 1, at: float = 20) -> Any:
    if (beta, at) != (1, 20):
        raise Unknown
    return one_input("softplus")(recorder, out, x)


def _elu(recorder: Recorder, out: Tensor, x: Tensor, *scales: float) -> Any:
    if any(scale != 1 for scale in scales):
        raise Unknown
    return one_input("elu")(recorder, out, x)


def _clamp(recorder: Recorder, out: Tensor, x: Tensor, low: Any = None, high: Any = None) -> Any:
    limits = (-math.inf if low is None else low, math.inf if high is None else high)
    return one_input("clamp", *limits)(recorder, out, x)


def _power(recorder: Recorder, out: Tensor, x: Tensor, exponent: float) -> Any:
    name = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}.get(exponent, "power")
    return one_input(name, exponent)(recorder, out, x)


def _power_of(recorder: Recorder, out: Tensor, base: float, x: Tensor) -> Any:
    return one_input("power_of", base)(recorder, out, x)


def _rsub(recorder: Recorder, out: Tensor, x: Tensor, y: float, alpha: float = 1) -> Any:
    return _affine(recorder, out, x, -alpha, y)


def _copied_to(recorder: Recorder, out: Tensor, to: Tensor, x: Tensor, *_: Any) -> Any:
    return one_input("copy")(recorder, out, x)


def _compared(name: str) -> Any:
    return lambda recorder, out, x, y: one_input(name, y)(recorder, out, x)


CONSTANT = {  # their values do not depend on those of their inputs
    *(aten.zeros_like.default, aten.ones_like.default, aten.full_like.default),
    *(aten.new_zeros.default, aten.new_ones.default, aten.new_full.default),
    *(aten.empty_like.default, aten.new_empty.default),
}
FORMS: dict[Any, Callable[..., Any]] = {
    aten.clone.default: one_input("copy"),
    aten._to_copy.default: one_input("copy"),
    aten.copy_.default: _copied_to,
    **{
        getattr(aten, name).default: one_input(name)
        for name in "neg exp sigmoid tanh relu silu rsqrt sqrt square cos sin log abs "
        "reciprocal".split()
    },
    aten.log_sigmoid_forward.default: one_input("log_sigmoid"),
    aten.gelu.default: _gelu,
    aten.softplus.default: _softplus,
    aten.elu.default: _elu,
    aten.clamp.default: _clamp,
    aten.clamp_min.default: _clamp,
    aten.pow.Tensor_Scalar: _power,
    aten.pow.Scalar: _power_of,
    aten.rsub.Scalar: _rsub,
    **{getattr(aten, name).Tensor: _two(name) for name in "add sub mul div".split()},
    **{getattr(aten, name).Scalar: _two(name) for name in "add sub mul div".split()},
    aten.add_.Tensor: _two("add"),
    aten.add_.Scalar: _two("add"),
    aten.mul_.Tensor: _two("mul"),
    aten.maximum.default: _two("maximum"),
    aten.minimum.default: _two("minimum"),
    aten.lerp.Tensor: _three("lerp"),
    aten.lerp.Scalar: _three("lerp"),
    aten.addcmul.default: _three("addcmul"),
    aten.where.self: _where,
    aten.masked_fill.Scalar: _masked_fill,
    **{getattr(aten, name).Scalar: _compared(name) for name in COMPARED},
    aten.mm.default: _matmul,
    aten.bmm.default: _matmul,
    aten.addmm.default: _addmm,
    aten.sum.dim_IntList: _reduced("sum"),
    aten.mean.dim: _reduced("mean"),
    aten.amax.default: _reduced("amax"),
    aten._softmax.default: _softmax,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_group_norm.default: _group_norm,
    aten.embedding.default: _embedding,
    aten.index.Tensor: _embedding,
    aten.cat.default: _cat,
    aten.stack.default: _stack,
}
