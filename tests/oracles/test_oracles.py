"""Families against implementations that nobody here wrote: values, and gradients of inputs and
weights, to 1e-4 of the largest; by our kernels in float32 and float64, and by the definitions
(conftest.py).

- Whole models, by their values: RWKV-4 to 7, the Transformer as Llama and as GPT-2; of RWKV-4 and
  the Transformer also the gradient of the embedding.
- Whole layers: RNN, LSTM, GRU, attention (window, qk_norm, softcap, sinks), the MLP, Mamba-2,
  minGRU, minLSTM, mLSTM, sLSTM, RG-LRU; in test_delta_oracles.py Gated DeltaNet and KDA.
- The operation, with our projections, gates and norms around it: the linear Transformer, HGRN2,
  FoX, DeltaProduct; the operation alone: RetNet, GLA, DeltaNet.
- Mamba-3 is in no package: it is held to the equations of its paper, written here once more with
  complex numbers.

These need the `oracles` extra (`make test-oracles`).
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from delta_family import eps, their_deltaproduct, their_gated_deltanet, their_kda, tied
from torch import Tensor, nn

import golden
import seqzoo
from seqzoo import ops
from seqzoo.exchange import hf, rwkv
from seqzoo.mixers.attention import CausalAttention
from seqzoo.mixers.fox import ForgettingAttention
from seqzoo.mixers.hgrn2 import HGRN2
from seqzoo.mixers.linear_attention import LinearAttention
from seqzoo.mixers.mamba2 import Mamba2
from seqzoo.mixers.mamba3 import Mamba3
from seqzoo.mixers.minimal import MinGRU, MinLSTM
from seqzoo.mixers.mlp import MLP
from seqzoo.mixers.mlstm import MLSTM
from seqzoo.mixers.recurrent import GRU, LSTM, RNN
from seqzoo.mixers.retention import Retention
from seqzoo.mixers.rglru import RGLRU
from seqzoo.mixers.slstm import SLSTM
from seqzoo.models.language_model import LanguageModel
from seqzoo.ops.attention import causal_attention, forgetting_attention
from seqzoo.ops.matrix_state import matrix_state
from seqzoo.runs.directory import RunDirectory
from seqzoo.runs.run import Run

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]  # of theirs
SIZES = [(1, 7), (2, 33), (3, 130)]  # B, T
SEEDS = (0, 1)
everywhere = pytest.mark.parametrize(("B", "T"), SIZES)
seeded = pytest.mark.parametrize("seed", SEEDS)


def close(given: Tensor, expected: Tensor) -> None:
    assert given.shape == expected.shape
    error = float((given - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    assert error < 1e-4, error  # many of theirs compute in float32 whatever they are given


def moved(model: nn.Module, seed: int, scale: float = 0.1) -> nn.Module:
    """Every parameter moved at random: at their initialisation some families are all zero."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return model


def gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs, retain_graph=True)


# ---- the operation of all matrix states, against fla-core's naive forms


def heads(B: int, T: int, seed: int, *sizes: int) -> list[Tensor]:
    torch.manual_seed(seed)
    return [torch.randn(B, 2, T, size).requires_grad_() for size in sizes]


def same(ours: Tensor, theirs: Tensor, *inputs: Tensor) -> None:
    """Values, and gradients of the same weighted sum."""
    close(ours, theirs)
    weights = torch.randn_like(theirs)
    for one, other in zip(
        gradients((ours * weights).sum(), *inputs),
        gradients((theirs * weights).sum(), *inputs),
        strict=True,
    ):
        close(one, other)


def by_time(*tensors: Tensor) -> list[Tensor]:
    """(B, H, T, ..) as (B, T, H, ..), which is how fla has them."""
    return [tensor.transpose(1, 2) for tensor in tensors]


def fla(name: str) -> Any:
    """A module of fla-core by its file: its packages import Triton, its naive forms need none."""
    from importlib.metadata import files
    from importlib.util import module_from_spec, spec_from_file_location

    (path,) = (p for p in files("fla-core") or () if str(p) == f"fla/ops/{name}.py")
    spec = spec_from_file_location(name.replace("/", "_"), path.locate())
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def zeros(like: Tensor, V: int) -> Tensor:
    B, H, _, K = like.shape
    return like.new_zeros(B, H, K, V)


