"""Operations alone, forward, and forward with backward: of a matrix state, and of linear against
softmax attention.

B batch, H heads, T time, K numbers a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from timing import Options, Row, compare
from torch import Tensor

from seqzoo import ops
from seqzoo.ops.matrix_state import matrix_state

MIN_LOG_W = -0.6  # of RWKV-7: exp(-0.6) is the fastest decay (arXiv 2503.14456, eq. 12)
EPS = 1e-6


def matrix_states(
    options: Options, batch_size: int, length: int, channels: int, head: int
) -> list[Row]:
    """RWKV-7's delta rule, by the form that is chosen now and by `chunked`."""
    B, H, T, K = batch_size, channels // head, options.length(length), head
    q, k, v, w, rate = (torch.randn(B, H, T, K) for _ in range(5))
    key = ops.unit(k)
    prepared = q, key, v, MIN_LOG_W * w.sigmoid(), -key * rate.sigmoid()
    inputs = [x.requires_grad_() for x in prepared]
    S = torch.zeros(B, H, K, K)

    def run() -> Tensor:
        q, key, v, log_w, a = inputs
        return matrix_state(q, key, v, S, log_w, a=a, b=key, min_log_w=MIN_LOG_W)[0]

    def chunked(call: Callable[[], object]) -> Callable[[], object]:
        def forced() -> object:
            with ops.backend("chunked"):
                return call()

        return forced

    with ops.recording() as forms:
        run()
    work = f"delta rule, B{B} T{T:,}, {H} heads of {K}"
    rows = []
    for part, call in {
        "forward": reading(run),
        "forward and backward": learning(run, inputs),
    }.items():
        ours, peers = {", ".join(sorted(forms)): call}, {"chunked": chunked(call)}
        rows.append(compare(f"{work}, {part}", options, ours=ours, peers=peers))
    return rows


def attentions(options: Options, lengths: Sequence[int]) -> list[Row]:
    """Linear attention with elu + 1 (arXiv 2006.16236, eq. 7 and 9) beside softmax attention."""
    rows = []
    for T in map(options.length, lengths):
        B, H, K = 1, 4, 32
        q, k, v = (torch.randn(B, H, T, K, requires_grad=True) for _ in range(3))
        S = torch.zeros(B, H, K, K + 1)

        def linear(q: Tensor = q, k: Tensor = k, v: Tensor = v, S: Tensor = S) -> Tensor:
            columns = torch.cat((v, torch.ones_like(v[..., :1])), -1)  # the last one: normaliser
            y, _ = matrix_state(F.elu(q) + 1, F.elu(k) + 1, columns, S, min_log_w=0.0)
            return y[..., :-1] / (y[..., -1:] + EPS)

        peers = {}
        for dtype in (torch.float32, torch.bfloat16):
            narrow = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]

            def softmax(narrow: list[Tensor] = narrow) -> Tensor:
                q, k, v = narrow
                return F.scaled_dot_product_attention(q, k, v, is_causal=True)

            peers[f"softmax attention {str(dtype)[6:]}"] = learning(softmax, narrow)
        work = f"linear attention, B{B} H{H} T{T:,} K{K}, forward and backward"
        rows.append(
            compare(work, options, ours={"float32": learning(linear, (q, k, v))}, peers=peers)
        )
    return rows


def reading(run: Callable[[], Tensor]) -> Callable[[], object]:
    """A call without gradients."""

    def call() -> Tensor:
        with torch.inference_mode():
            return run()

    return call


def learning(run: Callable[[], Tensor], inputs: Sequence[Tensor]) -> Callable[[], object]:
    """A call with the gradients of every input."""
    return lambda: torch.autograd.grad(run().sum(), inputs)
