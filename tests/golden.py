"""Small cases whose weights and inputs are sines, so that no random generator has to stay the same:
what we make of them, and the numbers that other people's implementations made, or the equations of
the paper where there is none (Mamba-3). They are in golden.json, which `tests/oracles` writes."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import seqzoo
from seqzoo.mixers.deltaproduct import DeltaProduct
from seqzoo.mixers.gated_deltanet import GatedDeltaNet
from seqzoo.mixers.hgrn2 import HGRN2
from seqzoo.mixers.kda import KimiDeltaAttention
from seqzoo.mixers.mamba2 import Mamba2
from seqzoo.mixers.mamba3 import Mamba3
from seqzoo.mixers.minimal import MinGRU, MinLSTM
from seqzoo.mixers.mlstm import MLSTM
from seqzoo.mixers.retention import Retention
from seqzoo.mixers.rglru import RGLRU
from seqzoo.mixers.slstm import SLSTM
from seqzoo.ops.attention import forgetting_attention
from seqzoo.ops.matrix_state import matrix_state

FILE = Path(__file__).with_name("golden.json")
B, T = 1, 40
MODELS = {
    **{
        f"rwkv{version}": (
            f"rwkv{version}",
            {"dim": 64, "n_layers": 2, **({"n_heads": 1} if version > 4 else {})},
        )
        for version in (4, 5, 6, 7)
    },
    "llama": (
        "transformer",
        {"dim": 32, "n_layers": 2, "n_kv_heads": 2, "norm": "rms", "activation": "swiglu"},
    ),
    "gpt2": ("transformer", {"dim": 32, "n_layers": 2, "position": "learned"}),
}
MIXERS = {
    "mamba2": lambda: Mamba2(dim=16, n_heads=4, expand=2, state_size=6),
    "mingru": lambda: MinGRU(dim=12, expand=2),
    "minlstm": lambda: MinLSTM(dim=12, expand=2),
    "hgrn2": lambda: HGRN2(dim=12, n_heads=2, layer=1, n_layers=3),
    "rglru": lambda: RGLRU(dim=12, n_heads=2, expand=2, n_layers=1),
    "mamba3": lambda: Mamba3(dim=12, n_heads=2, expand=2, state_size=8, rotary="half"),
    "gated_deltanet": lambda: GatedDeltaNet(
        dim=16, n_heads=2, n_layers=1, expand_v=2, beta_max=2.0
    ),
    "kda": lambda: KimiDeltaAttention(dim=16, n_heads=2, n_layers=1, beta_max=1.0),
    "deltaproduct": lambda: DeltaProduct(
        dim=16, n_heads=2, n_layers=1, steps=2, gated=True, beta_max=2.0
    ),
    "mlstm": lambda: MLSTM(dim=12, n_heads=2, input_gate="exp", n_layers=1),
    "slstm": lambda: SLSTM(dim=12, n_heads=2, forget_gate="sigmoid", layer=0, n_layers=1),
}
OPERATIONS = ("linear_attention", "retention", "gla", "delta_rule", "forgetting_attention")


def wave(*shape: int, phase: float = 0.0) -> Tensor:
    return torch.sin(torch.arange(torch.Size(shape).numel()) * 1.7 + phase).view(shape)


@torch.no_grad()
def fill(module: nn.Module) -> nn.Module:
    """Every parameter a sine, its phase by the order of names."""
    for i, (_, parameter) in enumerate(sorted(module.named_parameters())):
        parameter.copy_(0.3 * wave(*parameter.shape, phase=i))
    return module


def mixer(case: str) -> nn.Module:
    """One of MIXERS, with sines for weights; theirs of the minimal ones have no biases."""
    made = fill(MIXERS[case]())
    for name, parameter in made.named_parameters():
        if case.startswith("min") and name in ("project.bias", "out.bias"):
            nn.init.zeros_(parameter)
    return made


def mixer_input(made: nn.Module) -> Tensor:
    """(B, T, D) for a mixer whose output is (B, T, D)."""
    return wave(B, T, made.out.out_features if hasattr(made, "out") else len(made.norm))


def tokens() -> Tensor:
    return torch.arange(T)[None] * 37 % 256


def excerpt(y: Tensor) -> Tensor:
    """Some numbers of (1, T, D): the first six of three tokens."""
    return y[0, [0, T // 2, T - 1], :6].flatten()


def operands() -> dict[str, Tensor]:
    """q, k, v, gates and rates, (1, 2, T, ..)."""
    q, k, v, g = (wave(B, 2, T, size, phase=i) for i, size in enumerate((8, 8, 6, 8)))
    rate = wave(B, 2, T, 1, phase=9).sigmoid()
    return {"q": q, "k": F.normalize(k, dim=-1), "v": v, "log_w": F.logsigmoid(g), "rate": rate}


@torch.no_grad()
def ours(case: str) -> Tensor:
    if case in MODELS:
        name, keys = MODELS[case]
        return excerpt(fill(seqzoo.build(name, vocab_size=256, **keys))(tokens())[0])
    if case in MIXERS:
        made = mixer(case)
        return excerpt(made(mixer_input(made))[0])
    x = operands()
    q, k, v, S = x["q"] * 8**-0.5, x["k"], x["v"], torch.zeros(B, 2, 8, 6)
    if case == "retention":
        y, _ = matrix_state(q, k, v, S, Retention(dim=16, n_heads=2, n_layers=1).decay[None])
    elif case == "forgetting_attention":
        y, *_ = forgetting_attention(x["q"], k, v, x["log_w"][..., :1], None)
    elif case == "gla":
        y, _ = matrix_state(q, k, v, S, x["log_w"])
    elif case == "delta_rule":
        y, _ = matrix_state(q, x["rate"] * k, v, S, a=-x["rate"] * k, b=k)
    else:
        y, _ = matrix_state(q, k, v, S)
    return excerpt(y[:, 0])


def recorded() -> dict[str, list[float]]:
    return dict(json.loads(FILE.read_text()))
