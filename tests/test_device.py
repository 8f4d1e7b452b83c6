"""Nothing that training or decoding does reads a number from the device, and every tensor is made
where its inputs are. No GPU is needed: on the device `meta` tensors have no numbers, so whoever
asks for one fails.
"""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.optim import optimizer

from seqzoo import laws, ops
from seqzoo.bench.measure import next_token
from seqzoo.models.language_model import LanguageModel
from seqzoo.models.zoo import FAMILIES
from seqzoo.state import State, leaves
from seqzoo.tasks.next_token import TokenBatch
from seqzoo.training.forward import Forward
from seqzoo.training.optimizers import adamw
from seqzoo.training.step import StepResult, take_step

CHUNKS = (1, 70, 7, 1)  # tokens read one after the other
VARIANTS = [(name, keys) for name in FAMILIES for keys in laws.variants(name)]
JOINED = [  # a stepwise decoder does the same, and takes half a minute
    (name, keys)
    for name in FAMILIES
    for keys in laws.encoder_decoder_variants(name)
    if "attention" not in keys
]


def label(value: object) -> str | None:
    if isinstance(value, dict):
        return "-".join(f"{k}.{v}" for k, v in value.items()) or "default"
    return None


def model_of(name: str, keys: dict) -> LanguageModel:
    return laws.example(name, torch.float32, **keys).model


def token_batch(model: LanguageModel, B: int = 3, T: int = 34, **more: Any) -> TokenBatch:
    tokens = torch.randint(model.vocab_size, (B, T + 1))
    return TokenBatch(tokens[:, :-1], tokens[:, 1:], True, B * T, B * T, **more)


def all_on(device: str, *found: object) -> bool:
    return all(leaf.device.type == device for state in found for leaf in leaves(state))


def read(model: LanguageModel, forward: Any, device: str) -> State:
    """Some chunks, from the state that the encoder or nothing leaves."""
    state: State = None
    if model.reads_source:
        state = model.encode(torch.zeros(3, 9, dtype=torch.long, device=device), [9, 9, 9])
    for T in CHUNKS:
        y, state = forward(torch.zeros(3, T, dtype=torch.long, device=device), state)
        assert all_on(device, y, state)
    return state


def training_step(model: LanguageModel, forward: Any, device: torch.device) -> StepResult:
    """Two micro-batches, clipping and AdamW."""
    source = ()
    if model.reads_source:
        source = torch.zeros(3, 9, dtype=torch.long), [9, 9, 9]

    def objective(forward: Any, batch: TokenBatch, state: State, **more: Any) -> Any:
        logits, state = forward(batch.inputs, state, *batch.source)
        return next_token(lambda *_: (logits, state), batch, state, **more)

    return take_step(
        forward,
        objective,
        adamw(model, lr=1e-3, weight_decay=0.1, betas=[0.9, 0.99]),
        model.parameters(),
        [token_batch(model, source=source)] * 2,
        None,
        device=device,
        carries=not model.reads_source,
        grad_clip=1.0,
    )


@pytest.fixture
def without_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """`meta`, with what torch refuses there: autocast and the fused optimiser."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: ["meta"])


@pytest.mark.parametrize(("name", "keys"), [*VARIANTS, *JOINED], ids=label)
def test_no_number_is_read(name: str, keys: dict, without_numbers: None) -> None:
    model = model_of(name, keys).to("meta")
    forward = Forward(model, torch.device("meta"), "float32")
    with torch.no_grad():
        read(model.eval(), forward, "meta")
    result = training_step(model.train(), forward, torch.device("meta"))
    assert all_on("meta", result.loss, result.grad_norm, result.state)


@pytest.mark.parametrize("name", ("gla", "rwkv4"))
def test_a_form_that_reads_is_caught(name: str) -> None:
    model = model_of(name, {}).to("meta")
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch, ops.backend("chunked"):
        patch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
        with pytest.raises(RuntimeError, match="item"):
            read(model, model, "meta")


def test_numbers_can_indeed_not_be_read() -> None:
    x = torch.zeros(2, device="meta")
    for ask in (lambda: x.amax().item(), lambda: float(x[0]), lambda: bool(x.any()), x.cpu):
        with pytest.raises((RuntimeError, NotImplementedError)):
            ask()
    with pytest.raises(RuntimeError):
        x + torch.zeros(2)
