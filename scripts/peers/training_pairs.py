"""Training steps: ours beside those of other libraries, of PyTorch's own layers, of our other
families, and of the machine's peak.

The step is the same on both sides (`seqzoo.training.step.take_step`): forward, loss, backward,
clipping at 1.0, fused AdamW. Ours is configured as `seqzoo train` configures it on this machine.
The peers run in float32 and under bfloat16 autocast, and the faster one counts.
"""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from nanogpt import GPT
from timing import Calls, Options, Row, Shape, alternate, compare, rates
from torch import Tensor, nn

from seqzoo.bench.measure import training_step
from seqzoo.config import files
from seqzoo.models import zoo
from seqzoo.models.cost import flops_of_training
from seqzoo.models.language_model import LanguageModel
from seqzoo.models.width import solve_width
from seqzoo.models.zoo import build
from seqzoo.report.text import number
from seqzoo.state import State
from seqzoo.tasks.next_token import TokenBatch, next_token_loss
from seqzoo.training.device import autocast, pick_dtype
from seqzoo.training.forward import Forward
from seqzoo.training.optimizers import adamw
from seqzoo.training.step import take_step

VOCAB_SIZE = 65  # of Tiny Shakespeare
DTYPES = ("float32", "bfloat16")
PARAMETERS = 1_350_000  # of families that stand beside each other
TINY_PARAMETERS = 60_000
HEAD_SIZE = 32  # numbers a head, and what divides the widths of families
SINGLE = [name for name, family in zoo.FAMILIES.items() if family.mixer is not None]  # no hybrids
FAMILIES = ("transformer", *(name for name in SINGLE if name != "transformer"))
Loss = Callable[[Tensor, Tensor], Tensor]  # of inputs and targets (B, T): summed, in nats


# ---- the two sides


def draw_tokens(shape: Shape) -> Tensor:
    """Random tokens (B, T + 1), on the device of `Options`: the inputs, and the last target."""
    return torch.randint(VOCAB_SIZE, (shape.batch_size, shape.length + 1))


def our_steps(shape: Shape, name: str, **keys: Any) -> tuple[dict[str, Callable[[], object]], int]:
    """Our training step in the precision that `trainer.dtype=auto` chooses, then in the other one;
    and the model's parameters."""
    tokens = draw_tokens(shape)
    first = pick_dtype("auto", tokens.device)
    steps: dict[str, Callable[[], object]] = {}
    for dtype in sorted(DTYPES, key=lambda dtype: dtype != first):
        model = build(name, vocab_size=VOCAB_SIZE, **keys)
        steps[dtype] = training_step(Forward(model, tokens.device, dtype), tokens)
    return steps, model.n_parameters()


def peer_steps(
    name: str, shape: Shape, make: Callable[[], nn.Module], loss: Callable[[nn.Module], Loss]
) -> dict[str, Callable[[], object]]:
    """The training step of a peer in either precision.

    Args:
        make: builds it, as every call has a model and an optimiser of its own.
        loss: its loss, given the model.
    """
    steps: dict[str, Callable[[], object]] = {}
    for dtype in DTYPES:
        model = make()
        steps[f"{name} {dtype}"] = peer_step(model, loss(model), draw_tokens(shape), dtype)
    return steps


def peer_step(model: nn.Module, loss: Loss, tokens: Tensor, dtype: str) -> Callable[[], object]:
    parameters = list(model.parameters())
    optimizer = adamw(model, lr=1e-3, weight_decay=0.1, betas=[0.9, 0.99])
    n = tokens[:, 1:].numel()
    batch = TokenBatch(tokens[:, :-1], tokens[:, 1:], fresh=True, n_tokens=n, n_targets=n)

    def forward(inputs: Tensor, targets: Tensor) -> tuple[Tensor, State]:
        with autocast(tokens.device, dtype):
            return loss(inputs, targets), None

    def objective(
        forward: Callable[..., tuple[Tensor, State]],
        batch: TokenBatch,
        state: State,
        *,
        progress: float,
    ) -> tuple[Tensor, State]:
        return forward(batch.inputs, batch.targets)

    def step() -> Tensor:
        return take_step(
            forward,
            objective,
            optimizer,
            parameters,
            [batch],
            None,
            device=tokens.device,
            carries=False,
            grad_clip=1.0,
        ).loss

    return step


def of_logits(read: Callable[[Tensor], Tensor]) -> Loss:
    """The loss of a model that returns logits (B, T, V)."""
    return lambda inputs, targets: next_token_loss(read(inputs), targets)


