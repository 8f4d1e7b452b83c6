"""Attention, norms and the GELU in C++, against the same by torch in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from calls import KERNELS
from seqzoo import ops
from seqzoo.models.zoo import build
from seqzoo.ops import native
from seqzoo.ops.activations import linear_gelu
from seqzoo.ops.attention import causal_attention, full_attention, naive
from seqzoo.ops.cross_entropy import cross_entropy
from seqzoo.ops.local import shift_products
from seqzoo.ops.matrix_state import matrix_state
from seqzoo.ops.norms import naive_norm, norm
from seqzoo.ops.outputs import head_norm

pytestmark = pytest.mark.skipif(not KERNELS, reason="no C++ compiler")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2}


def kernel(name: str, dtype: torch.dtype) -> None:
    if not native.has(name, dtype):
        pytest.skip(f"this CPU has no {name} in {dtype}")


def randn(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def with_gradients(f, inputs: list[Tensor]) -> list[Tensor]:
    """Outputs, and gradients of their sum with fixed weights."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    y = f(*inputs)
    weights = randn(*y.shape, seed=99, dtype=torch.float32).bfloat16()  # the same in every type
    return [y, *torch.autograd.grad(y, inputs, weights.to(y.dtype))]


def check(f, definition, inputs: list[Tensor], tolerance: float) -> None:
    exact = with_gradients(definition, [x.double() for x in inputs])
    for expected, given in zip(exact, with_gradients(f, inputs), strict=True):
        error = (given.double() - expected).abs().max() / expected.abs().max()
        assert error < tolerance


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("T, S", [(7, 7), (64, 64), (70, 201), (300, 300)])
@pytest.mark.parametrize("K, V", [(6, 10), (32, 32), (34, 130), (64, 64)])
def test_causal_attention(dtype, T, S, K, V) -> None:
    """Blocks that are full and that are not, a cache before the queries, and heads of any even
    size."""
    kernel("attention_forward", dtype)
    q = randn(2, T, 3, K, seed=1, dtype=dtype).transpose(1, 2)
    k = randn(2, S, 3, K, seed=2, dtype=dtype).transpose(1, 2)
    v = randn(2, 3, S, V, seed=3, dtype=dtype)
    with ops.recording() as forms:
        check(
            lambda *x: causal_attention(*x) if x[0].dtype == dtype else naive(*x, causal=True),
            lambda *x: naive(*x, causal=True),
            [q, k, v],
            TOLERANCE[dtype],
        )
    assert "attention native" in forms


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_attention_to_valid_keys(dtype) -> None:
    """Some blocks of keys have none that is valid."""
    kernel("attention_forward", dtype)
    q, k, v = (randn(2, 2, 400, 32, seed=i, dtype=dtype) for i in range(3))
    valid = torch.rand(2, 400, generator=torch.Generator().manual_seed(4)) < 0.5
    valid[0, :300], valid[1, 70:] = False, False
    valid[:, 301], valid[:, 0] = torch.tensor([True, False]), torch.tensor([False, True])
    check(
        lambda *x: full_attention(*x, valid),
        lambda *x: naive(*x, causal=False, valid=valid),
        [q, k, v],
        TOLERANCE[dtype],
    )


def test_attention_of_large_scores() -> None:
    """No score overflows, however large."""
    q, k, v = (100 * randn(1, 1, 300, 16, seed=i, dtype=torch.float32) for i in range(3))
    y = causal_attention(q, k, v)
    expected = naive(q.double(), k.double(), v.double(), causal=True)
    assert (y - expected).abs().max() / expected.abs().max() < 1e-2  # a score has 7 digits


