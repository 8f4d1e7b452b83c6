"""mLSTM and sLSTM: the definitions against the paper's equations without a stabiliser, the kernels
against the definitions, and gates of any size."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from calls import KERNELS, built
from seqzoo import ops
from seqzoo.errors import UserError
from seqzoo.mixers.mlstm import MLSTM
from seqzoo.mixers.slstm import SLSTM
from seqzoo.ops.mlstm import Gates, Memory, block_product, mlstm
from seqzoo.ops.slstm import Cell, slstm
from seqzoo.ops.watch import watching

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}
needs_kernels = pytest.mark.skipif(not KERNELS, reason="no C++ compiler")


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def mlstm_inputs(B: int, T: int, H: int, K: int, dtype: torch.dtype, size: float) -> list[Tensor]:
    """mixed, x, log i, log f, C, n, m and the blocks; gates of about e^size."""
    log_f = F.logsigmoid(size * randn(B, T, H, seed=3))
    made = (
        randn(B, T, H * K),
        randn(B, T, H * K, seed=1),
        size * randn(B, T, H, seed=2),
        log_f,
        randn(B, H, K, K, seed=4),
        randn(B, H, K, seed=5),
        randn(B, H, seed=6),
        randn(3, H * K // 4, 4, 4, seed=7),
    )
    return [x.to(dtype) for x in made]


def run_mlstm(
    mixed: Tensor, x: Tensor, i: Tensor, f: Tensor, C: Tensor, n: Tensor, m: Tensor, W: Tensor
) -> list[Tensor]:
    y, memory = mlstm(mixed, x, Gates(i, f), Memory(C, n, m.detach()), W)
    return [y, *memory[:2]]


def slstm_inputs(B: int, T: int, H: int, K: int, dtype: torch.dtype, size: float) -> list[Tensor]:
    """Both inputs, R, the bias, h, c, n and m; sums of gates of about `size`."""
    shapes = (H, B, T, 2 * K), (H, B, T, 2 * K), (H, 4 * K, K), (H, 4 * K), *[(B, H, K)] * 4
    made = [randn(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    made[0], made[2] = size * made[0], made[2] * K**-0.5
    made[6] = 1 + made[6].abs()
    return [x.to(dtype) for x in made]


def run_slstm(of_i_f: Tensor, of_z_o: Tensor, R: Tensor, bias: Tensor, *cell: Tensor) -> list:
    y, after = slstm((of_i_f, of_z_o), R, bias, Cell(*cell[:3], cell[3].detach()), False)
    return [y, *after[:3]]


def outputs_and_gradients(run, inputs: list[Tensor], form: str) -> list[Tensor]:
    """The outputs, and the gradients of a mixture of them by all inputs."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    with ops.backend(form):
        out = run(*inputs)
    mixture = sum((randn(*o.shape, seed=9).to(o.dtype) * o).sum() for o in out)
    given = torch.autograd.grad(mixture, inputs, allow_unused=True)
    return [*out, *(g for g in given if g is not None)]


@needs_kernels
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size", (1.0, 30.0))
@pytest.mark.parametrize(
    ("B", "T", "H", "K"), ((1, 1, 1, 4), (3, 70, 2, 12), (2, 65, 3, 32), (17, 33, 1, 20)), ids=str
)
@pytest.mark.parametrize(
    ("run", "inputs"), ((run_mlstm, mlstm_inputs), (run_slstm, slstm_inputs)), ids=("m", "s")
)
def test_native_is_the_definition(run, inputs, B, T, H, K, size, dtype) -> None:
    given = inputs(B, T, H, K, dtype, size)
    expected = outputs_and_gradients(run, [x.double() for x in given], "naive")
    result = outputs_and_gradients(run, given, "native")
    allowed = TOLERANCE[dtype] * (10 * size if size > 1 else 1)  # large gates have fewer digits
    for one, other in zip(result, expected, strict=True):
        one, other = one.detach().double(), other.detach()
        assert (one - other).norm() <= allowed * max(1.0, float(other.norm()))


