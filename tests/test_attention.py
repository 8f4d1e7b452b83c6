"""Softmax attention within a window and with other scores: forms, state, decoding, cost, and what
is refused."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

import seqzoo
from calls import KERNELS, built
from seqzoo import laws, ops
from seqzoo.decoding.graph import GraphStep
from seqzoo.decoding.step import PreparedStep
from seqzoo.errors import UserError
from seqzoo.models import cost
from seqzoo.models.language_model import LanguageModel
from seqzoo.ops import native
from seqzoo.ops.attention import Scoring, causal_attention, naive
from seqzoo.state import leaves, rebuild, select

FORMS = built("sdpa", "native")


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def model_of(name: str = "transformer", **keys: Any) -> LanguageModel:
    torch.manual_seed(1)
    model = seqzoo.build(name, vocab_size=11, **{"dim": 16, "n_heads": 2, "n_layers": 2, **keys})
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


def values_and_gradients(form: str, inputs: list[Tensor], *more: Any) -> list[Tensor]:
    inputs = [x.detach().requires_grad_() for x in inputs]
    with ops.backend(form):
        y = causal_attention(*inputs, *more)
    weights = randn(*y.shape, seed=99).bfloat16().to(y.dtype)
    return [y, *torch.autograd.grad(y, inputs, weights)]


@pytest.mark.parametrize("form", ("naive", *FORMS))
@pytest.mark.parametrize("T, S, W", [(1, 3, 2), (9, 9, 1), (9, 9, 4), (20, 50, 7), (70, 75, 70)])
def test_a_window_is_the_newest_keys(form: str, T: int, S: int, W: int) -> None:
    q, k, v = (randn(2, 3, n, 8, seed=n + i) for i, n in enumerate((T, S, S)))
    with ops.backend(form):
        y = causal_attention(q, k, v, Scoring(window=W))
    for t in range(T):
        seen = slice(max(0, S - T + t - W + 1), S - T + t + 1)
        weights = (q[:, :, t : t + 1] @ k[:, :, seen].mT / 8**0.5).softmax(-1)
        assert_close(y[:, :, t : t + 1], weights @ v[:, :, seen])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("T, S", [(7, 7), (70, 201), (300, 300), (600, 650)])
@pytest.mark.parametrize("W", [2, 64, 100, 1000])
def test_forms_of_a_window(dtype: torch.dtype, T: int, S: int, W: int) -> None:
    """Blocks of keys before, inside and across the edge of the window; places without a key."""
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}[dtype]
    inputs = [randn(2, 3, n, 34, seed=i, dtype=dtype) for i, n in enumerate((T, S, S))]
    scattered = torch.rand(2, S, generator=torch.Generator().manual_seed(4)) < 0.5
    scattered[:, S - T :] = True
    for valid in (None, scattered):
        more = Scoring(window=W), valid
        exact = values_and_gradients("naive", [x.double() for x in inputs], *more)
        for form in FORMS:
            if form == "native" and not native.has("attention_forward", dtype):
                continue
            for expected, given in zip(
                exact, values_and_gradients(form, inputs, *more), strict=True
            ):
                error = (given.double() - expected).abs().max() / expected.abs().max()
                assert error < tolerance


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("T, S", [(7, 7), (70, 201), (300, 300)])
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize(
    "softcap, sinks, gates", [(5.0, 0, 0), (None, 1, 0), (None, 0, 1), (5.0, 1, 1)]
)
def test_forms_of_scores(
    dtype: torch.dtype,
    T: int,
    S: int,
    window: int | None,
    softcap: float | None,
    sinks: bool,
    gates: bool,
) -> None:
    """A cap, sinks and forget gates, alone and together, and their gradients."""
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}[dtype]
    given = [randn(2, 3, n, 34, seed=i, dtype=dtype) for i, n in enumerate((T, S, S))]
    of_scores = [randn(3, seed=4, dtype=torch.float64)] if sinks else []
    if gates:
        of_scores.append(F.logsigmoid(randn(2, 3, S, seed=5, dtype=torch.float64) + 3))

    def attend(q: Tensor, k: Tensor, v: Tensor, *more: Tensor) -> Tensor:
        c = more[-1].double().cumsum(2) if gates else None
        return causal_attention(q, k, v, Scoring(window, softcap, more[0] if sinks else None, c))

    def run(form: str, wide: bool) -> list[Tensor]:
        inputs = [(x.double() if wide else x).detach().requires_grad_() for x in given]
        inputs += [x.detach().requires_grad_() for x in of_scores]
        with ops.backend(form):
            y = attend(*inputs)
        weights = randn(*y.shape, seed=99).bfloat16().to(y.dtype)
        return [y, *torch.autograd.grad(y, inputs, weights)]

    exact = run("naive", wide=True)
    for form in FORMS:
        if form == "native" and not native.has("attention_forward", dtype):
            continue
        for expected, found in zip(exact, run(form, wide=False), strict=True):
            scale = expected.abs().max().clamp(min=1)  # the sums of sinks nearly cancel
            assert (found.double() - expected).abs().max() / scale < tolerance


@pytest.mark.parametrize("cache", (None, "tova:64", "h2o:64:prompt"))
def test_sinks_and_a_cap_change_the_softmax_alone(cache: str | None) -> None:
    """Against the sums written out; a bounded cache that holds everything has the same weights."""
    keys = {"n_layers": 1, "position": "none", "softcap": 1.5, "sinks": True, "cache": cache}
    mixer = model_of(**keys).double().layers[0].mixer
    x = randn(2, 9, 16, seed=1)
    q, k, v = mixer.qkv(x).view(2, 9, 3, 2, 8).transpose(1, 3).unbind(2)
    scores = 1.5 * torch.tanh(q @ k.mT / 8**0.5 / 1.5)
    weights = scores.exp().tril()
    weights = weights / (weights.sum(-1, keepdim=True) + mixer.sinks.exp()[:, None, None])
    assert_close(mixer(x)[0], mixer.out((weights @ v).transpose(1, 2).flatten(2)))


def test_the_first_layer_lends_its_values() -> None:
    model = model_of(n_layers=3, value_residual=True).double()
    first, second, _ = (layer.mixer for layer in model.layers)
    assert first.share is None and second.share is not None
    x = randn(2, 5, 16, seed=1)
    *_, values = first(x)
    *_, handed_on = second(x, None, values)
    assert handed_on is values
    with torch.no_grad():
        second.share.fill_(1.0)
    own = second.qkv.weight[32:].clone()  # of values, which a share of 1 leaves out
    y = second(x, None, values)[0]
    with torch.no_grad():
        second.qkv.weight[32:] = -own
    assert_close(second(x, None, values)[0], y)


def test_a_value_residual_of_one_layer_is_refused() -> None:
    with pytest.raises(UserError, match="model.value_residual=false, or model.n_layers=2"):
        seqzoo.build("transformer", vocab_size=9, n_layers=1, value_residual=True)


def test_blocks_keep_no_scores_of_the_whole_text() -> None:
    """The largest tensor that torch's form keeps for the backward pass grows with T, not T^2."""
    sizes = []

    def size(x: Tensor) -> Tensor:
        sizes[-1] = max(sizes[-1], x.numel())
        return x

    for T in (512, 1024):
        q, k, v = (randn(1, 1, T, 8, seed=i).requires_grad_() for i in range(3))
        sizes.append(0)
        with ops.backend("sdpa"), torch.autograd.graph.saved_tensors_hooks(size, lambda x: x):
            causal_attention(q, k, v, Scoring(window=16))
    assert sizes[1] <= 2 * sizes[0] < 512**2 / 4