@everywhere
@seeded
def test_linear_attention(B: int, T: int, seed: int) -> None:
    q, k, v = heads(B, T, seed, 8, 8, 5)
    naive = fla("linear_attn/naive").naive_recurrent_linear_attn
    theirs, _ = naive(*by_time(q, k, v))
    ours, _ = matrix_state(q * 8**-0.5, k, v, zeros(q, 5))
    same(ours, theirs.transpose(1, 2), q, k, v)

    mixer = LinearAttention(
        dim=16,
        n_heads=2,
        feature="elu",
        position="none",
        decay="none",
        normaliser="sum",
        chunk=64,
    )
    x = torch.randn(B, T, 16, requires_grad=True)
    q, k, v = mixer.qkv(x).view(B, T, 3, 2, 8).unbind(2)
    theirs, _ = naive(F.elu(q) + 1, F.elu(k) + 1, v, normalize=True)
    same(mixer(x)[0], mixer.out(theirs.flatten(2)), x, *mixer.parameters())


@everywhere
@seeded
def test_retention(B: int, T: int, seed: int) -> None:
    q, k, v = heads(B, T, seed, 8, 8, 5)
    theirs = fla("retention/naive").naive_retention(q, k, v)
    decay = Retention(dim=16, n_heads=2, n_layers=1).decay
    ours, _ = matrix_state(q * 8**-0.5, k, v, zeros(q, 5), decay[None])
    same(ours, theirs, q, k, v)


@everywhere
@seeded
def test_gated_linear_attention(B: int, T: int, seed: int) -> None:
    q, k, v, g = heads(B, T, seed, 8, 8, 5, 8)
    log_w = F.logsigmoid(g)
    theirs, S = fla("gla/naive").naive_recurrent_gla(
        *by_time(q, k, v, log_w), output_final_state=True
    )
    ours, ours_S = matrix_state(q * 8**-0.5, k, v, zeros(q, 5), log_w)
    close(ours_S, S)
    same(ours, theirs.transpose(1, 2), q, k, v, g)


@everywhere
@seeded
def test_one_decay_a_head(B: int, T: int, seed: int) -> None:
    q, k, v, g = heads(B, T, seed, 8, 8, 5, 1)
    log_w = F.logsigmoid(g)
    theirs, S = fla("simple_gla/naive").naive_recurrent_simple_gla(*by_time(q, k, v, log_w[..., 0]))
    ours, ours_S = matrix_state(q * 8**-0.5, k, v, zeros(q, 5), log_w)
    close(ours_S, S)
    same(ours, theirs.transpose(1, 2), q, k, v, g)


@everywhere
@seeded
def test_delta_rule(B: int, T: int, seed: int) -> None:
    q, k, v, beta = heads(B, T, seed, 8, 8, 5, 1)
    unit, rate = F.normalize(k, dim=-1), beta.sigmoid()
    theirs, S = fla("delta_rule/naive").delta_rule_recurrence(q, unit, v, rate[..., 0])
    ours, ours_S = matrix_state(q * 8**-0.5, rate * unit, v, zeros(q, 5), a=-rate * unit, b=unit)
    close(ours_S, S)
    same(ours, theirs, q, k, v, beta)


@everywhere
@seeded
def test_rwkv6_operation(B: int, T: int, seed: int) -> None:
    q, k, v, g = heads(B, T, seed, 8, 8, 5, 8)
    log_w, u = -g.exp(), torch.randn(2, 8, requires_grad=True)
    naive = fla("rwkv6/recurrent_naive").naive_recurrent_rwkv6
    theirs, S = naive(q, k, v, log_w, u, scale=1.0, output_final_state=True)
    ours, ours_S = matrix_state(q, k, v, zeros(q, 5), log_w, u=u)
    close(ours_S, S)
    same(ours, theirs, q, k, v, g, u)


@everywhere
@seeded
def test_rwkv7_operation(B: int, T: int, seed: int) -> None:
    q, k, v, g, kappa, rate = heads(B, T, seed, 8, 8, 5, 8, 8, 8)
    log_w, unit = -0.6 * g.sigmoid(), F.normalize(kappa, dim=-1)
    a, b = unit * rate.sigmoid(), -unit
    naive = fla("generalized_delta_rule/dplr/naive").dplr_recurrence
    theirs, S = naive(*(x.float() for x in (q, k, v, b, a, log_w)))  # takes nothing wider
    ours, ours_S = matrix_state(q * 8**-0.5, k, v, zeros(q, 5), log_w, a=a, b=b)
    close(ours_S, S)
    same(ours, theirs, q, k, v, g, kappa, rate)