def test_mlstm_is_the_papers() -> None:
    """Eq. 19 to 27, as they are, without a stabiliser."""
    B, T, H, K = 2, 30, 2, 8
    mixed, x, log_i, log_f, *_, blocks = mlstm_inputs(B, T, H, K, torch.float64, 1.0)
    q, k, v = (
        block_product(z, W).unflatten(2, (H, K)).transpose(1, 2)
        for z, W in zip((mixed, mixed, x), blocks, strict=True)
    )
    W = torch.block_diag(*blocks[0])
    assert_close(q.transpose(1, 2).flatten(2), mixed @ W.T)
    C, n = torch.zeros(B, H, K, K, dtype=torch.float64), torch.zeros(B, H, K, dtype=torch.float64)
    memory = Memory(C, n, torch.zeros(B, H, dtype=torch.float64))
    expected = []
    for t in range(T):
        i, f = log_i[:, t, :, None].exp(), log_f[:, t, :, None].exp()
        key = k[:, :, t] / K**0.5
        C = f[..., None] * C + (i * key)[..., None] * v[:, :, t, None]
        n = f * n + i * key
        along = (n * q[:, :, t]).sum(-1, keepdim=True).abs()
        expected.append((q[:, :, t, None] @ C)[:, :, 0] / along.clamp(min=1))
    expected_y = torch.stack(expected, 2)
    for form in built("naive", "parallel", "native"):
        with ops.backend(form), watching() as calls:
            y, after = mlstm(mixed, x, Gates(log_i, log_f), memory, blocks)
        assert_close(y, expected_y)
        scale = after.m.exp()
        assert_close(after.C * scale[..., None, None], C)
        assert_close(after.n * scale[..., None], n)
        assert_close(calls[0]() @ v[0], y[0])


def test_slstm_is_the_papers() -> None:
    """Eq. 8 to 14, as they are, without a stabiliser."""
    H, B, T, K = 2, 3, 20, 5
    of_i_f, of_z_o, R, bias, *_ = slstm_inputs(B, T, H, K, torch.float64, 1.0)
    zeros = torch.zeros(B, H, K, dtype=torch.float64)
    start = Cell(*[zeros] * 4).initial()
    c = n = h = zeros.transpose(0, 1)
    expected = []
    for t in range(T):
        sums = torch.cat((of_i_f[:, :, t], of_z_o[:, :, t]), -1) + h @ R.mT + bias[:, None]
        i, f, z, o = sums.chunk(4, -1)
        c = f.sigmoid() * c + i.exp() * z.tanh()
        n = f.sigmoid() * n + i.exp()
        h = o.sigmoid() * c / n
        expected.append(h)
    for form in built("naive", "native"):
        with ops.backend(form):
            y, after = slstm((of_i_f, of_z_o), R, bias, start, False)
        assert_close(y.permute(2, 0, 1, 3), torch.stack(expected, 2))
        assert_close((after.c * after.m.exp()).transpose(0, 1), c)


@pytest.mark.parametrize("form", built("naive", "parallel", "native"))
def test_gates_of_any_size(form: str) -> None:
    """Input gates of e^400 and of e^-400, in float32, over a long text: nothing overflows, and what
    follows a gate of e^400 is its value."""
    B, T, H, K = 1, 3000, 1, 4
    mixed, x, log_i, log_f, *_, blocks = mlstm_inputs(B, T, H, K, torch.float32, 1.0)
    zeros = torch.zeros(B, H, K, K), torch.zeros(B, H, K), torch.zeros(B, H)
    log_i, log_f = torch.full_like(log_i, -400), torch.full_like(log_f, -0.001)
    log_i[:, 1000] = 400
    with ops.backend(form):
        y, memory = mlstm(mixed, x, Gates(log_i, log_f), Memory(*zeros), blocks)
    assert y.isfinite().all() and memory.C.isfinite().all()
    assert not y[:, :, :1000].abs().max() > 1e-30
    value, k = block_product(x, blocks[2])[0, 1000], block_product(mixed, blocks[1])[0, 1000] / 2
    sure = (block_product(mixed, blocks[0])[0, 1000:] @ k).abs() > 0.1
    y = y[0, 0, 1000:][sure]
    assert_close(y.abs(), value.abs().expand(y.shape), rtol=5e-3, atol=1e-4)
    # C e^m is as it should be, however m was rounded on the way
    scale = memory.m.double() - (400 - 0.001 * 1999)
    assert_close(memory.n[0, 0] * scale[0].exp().float(), k, rtol=1e-3, atol=0)


@needs_kernels
@pytest.mark.parametrize("B", (1, 17))
def test_slstm_rounds_no_state(B: int) -> None:
    """Under autocast only factors of products are rounded: all is within 1 % of float32."""
    torch.manual_seed(0)
    mixer = SLSTM(dim=64, n_heads=2, forget_gate="sigmoid", layer=0, n_layers=1)
    torch.nn.init.normal_(mixer.recurrent, std=0.1)
    x = torch.randn(B, 65, 64)

    def run(narrow: bool) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            y, state = mixer(x)
        return [y, *state.cell, *torch.autograd.grad(y.square().sum(), list(mixer.parameters()))]

    for one, other in zip(run(True), run(False), strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.015 * other.norm()


@pytest.mark.parametrize(("dim", "nearest"), ((12, 8), (6, 8), (1, 8)))
def test_heads_are_whole_blocks(dim: int, nearest: int) -> None:
    said = f"2 * dim ({2 * dim}) / n_heads (4) must be a multiple of 4: try dim={nearest}"
    with pytest.raises(UserError, match=re.escape(said)):
        MLSTM(dim=dim, n_heads=4, input_gate="exp", n_layers=1)