def named(shape: Shape) -> dict[str, Any]:
    """The sizes of a model with heads, as `build` calls them."""
    return {"n_layers": shape.n_layers, "dim": shape.dim, "n_heads": shape.n_heads}


def row(work: str, options: Options, shape: Shape, ours: tuple[Calls, int], peers: Calls) -> Row:
    steps, parameters = ours
    note = f"{parameters:,} parameters"
    return compare(
        f"{work} {shape}", options, ours=steps, peers=peers, tokens=shape.tokens, note=note
    )


# ---- Transformers


def gpt(options: Options, shape: Shape) -> list[Row]:
    """Our Transformer, with learned positions and a tied head, beside the GPT, eager and
    compiled."""
    shape = options.size(shape)
    sizes = named(shape)
    keys = {**sizes, "position": "learned", "max_len": shape.length, "tie_embeddings": True}
    ours = our_steps(shape, "transformer", **keys)

    def make() -> nn.Module:
        return GPT(vocab_size=VOCAB_SIZE, max_len=shape.length, **sizes)

    def compiled(model: nn.Module) -> Loss:
        return torch.compile(model)

    peers = peer_steps("nanoGPT eager", shape, make, lambda model: model)
    peers |= peer_steps("nanoGPT compiled", shape, make, compiled)
    return [row("train Transformer", options, shape, ours, peers)]


def llama(options: Options, shape: Shape) -> list[Row]:
    """Our Transformer with RMS norms, SwiGLU and rotary positions beside transformers' Llama."""
    transformers = quiet_transformers()
    shape = options.size(shape)
    ratio = 2.75  # about 8/3, at which three matrices are as large as two of four times the width
    sizes = named(shape)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=shape.dim,
        intermediate_size=round(ratio * shape.dim),
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        max_position_embeddings=shape.length,
        use_cache=False,
        attn_implementation="sdpa",
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    ours = our_steps(
        shape, "transformer", norm="rms", activation="swiglu", mlp_ratio=ratio, **sizes
    )
    peers = peer_steps("Llama", shape, lambda: transformers.LlamaForCausalLM(config), hub_loss)
    return [row("train Transformer, rms and swiglu,", options, shape, ours, peers)]


# ---- recurrent networks


class Stacked(nn.Module):
    """Embedding, PyTorch's own recurrent layers, and a head; tokens (B, T) to logits (B, T, V)."""

    def __init__(self, kind: str, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB_SIZE, shape.dim)
        layers: Any = getattr(nn, kind)
        self.layers = layers(shape.dim, shape.dim, num_layers=shape.n_layers, batch_first=True)
        self.head = nn.Linear(shape.dim, VOCAB_SIZE)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(self.embedding(tokens))[0])
        return logits


def recurrent(options: Options, shape: Shape, kind: str) -> list[Row]:
    """Our stack of recurrent layers, as the paper has it, beside PyTorch's."""
    shape = options.size(shape)
    ours = our_steps(shape, kind.lower(), block="classic", n_layers=shape.n_layers, dim=shape.dim)
    peers = peer_steps(f"nn.{kind}", shape, lambda: Stacked(kind, shape), of_logits)
    return [row(f"train {kind}", options, shape, ours, peers)]


def mingru(options: Options, shape: Shape) -> list[Row]:
    """Our minGRU beside that of minGRU-pytorch, with the same widths inside."""
    their = importlib.import_module("minGRU_pytorch.minLM")
    shape = options.size(shape)
    ours = our_steps(shape, "mingru", n_layers=shape.n_layers, dim=shape.dim, expand=2, mlp_ratio=3)

    def make() -> nn.Module:
        model: nn.Module = their.minLM(
            num_tokens=VOCAB_SIZE, dim=shape.dim, depth=shape.n_layers, ff_mult=3, expansion=2.0
        )
        return model

    peers = peer_steps("minGRU-pytorch", shape, make, of_logits)
    return [row("train minGRU", options, shape, ours, peers)]


# ---- models of transformers


def rwkv4(options: Options, shape: Shape) -> list[Row]:
    """Our RWKV-4 beside transformers', whose wkv on a CPU is a loop over tokens."""
    transformers = quiet_transformers()
    shape = options.size(shape)
    config = transformers.RwkvConfig(
        vocab_size=VOCAB_SIZE,
        context_length=shape.length,
        hidden_size=shape.dim,
        num_hidden_layers=shape.n_layers,
        use_cache=False,
    )
    ours = our_steps(shape, "rwkv4", n_layers=shape.n_layers, dim=shape.dim)
    peers = peer_steps(
        "transformers", shape, lambda: transformers.RwkvForCausalLM(config), hub_loss
    )
    return [row("train RWKV-4", options, shape, ours, peers)]


