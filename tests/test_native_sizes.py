"""Every kernel at no rows, at no tokens, and shared out to three threads, against torch's form."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import seqzoo
from calls import KERNELS
from seqzoo import ops
from seqzoo.decoding.step import PreparedStep
from seqzoo.ops import native
from seqzoo.ops.activations import linear_gelu
from seqzoo.ops.attention import Scoring, causal_attention, full_attention
from seqzoo.ops.channel import gate, relu2_product
from seqzoo.ops.cross_entropy import cross_entropy
from seqzoo.ops.delta_net import delta_net
from seqzoo.ops.linear_attention import linear_attention
from seqzoo.ops.linear_scan import linear_scan
from seqzoo.ops.local import causal_conv, shift_products
from seqzoo.ops.matrix_state import matrix_state
from seqzoo.ops.native.program import Recorder
from seqzoo.ops.norms import norm
from seqzoo.ops.outputs import head_norm
from seqzoo.ops.recurrent import recurrent
from seqzoo.ops.rg_lru import rg_lru
from seqzoo.ops.wkv4 import WKVState, wkv4
from seqzoo.training.device import cpu_threads
from test_native import (
    TOLERANCE,
    difference,
    mamba2_inputs,
    randn,
    run_mamba2,
    run_rwkv7,
    rwkv7_inputs,
)
from test_xlstm import mlstm_inputs, run_mlstm, run_slstm, slstm_inputs

pytestmark = pytest.mark.skipif(not KERNELS, reason="no C++ compiler")
H, K, D = 2, 16, 32  # heads, their numbers, channels
dtype = torch.float64
Case = tuple[Callable[..., Any], list[Tensor]]  # an operation, and what it is given


def _rows(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [randn(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]


def of_matrix_state(B: int, T: int) -> Case:
    return matrix_state, _rows(*[(B, H, T, K)] * 3, (B, H, K, K))


def of_delta_rule(B: int, T: int) -> Case:
    q, k, v, S, b, log_w = _rows(*[(B, H, T, K)] * 3, (B, H, K, K), *[(B, H, T, K)] * 2)
    b = nn.functional.normalize(b, dim=-1)

    def run(q, k, v, S, a, b, log_w):
        return matrix_state(q, k, v, S, a=a, b=b, log_w=log_w)

    return run, [q, k / 4, v, S, -0.7 * b, b, -log_w.exp()]


def of_rwkv7(B: int, T: int) -> Case:
    return run_rwkv7, rwkv7_inputs(B, T, H, K, dtype, first=False)


def of_delta_net(B: int, T: int) -> Case:
    inputs = _rows((B, T, H * 3 * K), (B, T, H), (B, H, K, K))
    return lambda *x: delta_net(*x, beta_max=1.0), inputs


def of_mamba2(B: int, T: int) -> Case:
    return run_mamba2, mamba2_inputs(B, T, H, 8, K, dtype)


def of_linear_attention(B: int, T: int) -> Case:
    qkv, S = _rows((B, T, 3 * H * K), (B, H, K, K + 1))
    log_w = torch.full((H,), -0.1, dtype=dtype)
    return lambda *x: linear_attention(*x, log_w), [qkv, S.abs()]


def of_mlstm(B: int, T: int) -> Case:
    return run_mlstm, mlstm_inputs(B, T, H, K, dtype, 1.0)


def of_slstm(B: int, T: int) -> Case:
    return run_slstm, slstm_inputs(B, T, H, K, dtype, 1.0)


def of_head_norm(B: int, T: int) -> Case:
    def run(y, gate):
        return head_norm(y, None, None, gate=gate, eps=1e-3, centred=True)

    return run, _rows((B, H, T, K), (B, T, H * K))


def of_wkv4(B: int, T: int) -> Case:
    r, k, v, w, u, a, b, p = _rows(*[(B, T, D)] * 3, (D,), (D,), *[(B, D)] * 3)

    def run(r, k, v, w, u, *state):
        y, state = wkv4(k, v, w, u, WKVState(*state), r)
        return y, *state

    return run, [r, k, v, -w.exp(), u, a, b.abs() + 1, p]


def of_linear_scan(B: int, T: int) -> Case:
    a, x, h = _rows((B, T, D), (B, T, D), (B, D))
    return linear_scan, [a.sigmoid(), x, h]


def of_rg_lru(B: int, T: int) -> Case:
    return rg_lru, _rows((B, T, D), (H, B, T, 2 * D // H), (D,), (B, D))


def of_shift_products(B: int, T: int) -> Case:
    def run(x, last, m, n, *weights):
        return shift_products(x, last, (m, n), weights)[0]

    return run, _rows((B, T, D), (B, D), (D,), (D,), (7, D), (9, D))


def of_moved_products(B: int, T: int) -> Case:
    def run(x, last, m, n, V, W, moves):
        return shift_products(x, last, (m, n), (V, W), moves)[0]

    return run, _rows((B, T, D), (B, D), (D,), (D,), (7, D), (9, D), (2, B, T, D))


def of_causal_conv(B: int, T: int) -> Case:
    return causal_conv, _rows((B, T, D), (D, 4), (B, 3, D))


def of_gate(B: int, T: int) -> Case:
    return gate, _rows((B, T, D), (B, T, D))


def of_relu2_product(B: int, T: int) -> Case:
    return relu2_product, _rows((B, T, D), (7, D))


def of_attention(B: int, T: int) -> Case:
    return causal_attention, _rows(*[(B, H, T, K)] * 3)


def of_window(B: int, T: int) -> Case:
    def run(q, k, v, sinks):
        return causal_attention(q, k, v, Scoring(window=40, softcap=2.0, sinks=sinks))

    return run, _rows(*[(B, H, T, K)] * 3, (H,))


def of_full_attention(B: int, T: int) -> Case:
    valid = torch.ones(B, 20, dtype=torch.bool)
    valid[:, 13:] = False
    return lambda *x: full_attention(*x, valid), _rows((B, H, T, K), *[(B, H, 20, K)] * 2)


def of_norm(B: int, T: int) -> Case:
    def run(x, weight, bias):
        return norm(x, weight, bias, 1e-5, centred=True, product=False)

    return run, _rows((B, T, D), (D,), (D,))


def of_linear_gelu(B: int, T: int) -> Case:
    return linear_gelu, [x.float() for x in _rows((B, T, 8), (D, 8), (D,))]


def of_cross_entropy(B: int, T: int) -> Case:
    targets = torch.arange(B * T) % D
    targets[::3] = -1
    return lambda x: cross_entropy(x, targets, ignore=-1, smoothing=0.1), _rows((B * T, D))


def _cell(kind: type[nn.RNNBase], B: int, T: int) -> Case:
    torch.manual_seed(0)
    cell = kind(D, D, batch_first=True).to(dtype)
    state = [(B, D)] * (2 if kind is nn.LSTM else 1)
    return lambda *x: recurrent(cell, *x), _rows((B, T, D), *state)


CASES: dict[str, Callable[[int, int], Case]] = {
    **{f.__name__[3:]: f for f in (of_matrix_state, of_delta_rule, of_rwkv7, of_delta_net)},
    **{f.__name__[3:]: f for f in (of_mamba2, of_linear_attention, of_mlstm, of_slstm)},
    **{f.__name__[3:]: f for f in (of_wkv4, of_linear_scan, of_rg_lru, of_moved_products)},
    **{f.__name__[3:]: f for f in (of_shift_products, of_causal_conv, of_head_norm, of_norm)},
    **{f.__name__[3:]: f for f in (of_gate, of_relu2_product, of_linear_gelu)},
    **{f.__name__[3:]: f for f in (of_attention, of_window, of_full_attention, of_cross_entropy)},
    **{kind.__name__: partial(_cell, kind) for kind in (nn.RNN, nn.GRU, nn.LSTM)},
}
REFUSED = ("mamba2", "mlstm", "shift_products", "moved_products")  # no tokens, by every form
UNMOVED = (  # no tokens, by torch's forms: the state stays
    *("matrix_state", "delta_rule", "rwkv7", "delta_net", "linear_attention", "slstm", "wkv4"),
    *("linear_scan", "rg_lru", "RNN", "GRU", "LSTM"),
)
every_case = pytest.mark.parametrize("name", CASES)


def results(case: Case, form: str) -> list[Tensor]:
    """The outputs, and the gradients of a mixture of them by all inputs."""
    run, inputs = case
    inputs = [x.detach().requires_grad_() for x in inputs]
    with ops.backend(form), ops.recording() as forms:
        out = run(*inputs)
    assert any(name.endswith(form) for name in forms)
    out = [out] if isinstance(out, Tensor) else list(out)
    mixture = sum((randn(*y.shape, seed=9, dtype=y.dtype) * y).sum() for y in out)
    given = torch.autograd.grad(mixture, inputs, allow_unused=True)
    pairs = zip(inputs, given, strict=True)
    return [*out, *(torch.zeros_like(x) if g is None else g for x, g in pairs)]


@every_case
def test_no_rows(name: str) -> None:
    case = CASES[name](0, 5)
    assert_close(results(case, "native"), results(case, "naive"))


@pytest.mark.parametrize("name", [name for name in CASES if name not in REFUSED])
def test_no_tokens(name: str) -> None:
    run, inputs = case = CASES[name](16, 0)
    given = results(case, "native")
    if name not in UNMOVED:
        assert_close(given, results(case, "naive"))
        return
    y, *after = given[: -len(inputs)]
    assert not y.numel()
    state = [x for x in inputs if x.numel() and x.shape in {s.shape for s in after}]
    assert_close(after, state[: len(after)])


# ---- three threads


@pytest.fixture
def three_threads() -> Iterator[None]:
    with cpu_threads(3):
        threads = getattr(native.library(), "omp_get_max_threads", lambda: 3)
        assert threads() == 3  # the kernels' threads are torch's
        yield


@every_case
def test_on_three_threads(name: str, three_threads: None) -> None:
    """At sizes of which every kernel gives each thread a part."""
    case = CASES[name](3, 300)
    expected = results(case, "naive")
    for one, other in zip(expected, results(case, "native"), strict=True):
        assert difference(one, other) < TOLERANCE[one.dtype]


@pytest.mark.parametrize("name", ["lstm", "transformer"])
@torch.inference_mode()
def test_a_prepared_step_on_three_threads(name: str, three_threads: None) -> None:
    torch.manual_seed(0)
    model = seqzoo.build(name, vocab_size=300, dim=128, n_layers=2).eval()
    tokens = torch.randint(300, (3, 80))
    _, state = model(tokens[:, :40])
    step = PreparedStep(model, state, 3, 40)
    for t in range(40, 80):
        logits, state = model(tokens[:, t : t + 1], state)
        assert_close(step(tokens[:, t]), logits[:, 0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_bias_that_the_product_before_makes(three_threads: None) -> None:
    """The product that reads it waits for the other."""
    x, first, second = (
        randn(*s, seed=1, dtype=torch.float32) for s in ((1, 512), (512, 700), (512, 700))
    )
    recorder = Recorder()
    with recorder:
        recorder.follow(x)
        bias = x @ first
        y = torch.addmm(bias[0], x, second)
    replay = recorder.finish()
    for seed in range(2, 30):
        x.copy_(randn(1, 512, seed=seed, dtype=torch.float32))
        replay()
        assert_close(y, x @ first + x @ second, rtol=1e-4, atol=1e-3)
