"""The naive forms against the papers' equations and torch's own modules; the fast forms at extreme
inputs; what constructors refuse; forms of other packages."""

import math
import re
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from calls import built
from seqzoo import ops
from seqzoo.config import plugins
from seqzoo.config.plugins import Plugin
from seqzoo.errors import UserError
from seqzoo.mixers import rwkv7
from seqzoo.mixers.attention import CausalAttention
from seqzoo.mixers.hgrn2 import HGRN2
from seqzoo.mixers.linear_attention import LinearAttention
from seqzoo.mixers.mamba2 import Mamba2
from seqzoo.mixers.mamba3 import Mamba3
from seqzoo.mixers.recurrent import GRU, LSTM, RNN
from seqzoo.mixers.retention import Retention
from seqzoo.mixers.rwkv4 import ChannelMix, TimeMix
from seqzoo.ops.attention import causal_attention, rotate
from seqzoo.ops.linear_scan import linear_scan
from seqzoo.ops.linear_scan import naive as linear_scan_definition
from seqzoo.ops.local import causal_conv
from seqzoo.ops.mamba3 import Tokens, trapezoidal
from seqzoo.ops.matrix_state import matrix_state
from seqzoo.ops.registry import Backend
from seqzoo.ops.rg_lru import rg_lru
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


def test_grouped_heads_are_shared() -> None:
    q, k, v = randn(2, 6, 9, 4), randn(2, 2, 9, 4, seed=1), randn(2, 2, 9, 4, seed=2)
    each = causal_attention(q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1))
    for form in ("naive", "sdpa"):
        with ops.backend(form):
            assert_close(causal_attention(q, k, v), each)


def test_linear_attention_is_the_normalised_sum() -> None:
    """Katharopoulos et al. 2020, eq. 9: a kernel in place of the exponential, over all pairs."""
    torch.manual_seed(0)
    keys = {"dim": 12, "n_heads": 3, "position": "none", "normaliser": "sum", "chunk": 16}
    x = randn(2, 50, 12)
    for feature in ("elu", "relu", "learned", "taylor"):
        mixer = LinearAttention(**keys, feature=feature, decay="retention").double()
        q, k, v = mixer.qkv(x).view(2, 50, 3, 3, 4).permute(2, 0, 3, 1, 4)
        time = torch.arange(50)
        kernel = mixer.feature(q) @ mixer.feature(k).mT
        if feature == "taylor":
            score = q @ k.mT / 2
            assert_close(kernel, 1 + score + score**2 / 2)
        kernel = (kernel * (mixer.decay * (time[:, None] - time)).exp()).tril()
        expected = kernel @ v / (kernel.sum(-1, keepdim=True) + 1e-6)
        assert_close(mixer(x)[0], mixer.out(expected.transpose(1, 2).flatten(2)))


