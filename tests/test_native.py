"""Kernels in C++, and the step that they replay, against the same by torch."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from inspect import getsource
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from calls import KERNELS
from seqzoo import ops
from seqzoo.decoding.sampling import generate
from seqzoo.decoding.step import TYPES, PreparedStep, Types, prepare
from seqzoo.errors import UserError
from seqzoo.models.language_model import LanguageModel
from seqzoo.models.zoo import FAMILIES, build
from seqzoo.ops.attention import append
from seqzoo.ops.channel import gate, relu2_product
from seqzoo.ops.delta_net import delta_net
from seqzoo.ops.linear_attention import linear_attention
from seqzoo.ops.linear_scan import linear_scan
from seqzoo.ops.local import causal_conv, shift_products
from seqzoo.ops.mamba2 import TAPS, mamba2
from seqzoo.ops.mamba2 import Weights as Mamba2Weights
from seqzoo.ops.matrix_state import matrix_state
from seqzoo.ops.native.instructions import narrow
from seqzoo.ops.native.program import Recorder, Unrecordable
from seqzoo.ops.norms import norm
from seqzoo.ops.outputs import head_norm
from seqzoo.ops.rg_lru import rg_lru
from seqzoo.ops.rwkv7 import LowRank, Projections, Weights, rwkv7
from seqzoo.ops.wkv4 import WKVState, empty_state, wkv4
from seqzoo.state import leaves, rebuild
from test_decoding import small

pytestmark = pytest.mark.skipif(not KERNELS, reason="no C++ compiler")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}


def difference(expected: Tensor, given: Tensor) -> float:
    expected, given = expected.detach(), given.detach()
    return float((expected - given).abs().max() / expected.abs().max().clamp(min=1))


def compare(f, inputs: list[Tensor]) -> None:
    """Outputs and gradients of the native form are those of the definition."""
    found = []
    for form in ("naive", "native"):
        with ops.backend(form), ops.recording() as forms:
            outputs = f(*inputs)
        assert any(name.endswith(form) for name in forms)
        random = torch.Generator().manual_seed(1)
        loss = sum((torch.randn(y.shape, generator=random).to(y) * y).sum() for y in outputs)
        found.append([*outputs, *torch.autograd.grad(loss, inputs)])
    for expected, given in zip(*found, strict=True):
        assert difference(expected, given) < TOLERANCE[expected.dtype]


def test_native_forms_are_chosen_on_the_cpu_alone() -> None:
    elsewhere, natives = torch.empty(2, 3, 4, device="meta"), 0
    for forms in ops.backends().values():
        if "native" in forms:
            natives += 1
            assert not forms["native"].when(elsewhere, 3)
    assert natives > 10


@contextmanager
def kept_tensors() -> Iterator[list[Tensor]]:
    """Collect what is kept for the backward pass."""
    kept: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        yield kept


@contextmanager
def on_threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def randn(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("K, V", [(8, 5), (16, 16), (40, 33), (64, 100)])
@pytest.mark.parametrize("decay", [None, "head", "channel"])
@pytest.mark.parametrize("delta, bonus", [(False, False), (True, False), (False, True)])
def test_matrix_state(dtype, K, V, decay, delta, bonus) -> None:
    B, H = 2, 3
    for T in (1, 70):  # within a segment of 64 tokens, and over two
        named = {
            "q": randn(B, T, H, K, seed=1, dtype=dtype).transpose(1, 2),
            "k": randn(B, H, T, K, seed=2, dtype=dtype) / K**0.5,
            "v": randn(B, H, T, V, seed=3, dtype=dtype),
            "S": randn(B, H, K, V, seed=4, dtype=dtype),
        }
        if decay:
            width = K if decay == "channel" else 1
            named["log_w"] = -randn(B, H, T, width, seed=5, dtype=dtype).exp()
        if delta:
            named["b"] = F.normalize(randn(B, H, T, K, seed=6, dtype=dtype), dim=-1)
            named["a"] = -0.7 * named["b"]
        if bonus:
            named["u"] = randn(H, K, seed=7, dtype=dtype)
        inputs = [x.requires_grad_() for x in named.values()]
        compare(lambda *xs, named=named: matrix_state(**dict(zip(named, xs, strict=True))), inputs)


@pytest.mark.parametrize("K", [16, 24])
def test_matrix_state_reads_tokens_in_bfloat16(K: int) -> None:
    """Outputs are those of the same tokens in float32, and so are gradients, rounded."""
    names = ("q", "k", "v", "a", "b", "log_w")
    tokens = [randn(2, 3, 40, K, seed=i, dtype=torch.float32) / K**0.5 for i in range(6)]
    tokens[5] = -tokens[5].exp()
    S = randn(2, 3, K, K, seed=7, dtype=torch.float32)
    found = []
    for cast in (False, True):
        halves = [x.bfloat16().requires_grad_() for x in tokens]
        y, end = matrix_state(
            S=S, **{n: x.float() if cast else x for n, x in zip(names, halves, strict=True)}
        )
        assert y.dtype == end.dtype == torch.float32
        found.append([y, end, *torch.autograd.grad(y.square().sum() + end.sum(), halves)])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("delta, bonus", [(False, False), (True, False), (False, True)])
def test_threads_that_share_a_head_compute_the_same(delta: bool, bonus: bool) -> None:
    """Three heads of four segments: two threads divide one between them, four do not."""
    shape, found = (1, 3, 230, 32), []
    tokens = [randn(*shape, seed=i, dtype=torch.float32) for i in range(5)]
    named = dict(zip(("q", "k", "v", "log_w", "b"), tokens, strict=True))
    named["log_w"] = -named["log_w"].exp()
    named["b"] = F.normalize(named["b"], dim=-1)
    named["a"] = -named["b"]
    if not delta:
        del named["a"], named["b"]
    named["S"] = randn(1, 3, 32, 32, seed=6, dtype=torch.float32)
    if bonus:
        named["u"] = randn(3, 32, seed=7, dtype=torch.float32)
    inputs = [x.requires_grad_() for x in (randn(96, seed=8, dtype=torch.float32), *named.values())]
    for number in (1, 2, 4):
        with on_threads(number), ops.backend("native"):
            y, end = matrix_state(**named)
            z = head_norm(y, inputs[0], None, gate=None, eps=None, centred=True)
            loss = y.square().sum() + z.pow(3).sum() + end.square().sum()
            found.append([z, end, *torch.autograd.grad(loss, inputs)])
    for shared in found[1:]:
        assert all(map(torch.equal, found[0], shared))


@pytest.mark.parametrize("name", ["rwkv7", "mamba2", "mlstm"])
def test_weights_of_heads_that_threads_share_get_whole_gradients(name: str) -> None:
    torch.manual_seed(1)
    model = build(name, vocab_size=11, dim=48, n_heads=3, n_layers=1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    tokens, found = torch.randint(11, (1, 151)), []
    for number in (1, 2):
        with on_threads(number):
            logits, _ = model(tokens[:, :-1])
            loss = F.cross_entropy(logits[0], tokens[0, 1:])
            found.append(torch.autograd.grad(loss, list(model.parameters())))
    for alone, shared in zip(*found, strict=True):
        assert difference(alone, shared) < 1e-6 * max(1, float(alone.abs().max()))


def rwkv7_inputs(B: int, T: int, H: int, N: int, dtype: torch.dtype, first: bool) -> list[Tensor]:
    """Projections, S, weights and matrices of low rank, in the order of `run_rwkv7`."""
    low, D, R = (1, 4, 5, 6), H * N, 3
    sizes = [R if i in low else D for i in range(6 if first else 8)]
    rows = [randn(B, T, size, seed=i, dtype=dtype) for i, size in enumerate(sizes)]
    S = randn(B, H, N, N, seed=8, dtype=dtype)
    weights = [randn(D, seed=9 + i, dtype=dtype) for i in range(7 if first else 8)]
    weights[4] = weights[4].view(H, N)
    up = [randn(R, D, seed=20 + i, dtype=dtype) for i in range(3 if first else 4)]
    return [*rows, S, *weights, *up]


def run_rwkv7(*inputs: Tensor, beta_max: float = 1.0) -> tuple[Tensor, Tensor]:
    first = len(inputs) == 17
    n, parts = (6, 7) if first else (8, 8)
    rows, S, weights = list(inputs[:n]), inputs[n], inputs[n + 1 : n + 1 + parts]
    up = inputs[n + 1 + parts :]
    for i, W in zip((1, 4, 5, 6)[: len(up)], up, strict=True):
        rows[i] = LowRank(rows[i], W)
    given = Projections(*rows, *[None] * (8 - n))
    weights_ = Weights(*weights, *[None] * first)
    return rwkv7(given, S, weights_, eps=1e-3, beta_max=beta_max)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("N", [5, 16, 32, 80])
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_rwkv7(dtype, N, first) -> None:
    for T in (1, 33, 70):
        inputs = rwkv7_inputs(2, T, 2, N, dtype, first)
        run = partial(run_rwkv7, beta_max=1.7 if T == 33 else 1.0)
        compare(run, [x.requires_grad_() for x in inputs])


def test_rwkv7_reads_projections_in_bfloat16() -> None:
    """The output is that of the same projections in float32, rounded, and so are gradients. Here
    those of low rank are copies of numbers, so that they are the same in both types."""
    inputs = rwkv7_inputs(2, 70, 3, 32, torch.float32, first=False)
    inputs[-4:] = [torch.eye(*W.shape) for W in inputs[-4:]]
    found = []
    for cast in (False, True):
        leaves_ = [x.bfloat16() if i < 8 else x.clone() for i, x in enumerate(inputs)]
        leaves_ = [x.requires_grad_() for x in leaves_]
        y, end = run_rwkv7(*(x.float() if cast else x for x in leaves_))
        y = y.bfloat16() if cast else y
        assert y.dtype == torch.bfloat16 and end.dtype == torch.float32
        loss = y.float().square().sum() + end.sum()
        found.append([y, end, *torch.autograd.grad(loss, leaves_[:-4])])
    assert all(map(torch.equal, *found))


def test_rwkv7_keeps_no_product_of_low_rank() -> None:
    inputs = rwkv7_inputs(2, 70, 3, 32, torch.float32, first=False)
    with kept_tensors() as kept:
        run_rwkv7(*(x.requires_grad_() for x in inputs))
    rows = [x for x in kept if x.shape == inputs[0].shape]
    assert len(rows) == 4  # r, k, v and those of the first layer


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("K, V", [(5, 5), (16, 16), (32, 64), (80, 80), (24, 9)])
@pytest.mark.parametrize("decay", [None, "head", "channel"])
def test_delta_net(dtype, K, V, decay) -> None:
    B, H = 2, 3
    for T in (1, 33, 70):
        shapes = (B, T, H * (2 * K + V)), (B, T, H), (B, H, K, V)
        inputs = [randn(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]
        if decay:
            width = H * K if decay == "channel" else H
            inputs.append(-randn(B, T, width, seed=4, dtype=dtype).exp())
        run = partial(delta_net, beta_max=1.7 if T == 33 else 1.0)
        compare(run, [x.requires_grad_() for x in inputs])


def test_delta_net_reads_projections_in_bfloat16() -> None:
    """The output is that of the same projections in float32, and so are gradients, rounded."""
    B, T, H, K = 2, 40, 3, 32
    S, found = randn(B, H, K, K, seed=1, dtype=torch.float32), []
    for cast in (False, True):
        shapes = (B, T, 3 * H * K), (B, T, H)
        halves = [randn(*s, seed=2, dtype=torch.bfloat16).requires_grad_() for s in shapes]
        y, end = delta_net(*(x.float() if cast else x for x in halves), S, beta_max=1.0)
        found.append([y, end, *torch.autograd.grad(y.square().sum() + end.sum(), halves)])
    assert all(map(torch.equal, *found))


def mamba2_inputs(B: int, T: int, H: int, N: int, P: int, dtype: torch.dtype) -> list[Tensor]:
    """The projection, both states and the weights, in the order of `run_mamba2`."""
    inner, channels = H * P, H * P + 2 * N
    shapes = [(B, T, inner + channels + H), (B, TAPS - 1, channels), (B, H, N, P)]
    shapes += [(channels, TAPS), (channels,), (H,), (H,), (H,), (inner,)]
    inputs = [randn(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]
    inputs[0][:, T // 2, -1] += 40  # a softplus that is its input
    return inputs


def run_mamba2(*inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return mamba2(*inputs[:3], Mamba2Weights(*inputs[3:]))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("N, P", [(5, 3), (16, 16), (32, 72), (8, 40)])
def test_mamba2(dtype, N, P) -> None:
    for T in (1, 2, 33, 70):
        inputs = mamba2_inputs(2, T, 3, N, P, dtype)
        compare(run_mamba2, [x.requires_grad_() for x in inputs])


def test_mamba2_reads_its_projection_in_bfloat16() -> None:
    """The output is that of the same projection in float32, rounded, and so are gradients."""
    inputs = mamba2_inputs(2, 70, 3, 16, 24, torch.float32)
    inputs[0] = inputs[0].bfloat16()
    found = []
    for cast in (False, True):
        leaves_ = [x.clone().requires_grad_() for x in inputs]
        y, conv, h = run_mamba2(leaves_[0].float() if cast else leaves_[0], *leaves_[1:])
        y = y.bfloat16() if cast else y
        assert y.dtype == torch.bfloat16 and conv.dtype == h.dtype == torch.float32
        loss = y.float().square().sum() + h.sum()
        found.append([y, conv, h, *torch.autograd.grad(loss, leaves_)])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("K", [5, 16, 32, 80])
def test_linear_attention(dtype, K) -> None:
    B, H = 2, 3
    log_w = torch.tensor([-0.7, -0.1, 0.0])
    for T in (1, 33, 150):
        qkv = randn(B, T, 3 * H * K, seed=T, dtype=dtype)
        S = randn(B, H, K, K + 1, seed=1, dtype=dtype)
        S[..., -1] = S[..., -1].abs()  # sums of features are positive
        compare(lambda *x: linear_attention(*x, log_w), [x.requires_grad_() for x in (qkv, S)])


def test_linear_attention_of_bfloat16_rounds_only_what_it_writes() -> None:
    """Its features and sums are float32, and of a token it keeps only what is in bfloat16 and one
    number a head."""
    B, T, H, K = 2, 70, 3, 32
    S, log_w = torch.zeros(B, H, K, K + 1), torch.full((H,), -0.1)
    half = randn(B, T, 3 * H * K, seed=2, dtype=torch.bfloat16).requires_grad_()
    wide, end_of_wide = linear_attention(half.float(), S, log_w)
    with kept_tensors() as kept:
        y, end = linear_attention(half, S, log_w)
    assert torch.equal(y, wide.bfloat16()) and torch.equal(end, end_of_wide)
    assert max(x.numel() for x in kept if x.dtype == torch.float32 and T in x.shape) == B * H * T
    expected, found = (torch.autograd.grad(x.float().square().sum(), half)[0] for x in (wide, y))
    assert difference(expected.float(), found.float()) < 2e-2


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("V", [5, 16, 40])
@pytest.mark.parametrize("centred", [True, False], ids=["centred", "rms"])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
def test_head_norm(dtype, V, centred, gated) -> None:
    B, H, T = 2, 3, 40
    inputs = [randn(B, T, H, V, seed=1, dtype=dtype).transpose(1, 2) + 0.5]
    inputs += [randn(H * V, seed=2, dtype=dtype), randn(V, seed=3, dtype=dtype)]
    if gated:
        inputs.append(randn(B, T, H * V, seed=4, dtype=dtype))

    def run(y: Tensor, scale: Tensor, shift: Tensor, gate: Tensor | None = None) -> tuple[Tensor]:
        return (head_norm(y, scale, shift, gate=gate, eps=1e-3, centred=centred),)

    compare(run, [x.requires_grad_() for x in inputs])


def test_head_norm_rounds_to_the_type_of_the_gate() -> None:
    y, gate = (
        randn(2, 3, 9, 16, seed=1, dtype=torch.float32),
        randn(2, 9, 48, seed=2, dtype=torch.bfloat16),
    )
    found = []
    for cast in (False, True):
        leaves_ = y.clone().requires_grad_(), gate.clone().requires_grad_()
        own = leaves_[1].float() if cast else leaves_[1]
        out = head_norm(leaves_[0], None, None, gate=own, eps=None, centred=False).bfloat16()
        found.append([out, *torch.autograd.grad(out.float().square().sum(), leaves_)])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("D", [5, 16, 40])
@pytest.mark.parametrize("spread", [1, 30])
def test_wkv4_and_linear_scan(dtype, D, spread) -> None:
    B = 3
    for T in (1, 32, 33, 100):
        k, v = (randn(B, T, D, seed=i, dtype=dtype) * (spread, 1)[i] for i in range(2))
        w, u = -randn(D, seed=2, dtype=dtype).exp(), randn(D, seed=3, dtype=dtype)
        start = [randn(B, D, seed=4 + i, dtype=dtype) for i in range(3)]
        start[1] = start[1].abs() + 1

        def flat(k, v, w, u, *start):
            y, state = wkv4(k, v, w, u, WKVState(*start) if start else empty_state(k))
            return y, *state

        compare(flat, [x.requires_grad_() for x in (k, v, w, u)])
        compare(flat, [x.requires_grad_() for x in (k, v, w, u, *start)])
        r = randn(B, T, D, seed=9, dtype=dtype) * 5

        def gated(r, k, v, w, u, *start):
            y, state = wkv4(k, v, w, u, WKVState(*start), r)
            return y, *state

        compare(gated, [x.requires_grad_() for x in (r, k, v, w, u, *start)])
        a, h = randn(B, T, D, seed=8, dtype=dtype).sigmoid(), start[0]
        compare(lambda *xs: (linear_scan(*xs),), [x.requires_grad_() for x in (a, v, h)])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size", [5, 16, 40])
def test_rg_lru(dtype, size) -> None:
    """Also where almost nothing is forgotten, so that 1 - a^2 is small."""
    for T in (1, 70):
        x, h = (randn(2, *n, 3 * size, seed=1, dtype=dtype) for n in ((T,), ()))
        gates, decay = (
            randn(3, 2, T, 2 * size, seed=2, dtype=dtype),
            randn(3 * size, seed=3, dtype=dtype),
        )
        for slow in (0, 8):
            inputs = [y.clone().requires_grad_() for y in (x, gates - slow, decay - slow, h)]
            compare(lambda *xs: (rg_lru(*xs),), inputs)


def test_rg_lru_reads_gates_in_bfloat16() -> None:
    x, h = randn(2, 40, 48, seed=1, dtype=torch.float32), torch.ones(2, 48)
    gates, decay = (
        randn(3, 2, 40, 32, seed=2, dtype=torch.bfloat16).requires_grad_(),
        torch.ones(48),
    )
    found = [rg_lru(x, g, decay, h) for g in (gates, gates.float())]
    slopes = [torch.autograd.grad(y.square().sum(), gates)[0] for y in found]
    assert torch.equal(*found) and torch.equal(*slopes) and slopes[0].any()


@pytest.mark.parametrize("D", [5, 16, 70])
def test_wkv4_of_bfloat16_rounds_only_what_it_writes(D) -> None:
    """Against the same tokens in float32."""
    B, T = 2, 70
    halves = [randn(B, T, D, seed=i, dtype=torch.bfloat16) for i in range(3)]
    w, u = -randn(D, seed=3, dtype=torch.float32).exp(), randn(D, seed=4, dtype=torch.float32)
    start = [randn(B, D, seed=5 + i, dtype=torch.float32).exp() for i in range(3)]
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        tokens = [x.to(dtype).requires_grad_() for x in halves]
        rest = [x.detach().requires_grad_() for x in (w, u, *start)]
        with ops.backend("native"):
            y, state = wkv4(*tokens[:2], *rest[:2], WKVState(*rest[2:]), tokens[2])
        of_y = randn(B, T, D, seed=8, dtype=torch.bfloat16).to(dtype)
        of_inputs = torch.autograd.grad([y, *state], [*tokens, *rest], [of_y, *start])
        assert y.dtype == dtype and all(x.dtype == torch.float32 for x in state)
        found.append(([y, *of_inputs[:3]], [*state, *of_inputs[3:]]))
    (in_float, exact), (in_half, kept) = found
    assert all(torch.equal(x.bfloat16(), y) for x, y in zip(in_float, in_half, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(exact, kept, strict=True))


@pytest.mark.parametrize("moved", (False, True))
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_shift_products(dtype, moved) -> None:
    for B, T, D in ((1, 1, 5), (3, 7, 16), (2, 40, 33), (1, 9, 200)):
        inputs = [randn(B, T, D, seed=1, dtype=dtype), randn(B, D, seed=2, dtype=dtype)]
        inputs += [randn(D, seed=3 + i, dtype=dtype) for i in range(3)]
        inputs += [randn(N, D, seed=6 + N, dtype=dtype) / D**0.5 for N in (3, D, 20)]
        inputs += [randn(3, B, T, D, seed=30, dtype=dtype)] if moved else []
        given = [x.requires_grad_() for x in inputs]
        compare(lambda x, last, *xs: shift_products(x, last, xs[:3], xs[3:6], *xs[6:])[0], given)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_causal_conv(dtype) -> None:
    for B, T, D, W in ((1, 1, 5, 4), (3, 2, 16, 4), (2, 40, 33, 3), (2, 5, 16, 2)):
        shapes = (B, T, D), (D, W), (B, W - 1, D)
        inputs = [randn(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]
        compare(causal_conv, [x.requires_grad_() for x in inputs])


def test_causal_conv_reads_bfloat16_as_it_is() -> None:
    """Outputs, the last tokens and all gradients are those of the same numbers in float32, those of
    the tokens rounded once. Five taps are more than a kernel takes."""
    for taps in (4, 5):
        x, rest = randn(2, 40, 33, seed=1, dtype=torch.bfloat16), [(33, taps), (2, taps - 1, 33)]
        more = [randn(*shape, seed=i, dtype=torch.float32) for i, shape in enumerate(rest)]
        found = []
        for tokens in (x, x.float()):
            inputs = [t.detach().requires_grad_() for t in (tokens, *more)]
            y, newest = causal_conv(*inputs)
            assert y.dtype == newest.dtype == torch.float32
            weights = randn(*y.shape, seed=9, dtype=torch.float32)
            found.append([y, newest, *torch.autograd.grad((weights * y).sum(), inputs)])
        for i, (half, wide) in enumerate(zip(*found, strict=True)):
            assert half.dtype == (torch.bfloat16 if i == 2 else torch.float32)
            assert difference(wide, half.float()) < (2**-8 if i == 2 else 1e-6)


def test_shift_products_under_autocast_round_their_mixes_once() -> None:
    """A matrix that copies numbers shows the mixes, and the moves' gradient."""
    x, m = randn(2, 9, 20, seed=1, dtype=torch.float32), randn(20, seed=2, dtype=torch.float32)
    move = randn(1, 2, 9, 20, seed=3, dtype=torch.float32).bfloat16()
    inputs = [t.requires_grad_() for t in (x, move)]
    found = []
    for form in ("naive", "native"):
        with torch.autocast("cpu", torch.bfloat16), ops.backend(form):
            (y,), _ = shift_products(x, None, (m,), (torch.eye(20),), move)
        assert y.dtype == torch.bfloat16
        found.append([y, *torch.autograd.grad(y.float().sum(), inputs)])
    for expected, given in zip(*found, strict=True):
        assert difference(expected.float(), given.float()) < 2**-8
        assert expected.dtype == given.dtype


