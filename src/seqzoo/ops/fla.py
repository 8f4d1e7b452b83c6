"""Forms by the Triton kernels of flash-linear-attention, for CUDA (`pip install 'seqzoo[cuda]'`).

Conventions of fla-core 0.6: inputs are (B, T, H, ..), states (B, H, K, V) in float32, decays their
logarithms. Inputs are rounded to bfloat16, as fla's kernels of the delta rule take nothing wider.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seqzoo.ops.matrix_state import FORGOTTEN, Tokens, blocked
from seqzoo.ops.registry import record

LARGEST_KEY = 256  # of the delta rule's kernels
MULTIPLE = 16  # the smallest side of a product on tensor cores


def matrix_state(
    tokens: Tokens,
    S: Tensor,
    u: Tensor | None,
    *,
    min_log_w: float | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """One kernel of chunks for each kind of decay and update. Keys larger than LARGEST_KEY, and a
    bonus together with a delta rule, are left to `blocked`. fla chooses the chunks."""
    (_, _, _, log_w, a, b), (B, H, T, _) = tokens, tokens.v.shape
    log_w = log_w.clamp(min=FORGOTTEN)
    K, V = S.shape[2:]
    if K > LARGEST_KEY or (a is not None and u is not None):
        record("matrix_state", "blocked")
        return blocked(tokens, S, u, min_log_w=min_log_w, chunk=chunk)
    q, k, v = (_by_time(x.expand(-1, H, -1, -1)) for x in tokens[:3])
    more: dict[str, Any]
    if log_w.shape[-1] == 1 and a is None and u is None:
        run = _kernel("simple_gla", "chunk_simple_gla")
        more = {"q": q, "g": log_w.expand(B, H, T, 1)[..., 0].transpose(1, 2)}
    else:
        decay = _by_time(log_w.expand(B, H, T, K), torch.float32)
        if a is not None and b is not None:  # fla's a reads the state, its b is written
            run = _kernel("generalized_delta_rule", "chunk_dplr_delta_rule")
            more = {"q": q, "gk": decay, "a": _by_time(b), "b": _by_time(a)}
            more["lower_bound"] = min_log_w or None  # a bound of 0 is refused
        elif u is not None:
            run = _kernel("rwkv6", "chunk_rwkv6")
            more = {"r": q, "w": decay, "u": _padded(u)}
        else:
            run, more = _kernel("gla", "chunk_gla"), {"q": q, "g": decay}
    start = _padded(_padded(S.mT).mT)
    y, end = run(k=k, v=v, scale=1.0, initial_state=start, output_final_state=True, **more)
    return y[..., :V].transpose(1, 2).to(S.dtype), end[:, :, :K, :V]


def _kernel(module: str, name: str) -> Callable[..., tuple[Tensor, Tensor]]:
    found: Callable[..., tuple[Tensor, Tensor]] = getattr(import_module(f"fla.ops.{module}"), name)
    return found


def _by_time(x: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """(B, H, T, K) as (B, T, H, K)."""
    return _padded(x.transpose(1, 2).to(dtype))


def _padded(x: Tensor) -> Tensor:
    """x with channels of zeros up to a multiple of MULTIPLE; they add nothing to any sum."""
    missing = -x.shape[-1] % MULTIPLE
    return F.pad(x, (0, missing)) if missing else x
