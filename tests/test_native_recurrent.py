"""The kernels of RNN, LSTM and GRU against the definition: values and every gradient."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from seqzoo import ops
from seqzoo.ops.native import available
from seqzoo.ops.recurrent import recurrent

pytestmark = pytest.mark.skipif(not available(torch.zeros(1), 1), reason="no C++ compiler")
every_cell = pytest.mark.parametrize("kind", (nn.RNN, nn.GRU, nn.LSTM))


def run(
    form: str, cell: nn.RNNBase, x: Tensor, state: list[Tensor], used: slice = slice(None)
) -> list[Tensor]:
    """The outputs, and the gradients of a mixture of those in `used` by all that goes in."""
    into = [t.clone().requires_grad_() for t in (x, *state)]
    with ops.backend(form):
        out = list(recurrent(cell, *into))
    random = torch.Generator().manual_seed(1)
    mixture = sum(
        (torch.randn(o.shape, generator=random, dtype=o.dtype) * o).sum() for o in out[used]
    )
    return [*out, *torch.autograd.grad(mixture, [*into, *cell.parameters()])]


def example(
    kind: type[nn.RNNBase], B: int, T: int, D: int, dtype: torch.dtype
) -> tuple[nn.RNNBase, Tensor, list[Tensor]]:
    torch.manual_seed(0)
    cell = kind(D, D, batch_first=True).to(dtype)
    state = [torch.randn(B, D, dtype=dtype) for _ in range(2 if kind is nn.LSTM else 1)]
    return cell, torch.randn(B, T, D, dtype=dtype), state


@every_cell
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=str)
@pytest.mark.parametrize(
    ("B", "T", "D"),
    ((1, 1, 5), (3, 2, 16), (2, 33, 48), (17, 33, 5), (17, 16, 40), (3, 65, 20)),
    ids=str,
)
def test_native_is_the_definition(
    kind: type[nn.RNNBase], dtype: torch.dtype, B: int, T: int, D: int
) -> None:
    given = example(kind, B, T, D, dtype)
    for one, other in zip(run("native", *given), run("naive", *given), strict=True):
        error = (one - other).abs().max() / max(1.0, float(other.detach().abs().max()))
        assert error < (1e-12 if dtype == torch.float64 else 5e-6)


@pytest.mark.parametrize(
    ("T", "dtype", "form"),
    [
        (16, torch.float32, "lstm native"),
        (17, torch.float32, "lstm torch"),
        (17, torch.float64, "lstm native"),
    ],
)
def test_the_form_of_an_lstm(T: int, dtype: torch.dtype, form: str) -> None:
    cell, x, state = example(nn.LSTM, 2, T, 8, dtype)
    with ops.recording() as forms:
        recurrent(cell, x, *state)
    assert forms == {form}
    if dtype == torch.float32:
        with ops.recording() as forms, torch.autocast("cpu", torch.bfloat16):
            recurrent(cell, x, *state)
        assert forms == {"lstm native"}


@every_cell
@pytest.mark.parametrize("used", (slice(0, 1), slice(1, 2), slice(-1, None)), ids=str)
def test_outputs_that_nothing_reads(kind: type[nn.RNNBase], used: slice) -> None:
    given = example(kind, 3, 7, 8, torch.float64)
    assert_close(run("native", *given, used=used), run("naive", *given, used=used))


@every_cell
def test_any_strides(kind: type[nn.RNNBase]) -> None:
    cell, x, state = example(kind, 3, 7, 8, torch.float64)
    apart = x.transpose(0, 1).contiguous().transpose(0, 1)
    rows = [torch.stack((s, s), -1)[..., 0] for s in state]
    assert_close(run("native", cell, apart, rows), run("naive", cell, x, state))


@every_cell
@pytest.mark.parametrize("B", (1, 17))
def test_bfloat16_rounds_no_state(kind: type[nn.RNNBase], B: int) -> None:
    """Under autocast only factors of products are rounded: all is within 1 % of float32."""
    given = example(kind, B, 65, 48, torch.float32)
    expected = run("naive", *given)
    with torch.autocast("cpu", torch.bfloat16):
        result = run("native", *given)
    for one, other in zip(result, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.01 * other.norm()