@pytest.mark.parametrize("dtype", (*TOLERANCE, torch.bfloat16), ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 5), (2, 9, 33), (3, 40, 64)], ids=str)
def test_gate_and_squared_relu(dtype, shape) -> None:
    """In bfloat16 the squared ReLU and its gradient are the same bits, a gate is rounded once."""
    r, x = (4 * randn(*shape, seed=i, dtype=dtype) for i in range(2))
    W = randn(7, shape[-1], seed=2, dtype=dtype)
    calls = ((gate, [r, x]), (relu2_product, [x, W]))
    for f, given in calls:
        inputs = [t.detach().requires_grad_() for t in given]
        if dtype != torch.bfloat16:
            compare(lambda *xs, f=f: (f(*xs),), inputs)
            continue
        with ops.backend("native"):
            y = f(*inputs)
        wide = [t.detach().float().requires_grad_() for t in given]
        with ops.backend("naive"):
            expected = f(*(wide if f is gate else inputs))
        of_y = randn(*y.shape, seed=3, dtype=dtype)
        found = [y, *torch.autograd.grad(y, inputs, of_y)]
        of_inputs = torch.autograd.grad(expected, wide if f is gate else inputs, of_y.to(expected))
        for one, other in zip(found, [expected, *of_inputs], strict=True):
            if f is gate:
                assert difference(other, one.float()) < 2**-8
            else:
                assert torch.equal(other, one)