# ---- whole models


def as_run(model: LanguageModel, folder: Path, name: str, **keys: object) -> Run:
    from seqzoo.data.tokenizers import Tokenizer
    from seqzoo.models.zoo import model_keys

    config = {"model": model_keys(name, **keys), "task": {"name": "charlm", "seq_len": 64}}
    directory = RunDirectory(folder / "run")
    directory.path.mkdir(exist_ok=True)
    directory.write_config({**config, "optim": {}, "trainer": {}})
    return Run(directory, model, {"tokenizer": Tokenizer.train("byte", [])})


READ = """
import os, sys
os.environ["RWKV_JIT_ON"], os.environ["RWKV_CUDA_ON"] = "0", "0"
os.environ["RWKV_V7_ON"] = sys.argv[3]
import torch
from rwkv.model import RWKV
model = RWKV(model=sys.argv[1].removesuffix(".pth"), strategy="cpu fp32")
rows = []
for tokens in torch.load(sys.argv[2]).tolist():
    whole, _ = model.forward(tokens, None, full_output=True)
    state, steps = None, []
    for token in tokens:
        logits, state = model.forward([token], state)
        steps.append(logits)
    rows.append(torch.stack((whole, torch.stack(steps))))
torch.save(torch.stack(rows), sys.argv[2])
"""


def rwkv_logits(
    model: LanguageModel, tokens: Tensor, folder: Path, name: str, **keys: Any
) -> Tensor:
    """What the `rwkv` package makes of an exported checkpoint: (B, 2, T, V), read whole and token
    by token."""
    rwkv.export_rwkv(as_run(model, folder, name, **keys), folder / "model.pth")
    torch.save(tokens, folder / "io.pt")
    call = [sys.executable, "-c", READ, folder / "model.pth", folder / "io.pt"]
    done = subprocess.run(
        [*map(str, call), str(int(name == "rwkv7"))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "io.pt")


@pytest.mark.parametrize("version", (4, 5, 6, 7))
@pytest.mark.parametrize(("seed", "dim", "layers"), [(0, 128, 2), (1, 64, 3), (2, 192, 2)])
def test_rwkv_package(version: int, seed: int, dim: int, layers: int, tmp_path: Path) -> None:
    name, keys = f"rwkv{version}", {"dim": dim, "n_layers": layers}
    if version > 4:
        keys["n_heads"] = dim // 64
    model = moved(seqzoo.build(name, vocab_size=256, **keys), seed, 0.02)
    tokens = torch.randint(256, (2, 70))
    theirs = rwkv_logits(model, tokens, tmp_path, name, **keys)
    with torch.no_grad():
        ours, _ = model(tokens)
    close(ours, theirs[:, 0])
    close(ours, theirs[:, 1])


EXPORTED = {
    "rwkv": ("rwkv4", {"dim": 32, "n_layers": 3}),
    "llama": (
        "transformer",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2}
        | {"norm": "rms", "activation": "swiglu"},
    ),
    "gpt2": ("transformer", {"dim": 32, "n_layers": 2, "position": "learned"}),
    "gpt2-tied": (
        "transformer",
        {"dim": 32, "n_layers": 2, "position": "learned", "tie_embeddings": True},
    ),
}


