"""The naive forms against the papers' equations and torch's own modules; the fast forms at hard
inputs."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from seqzoo import ops
from seqzoo.mixers.attention import CausalAttention
from seqzoo.mixers.linear_attention import LinearAttention
from seqzoo.mixers.recurrent import GRU, LSTM, RNN
from seqzoo.mixers.rwkv4 import ChannelMix, TimeMix
from seqzoo.ops.attention import causal_attention, rotate
from seqzoo.ops.linear_attention import linear_attention
from seqzoo.ops.wkv4 import EMPTY, WKVState, wkv4


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("T", (1, 5, 64))
@pytest.mark.parametrize("S", (0, 3, 70))
def test_attention_is_a_masked_softmax(T: int, S: int) -> None:
    q, k, v = randn(2, 2, T, 8), randn(2, 2, S + T, 8, seed=1), randn(2, 2, S + T, 8, seed=2)
    expected = torch.empty_like(q)
    for t in range(T):
        seen = slice(S + t + 1)
        scores = (k[:, :, seen] @ q[:, :, t, :, None]) / math.sqrt(8)  # (B, H, S, 1)
        expected[:, :, t] = (F.softmax(scores, 2) * v[:, :, seen]).sum(2)
    for form in ("naive", "sdpa"):
        with ops.backend(form):
            assert_close(causal_attention(q, k, v), expected)


def test_rotation_depends_on_distance_only() -> None:
    q, k = randn(1, 1, 1, 8), randn(1, 1, 1, 8, seed=1)

    def score(i: int, j: int) -> torch.Tensor:
        return (rotate(q, torch.tensor([[i]])) * rotate(k, torch.tensor([[j]]))).sum()

    assert_close(score(7, 3), score(100_007, 100_003))
    assert_close(rotate(rotate(q, torch.tensor([[5]])), torch.tensor([[-5]])), q)


def test_linear_attention_is_the_normalised_sum() -> None:
    """Katharopoulos et al. 2020, eq. 9: a kernel in place of the exponential, over all pairs."""
    q, k, v = (
        randn(2, 3, 130, 4).exp(),
        randn(2, 3, 130, 4, seed=1).exp(),
        randn(2, 3, 130, 5, seed=2),
    )
    decay = torch.tensor([0.0, -0.1, -1.0], dtype=torch.float64)
    time = torch.arange(130)
    lag = time[:, None] - time
    kernel = (q @ k.mT) * (decay[:, None, None] * lag).exp().tril()
    expected = kernel @ v / (kernel.sum(-1, keepdim=True) + 1e-6)
    zeros = torch.zeros(2, 3, 4, 5, dtype=torch.float64)
    for form in ("naive", "chunked"):
        with ops.backend(form):
            y, _, _ = linear_attention(q, k, v, zeros, zeros[..., 0], decay=decay, qn=q, kn=k)
        assert_close(y, expected)


def test_wkv_is_the_weighted_average() -> None:
    """Peng et al. 2023, eq. 16, as written."""
    k, v, w, u = randn(2, 70, 3), randn(2, 70, 3, seed=1), -randn(3, seed=2).exp(), randn(3, seed=3)
    expected = torch.empty_like(v)
    for t in range(70):
        ages = torch.arange(t - 1, -1, -1)[:, None]
        weight = torch.cat(((ages * w + k[:, :t]).exp(), (u + k[:, t : t + 1]).exp()), 1)
        expected[:, t] = (weight * v[:, : t + 1]).sum(1) / weight.sum(1)
    for form in ("naive", "scan", "chunked"):
        with ops.backend(form):
            assert_close(wkv4(k, v, w, u, empty(2, 3))[0], expected)


def empty(B: int, D: int, dtype: torch.dtype = torch.float64) -> WKVState:
    zeros = torch.zeros(B, D, dtype=dtype)
    return WKVState(zeros, zeros, torch.full_like(zeros, EMPTY))


@settings(deadline=None, max_examples=40)
@given(
    T=st.integers(1, 100),
    scale=st.sampled_from((0.1, 1.0, 10.0, 100.0, 1000.0)),
    speed=st.sampled_from((-8.0, -2.0, 0.0, 3.0)),
    seed=st.integers(0, 1000),
)
def test_wkv_survives_any_keys(T: int, scale: float, speed: float, seed: int) -> None:
    """In float32, keys whose exponentials overflow: every form still agrees with the recurrence in
    float64."""
    k, v = randn(2, T, 4, seed=seed) * scale, randn(2, T, 4, seed=seed + 1)
    w, u = -(randn(4, seed=seed + 2) + speed).exp(), randn(4, seed=seed + 3)
    with ops.backend("naive"):
        expected, _ = wkv4(k, v, w, u, empty(2, 4))
    for form in ("naive", "scan", "chunked"):
        with ops.backend(form):
            cut = T // 2
            narrow = [t.float() for t in (k, v, w, u)]
            y0, state = (
                wkv4(
                    narrow[0][:, :cut], narrow[1][:, :cut], *narrow[2:], empty(2, 4, torch.float32)
                )
                if cut
                else (narrow[1][:, :0], empty(2, 4, torch.float32))
            )
            y1, _ = wkv4(narrow[0][:, cut:], narrow[1][:, cut:], *narrow[2:], state)
        y = torch.cat((y0, y1), 1)
        # float32 keys of a thousand are exact to 1e-4 only, and so are their exponentials
        assert_close(y, expected.float(), atol=1e-4 * max(1.0, scale), rtol=0)


def test_wkv_form_falls_back_where_float32_ends() -> None:
    k = torch.zeros(1, 64, 1)
    k[:, 10] = 500.0
    v = randn(1, 64, 1, dtype=torch.float32)
    with ops.backend("chunked"):
        y, _ = wkv4(k, v, torch.tensor([-0.5]), torch.tensor([0.0]), empty(1, 1, torch.float32))
    assert y.isfinite().all()
    assert_close(y[:, 11:40], v[:, 10:11].expand(1, 29, 1))


@pytest.mark.parametrize("mixer", (RNN, GRU, LSTM))
def test_recurrences_are_those_of_torch(mixer: type[nn.Module]) -> None:
    f = mixer(dim=8).double()
    x = randn(2, 9, 8)
    with ops.backend("naive"):
        y, state = f(x)
        more, _ = f(x, state)
    expected, final = f.cell(x)
    assert_close(y, expected)
    assert_close(more, f.cell(x, final)[0])


def test_the_papers_initial_states() -> None:
    """None reads as the initial state each paper has: zeros, an empty cache, e^p of nothing."""
    x = randn(2, 5, 8)
    zeros = torch.zeros(2, 8, dtype=torch.float64)
    for f, state in (
        (RNN(dim=8), (zeros,)),
        (GRU(dim=8), (zeros,)),
        (LSTM(dim=8), (zeros, zeros)),
        (
            LinearAttention(dim=8, n_heads=2, position="rope", decay="none"),
            (
                torch.zeros(2, 2, 4, 4, dtype=torch.float64),
                torch.zeros(2, 2, 4, dtype=torch.float64),
            ),
        ),
    ):
        f = f.double()
        kind = type(f(x)[1])
        assert_close(f(x)[0], f(x, kind(*state))[0])
    f = TimeMix(dim=8, layer=0, n_layers=1).double()
    nn.init.normal_(f.output.weight)
    kind = type(f(x)[1])
    assert_close(f(x)[0], f(x, kind(zeros, empty(2, 8)))[0])


def test_token_shift_mixes_as_rwkv4_does() -> None:
    """The mix weight multiplies the token, one minus it the token before: RWKV-7 has it the other
    way round."""
    f = ChannelMix(dim=4, mlp_ratio=2, layer=0, n_layers=2).double()
    for parameter in f.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = randn(1, 3, 4)
    before = torch.cat((torch.zeros(1, 1, 4, dtype=torch.float64), x[:, :-1]), 1)
    k = f.key(x * f.time_mix_k + before * (1 - f.time_mix_k))
    r = f.receptance(x * f.time_mix_r + before * (1 - f.time_mix_r))
    assert_close(f(x)[0], r.sigmoid() * f.value(k.relu() ** 2))


def test_rwkv4_initialisation() -> None:
    """As the official code: zero where it is zero, and defined for a single layer."""
    for n_layers in (1, 3):
        f = TimeMix(dim=8, layer=0, n_layers=n_layers)
        assert (
            not f.key.weight.any() and not f.receptance.weight.any() and not f.output.weight.any()
        )
        assert_close(f.value.weight @ f.value.weight.T, torch.eye(8))
        assert all(p.isfinite().all() for p in f.parameters())
        assert_close(f.time_decay[[0, -1]], torch.tensor([-5.0, 3.0]))
    assert TimeMix(dim=8, layer=0, n_layers=2).time_first.lr_scale == 3


def test_a_cut_cache_keeps_positions() -> None:
    f = CausalAttention(dim=8, n_heads=2, position="rope", n_layers=1).double()
    x = randn(1, 12, 8)
    _, cache = f(x[:, :10])
    y, _ = f(x[:, 10:], cache.last(4))
    _, shorter = f(
        x[:, 6:10]
    )  # the same four tokens read at positions 0 to 3: only distances count
    expected, _ = f(x[:, 10:], shorter)
    assert_close(y, expected)