def test_the_state_of_a_window_is_bounded() -> None:
    model = model_of(window=6)
    assert not model.state_grows
    sizes = {n: seqzoo.nbytes(model(torch.zeros(1, n, dtype=torch.long))[1]) for n in (1, 5, 40)}
    assert len(set(sizes.values())) == 1
    assert sizes[1] < seqzoo.nbytes(model_of()(torch.zeros(1, 7, dtype=torch.long))[1])


def test_rows_of_different_positions_go_on_together() -> None:
    model = model_of(window=6).double()
    tokens = torch.randint(11, (2, 12), generator=torch.Generator().manual_seed(2))
    states = [model(tokens[i : i + 1, :n])[1] for i, n in enumerate((2, 9))]
    both = [torch.cat(pair) for pair in zip(*map(leaves, states), strict=True)]
    y, after = model(tokens[:, -3:], rebuild(states[0], both))
    for i, state in enumerate(states):
        alone, end = model(tokens[i : i + 1, -3:], state)
        assert_close(y[i : i + 1], alone)
        for expected, given in zip(
            leaves(end), leaves(select(after, torch.tensor([i]))), strict=True
        ):
            assert_close(given, expected)


DECODED = [("transformer", {"window": W}) for W in (1, 3, 8, 64)]
DECODED += [("transformer", {"window": 8, "n_kv_heads": 1, "position": "none"})]
DECODED += [("fox", {}), ("fox", {"pro": True})]
OPTIONS = {"qk_norm": True, "softcap": 2.0, "sinks": True, "value_residual": True}
DECODED += [("transformer", OPTIONS), ("transformer", OPTIONS | {"window": 8, "n_kv_heads": 1})]