def test_shift_products_keep_no_mixes() -> None:
    x, last = (
        randn(2, 9, 20, seed=1, dtype=torch.float32),
        randn(2, 20, seed=2, dtype=torch.float32),
    )
    mixes = [randn(20, seed=3 + i, dtype=torch.float32) for i in range(2)]
    weights = [randn(N, 20, seed=5 + N, dtype=torch.float32) for N in (7, 20)]
    moves = randn(2, 2, 9, 20, seed=40, dtype=torch.float32)
    inputs = [t.requires_grad_() for t in (x, last, *mixes, *weights, moves)]
    for used in (slice(0, 2), slice(1, 2)):  # of a product that nothing reads no gradient goes on
        found = []
        for form in ("naive", "native"):
            with torch.autocast("cpu", torch.bfloat16), ops.backend(form), kept_tensors() as kept:
                y, _ = shift_products(x, last, mixes, weights, moves)
            loss = sum(part.float().square().sum() for part in y[used])
            found.append([*y, *torch.autograd.grad(loss, inputs, allow_unused=True)])
        assert not any(t.dtype == torch.bfloat16 and t.shape == x.shape for t in kept)
        for expected, given in zip(*found, strict=True):
            none = [g is None or not g.any() for g in (expected, given)]
            assert none[0] == none[1]
            assert all(none) or difference(expected.float(), given.float()) < 2**-6