def mamba2(options: Options, shape: Shape) -> list[Row]:
    """Our Mamba-2 beside transformers' path in plain PyTorch, with its own chunks of 256 tokens and
    with shorter ones."""
    transformers = quiet_transformers()
    shape = options.size(shape)
    sizes = named(shape)
    ours = our_steps(shape, "mamba2", **sizes, expand=2, state_size=32)
    peers: dict[str, Callable[[], object]] = {}
    for chunk in (256, 64):
        config = transformers.Mamba2Config(
            vocab_size=VOCAB_SIZE,
            hidden_size=shape.dim,
            num_hidden_layers=shape.n_layers,
            num_heads=shape.n_heads,
            head_dim=2 * shape.dim // shape.n_heads,
            state_size=32,
            expand=2,
            n_groups=1,
            chunk_size=chunk,
            use_cache=False,
        )
        make = partial(transformers.Mamba2ForCausalLM, config)
        peers |= peer_steps(f"transformers, chunks of {chunk},", shape, make, hub_loss)
    return [row("train Mamba-2", options, shape, ours, peers)]


def quiet_transformers() -> Any:
    """The package, which then prints errors alone: it warns of kernels that only a GPU has."""
    transformers: Any = importlib.import_module("transformers")
    transformers.utils.logging.set_verbosity_error()
    return transformers


def hub_loss(model: nn.Module) -> Loss:
    return of_logits(lambda inputs: model(inputs, use_cache=False).logits)


# ---- our families beside each other, and beside the machine


def sized(name: str, parameters: int) -> dict[str, Any]:
    """A family's own keys, with about this number of parameters: the width is the nearest multiple
    of 32, and has a head for each 32 (in Mamba-2, whose inner width is twice as large, of 64)."""
    keys = files.defaults("model", name)
    width = solve_width(parameters, vocab_size=VOCAB_SIZE, **keys)
    keys["dim"] = max(HEAD_SIZE, HEAD_SIZE * round(width / HEAD_SIZE))
    if "n_heads" in keys:
        keys["n_heads"] = keys["dim"] // HEAD_SIZE
    return keys


def default_step(model: LanguageModel, shape: Shape) -> Callable[[], object]:
    """A training step as `seqzoo train` takes it on this machine."""
    tokens = draw_tokens(shape)
    dtype = pick_dtype("auto", tokens.device)
    return training_step(Forward(model, tokens.device, dtype), tokens)


def families(options: Options, batch_size: int, length: int) -> list[Row]:
    """Every family beside our Transformer, at about as many parameters."""
    parameters = TINY_PARAMETERS if options.tiny else PARAMETERS
    shape = Shape(0, 0, 0, batch_size, options.length(length))
    models = {name: build(vocab_size=VOCAB_SIZE, **sized(name, parameters)) for name in FAMILIES}
    times = alternate({name: default_step(m, shape) for name, m in models.items()}, options)
    speeds = {name: rates(taken, shape.tokens) for name, taken in times.items()}
    return [
        Row(
            f"train {name} B{batch_size} T{shape.length:,}",
            "tok/s",
            "seqzoo transformer",
            speeds[name],
            speeds["transformer"],
            f"{models[name].n_parameters():,} parameters",
        )
        for name in FAMILIES[1:]
    ]


def peak(options: Options, shape: Shape) -> list[Row]:
    """FLOPs a second of training beside those of a large matrix product in the same precision."""
    shape = options.size(shape)
    side = 256 if options.tiny else 2048
    dtype = pick_dtype("auto", options.device)
    a, b = (torch.randn(side, side, dtype=getattr(torch, dtype)) for _ in range(2))
    models = {}
    for name in ("transformer", "linear_transformer", "rwkv7", "lstm"):
        sizes = named(shape)
        if name == "lstm":
            del sizes["n_heads"]
        models[name] = build(name, vocab_size=VOCAB_SIZE, **sizes)
    calls = {name: default_step(model, shape) for name, model in models.items()}
    times = alternate({"product": lambda: a @ b, **calls}, options)
    reached = [2 * side**3 / taken / 1e9 for taken in times["product"]]
    rows = []
    for name, model in models.items():
        flops = flops_of_training(model, shape.length) * shape.tokens
        ours = [flops / taken / 1e9 for taken in times[name]]
        speed = number(statistics.median(rates(times[name], shape.tokens)))
        note = f"{speed} tok/s, {model.n_parameters():,} parameters"
        which = f"{dtype} product of {side:,}"
        rows.append(
            Row(f"share of the peak, {name} {shape}", "GFLOP/s", which, ours, reached, note)
        )
    return rows
