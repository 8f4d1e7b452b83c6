"""The delta rule's forward pass by three ways to make a kernel for a CPU: our C++, numba, and
torch.compile of the chunked form.

    pip install numba
    python scripts/measure_choices.py

Prints one Markdown table: seconds until the first result, and milliseconds of a call, the median of
ROUNDS rounds in which the three take turns. numba's loops are those of
`ops/native/matrix_state.h`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit, prange

from seqzoo import ops
from seqzoo.ops.matrix_state import Tokens, blocked, matrix_state

ROUNDS = 15
SHAPES = [(8, 10, 256, 16), (8, 5, 256, 32), (8, 2, 256, 64)]  # rows, heads, tokens, size of a head


@njit(parallel=True, fastmath=True)  # type: ignore[untyped-decorator]
def by_numba(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, a: np.ndarray, b: np.ndarray, y: np.ndarray
) -> None:
    """y (B, H, T, V) of S_t = S_{t-1} + a_t (b_t^T S_{t-1}) + k_t v_t^T, from an empty state."""
    B, H, T, V = v.shape
    K = q.shape[3]
    for job in prange(B * H):
        i, h = job // H, job % H
        S, x = np.zeros((K, V), np.float32), np.zeros(V, np.float32)
        for t in range(T):
            x[:] = 0
            for r in range(K):
                for j in range(V):
                    x[j] += b[i, h, t, r] * S[r, j]
            for j in range(V):
                y[i, h, t, j] = 0
            for r in range(K):
                for j in range(V):
                    S[r, j] += a[i, h, t, r] * x[j] + k[i, h, t, r] * v[i, h, t, j]
                    y[i, h, t, j] += q[i, h, t, r] * S[r, j]


def timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def main() -> None:
    columns = "ours, ms", "numba", "torch.compile", "numba's first call, s", "torch.compile's"
    print(f"| heads | {' | '.join(columns)} |")
    print("|---|--:|--:|--:|--:|--:|")
    compiled = torch.compile(blocked, dynamic=False)
    for B, H, T, K in SHAPES:
        q, k, v = (torch.randn(B, H, T, K) for _ in range(3))
        b = F.normalize(torch.randn(B, H, T, K), dim=-1)
        a, S, y = -0.7 * b, torch.zeros(B, H, K, K), torch.empty(B, H, T, K)
        arrays = [x.numpy() for x in (q, k, v, a, b, y)]
        tokens = Tokens(q, k, v, torch.zeros(1, 1, T, 1), a, b)

        def ours() -> torch.Tensor:
            with ops.backend("native"):
                return matrix_state(q, k, v, S, a=a, b=b)[0]  # noqa: B023

        calls: list[Callable[[], object]] = [
            ours,
            lambda: by_numba(*arrays),  # noqa: B023
            lambda: compiled(tokens, S, None, min_log_w=0.0),  # noqa: B023
        ]
        with torch.no_grad():
            first = [timed(call) for call in calls]
            assert torch.allclose(ours(), y, atol=1e-3)
            rounds = [[timed(call) for call in calls] for _ in range(ROUNDS)]
        medians = [1000 * statistics.median(times) for times in zip(*rounds, strict=True)]
        row = [f"{H} of {K}", *(f"{x:.2f}" for x in medians), *(f"{x:.1f}" for x in first[1:])]
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