def test_a_norm_is_made_again_for_the_shift_products() -> None:
    """Of a norm and the products after it only the input of the norm is kept, unless the norm is
    changed in between; the gradients are those of the definition."""
    x, last = (
        randn(*shape, seed=i, dtype=torch.float32) for i, shape in enumerate([(2, 9, 20), (2, 20)])
    )
    mixes = [randn(20, seed=3 + i, dtype=torch.float32) for i in range(2)]
    weights = [randn(N, 20, seed=5 + N, dtype=torch.float32) for N in (7, 20)]
    scale, shift = (randn(20, seed=30 + i, dtype=torch.float32) for i in range(2))
    inputs = [t.requires_grad_() for t in (x, last, scale, shift, *mixes, *weights)]
    for changed in (False, True):
        found = []
        for form in ("naive", "native"):
            with ops.backend(form), kept_tensors() as kept:
                y = norm(x, scale, shift, 1e-5, centred=True, product=False)
                if changed:
                    y *= 2
                products, _ = shift_products(y, last, mixes, weights)
            loss = sum(p.square().sum() for p in products)
            found.append([*products, *torch.autograd.grad(loss, inputs)])
        rows = [t for t in kept if t.numel() == x.numel()]
        assert len({t.data_ptr() for t in rows}) == 1 + changed
        for expected, given in zip(*found, strict=True):
            assert difference(expected, given) < TOLERANCE[torch.float32]