@pytest.mark.parametrize("form", EXPORTED)
@seeded
def test_transformers(form: str, seed: int, tmp_path: Path) -> None:
    """Values and the gradient of the embedding, of what `transformers` loads."""
    from transformers import AutoModelForCausalLM

    name, keys = EXPORTED[form]
    model = moved(seqzoo.build(name, vocab_size=256, **keys), seed)
    assert hf.export_hf(as_run(model, tmp_path, name, **keys), tmp_path / "hf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    tokens = torch.randint(256, (2, 50))
    given = theirs(tokens, use_cache=False).logits
    ours, _ = model(tokens)
    close(ours, given)
    weights = torch.randn_like(given)
    ((given * weights).sum()).backward()
    ((ours * weights).sum()).backward()
    assert model.embedding.weight.grad is not None
    close(model.embedding.weight.grad, theirs.get_input_embeddings().weight.grad)


def their_mamba2(ours: Mamba2) -> Any:
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = Mamba2Config(
        hidden_size=16,
        num_heads=4,
        head_dim=8,
        state_size=6,
        expand=2,
        n_groups=1,
        chunk_size=32,
        use_bias=False,
        use_conv_bias=True,
        layer_norm_epsilon=eps(),
    )
    theirs = Mamba2Mixer(config, layer_idx=0)
    places = {"project.weight": "in_proj.weight", "conv_bias": "conv1d.bias", "skip": "D"}
    places |= {"norm": "norm.weight", "out.weight": "out_proj.weight", "conv": "conv1d.weight"}
    tensors = {places.get(name, name): tensor for name, tensor in ours.named_parameters()}
    return tied(theirs, tensors)


@everywhere
@seeded
def test_mamba2(B: int, T: int, seed: int) -> None:
    ours = moved(Mamba2(dim=16, n_heads=4, expand=2, state_size=6), seed)
    x = torch.randn(B, T, 16, requires_grad=True)
    same(ours(x)[0], their_mamba2(ours)(x), x, *ours.parameters())


def their_minimal(ours: MinGRU | MinLSTM) -> Any:
    """Theirs has no biases, and its candidate before the gates."""
    from minGRU_pytorch.minGRU import minGRU
    from minGRU_pytorch.minLSTM import minLSTM

    gru = isinstance(ours, MinGRU)
    theirs = (minGRU if gru else minLSTM)(12, expansion_factor=2.0)
    *gates, candidate = ours.project.weight.chunk(2 if gru else 3)
    with torch.no_grad():
        ours.project.bias.zero_()
        ours.out.bias.zero_()
    gated = "to_hidden_and_gate.weight" if gru else "to_hidden_and_f_i_gate.weight"
    tensors = {gated: torch.cat((candidate, *gates)), "to_out.weight": ours.out.weight}
    return tied(theirs, tensors)


@everywhere
@seeded
@pytest.mark.parametrize("kind", (MinGRU, MinLSTM))
def test_minimal(kind: Any, B: int, T: int, seed: int) -> None:
    ours = moved(kind(dim=12, expand=2), seed)
    theirs = their_minimal(ours)
    x = torch.randn(B, T, 12, requires_grad=True)
    same(ours(x)[0], theirs(x), x, ours.project.weight, ours.out.weight)


def their_mlstm(ours: MLSTM) -> Any:
    """Theirs has the gates' matrices apart, and norms that begin from 1."""
    from xlstm.blocks.mlstm.layer import mLSTMLayer, mLSTMLayerConfig

    dim = ours.out.out_features
    keys = {"embedding_dim": dim, "num_heads": ours.n_heads, "round_proj_up_to_multiple_of": 4}
    theirs = mLSTMLayer(mLSTMLayerConfig(context_length=130, **keys))
    tensors = {
        "proj_up.weight": ours.project.weight,
        "conv1d.conv.weight": ours.conv,
        "conv1d.conv.bias": ours.conv_bias,
        "mlstm_cell.outnorm.weight": ours.norm - 1,
        "learnable_skip": ours.skip,
        "proj_down.weight": ours.out.weight,
    }
    tensors |= {f"{letter}_proj.weight": W for letter, W in zip("qkv", ours.blocks, strict=True)}
    for letter, W, b in zip("if", ours.gates, ours.gates_bias, strict=True):
        gate = f"mlstm_cell.{letter}gate"
        tensors |= {f"{gate}.weight": W, f"{gate}.bias": b}
    return tied(theirs, tensors)


def their_slstm(ours: SLSTM) -> Any:
    """Theirs calls the matrix of the input gate `fgate`, and that of the forget gate `igate`."""
    from xlstm.blocks.slstm.layer import sLSTMLayer, sLSTMLayerConfig

    heads, K = ours.recurrent.shape[::2]
    config = sLSTMLayerConfig(
        embedding_dim=heads * K, num_heads=heads, backend="vanilla", dtype="float32"
    )
    theirs = sLSTMLayer(config)
    gates = (W for pair in ours.weights for W in pair.mT.chunk(2, 1))  # (H, K, K)
    bias = theirs.slstm_cell._bias_ext2int(ours.bias.unflatten(1, (4, K)))
    tensors = {
        "conv1d.conv.weight": ours.conv,
        "conv1d.conv.bias": ours.conv_bias,
        "slstm_cell._recurrent_kernel_": ours.recurrent,
        "slstm_cell._bias_": bias,
        "group_norm.weight": ours.norm - 1,
    }
    names = "fgate.weight", "igate.weight", "zgate.weight", "ogate.weight"
    return tied(theirs, {**tensors, **dict(zip(names, gates, strict=True))})


@everywhere
@seeded
def test_mlstm(B: int, T: int, seed: int) -> None:
    ours = moved(MLSTM(dim=16, n_heads=4, input_gate="exp", n_layers=2), seed)
    x = torch.randn(B, T, 16, requires_grad=True)
    same(ours(x)[0], their_mlstm(ours)(x), x, *ours.parameters())


@everywhere
@seeded
def test_slstm(B: int, T: int, seed: int) -> None:
    keys = {"forget_gate": "sigmoid", "layer": 1, "n_layers": 2}
    ours = moved(SLSTM(dim=16, n_heads=4, **keys), seed, scale=0.3)
    x = torch.randn(B, T, 16, requires_grad=True)
    same(ours(x)[0], their_slstm(ours)(x), x, *ours.parameters())


def their_hgrn2(ours: HGRN2) -> Any:
    """fla's naive gated linear attention, with the gates of the paper."""
    naive = fla("gla/naive").naive_recurrent_gla

    def forward(x: Tensor) -> Tensor:
        bound = ours.bound.sigmoid()
        f = bound + (1 - bound) * ours.forget(x).sigmoid()
        parts = F.silu(ours.query(x)), 1 - f, ours.input(x), f.log()
        q, k, i, log_f = (t.unflatten(2, (ours.n_heads, -1)) for t in parts)
        y, _ = naive(q * q.shape[-1] ** 0.5, k, i, log_f)
        return ours.out(F.rms_norm(y.flatten(2), (x.shape[2],), ours.norm, 1e-5))

    return forward


@everywhere
@seeded
def test_hgrn2(B: int, T: int, seed: int) -> None:
    ours = moved(HGRN2(dim=16, n_heads=2, layer=2, n_layers=3), seed)
    x = torch.randn(B, T, 16, requires_grad=True)
    same(ours(x)[0], their_hgrn2(ours)(x), x, *ours.parameters())


def their_rglru(ours: RGLRU) -> Any:
    """Positions from 1: at position 0 theirs does not scale the input."""
    from transformers import RecurrentGemmaConfig
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import (
        RecurrentGemmaRecurrentBlock,
    )

    inner, dim = ours.project.weight.shape
    config = RecurrentGemmaConfig(
        hidden_size=dim,
        lru_width=inner,
        num_attention_heads=len(ours.gates),
        conv1d_width=4,
        hidden_activation="gelu",
    )
    theirs = RecurrentGemmaRecurrentBlock(config, 0)
    r, i = ours.gates.chunk(2, -1)
    r_bias, i_bias = ours.gates_bias.squeeze(1).chunk(2, -1)
    tensors = {
        "conv_1d.weight": ours.conv,
        "conv_1d.bias": ours.conv_bias,
        "rg_lru.recurrent_param": ours.decay,
        "rg_lru.recurrent_gate_weight": r,
        "rg_lru.recurrent_gate_bias": r_bias,
        "rg_lru.input_gate_weight": i,
        "rg_lru.input_gate_bias": i_bias,
    }
    for letter, part in (("y", ours.gate), ("x", ours.project), ("out", ours.out)):
        tensors |= {f"linear_{letter}.{name}": W for name, W in part.named_parameters()}
    read = tied(theirs, tensors)

    def forward(x: Tensor) -> Tensor:
        positions = torch.arange(1, x.shape[1] + 1).expand(len(x), -1)
        return read(x, positions, None, use_cache=False)[0]

    return forward


@everywhere
@seeded
def test_rglru(B: int, T: int, seed: int) -> None:
    ours = moved(RGLRU(dim=12, n_heads=2, expand=1.5, n_layers=1), seed)
    x = torch.randn(B, T, 12, requires_grad=True)
    same(ours(x)[0], their_rglru(ours)(x), x, *ours.parameters())


def their_mamba3(ours: Mamba3) -> Any:
    """The paper's equations with complex numbers: a pair of rows that turns is one number."""

    def forward(x: Tensor) -> Tensor:
        (H, N), P, pi = ours.B_bias.shape, ours.out.in_features // len(ours.skip), torch.pi
        z, v, B, C, dt, A, share, theta = ours.project(x).split(ours.sizes, -1)
        angles = theta.shape[-1]
        B, C = (
            (F.rms_norm(t, (N,), weight, 1e-5)[:, :, None] + bias).to(torch.complex128)
            for t, weight, bias in ((B, ours.B_norm, ours.B_bias), (C, ours.C_norm, ours.C_bias))
        )
        pairs = slice(0, angles), slice(angles, 2 * angles), slice(2 * angles, N)
        B, C = (
            torch.cat((t[..., pairs[0]] + 1j * t[..., pairs[1]], t[..., pairs[2]]), -1)
            for t in (B, C)
        )  # (B, T, H, N - A)
        dt, share, v = F.softplus(dt + ours.dt_bias), share.sigmoid(), v.unflatten(2, (H, P))
        real = (-F.softplus(A)).clamp(max=-1e-4)[..., None].expand(B.shape)
        imaginary = F.pad(-pi * theta.tanh(), (0, N - 2 * angles))[:, :, None].expand(B.shape)
        rate = (dt[..., None] * torch.complex(real, imaginary)).exp()[..., None]
        writes = dt[..., None, None] * B[..., None] * v[..., None, :]  # (B, T, H, N - A, P)
        h, before, ys = torch.zeros_like(writes[:, 0]), torch.zeros_like(writes[:, 0]), []
        for t in range(x.shape[1]):
            now, half = writes[:, t], share[:, t, :, None, None]
            if t:
                before = writes[:, t - 1] / dt[:, t - 1, :, None, None] * dt[:, t, :, None, None]
            h = rate[:, t] * (h + (1 - half) * before) + half * now
            ys.append((C[:, t, :, :, None].conj() * h).real.sum(2))
        y = torch.stack(ys, 1) + ours.skip[:, None] * v
        return ours.out((y.flatten(2) * F.silu(z)).to(x.dtype))

    return forward


@everywhere
@seeded
@pytest.mark.parametrize("rotary", ("half", "full", "none"))
def test_mamba3(B: int, T: int, seed: int, rotary: Any) -> None:
    ours = moved(Mamba3(dim=12, n_heads=2, expand=2, state_size=8, rotary=rotary), seed)
    x = torch.randn(B, T, 12, requires_grad=True)
    same(ours(x)[0], their_mamba3(ours)(x), x, *ours.parameters())


@everywhere
@seeded
@pytest.mark.parametrize("shared", (1, 2, 4))
def test_attention(B: int, T: int, seed: int, shared: int) -> None:
    from x_transformers.x_transformers import Attention

    torch.manual_seed(seed)
    theirs = Attention(16, dim_head=4, heads=4, kv_heads=shared, causal=True)
    keys = {"dim": 16, "n_heads": 4, "n_kv_heads": shared, "n_layers": 1}
    ours = moved(CausalAttention(**keys, position="none"), seed)
    # Our heads of queries that share keys are neighbours; theirs are `shared` apart.
    order = torch.arange(4).view(shared, 4 // shared).t().flatten()
    q, k, v = ours.qkv.weight.split((16, 4 * shared, 4 * shared))
    tensors = {
        "to_q.weight": q.view(4, 4, 16)[order],
        "to_k.weight": k,
        "to_v.weight": v,
        "to_out.weight": ours.out.weight.view(16, 4, 4)[:, order],
    }
    x = torch.randn(B, T, 16, requires_grad=True)
    same(ours(x)[0], tied(theirs, tensors)(x), x, *ours.parameters())


TRANSFORMERS = {  # options of ours, the module and class of theirs, and their settings
    "mistral": ({"window": 5}, "MistralAttention", {"sliding_window": 5}),
    "qwen3": ({"qk_norm": True}, "Qwen3Attention", {}),
    "gemma2": (
        {"softcap": 3.0},
        "Gemma2Attention",
        {"attn_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    ),
    "gpt_oss": ({"sinks": True}, "GptOssAttention", {"layer_types": ["full_attention"]}),
}


@everywhere
@seeded
@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_options_of_attention(kind: str, B: int, T: int, seed: int) -> None:
    """Attention layers of `transformers`, with rotary positions and shared keys."""
    from importlib import import_module

    from transformers import AutoConfig
    from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

    keys, name, settings = TRANSFORMERS[kind]
    config = AutoConfig.for_model(
        kind,
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_hidden_layers=1,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        attention_bias=False,
        attn_implementation="eager",
        **settings,
    )
    module: Any = import_module(f"transformers.models.{kind}.modeling_{kind}")
    theirs = getattr(module, name)(config, layer_idx=0).eval()
    sizes = {"dim": 32, "n_heads": 4, "n_kv_heads": 2, "n_layers": 1}
    ours = moved(CausalAttention(**sizes, position="rope", **keys), seed)
    pairs = {"out.weight": "o_proj.weight", "sinks": "sinks"}
    pairs |= {f"{letter}_norm": f"{letter}_norm.weight" for letter in "qk"}
    tensors = {pairs[one]: W for one, W in ours.named_parameters() if one in pairs}
    parts = zip("qkv", ours.qkv.weight.split((32, 16, 16)), strict=True)
    tensors |= {f"{letter}_proj.weight": W for letter, W in parts}
    x = torch.randn(B, T, 32, requires_grad=True)
    rotary = next(cls for cls in vars(module).values() if str(cls).endswith("RotaryEmbedding'>"))
    places = torch.arange(T)[None]
    mask_of = create_sliding_window_causal_mask if kind == "mistral" else create_causal_mask
    mask = mask_of(
        config=config,
        inputs_embeds=x,
        attention_mask=None,
        past_key_values=None,
        position_ids=places,
    )
    y, *_ = tied(theirs, tensors)(x, rotary(config)(x, places), mask)
    same(ours(x)[0], y, x, *ours.parameters())


@pytest.mark.parametrize("activation", ("gelu", "relu", "relu2", "swiglu", "geglu"))
def test_mlp(activation: str) -> None:
    from torch.nn import SiLU
    from x_transformers.x_transformers import FeedForward

    kinds = {
        "gelu": {},
        "relu": {"custom_activation": nn.ReLU()},
        "relu2": {"relu_squared": True},
        "swiglu": {"glu": True, "custom_activation": SiLU()},
        "geglu": {"glu": True, "custom_activation": nn.GELU()},
    }
    theirs = FeedForward(12, mult=3, **kinds[activation])
    ours = moved(MLP(dim=12, mlp_ratio=3, n_layers=1, activation=activation), 0)
    up = [ours.up] if ours.gate is None else [ours.up, ours.gate]
    first = "ff.0.0" if ours.gate is None else "ff.0.proj"
    tensors = {f"ff.2.{kind}": W for kind, W in ours.down.named_parameters()}
    for kind in ("weight", "bias"):
        tensors[f"{first}.{kind}"] = torch.cat([getattr(part, kind) for part in up])
    x = torch.randn(2, 9, 12, requires_grad=True)
    same(ours(x)[0], tied(theirs, tensors)(x), x, *ours.parameters())


@pytest.mark.parametrize("kind", ("RNN", "LSTM", "GRU"))
@everywhere
def test_recurrent(kind: str, B: int, T: int) -> None:
    """The definitions, written out, against torch's layers."""
    torch.manual_seed(0)
    mixer = {"RNN": RNN, "LSTM": LSTM, "GRU": GRU}[kind](dim=12)
    x = torch.randn(B, T, 12, requires_grad=True)
    theirs, _ = mixer.cell(x)
    with ops.backend("naive"):
        same(mixer(x)[0], theirs, x, *mixer.parameters())


def forgetting(q: Tensor, k: Tensor, v: Tensor, log_f: Tensor) -> Tensor:
    naive = fla("forgetting_attn/naive").naive_forgetting_attn
    y: Tensor = naive(*by_time(q, k, v, log_f)).transpose(1, 2)  # in float32
    return y.to(q.dtype)


@everywhere
@seeded
def test_forgetting_attention(B: int, T: int, seed: int) -> None:
    q, k, v, gate = heads(B, T, seed, 8, 8, 8, 1)
    log_f = F.logsigmoid(gate + 2)
    ours, *_ = forgetting_attention(q, k, v, log_f, None)
    same(ours, forgetting(q, k, v, log_f[..., 0]), q, k, v, gate)

    mixer = moved(ForgettingAttention(dim=16, n_heads=2, pro=False, n_layers=1), seed)
    x = torch.randn(B, T, 16, requires_grad=True)
    q, k, v = mixer.qkv(x).view(B, T, 3, 2, 8).transpose(1, 3).unbind(2)
    theirs = forgetting(q, k, v, F.logsigmoid(mixer.forget(x)).transpose(1, 2))
    same(mixer(x)[0], mixer.out(theirs.transpose(1, 2).flatten(2)), x, *mixer.parameters())


def test_attention_is_torchs() -> None:
    q, k, v = heads(2, 40, 0, 8, 8, 8)
    with ops.backend("naive"):
        ours = causal_attention(q, k, v)
    same(ours, F.scaled_dot_product_attention(q, k, v, is_causal=True), q, k, v)


# ---- the numbers that `make test` holds us to without the oracles


DELTA_PRODUCT = "gated_delta_product/naive"
THEIRS = {
    "mamba2": their_mamba2,
    "gated_deltanet": their_gated_deltanet,
    "kda": their_kda,
    "hgrn2": their_hgrn2,
    "rglru": their_rglru,
    "mlstm": their_mlstm,
    "slstm": their_slstm,
    "mamba3": their_mamba3,
    "deltaproduct": lambda ours: their_deltaproduct(
        ours, fla(DELTA_PRODUCT).naive_recurrent_gated_delta_product
    ),
}


@torch.no_grad()
def theirs_of(case: str, folder: Path) -> Tensor:
    if case in golden.MIXERS:
        mixer = golden.mixer(case)
        other = THEIRS.get(case, their_minimal)(mixer)
        return golden.excerpt(other(golden.mixer_input(mixer)))
    if case in golden.MODELS:
        name, keys = golden.MODELS[case]
        model = golden.fill(seqzoo.build(name, vocab_size=256, **keys))
        if name.startswith("rwkv"):
            return golden.excerpt(rwkv_logits(model, golden.tokens(), folder, name, **keys)[:, 0])
        from transformers import AutoModelForCausalLM

        hf.export_hf(as_run(model, folder, name, **keys), folder / "hf")
        loaded = AutoModelForCausalLM.from_pretrained(folder / "hf")
        return golden.excerpt(loaded(golden.tokens(), use_cache=False).logits)
    x = golden.operands()
    q, k, v = x["q"], x["k"], x["v"]
    if case == "retention":
        y = fla("retention/naive").naive_retention(q, k, v)
    elif case == "forgetting_attention":
        y = forgetting(q, k, v, x["log_w"][..., 0])
    elif case == "gla":
        y, _ = fla("gla/naive").naive_recurrent_gla(*by_time(q, k, v, x["log_w"]))
        y = y.transpose(1, 2)
    elif case == "delta_rule":
        y, _ = fla("delta_rule/naive").delta_rule_recurrence(q, k, v, x["rate"][..., 0])
    else:
        y, _ = fla("linear_attn/naive").naive_recurrent_linear_attn(*by_time(q, k, v))
        y = y.transpose(1, 2)
    return golden.excerpt(y[:, 0])


@pytest.mark.parametrize("way", [("native", torch.float32)], indirect=True)
@pytest.mark.parametrize("case", (*golden.MODELS, *golden.MIXERS, *golden.OPERATIONS))
def test_golden_numbers(case: str, tmp_path: Path) -> None:
    """With SEQZOO_WRITE_GOLDEN=1 they are written instead."""
    theirs = theirs_of(case, tmp_path)
    if os.environ.get("SEQZOO_WRITE_GOLDEN"):
        known = golden.recorded() if golden.FILE.exists() else {}
        known[case] = [float(f"{value:.7g}") for value in theirs.tolist()]
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in known.items())
        golden.FILE.write_text(f"{{\n{lines}\n}}\n")
    close(torch.tensor(golden.recorded()[case]), theirs)