@pytest.mark.skipif(not KERNELS, reason="no C++ compiler")
@pytest.mark.parametrize("name, keys", DECODED, ids=str)
@pytest.mark.parametrize("read", (1, 5, 20))
@torch.no_grad()
def test_a_prepared_step_is_the_model(name: str, keys: dict[str, Any], read: int) -> None:
    """From empty, half full and full windows on; rows change places on the way."""
    model = model_of(name, **keys)
    tokens = torch.randint(11, (3, 50), generator=torch.Generator().manual_seed(2))
    state = model(tokens[:, :read])[1]
    step = PreparedStep(model, state, 3, 50)
    for t in range(read, 50):
        if t == 30:
            rows = torch.tensor([2, 0, 0])
            state = select(state, rows)
            step.reorder(rows)
        logits, state = model(tokens[:, t : t + 1], state)
        assert_close(step(tokens[:, t]), logits[:, 0], atol=1e-4, rtol=1e-4)
    for expected, given in zip(leaves(state), leaves(step.state()), strict=True):
        assert_close(given, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_step_of_a_window_can_be_captured() -> None:
    """Its state has one shape, so that a CUDA graph can replay it."""
    model = model_of(window=5)
    tokens = torch.randint(11, (2, 20), generator=torch.Generator().manual_seed(2))
    state = model(tokens[:, :2])[1]

    def again(run: Any, device: torch.device) -> Any:
        run()
        return run

    step = GraphStep(model, state, 2, 18, again)
    for t in range(2, 20):
        logits, state = model(tokens[:, t : t + 1], state)
        assert_close(step(tokens[:, t]), logits[:, 0], atol=1e-5, rtol=1e-5)


def test_a_window_compiles() -> None:
    """torch's form is traced whole, forward and backward."""
    compiled = torch.compile(
        lambda q, k, v: causal_attention(q, k, v, Scoring(window=8)),
        fullgraph=True,
        backend="aot_eager",
    )
    inputs = [randn(2, 2, 40, 8, seed=i).requires_grad_() for i in range(3)]
    y, expected = compiled(*inputs), naive(*inputs, causal=True, scoring=Scoring(window=8))
    assert_close(y, expected)
    for given, exact in zip(
        torch.autograd.grad(y.sum(), inputs),
        torch.autograd.grad(expected.sum(), inputs),
        strict=True,
    ):
        assert_close(given, exact)


def test_flops_of_a_window_are_those_of_its_band() -> None:
    """A head reads and weighs min(t, W) keys of K numbers at token t; the rest is as without."""
    sizes = {"dim": 16, "n_heads": 2, "n_layers": 3}
    for W in (1, 2, 5, 40):
        windowed, full = model_of(window=W, **sizes), model_of(**sizes)
        flops, of_full = cost.flops_of_token(windowed), cost.flops_of_token(full)
        a_key = 3 * 2 * 2 * 16  # layers; a product for the score and one for the value
        for t in (1, 2, 3, 5, 6, 30, 60):
            assert flops.at(t) == of_full.first + a_key * (min(t, W) - 1)
            assert of_full.at(t) == of_full.first + a_key * (t - 1)
            assert cost.step_at(windowed, t)[1] == flops.at(t)
        assert flops.total(60) == sum(flops.at(t) for t in range(1, 61))
        assert cost.flops_of_training(windowed, 60) == 3 * flops.total(60) / 60
        length = 16
        joined = model_of(window=W, architecture="encoder_decoder", **sizes)
        apart = model_of(window=64, architecture="encoder_decoder", **sizes)
        missing = sum(max(0, t - W) for t in range(1, 9)) * a_key
        of_both = (cost.flops_of_training(model, length) for model in (apart, joined))
        assert next(of_both) - next(of_both) == pytest.approx(3 * missing / length)


def test_a_window_with_a_cache_is_refused() -> None:
    with pytest.raises(
        UserError, match="model.window=8 with model.cache=tova:4: .* model.cache=null"
    ):
        seqzoo.build("transformer", vocab_size=9, window=8, cache="tova:4")


def test_a_window_of_a_text_that_is_read_both_ways_is_refused() -> None:
    keys = {"architecture": "classifier", "n_classes": 2, "window": 8, "vocab_size": 9}
    assert seqzoo.build("transformer", bidirectional=False, **keys)
    with pytest.raises(UserError, match="architecture.bidirectional=false, or model.window=null"):
        seqzoo.build("transformer", bidirectional=True, **keys)


def test_options_of_an_encoder_and_its_decoder() -> None:
    keys = OPTIONS | {"window": 3, "architecture": "encoder_decoder"}
    f = laws.example("transformer", **keys)
    x = randn(3, 9, 16, seed=1)
    assert laws.chunk_law(f, x, [3, 4]) <= 1e-9 and laws.definition_law(f, x, "sdpa") <= 1e-9
    f(x)[0].square().sum().backward()
    for layer in f.model.encoder.stacks[0]:
        for name in ("q_norm", "k_norm", "sinks", "share"):
            parameter = getattr(layer.mixer, name)
            assert parameter is None or parameter.grad.abs().max() > 0