def test_a_norm_whose_input_has_changed_is_not_made_again() -> None:
    x, last = torch.randn(2, 9, 20), torch.zeros(2, 20)
    scale, mix, W = torch.ones(20), torch.rand(20, requires_grad=True), torch.randn(7, 20)
    found = []
    for form in ("naive", "native"):
        with ops.backend(form):
            given = x.clone()
            y = norm(given, scale, None, 1e-5, centred=False, product=False)
            given.zero_()
            (product,), _ = shift_products(y, last, (mix,), (W,))
        found.append(torch.autograd.grad(product.square().sum(), mix)[0])
    assert difference(*found) < TOLERANCE[torch.float32]


def test_a_gradient_that_nothing_needs_is_none() -> None:
    """As in torch's forms: the queries of a state that is only carried on have no gradient."""
    inputs = [randn(1, 1, 4, 8, seed=i, dtype=torch.float32).requires_grad_() for i in range(3)]
    S = torch.zeros(1, 1, 8, 8)
    _, S = matrix_state(*inputs, S)
    q, k, v = torch.autograd.grad(S.sum(), inputs, allow_unused=True)
    assert q is None and k.any() and v.any()


# ---- a prepared step

END_AT_24 = {"position": "learned", "max_len": 24}
POSITIONS = [
    ("transformer", {"position": position, "max_len": 40}) for position in ("learned", "sinusoidal")
]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    ("name", "keys"), [*((name, {}) for name in FAMILIES), *POSITIONS], ids=str
)
@torch.inference_mode()
def test_a_prepared_step_is_the_model(name: str, keys: dict, rows: int) -> None:
    model = small(name, seed=1, **keys).float()
    tokens = torch.randint(11, (rows, 40), generator=torch.Generator().manual_seed(2))
    _, state = model(tokens[:, :5])
    first, before = state, [leaf.clone() for leaf in leaves(state)]
    step = PreparedStep(model, state, rows, 35)
    for t in range(5, 40):
        logits, state = model(tokens[:, t : t + 1], state)
        assert difference(logits[:, 0], step(tokens[:, t])) < 1e-4
    for expected, given in zip(leaves(state), leaves(step.state()), strict=True):
        assert expected.shape == given.shape and difference(expected, given) < 1e-4
    assert all(map(torch.equal, leaves(first), before))
    with pytest.raises(IndexError, match="no room"):
        step(tokens[:, 0])