@settings(deadline=None, max_examples=60)
@given(
    T=st.integers(1, 150),
    speed=st.sampled_from((0.0, 0.01, 1.0, 5.0, 100.0)),
    size=st.sampled_from((1, 6)),
    delta=st.booleans(),
    bonus=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_matrix_state_survives_any_decay(
    T: int, speed: float, size: int, delta: bool, bonus: bool, seed: int
) -> None:
    """In float32, every form: decays of nothing to everything, a head or a channel, with the delta
    rule and the bonus or without, against the recurrence in float64."""
    q, k, v = randn(2, 3, T, 6, seed=seed), randn(2, 3, T, 6, seed=seed + 1), randn(2, 3, T, 5)
    S = randn(2, 3, 6, 5, seed=seed + 2)
    log_w = -speed * randn(2, 3, T, size, seed=seed + 3).abs()
    k = F.normalize(k, dim=-1)
    given_ = [q, k, v, S, log_w]
    more = {}
    if delta:
        more |= {"a": -k * randn(2, 3, T, 1, seed=seed + 4).sigmoid(), "b": k}
    if bonus:
        more["u"] = randn(3, 6, seed=seed + 5)
    with ops.backend("naive"):
        expected = matrix_state(*given_, **more)
    narrow = {name: t.float() for name, t in more.items()}
    for form, least in product(built("native", "chunked", "blocked"), (None, float(log_w.min()))):
        with ops.backend(form):
            results = matrix_state(*(t.float() for t in given_), **narrow, min_log_w=least)
        for result, value in zip(results, expected, strict=True):
            assert_close(result, value.float(), atol=1e-4 * float(value.abs().max()), rtol=0)


def test_matrix_state_is_the_delta_rule() -> None:
    """Yang et al. 2024, eq. 3: the value that is stored at a key is replaced by a mixture."""
    k, v, beta = (
        F.normalize(randn(1, 1, 7, 4), dim=-1),
        randn(1, 1, 7, 3),
        randn(1, 1, 7, 1).sigmoid(),
    )
    S = torch.zeros(4, 3, dtype=torch.float64)
    for t in range(7):
        stored = k[0, 0, t] @ S
        mixed = beta[0, 0, t] * v[0, 0, t] + (1 - beta[0, 0, t]) * stored
        S = S - torch.outer(k[0, 0, t], stored) + torch.outer(k[0, 0, t], mixed)
    _, given_ = matrix_state(k, beta * k, v, S.new_zeros(1, 1, 4, 3), a=-beta * k, b=k)
    assert_close(given_[0, 0], S)


@pytest.mark.parametrize("form", ("loop", "scan"))
@pytest.mark.parametrize("T", (1, 2, 65))
def test_linear_scan_is_the_recurrence(form: str, T: int) -> None:
    a, b, h = randn(2, T, 3).sigmoid(), randn(2, T, 3, seed=1), randn(2, 3, seed=2)
    given_ = [t.requires_grad_() for t in (a, b, h)]
    with ops.backend("naive"):
        expected = linear_scan(*given_)
    with ops.backend(form):
        result = linear_scan(*given_)
    assert_close(result, expected)
    weights = randn(2, T, 3, seed=3)
    for one, other in zip(
        torch.autograd.grad((result * weights).sum(), given_),
        torch.autograd.grad((expected * weights).sum(), given_),
        strict=True,
    ):
        assert_close(one, other)


def test_causal_conv_is_a_weighted_sum_of_the_last_tokens() -> None:
    x, weight = randn(2, 9, 3), randn(3, 4, seed=1)
    expected = torch.zeros_like(x)
    for t in range(9):
        for i in range(4):
            if t - 3 + i >= 0:
                expected[:, t] += weight[:, i] * x[:, t - 3 + i]
    y, seen = causal_conv(x, weight, None)
    assert_close(y, expected)
    assert_close(seen, x[:, -3:])


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
            LinearAttention(
                dim=8,
                n_heads=2,
                feature="elu",
                position="rope",
                decay="none",
                normaliser="sum",
                chunk=64,
            ),
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


@pytest.mark.parametrize(
    ("mixer", "keys", "message"),
    [
        (LinearAttention, {"position": "rop"}, "position=rop: give one of rope, learned"),
        (
            CausalAttention,
            {"dim": 250, "n_heads": 8},
            "dim (250) must be divisible by n_heads (8): try dim=248 or n_heads=10",
        ),
        (CausalAttention, {"dim": 12, "n_heads": 4, "position": "rope"}, "rope turns pairs"),
        (CausalAttention, {"n_heads": 6, "n_kv_heads": 4}, "try n_kv_heads=3"),
        (CausalAttention, {"cache": "sinks:4"}, "try sinks:64"),
        (LinearAttention, {"position": "rope", "feature": "taylor"}, "an odd number of features"),
        (Retention, {"dim": 6, "n_heads": 2}, "must be a multiple of 2: try dim=4"),
        (Mamba2, {"dim": 6, "expand": 1, "n_heads": 4}, "expand * dim (6) must be divisible"),
        (Mamba3, {"state_size": 6, "rotary": "half"}, "of 4 for rotary=half: try state_size=4"),
        (RNN, {"dim": 0}, "a whole number from 1 up"),
    ],
)
def test_constructors_refuse_wrong_keys(mixer: type[nn.Module], keys: dict, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        mixer(**keys)


def doubled(a: torch.Tensor, b: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    return 2 * linear_scan_definition(a, b, h)


plugin = Plugin(
    backends={
        "linear_scan.doubled": Backend(f"{__name__}:doubled", when=lambda x, length: length > 3)
    }
)


def test_a_backend_of_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is chosen before ours where its condition holds, listed, and can be forced."""
    a, b, h = randn(1, 5, 2).sigmoid(), randn(1, 5, 2, seed=1), randn(1, 2, seed=2)
    ours = linear_scan(a, b, h)
    monkeypatch.setenv(plugins.VARIABLE, __name__)
    monkeypatch.setattr(plugins, "changes", plugins.changes + 1)
    assert list(ops.backends()["linear_scan"]) == ["doubled", "native", "naive", "loop", "scan"]
    with ops.recording() as forms:
        assert_close(linear_scan(a, b, h), 2 * ours)
        assert_close(linear_scan(a[:, :3], b[:, :3], h), ours[:, :3])
        with ops.backend("doubled"):
            assert_close(linear_scan(a[:, :3], b[:, :3], h), 2 * ours[:, :3])
    assert "linear_scan doubled" in forms and len(forms) == 2
    monkeypatch.undo()
    assert_close(linear_scan(a, b, h), ours)


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


def test_rwkv7_initialisation() -> None:
    """As the official code: what begins as zero, the ranks it makes of a width, the rates."""
    for layer, n_layers in ((0, 1), (0, 3), (2, 3)):
        f = rwkv7.TimeMix(
            dim=64,
            n_heads=2,
            decay_rank=None,
            rate_rank=None,
            value_rank=None,
            gate_rank=None,
            beta_max=1.0,
            layer=layer,
            n_layers=n_layers,
            first=layer == 0,
        )
        assert not f.output.weight.any()
        assert not any(p.any() for name, p in f.named_parameters() if name in ("w1", "a1", "g1"))
        assert all(p.isfinite().all() for p in f.parameters())
        assert_close(f.key.weight @ f.key.weight.T, 0.01 * torch.eye(64), atol=1e-5, rtol=1e-4)
        assert_close(f.ln_x.weight, torch.full((64,), ((1 + layer) / n_layers) ** 0.7))
        assert hasattr(f, "v1") == (layer > 0)
        assert f.w0.lr_scale == 2 and f.w1.no_decay
        zigzag = torch.linspace(-1, 1, 32)
        at = 64 // 2 - 1  # the end of the first head
        power = 1 + (layer / max(1, n_layers - 1)) ** 0.3
        assert_close(f.w0[0, 0, at], -5.5 + 6 * torch.tensor(at / 63) ** power + 2.5 * zigzag[-1])
    assert rwkv7.official_ranks(768) == (64, 64, 32, 128)
    assert rwkv7.official_ranks(4096) == (160, 160, 96, 320)


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


@pytest.mark.parametrize("lowest", (-1e3, -1e15, -float("inf")))
@pytest.mark.parametrize("size", (1, 4))
def test_matrix_state_forgets_everything(lowest: float, size: int) -> None:
    """One decay of almost nothing does not swallow those beside it."""
    q, k, v, S = (randn(1, 2, 40, n, seed=n) for n in (4, 4, 5, 5))
    log_w = -randn(1, 2, 40, size, seed=9).abs()
    log_w[:, :, 20] = lowest
    log_w.requires_grad_()
    S = S[:, :, :4]
    with ops.backend("naive"):
        expected, _ = matrix_state(q, k, v, S, log_w)
        (slope,) = torch.autograd.grad(expected.sum(), log_w)
    for form in built("native", "chunked", "blocked"):
        with ops.backend(form):
            y, _ = matrix_state(q, k, v, S, log_w)
        assert_close(y, expected)
        assert_close(torch.autograd.grad(y.sum(), log_w)[0], slope)


def test_hgrn2_bounds_begin_as_the_papers() -> None:
    """The running sum of a softmax over layers, without the first layer's share; and no forget gate
    is below its bound, whatever the input."""
    shares = torch.zeros(5).softmax(0)
    for layer, bound in enumerate(shares.cumsum(0) - shares[0]):
        f = HGRN2(dim=4, n_heads=1, layer=layer, n_layers=5)
        x = torch.tensor([-1e2, -1.0, 0.0, 1e2]).requires_grad_()
        log_f, k = f._gates(x)
        assert_close(log_f.exp(), bound + (1 - bound) * x.sigmoid(), atol=1e-5, rtol=0)
        assert_close(k, 1 - log_f.exp(), atol=1e-5, rtol=0)
        (slope,) = torch.autograd.grad(log_f.sum(), x)
        assert slope.isfinite().all() and (slope >= 0).all()


@pytest.mark.parametrize("form", built("naive", "native"))
def test_rg_lru_at_the_ends_of_its_gates(form: str) -> None:
    """Where nothing is forgotten nothing is written, and the gradients are finite."""
    x = randn(2, 40, 3, dtype=torch.float32)
    for level in (-200.0, -20.0, 0.0, 20.0, 200.0):
        gates = torch.full((1, 2, 40, 6), level).requires_grad_()
        for decay in (-40.0, 0.0, 40.0):
            given_ = [x.clone().requires_grad_(), gates, torch.full((3,), decay).requires_grad_()]
            with ops.backend(form):
                h = rg_lru(*given_, torch.ones(2, 3))
            if level == -200:
                assert_close(h, torch.ones_like(h), atol=1e-4, rtol=0)
            for slope in torch.autograd.grad(h.sum(), given_):
                assert slope.isfinite().all()


def mamba3_tokens(T: int, dtype: torch.dtype = torch.float64) -> tuple[Tokens, list[torch.Tensor]]:
    """Two heads of 6 keys and 5 values, two angles; a state with the token before it; skip."""
    q, k, v = (randn(2, 2, T, size, seed=size) for size in (7, 6, 5))
    weights = [randn(2, 2, T, seed=seed).sigmoid() for seed in (1, 2, 3)]
    angle = 2 * randn(2, 2, T, 2, seed=8)
    state = [randn(2, 2, *size, seed=9 + i) for i, size in enumerate(((6, 5), (6,), (5,)))]
    state.append(randn(2, seed=13))
    given_ = q[..., :6], k, v, -weights[0], *weights[1:], angle, *state
    given_ = [x.to(dtype).requires_grad_() for x in given_]
    return Tokens(*given_[:7]), given_[7:]


@pytest.mark.parametrize("T", (1, 5, 70))
def test_mamba3_is_a_complex_recurrence_of_two_writes(T: int) -> None:
    """Lahoti et al. 2026: pairs of rows are complex numbers, and a token writes twice, once with
    its own step and once with the next one's."""
    tokens, state = mamba3_tokens(T)

    def pairs(x: torch.Tensor, dim: int) -> torch.Tensor:
        a, b, rest = x.split([2, 2, 2], dim)
        return torch.cat((torch.complex(a, b), torch.complex(rest, 0 * rest)), dim)

    q, k, h, last = (pairs(x, -1) for x in (tokens.q, tokens.k, state[0].mT, state[1]))
    v, value, ys = tokens.v, state[2], []
    for t in range(T):
        h = h + tokens.before[:, :, t, None, None] * value[..., None] * last[:, :, None]
        angle = F.pad(tokens.angle[:, :, t], (0, 2))
        h = h * (tokens.log_a[:, :, t, None] - 1j * angle).exp()[:, :, None]
        last, value = k[:, :, t], v[:, :, t]
        h = h + tokens.own[:, :, t, None, None] * value[..., None] * last[:, :, None]
        ys.append((h * q[:, :, t, None].conj()).real.sum(-1) + state[3][:, None] * value)
    expected = torch.stack(ys, 2)
    end = torch.cat((h.real[..., :2], h.imag[..., :2], h.real[..., 2:]), -1).mT
    weights, given_ = randn(*expected.shape, seed=12), [*tokens, *state]
    slopes = torch.autograd.grad((expected * weights).sum() + end.sum(), given_)
    for form in built("naive", "native", "chunked", "blocked"):
        with ops.backend(form):
            y, S = trapezoidal(tokens, *state)
        assert_close(y, expected)
        assert_close(S, end)
        for one, other in zip(
            torch.autograd.grad((y * weights).sum() + S.sum(), given_), slopes, strict=True
        ):
            assert_close(one, other)


@pytest.mark.parametrize("form", built("native", "chunked"))
def test_mamba3_angles_after_a_million_tokens(form: str) -> None:
    """Tokens that see only what is near give the same outputs wherever they stand."""
    T, near = 1_000_000, 40
    tokens, state = mamba3_tokens(near, torch.float32)
    tokens = Tokens(*(x.detach()[:1, :1] for x in tokens))._replace(log_a=-torch.ones(1, 1, near))
    many = Tokens(*(x.repeat(1, 1, T // near, *[1] * (x.dim() - 3)) for x in tokens))
    zeros = [*(torch.zeros_like(x[:1, :1]) for x in state[:3]), torch.zeros(1)]
    with ops.backend(form):
        y, _ = trapezoidal(many, *zeros)
        twice, _ = trapezoidal(Tokens(*(x[:, :, : 2 * near] for x in many)), *zeros)
    assert_close(y[:, :, -near:], twice[:, :, near:], atol=1e-5, rtol=0)
