"""The delta rule's forward pass by four ways to make a kernel for a CPU: our C++, C++ with torch's
headers by its extension loader, numba, and torch.compile of the chunked form.

    pip install numba ninja
    python scripts/measure_choices.py

Prints one Markdown table: seconds until the first result, and milliseconds of a call, the median of
ROUNDS rounds in which the four take turns. The loops of numba and of the extension are those of
`ops/native/matrix_state.h`: a state in the first-level cache, token by token.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit, prange
from torch.utils.cpp_extension import load_inline

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


EXTENSION = r"""
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/vec.h>
#include <torch/extension.h>

using F = at::vec::Vectorized<float>;

// One token of a head with N vectors of values: the state S, and the output y.
template <int N>
void step(const float* q, const float* k, const float* v, const float* a, const float* b,
          int64_t K, float* S, float* y) {
  constexpr int n = F::size();
  F x[N], out[N], value[N];
  for (int c = 0; c < N; ++c) x[c] = out[c] = F(0), value[c] = F::loadu(v + c * n);
  for (int64_t r = 0; r < K; ++r)
    for (int c = 0; c < N; ++c) x[c] = at::vec::fmadd(F(b[r]), F::loadu(S + (r * N + c) * n), x[c]);
  for (int64_t r = 0; r < K; ++r)
    for (int c = 0; c < N; ++c) {
      F s = at::vec::fmadd(F(a[r]), x[c], F::loadu(S + (r * N + c) * n));
      s = at::vec::fmadd(F(k[r]), value[c], s);
      s.store(S + (r * N + c) * n);
      out[c] = at::vec::fmadd(F(q[r]), s, out[c]);
    }
  for (int c = 0; c < N; ++c) out[c].store(y + c * n);
}

// y (B, H, T, V) as by_numba, for V of 16, 32 and 64.
at::Tensor delta_rule(at::Tensor q, at::Tensor k, at::Tensor v, at::Tensor a, at::Tensor b) {
  const int64_t T = v.size(2), V = v.size(3), K = q.size(3);
  at::Tensor y = at::empty_like(v);
  auto run = V == 16 ? step<16 / F::size()> : V == 32 ? step<32 / F::size()> : step<64 / F::size()>;
  at::parallel_for(0, v.size(0) * v.size(1), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> S(K * V);
    for (int64_t job = begin; job < end; ++job) {
      std::fill(S.begin(), S.end(), 0);
      for (int64_t t = job * T; t < (job + 1) * T; ++t)
        run(q.data_ptr<float>() + t * K, k.data_ptr<float>() + t * K, v.data_ptr<float>() + t * V,
            a.data_ptr<float>() + t * K, b.data_ptr<float>() + t * K, K, S.data(),
            y.data_ptr<float>() + t * V);
    }
  });
  return y;
}
"""


def extension() -> tuple[Any, float]:
    """The module that torch's loader builds with its headers, and the seconds that it took."""
    begin = time.perf_counter()
    flags = ["-O3", "-march=native", f"-DCPU_CAPABILITY_{torch.backends.cpu.get_cpu_capability()}"]
    flags.append(f"-DCPU_CAPABILITY={torch.backends.cpu.get_cpu_capability()}")
    module = load_inline(
        "delta_rule",
        EXTENSION,
        functions=["delta_rule"],
        extra_cflags=flags,
        build_directory=tempfile.mkdtemp(),
    )
    return module, time.perf_counter() - begin


def timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def main() -> None:
    module, seconds = extension()
    print(
        f"torch's extension loader built {len(EXTENSION.splitlines())} lines in {seconds:.0f} s\n"
    )
    columns = "ours, ms", "extension", "numba", "torch.compile", "numba's first call, s"
    print(f"| heads | {' | '.join(columns)} | torch.compile's |")
    print("|---|--:|--:|--:|--:|--:|--:|")
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
            lambda: module.delta_rule(q, k, v, a, b),  # noqa: B023
            lambda: by_numba(*arrays),  # noqa: B023
            lambda: compiled(tokens, S, None, min_log_w=0.0),  # noqa: B023
        ]
        with torch.no_grad():
            first = [timed(call) for call in calls]
            assert torch.allclose(ours(), y, atol=1e-3)
            assert torch.allclose(calls[1](), y, atol=1e-3)
            rounds = [[timed(call) for call in calls] for _ in range(ROUNDS)]
        medians = [1000 * statistics.median(times) for times in zip(*rounds, strict=True)]
        row = [f"{H} of {K}", *(f"{x:.2f}" for x in medians), *(f"{x:.1f}" for x in first[2:])]
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