@pytest.mark.parametrize(
    ("name", "model_keys"),
    [("lstm", {}), ("transformer", {}), ("rwkv7", {}), ("transformer", END_AT_24)],
    ids=str,
)
@pytest.mark.parametrize("keys", [{}, {"stop": 0}, {"window": 8}, {"top_k": 3}], ids=str)
def test_the_same_tokens_with_and_without(
    name: str, model_keys: dict, keys: dict, monkeypatch
) -> None:
    """Also where rows end, and where a model runs out of positions."""
    model = small(name, seed=3, **model_keys).float()
    prompt = torch.randint(1, 11, (4, 6), generator=torch.Generator().manual_seed(4))
    texts = []
    for worth in (1, 10**9):  # always, never
        monkeypatch.setattr("seqzoo.decoding.step.WORTH", worth)
        random = torch.Generator().manual_seed(5)
        with ops.recording() as forms:
            tokens = list(generate(model, prompt, max_tokens=50, generator=random, **keys))
        assert ("step prepared" in forms) == (worth == 1)
        texts.append(torch.stack(tokens))
    assert torch.equal(*texts)


@torch.inference_mode()
def test_a_step_goes_back_to_its_first_position() -> None:
    model = small("transformer", seed=1, **END_AT_24).float()
    tokens = torch.randint(11, (2, 24), generator=torch.Generator().manual_seed(2))
    _, state = model(tokens[:, :20])
    step = PreparedStep(model, state, 2, 4)
    expected, _ = model(tokens[:, 20:], state)
    for _ in range(3):
        for t in range(4):
            assert difference(expected[:, t], step(tokens[:, 20 + t])) < 1e-4
        step.rewind()


@pytest.mark.parametrize("token", [-1, 11])
@torch.inference_mode()
def test_a_token_outside_of_the_vocabulary(token: int) -> None:
    """It is refused as torch refuses it, and changes nothing."""
    model = small("transformer", seed=1).float()
    tokens = torch.randint(11, (2, 12), generator=torch.Generator().manual_seed(2))
    _, state = model(tokens[:, :5])
    step = PreparedStep(model, state, 2, 7)
    with pytest.raises(IndexError):
        model(torch.tensor([[3], [token]]), state)
    for t in range(5, 12):
        with pytest.raises(IndexError, match="outside of the vocabulary"):
            step(torch.tensor([3, token]))
        logits, state = model(tokens[:, t : t + 1], state)
        assert difference(logits[:, 0], step(tokens[:, t])) < 1e-4


