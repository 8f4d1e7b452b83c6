"""The delta family against its papers' equations, as matrices."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from seqzoo.errors import UserError
from seqzoo.mixers.delta import Decay
from seqzoo.mixers.deltanet import DeltaNet
from seqzoo.mixers.deltaproduct import DeltaProduct
from seqzoo.mixers.gated_deltanet import GatedDeltaNet
from seqzoo.ops import rwkv7
from seqzoo.ops.delta_net import delta_net
from test_definitions import randn
from test_native import rwkv7_inputs

SIZES = {"dim": 12, "n_heads": 2, "n_layers": 1}


@pytest.mark.parametrize("beta_max", (1.0, 2.0))
@pytest.mark.parametrize("channels", (1, 4))
def test_a_decay_comes_before_the_delta_rule(channels: int, beta_max: float) -> None:
    """Gated DeltaNet, eq. 10, and Kimi Delta Attention, eq. 1, as written: the state, keys by
    values, is multiplied by (I - beta k k^T) diag(alpha)."""
    K, V, T = 4, 3, 6
    qkv, beta = randn(1, T, 2 * K + V), randn(1, T, 1, seed=1)
    alpha = randn(1, T, channels, seed=2).sigmoid()
    S, ys = randn(K, V, seed=3), []
    y, end = delta_net(qkv, beta, S[None, None], alpha.log(), beta_max=beta_max)
    for t in range(T):
        q, k, v = F.silu(qkv[0, t]).split([K, K, V])
        q, k = q / q.norm(), k / k.norm()
        rate = beta_max * beta[0, t].sigmoid()
        transition = torch.eye(K, dtype=q.dtype) - rate * torch.outer(k, k)
        S = transition @ torch.diag(alpha[0, t].expand(K)) @ S + rate * torch.outer(k, v)
        ys.append(q @ S / K**0.5)
    assert_close(y[0, 0], torch.stack(ys))
    assert_close(end[0, 0], S)


@pytest.mark.parametrize("steps", (1, 2, 4))
@pytest.mark.parametrize("gated", (False, True))
def test_a_token_multiplies_by_a_product_of_householder_matrices(steps: int, gated: bool) -> None:
    """DeltaProduct, section 3: A = alpha prod_j (I - beta_j k_j k_j^T), the last step leftmost."""
    f = DeltaProduct(**SIZES | {"n_heads": 1}, steps=steps, gated=gated, beta_max=2.0).double()
    x = randn(1, 5, 12)
    _, (_, before) = f(x[:, :4])
    _, (_, after) = f(x)
    qkv = F.conv1d(f.qkv(x).mT, f.conv[:, None], padding=3, groups=len(f.conv))[0, :, 4]
    _, k, v = F.silu(qkv).split([12, 12 * steps, 12 * steps])
    k, v = F.normalize(k.view(steps, 12), dim=-1), v.view(steps, 12)
    rates = 2 * f.beta(x)[0, 4].sigmoid()
    A, added = torch.eye(12, dtype=x.dtype), torch.zeros(12, 12, dtype=x.dtype)
    if f.decay is not None:
        A = A * f.decay(x)[0, 4].exp()
    for j in range(steps):
        householder = torch.eye(12, dtype=x.dtype) - rates[j] * torch.outer(k[j], k[j])
        A, added = householder @ A, householder @ added + rates[j] * torch.outer(k[j], v[j])
    assert_close(after[0, 0], A @ before[0, 0] + added)


@pytest.mark.parametrize("gated", (False, True))
def test_deltaproduct_of_one_step_is_the_delta_rule(gated: bool) -> None:
    one = DeltaProduct(**SIZES, steps=1, gated=gated, beta_max=1.5)
    other = (
        GatedDeltaNet(**SIZES, expand_v=1, beta_max=1.5)
        if gated
        else DeltaNet(**SIZES, beta_max=1.5)
    )
    other.load_state_dict(one.state_dict())
    x = randn(2, 9, 12).float()
    assert_close(one(x)[0], other(x)[0])


def test_a_decay_is_mamba2s() -> None:
    """alpha = exp(-exp(A) softplus(W x + bias)), at first of speeds from 1e-3 to 0.1, times 1 to
    16."""
    f = Decay(torch.nn.Linear(8, 6, bias=False), n_heads=2, channels=3, least=1)
    first = F.softplus(f.bias)
    assert ((first > 0.99e-3) & (first < 0.101)).all()
    assert ((f.A_log >= 0) & (f.A_log <= torch.tensor(16.0).log())).all()
    x = randn(1, 3, 8).float()
    speed = (1 + (f.project(x) + f.bias).exp()).log().view(1, 3, 2, 3)
    assert_close(f(x).view(1, 3, 2, 3), -speed * f.A_log.exp()[:, None])


@pytest.mark.parametrize("beta_max", (1.0, 1.5, 2.0))
def test_eigenvalues_of_rwkv7(beta_max: float) -> None:
    """Those of what multiplies the state are real, at most 1, and at least (2 - beta_max) w - 1 for
    the smallest w; and near that bound where rates are near 1."""
    inputs = rwkv7_inputs(4, 50, 1, 5, torch.float64, first=True)
    (r, w, k, v, a, gate), S, weights = inputs[:6], inputs[6], inputs[7:14]
    a = torch.cat((a[:2], a[2:] * 0), 0)
    low = [rwkv7.LowRank(x, W) for x, W in zip((w, a, gate), inputs[14:], strict=True)]
    given = rwkv7.Projections(r, low[0], k, v, low[1], low[2], None, None)
    parts = rwkv7.Weights(*weights[:1], weights[1] + 12, *weights[2:], None)
    tokens = rwkv7._tokens(given, S, parts, beta_max)
    w = tokens.log_w.exp()
    A = torch.diag_embed(w) + tokens.a[..., :, None] * tokens.b[..., None, :]
    found = torch.linalg.eigvals(A)
    assert float(found.imag.abs().max()) < 1e-7
    lowest = found.real.amin(-1)
    assert float(found.real.max()) <= 1 + 1e-9
    assert ((2 - beta_max) * w.amin(-1) - 1 <= lowest + 1e-9).all()
    assert (lowest <= (2 - beta_max) * w.amax(-1) - 1 + 1e-3)[2:].all()


@pytest.mark.parametrize("beta_max", (0.5, 2.5))
def test_rates_are_refused_that_would_let_the_state_grow(beta_max: float) -> None:
    with pytest.raises(UserError, match="beta_max=.*a number from 1 to 2"):
        DeltaNet(**SIZES, beta_max=beta_max)