def test_heads_of_an_odd_size() -> None:
    """Their numbers do not come in pairs, as the kernel for bfloat16 reads them."""
    q, k, v = (randn(1, 1, 9, 5, seed=i, dtype=torch.bfloat16) for i in range(3))
    with ops.backend("native"):
        y = causal_attention(q, k, v)
    assert torch.equal(y, naive(q, k, v, causal=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [5, 64, 150])
def test_linear_gelu(dtype, width) -> None:
    kernel("gelu_forward", dtype)
    x, weight = (4 * randn(2, 33, 8, seed=1, dtype=dtype)), randn(width, 8, seed=2, dtype=dtype)
    bias = randn(width, seed=3, dtype=dtype)
    inputs = [x, weight, bias]
    check(linear_gelu, lambda x, w, b: F.gelu(F.linear(x, w, b)), inputs, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("form", ["native", "chunked"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("V", [5, 64, 1030])
def test_cross_entropy(dtype, form, smoothing, V) -> None:
    """Of logits that are far apart, over several chunks, with rows that do not count."""
    kernel("cross_entropy_forward", dtype)
    logits = 20 * randn(300, V, seed=1, dtype=dtype)
    targets = torch.randint(V, (300,), generator=torch.Generator().manual_seed(2))
    targets[::3] = -1

    def run(form):
        def loss(x):
            with ops.backend(form):
                return cross_entropy(x, targets, ignore=-1, smoothing=smoothing)

        return loss

    check(run(form), run("naive"), [logits], 5 * TOLERANCE[dtype])  # of numbers up to 80


def test_no_rows() -> None:
    logits = torch.zeros(0, 5)
    assert cross_entropy(logits, torch.zeros(0, dtype=torch.long), ignore=-1, smoothing=0.0) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("D", [5, 16, 70, 384])
def test_norm(dtype, centred, D) -> None:
    x = 3 * randn(4, 37, D, seed=1, dtype=dtype) + 1
    parameters = [randn(D, seed=2 + i, dtype=dtype) for i in range(1 + centred)]

    def apply(form):
        def run(x, weight, bias=None):
            return form(x, weight, bias, 1e-5, centred=centred, product=False)

        return run

    check(apply(norm), apply(naive_norm), [x, *parameters], TOLERANCE[dtype])


def test_the_type_of_a_norm() -> None:
    """Only where products alone read it is it in their type; its gradients are as exact."""
    x, weight, bias = (randn(*s, seed=1, dtype=torch.float32) for s in ((2, 9, 48), (48,), (48,)))
    with torch.autocast("cpu", torch.bfloat16):
        results = {
            product: with_gradients(
                lambda *xs, product=product: norm(*xs, 1e-5, centred=True, product=product),
                [x, weight, bias],
            )
            for product in (False, True)
        }
    assert [results[p][0].dtype for p in (False, True)] == [torch.float32, torch.bfloat16]
    assert torch.equal(results[False][0].bfloat16(), results[True][0])
    for expected, given in zip(results[False][1:], results[True][1:], strict=True):
        assert torch.equal(expected, given)


@pytest.mark.parametrize("block, expected", [("prenorm", True), ("classic", False)])
def test_who_reads_a_norm(block, expected) -> None:
    """After a sum the next sum reads it too."""
    sizes = {"n_layers": 1, "dim": 16, "n_heads": 2}
    model = build("transformer", vocab_size=5, block=block, **sizes)
    assert model.layers[0].norm.product is expected
    assert model.layers[0].channel_norm.product is expected


@pytest.mark.parametrize("name", ["rwkv4", "rwkv6", "rwkv7", "mamba2", "transformer", "gru"])
def test_backward_inside_autocast(name) -> None:
    """Products of a backward pass are in the types of its forward pass."""
    torch.manual_seed(0)
    model = build(name, vocab_size=5, n_layers=1, dim=32)
    tokens = torch.randint(5, (2, 20))
    loss = model(tokens)[0].square().sum()
    expected = torch.autograd.grad(loss, [*model.parameters()], retain_graph=False)
    loss = model(tokens)[0].square().sum()
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(loss, [*model.parameters()])
    for a, b in zip(expected, found, strict=True):
        assert b.dtype == a.dtype
        assert (a - b).abs().max() <= 2e-2 * a.abs().max()  # torch's own products are rounded


@pytest.mark.parametrize("targets", [[1, 7], [-3, 1]])
def test_targets_that_are_no_class(targets) -> None:
    for form in ("native", "chunked"):
        with ops.backend(form), pytest.raises((IndexError, RuntimeError)):
            cross_entropy(torch.zeros(2, 5), torch.tensor(targets), ignore=-1, smoothing=0.0)


def test_nine_mixes() -> None:
    """More than a kernel takes."""
    x, mixes = randn(2, 9, 20, seed=1, dtype=torch.float32), [torch.rand(20) for _ in range(9)]
    weights = [torch.rand(7, 20) for _ in mixes]
    with ops.backend("naive"):
        expected, _ = shift_products(x, None, mixes, weights)
    for a, b in zip(expected, shift_products(x, None, mixes, weights)[0], strict=True):
        assert torch.equal(a, b)


def test_no_tokens_have_gradients() -> None:
    """A state that no token changes: its gradient goes through."""
    S = torch.randn(1, 2, 8, 8, requires_grad=True)
    q, k, v = (torch.zeros(1, 2, 0, 8, requires_grad=True) for _ in range(3))
    end = matrix_state(q, k, v, S)[1]
    weights = torch.randn_like(end)
    assert torch.equal(torch.autograd.grad((weights * end).sum(), S)[0], weights)


def test_a_nan_stays_in_its_token() -> None:
    y = torch.randn(1, 1, 4, 5)
    y[0, 0, 1] = float("nan")
    out = head_norm(y, None, None, gate=None, eps=1e-5, centred=True)
    assert out.isnan().any(-1)[0].tolist() == [False, True, False, False]


def test_head_norm_is_in_the_type_of_its_gate() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        out = head_norm(
            torch.randn(1, 2, 3, 4),
            None,
            None,
            gate=torch.ones(1, 3, 8, dtype=dtype),
            eps=1e-5,
            centred=True,
        )
        assert out.dtype == dtype


def test_parameters_need_no_gradient_without_gradients() -> None:
    """So that an evaluation does not keep what only training reads."""

    class Needs(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, number):
            found.append(any(ctx.needs_input_grad))
            return x * number

        @staticmethod
        def backward(ctx, of_y):
            return of_y, None

    parameter, found = torch.nn.Parameter(torch.ones(3)), []
    native.run(Needs, parameter, 2)
    with torch.no_grad():
        native.run(Needs, parameter, 2)
    with torch.inference_mode():
        native.run(Needs, parameter, 2)
    assert found == [True, False, False]