@torch.inference_mode()
def test_more_tokens_than_positions() -> None:
    """With room for more than the model has positions for."""
    model = small("transformer", seed=1, **END_AT_24).float()
    _, state = model(torch.zeros(1, 22, dtype=torch.long))
    step = PreparedStep(model, state, 1, 7)
    for _ in range(2):
        _, state = model(torch.zeros(1, 1, dtype=torch.long), state)
        step(torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match="25 tokens are more than the 24 positions"):
        model(torch.zeros(1, 1, dtype=torch.long), state)
    with pytest.raises(IndexError, match="a position behind the last"):
        step(torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize("shape", [(2, 16), (5, 3), (64, 256), (70, 33)], ids=str)
@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_products_with_narrow_weights(shape: tuple[int, int], weights: str) -> None:
    """Products with the rounded weights, as near to the exact ones as rounding allows."""
    random = torch.Generator().manual_seed(1)
    (N, K), rows = shape, 3
    W, x = torch.randn(N, K, generator=random), torch.randn(rows, K, generator=random)
    W[0] = 0  # a row without a scale
    bias = torch.randn(N, generator=random)
    recorder = Recorder(TYPES[weights])
    with torch.no_grad(), recorder:
        recorder.follow(x)
        y = torch.addmm(bias, x, W.T)
        z = x @ W.T.contiguous()  # the other order in memory
    x.copy_(torch.randn(rows, K, generator=random))
    recorder.finish()()
    narrowed, scales = narrow(W, TYPES[weights])
    rounded = narrowed.double() if scales is None else narrowed.double() * scales[:, None].double()
    off = W.abs().double() * 2**-8 if scales is None else 0.5001 * scales[:, None].double()
    assert ((rounded - W).abs() <= off).all()
    for given, shift in ((y, bias), (z, 0)):
        slack = 1e-6 * (x.abs().double() @ W.abs().T.double() + 1)  # of sums in float32
        assert ((given - shift - x.double() @ rounded.T).abs() <= slack).all()
        error = (given - shift - x.double() @ W.T.double()).abs()
        assert (error <= x.abs().double() @ off.expand(N, K).T + slack).all()
        assert error.max() > slack.max()  # the weights were read in the other type


@pytest.mark.parametrize("name", ["lstm", "transformer", "rwkv4"])
@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@torch.inference_mode()
def test_a_step_with_narrow_weights_is_that_of_the_rounded_model(name: str, weights: str) -> None:
    model = small(name, seed=1).float()
    tokens = torch.randint(11, (2, 20), generator=torch.Generator().manual_seed(2))
    _, state = model(tokens[:, :5])
    step = PreparedStep(model, state, 2, 15, Types(weights))
    exact = PreparedStep(model, state, 2, 15)
    rounded = deepcopy(model)
    for key, W in rounded.named_parameters():
        if W.dim() == 2 and "embedding" not in key:
            narrowed, scales = narrow(W, TYPES[weights])
            W.copy_(narrowed if scales is None else narrowed * scales[:, None])
    for t in range(5, 20):
        logits, state = rounded(tokens[:, t : t + 1], state)
        given = step(tokens[:, t])
        assert difference(logits[:, 0], given) < 1e-4
        assert not torch.equal(exact(tokens[:, t]), given)


CACHED = [
    ("transformer", {}),
    ("transformer", {"n_kv_heads": 2, "sinks": True, "softcap": 20}),
    ("transformer", {"window": 8}),
    ("transformer", {"dim": 256}),
    ("fox", {}),
    ("hybrid", {"pattern": ["gla", "transformer"]}),
]


@pytest.mark.parametrize("name, keys", CACHED, ids=str)
@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
@torch.inference_mode()
def test_a_step_with_a_narrow_cache(name: str, keys: dict, kind: str) -> None:
    """Logits as near as rounding keys and values allows; and the state after is what was kept."""
    torch.manual_seed(1)
    keys = {"dim": 80, "n_heads": 4, "n_layers": 2, **keys}
    model = build(name, vocab_size=11, **keys).eval()
    tokens = torch.randint(11, (2, 40), generator=torch.Generator().manual_seed(2))
    _, state = model(tokens[:, :21])
    steps = [PreparedStep(model, state, 2, 19, Types(kv_cache=k)) for k in ("float32", kind)]
    swap = torch.tensor([1, 0])
    for t in range(21, 40):
        if t == 30:  # rows change places, as in beam search
            tokens = tokens[swap]
            for step in steps:
                step.reorder(swap)
        exact, given = (step(tokens[:, t]).clone() for step in steps)
        assert 0 < difference(exact, given) < (0.01 if kind == "bfloat16" else 0.02)
    rounded = 0
    for exact, given in zip(*(leaves(step.state()) for step in steps), strict=True):
        assert exact.shape == given.shape and exact.dtype == given.dtype
        if not torch.equal(exact, given):
            rounded += 1
            assert difference(exact, given) < 0.02
    assert rounded
    again = PreparedStep(model, steps[1].state(), 2, 1, Types(kv_cache=kind))
    for kept, anew in zip(leaves(steps[1].state()), leaves(again.state()), strict=True):
        assert_close(kept, anew, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
@torch.inference_mode()
def test_a_cache_of_a_state_in_bfloat16(kind: str) -> None:
    """As a prompt read under autocast leaves it."""
    model, prompt = small("transformer", seed=1).float(), torch.randint(11, (2, 9))
    with torch.autocast("cpu", torch.bfloat16):
        _, state = model(prompt)
    wide = rebuild(state, [x.float() if x.is_floating_point() else x for x in leaves(state)])
    token, found = torch.tensor([3, 4]), []
    for given in (state, wide):
        found.append(PreparedStep(model, given, 2, 1, Types(kv_cache=kind))(token).clone())
    assert torch.equal(*found)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
@torch.inference_mode()
def test_a_cache_keeps_what_is_not_a_number(kind: str) -> None:
    model = small("transformer", seed=1).float()
    _, state = model(torch.zeros(1, 4, dtype=torch.long))
    step = PreparedStep(model, state, 1, 3, Types(kv_cache=kind))
    own, weight = torch.zeros(1, dtype=torch.long), model.embedding.weight
    before = weight[0].clone()
    weight[0] = math.nan
    step(own)
    weight[0] = before
    assert step(own).isnan().all()


def test_a_narrow_cache_of_a_model_that_has_none() -> None:
    prompt = torch.ones(1, 6, dtype=torch.long)
    with pytest.raises(UserError, match="kv_cache=int8: this model keeps no keys and values"):
        next(generate(small("lstm", seed=3).float(), prompt, max_tokens=3, kv_cache="int8"))
    with pytest.raises(UserError, match="kv_cache=int4: no such kv_cache.*bfloat16"):
        next(generate(small("fox", seed=3).float(), prompt, max_tokens=1, kv_cache="int4"))


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_generating_few_tokens_with_narrow_weights(weights: str) -> None:
    model, prompt = small("lstm", seed=3).float(), torch.ones(2, 6, dtype=torch.long)
    with ops.recording() as forms:
        assert len(list(generate(model, prompt, max_tokens=3, weights=weights))) == 3
    assert "step prepared" in forms


def test_narrow_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(model: LanguageModel, **keys: int) -> Tensor:
        prompt = torch.ones(1, 6, dtype=torch.long).to(model.embedding.weight.device)
        return next(generate(model, prompt, max_tokens=9, weights="int8", **keys))

    model = small("transformer", seed=3).float()
    first(model, window=14)  # 6 tokens, and 8 that are read after them
    with pytest.raises(UserError, match="weights=int8: .* may have 14 tokens together"):
        first(model, window=13)
    with pytest.raises(UserError, match="the model is on meta: load it with device=cpu"):
        prepare(deepcopy(model).to("meta"), (), 1, 3, Types("int8"))
    with pytest.raises(UserError, match="another type than float32"):
        first(deepcopy(model).double())
    model.forward = lambda x, s: LanguageModel.forward(model, x + int(x.sum() > 99), s)
    with pytest.raises(UserError, match="no step can be prepared for this model"):
        first(model)
    monkeypatch.setattr("seqzoo.decoding.step.library", lambda: None)
    with pytest.raises(UserError, match="weights=int8: it needs the kernels in C"):
        first(model)


@torch.no_grad()
def replayed(f, recorded: Tensor, x: Tensor) -> tuple[Tensor, list[Any]]:
    """f(x) by a replay of what was recorded of another tensor; and the parts of that."""
    given, recorder = recorded.clone(), Recorder()
    with recorder:
        recorder.follow(given)
        y = f(given)
    replay = recorder.finish()
    given.copy_(x)
    replay()
    return y, recorder.parts


@pytest.mark.parametrize(
    "f",
    [
        lambda x: torch.special.erfinv(x * 0.5).sort().values + 1,
        lambda x: (x > 0.4) * (x < 0.8),
        lambda x: (x > 0.4) + 0.5,
        lambda x: x.bfloat16() + x.bfloat16(),
        lambda x: x.bfloat16().copy_(2 * x),
        lambda x: (100 * x).to(torch.int8).clone() >= 50,
        lambda x: (100 * x).to(torch.int8).float(),
        lambda x: torch.stack((x.half(), x.half())),
    ],
    ids=lambda f: getsource(f).strip(),
)
def test_what_cpp_does_not_know_is_replayed_by_torch(f) -> None:
    recorded = torch.rand(3, generator=torch.Generator().manual_seed(1))
    x = torch.tensor([0.3, 0.9, 0.1])
    y, parts = replayed(f, recorded, x)
    assert any(callable(part) for part in parts)
    assert torch.equal(y, f(x)) and not torch.equal(y, f(recorded))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool], ids=str)
