"""The delta family against fla-core's naive forms (the operation, DeltaProduct) and the layers of
`transformers` (Gated DeltaNet, KDA): values, and gradients of inputs and weights."""

import pytest
import torch
import torch.nn.functional as F
from delta_family import their_deltaproduct, their_gated_deltanet, their_kda
from test_oracles import DELTA_PRODUCT, close, everywhere, fla, moved, same, seeded
from torch import Tensor

from seqzoo.mixers.deltaproduct import DeltaProduct
from seqzoo.mixers.gated_deltanet import GatedDeltaNet
from seqzoo.mixers.kda import KimiDeltaAttention
from seqzoo.ops.delta_net import delta_net

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]  # of theirs
H, K, V = 2, 8, 5


def projections(B: int, T: int, seed: int, decays: int) -> list[Tensor]:
    """q, k, v, beta before the sigmoid, the log of the decays, and the first state."""
    torch.manual_seed(seed)
    sizes = H * K, H * K, H * V, H, decays
    drawn = [torch.randn(B, T, size) for size in sizes] + [torch.randn(B, H, K, V)]
    drawn[4] = -drawn[4].exp()
    return [x.requires_grad_() for x in drawn]


@everywhere
@seeded
@pytest.mark.parametrize("beta_max", (1.0, 2.0))
@pytest.mark.parametrize("decay", ("head", "channel"))
def test_operation(B: int, T: int, seed: int, beta_max: float, decay: str) -> None:
    inputs = projections(B, T, seed, H if decay == "head" else H * K)
    q, k, v, beta, log_w, S = inputs
    ours, ours_S = delta_net(torch.cat((q, k, v), 2), beta, S, log_w, beta_max=beta_max)
    heads = [F.silu(x).unflatten(2, (H, -1)) for x in (q, k, v)]
    heads[:2] = (F.normalize(x, dim=-1) for x in heads[:2])
    more = {"beta": beta_max * beta.sigmoid(), "initial_state": S, "output_final_state": True}
    if decay == "head":
        naive = fla("gated_delta_rule/naive").naive_recurrent_gated_delta_rule
        theirs, their_S = naive(*heads, g=log_w, **more)
    else:
        naive = fla("kda/naive").naive_recurrent_kda
        theirs, their_S = naive(*heads, g=log_w.unflatten(2, (H, K)), **more)
    close(ours_S, their_S)
    same(ours, theirs.transpose(1, 2), *inputs)


@everywhere
@seeded
@pytest.mark.parametrize("beta_max", (1.0, 2.0))
def test_gated_deltanet(B: int, T: int, seed: int, beta_max: float) -> None:
    keys = {"dim": 16, "n_heads": 2, "n_layers": 1, "expand_v": 2}
    ours = moved(GatedDeltaNet(**keys, beta_max=beta_max), seed, 0.3)
    x = torch.randn(B, T, 16, requires_grad=True)
    same(ours(x)[0], their_gated_deltanet(ours)(x), x, *ours.parameters())


@everywhere
@seeded
def test_kda(B: int, T: int, seed: int) -> None:
    keys = {"dim": 16, "n_heads": 2, "n_layers": 1, "beta_max": 1.0}
    ours = moved(KimiDeltaAttention(**keys), seed, 0.3)
    x = torch.randn(B, T, 16, requires_grad=True)
    same(ours(x)[0], their_kda(ours)(x), x, *ours.parameters())


@everywhere
@seeded
@pytest.mark.parametrize("steps", (1, 2, 3))
@pytest.mark.parametrize("gated", (False, True))
@pytest.mark.parametrize("beta_max", (1.0, 2.0))
def test_deltaproduct(B: int, T: int, seed: int, steps: int, gated: bool, beta_max: float) -> None:
    keys = {"dim": 16, "n_heads": 2, "n_layers": 1, "steps": steps, "gated": gated}
    ours = moved(DeltaProduct(**keys, beta_max=beta_max), seed, 0.3)
    x = torch.randn(B, T, 16, requires_grad=True)
    theirs = their_deltaproduct(ours, fla(DELTA_PRODUCT).naive_recurrent_gated_delta_product)
    same(ours(x)[0], theirs(x), x, *ours.parameters())