def test_types_that_cpp_knows(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, 2.0, -3.0, 1.0] * 5)
    y, parts = replayed(lambda x: x.to(dtype).clone(), torch.ones(20), x)
    assert torch.equal(y, x.to(dtype)) and not any(map(callable, parts))
    if dtype == torch.bool:
        return

    def f(x: Tensor) -> Tensor:
        x = x.to(dtype)
        return torch.where(
            x >= 1, (x + x * x).clamp(min=-4), torch.maximum(-x, x.abs() - 2)
        ).float()

    y, _ = replayed(f, torch.ones(20), x)
    assert torch.equal(y, f(x))


EDGES = [0.0, 0.5, -0.5, 3.0, 80.0, 86.9, 87.1, 88.5, 88.7, 88.8, 200.0, -80.0, -86.0, 3.2e38]
EDGES += [-3.2e38, math.inf, -math.inf, math.nan]


@pytest.mark.parametrize(
    "f",
    [
        torch.exp,
        torch.relu,
        torch.sigmoid,
        torch.tanh,
        torch.abs,
        lambda x: x.clamp(min=0),
        lambda x: x.clamp(max=1),
        lambda x: torch.maximum(x, x.flip(0)),
        lambda x: torch.minimum(x, x.flip(0)),
        lambda x: torch.maximum(x.double(), x.double().flip(0)),
        lambda x: torch.stack((x, x.flip(0)), 1).amax(1),
        lambda x: x.repeat(2).amax(0),
        lambda x: x[:-1].repeat(2).amax(0),
        lambda x: x > 0.1,
    ],
    ids=lambda f: getsource(f).strip() if f.__name__ == "<lambda>" else f.__name__,
)
def test_values_at_the_edges(f) -> None:
    """Where float32 ends, at infinities, and a number that is none: in whole vectors, and in the
    rest."""
    for extra in ([], [0.1] * 15):
        x = torch.tensor(EDGES + extra)
        y, parts = replayed(f, torch.zeros_like(x), x)
        assert parts[-1]  # the last operation is C++'s
        assert_close(y, f(x), rtol=1e-6, atol=1e-30, equal_nan=True)


def test_exp_has_all_digits() -> None:
    x = torch.linspace(-87, 88.7, 10_001)
    y, _ = replayed(torch.exp, torch.zeros_like(x), x)
    assert ((y.double() / x.double().exp() - 1).abs() < 4e-7).all()


def test_an_index_counts_from_the_end_too() -> None:
    table = torch.rand(5, 3)
    index = torch.tensor([-1, 0, -5, 4])
    y, parts = replayed(lambda index: table[index], torch.zeros(4, dtype=torch.long), index)
    assert torch.equal(y, table[index]) and not any(map(callable, parts))
    for outside in (-6, 5):
        with pytest.raises(IndexError):
            replayed(lambda i: table[i], index, torch.tensor([0, 1, outside, 2]))


def test_a_step_that_reads_a_number_is_refused() -> None:
    x = torch.rand(3)
    recorder = Recorder()
    with pytest.raises(Unrecordable, match="a number is read"), torch.no_grad(), recorder:
        recorder.follow(x)
        float(x.sum())


# ---- caches


@torch.inference_mode()
def test_a_cache_grows_in_place_and_keeps_its_past() -> None:
    past = torch.randn(1, 1, 3, 2)
    first = append(past, torch.ones(1, 1, 1, 2))
    kept = first.clone()
    one = append(first, torch.full((1, 1, 1, 2), 2.0))
    other = append(first, torch.full((1, 1, 1, 2), 3.0))
    assert one.data_ptr() == first.data_ptr() != other.data_ptr()
    assert torch.equal(first, kept) and torch.equal(one[:, :, :4], kept)
    assert one[0, 0, 4, 0] == 2 and other[0, 0, 4, 0] == 3
    for _ in range(100):  # more than there is room for
        one = append(one, torch.randn(1, 1, 1, 2))
    assert torch.equal(one[:, :, :4], kept) and one[0, 0, 4, 0] == 2
    chunk = append(one, torch.randn(1, 1, 5, 2))
    assert chunk.untyped_storage().nbytes() == 4 * chunk.numel()


def test_a_model_in_float64_is_read_as_before() -> None:
    model = build("gru", vocab_size=5, dim=8, n_layers=1).double()
    with ops.recording() as forms:
        list(generate(model, torch.zeros(1, 1, dtype=torch.long), max_tokens=20))
    assert "step prepared" not in forms
