"""Encoder and decoder: a decoder after its source is a language model, and rows are independent."""

import pytest
import torch

import seqzoo
from seqzoo import laws, ops
from seqzoo.decoding.sampling import generate
from seqzoo.errors import UserError
from seqzoo.models import cost
from seqzoo.models.language_model import LanguageModel
from seqzoo.models.zoo import FAMILIES, model_keys
from seqzoo.state import leaves, select

VARIANTS = (*laws.encoder_decoder_variants("gru"), {"bidirectional": False})
SOURCES = torch.randint(4, 20, (4, 7), generator=torch.Generator().manual_seed(1))
LENGTHS = [7, 3, 7, 5]
TARGETS = torch.randint(4, 20, (4, 6), generator=torch.Generator().manual_seed(2))
EXACT = {"atol": 1e-9, "rtol": 1e-9}


def small(name: str, **keys: object) -> LanguageModel:
    torch.manual_seed(0)
    keys = {"dim": 16, "n_layers": 2, "architecture": "encoder_decoder", **keys}
    if "n_heads" in model_keys(name):
        keys["n_heads"] = 2
    model = seqzoo.build(name, vocab_size=20, **keys).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


every_model = pytest.mark.parametrize("name", FAMILIES)
every_variant = pytest.mark.parametrize("keys", VARIANTS, ids=str)


def lengths_for(model: LanguageModel) -> list[int]:
    return [7] * 4 if model.needs_equal_lengths else LENGTHS


@every_model
@every_variant
@torch.no_grad()
def test_rows_do_not_see_each_other(name: str, keys: dict) -> None:
    """The padding law: neither the lengths nor the order of a batch change a row."""
    model = small(name, **keys)
    lengths = lengths_for(model)
    y, state = model(TARGETS, None, SOURCES, lengths)
    for row, n in enumerate(lengths):
        one = slice(row, row + 1)
        alone, _ = model(TARGETS[one], None, SOURCES[one, :n])
        torch.testing.assert_close(y[one], alone, **EXACT)
    assert all(leaf.shape[0] == 4 for leaf in leaves(state))
    rows = torch.tensor([2, 0, 2])
    other, _ = model(TARGETS[rows], select(state, rows))
    whole, _ = model(TARGETS, state)
    torch.testing.assert_close(whole[rows], other, **EXACT)


@every_model
@torch.no_grad()
def test_all_of_the_source_is_seen_and_none_of_the_future(name: str) -> None:
    for keys in VARIANTS:
        model = small(name, **keys)
        y, _ = model(TARGETS, None, SOURCES)
        for position in (0, 6):
            other = SOURCES.clone()
            other[:, position] = 4 + (other[:, position] - 3) % 16
            assert (model(TARGETS, None, other)[0] != y).any(-1).all(), (keys, position)
        other = TARGETS.clone()
        other[:, 4:] = 5
        torch.testing.assert_close(model(other, None, SOURCES)[0][:, :4], y[:, :4], **EXACT)


def test_an_encoder_reads_both_ways_by_default() -> None:
    def first(keys: dict) -> torch.Tensor:
        """By how much the encoding of the first token depends on the last one."""
        other = SOURCES.clone()
        other[:, -1] = 4 + (other[:, -1] - 3) % 16
        encoder = small("gru", **keys).encoder
        return (encoder(SOURCES)[0][:, 0] - encoder(other)[0][:, 0]).abs().amax()

    assert first({}) > 0 and first({"bidirectional": False}) == 0
    assert small("transformer").encoder(SOURCES)[0].shape[-1] == 16  # one stack sees both sides
    assert small("gru").encoder(SOURCES)[0].shape[-1] == 32


def test_bahdanau_and_luong_by_their_equations() -> None:
    """Two steps of a stepwise GRU, written out."""
    h = torch.randn(1, 5, 32, dtype=torch.float64)
    valid = torch.tensor([[True] * 4 + [False]])
    x = torch.randn(1, 2, 16, dtype=torch.float64)
    for attention in ("bahdanau", "luong"):
        decoder = small("gru", attention=attention, n_layers=1, block="classic").layers[0]
        cell = decoder.layers[0]
        s = torch.zeros(1, 16, dtype=torch.float64)
        y, state, expected = torch.zeros_like(s), None, []
        for t in range(2):
            if attention == "bahdanau":
                e = decoder.score(torch.tanh(decoder.query(s)[:, None] + decoder.key(h)))[..., 0]
                c = (e[:, :4].softmax(-1)[..., None] * h[:, :4]).sum(1)
                out, state = cell(decoder.enter(torch.cat((x[:, t], c), -1))[:, None], state)
                s = out[:, 0]
                y = torch.tanh(decoder.leave(torch.cat((s, c, x[:, t]), -1)))
            else:
                out, state = cell(decoder.enter(torch.cat((x[:, t], y), -1))[:, None], state)
                s = out[:, 0]
                e = (decoder.key(h) @ s[..., None])[..., 0]
                c = (e[:, :4].softmax(-1)[..., None] * h[:, :4]).sum(1)
                y = torch.tanh(decoder.leave(torch.cat((c, s), -1)))
            expected.append(y)
        with ops.watching("source") as calls:
            y, _ = decoder(x, decoder.remember(h, valid))
        torch.testing.assert_close(y, torch.stack(expected, 1))
        (weights,) = (call() for call in calls)
        assert weights.shape == (1, 2, 5) and (weights[..., 4] == 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2))


def test_cross_attention_is_torchs() -> None:
    cross = small("transformer").layers[0].cross
    x, h = torch.randn(2, 3, 16).double(), torch.randn(2, 5, 16).double()
    valid = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    theirs = torch.nn.MultiheadAttention(16, 4, bias=False, batch_first=True).double()
    both = torch.cat((cross.query.weight, cross.key_value.weight))
    theirs.load_state_dict({"in_proj_weight": both, "out_proj.weight": cross.out.weight})
    expected, weights = theirs(x, h, h, key_padding_mask=~valid, average_attn_weights=False)
    with ops.watching("source") as calls:
        y, _ = cross(x, cross.remember(h, valid))
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(calls[0](), weights[0])
    with ops.backend("naive"):
        torch.testing.assert_close(cross(x, cross.remember(h, valid))[0], expected)


def test_parts_that_do_not_fit_are_refused() -> None:
    model = small("transformer", bridge="state")
    with pytest.raises(ValueError, match="rows of one length"):
        model.encode(SOURCES, LENGTHS)
    for message, keys in {
        "give architecture.bidirectional=false": {"bridge": "state", "bidirectional": True},
        "give architecture.encoder_layers=null, or 2 as model.n_layers": {
            "bridge": "state",
            "encoder_layers": 1,
        },
        r"model.dim \(16\) .* architecture.source_heads=8": {"source_heads": 7},
        "share_embeddings=false": {"source_vocab_size": 30},
        "dot, bahdanau, luong": {"attention": "cosine"},
        "bridge=state has none": {"bridge": "state", "attention": "luong"},
    }.items():
        with pytest.raises(UserError, match=message):
            small("gru", **keys)
    with pytest.raises(ValueError, match="needs a source"):
        small("gru")(TARGETS)


def test_flops_of_training() -> None:
    """A step of the encoder needs as many FLOPs as one of the decoder, without the head."""
    model = small("gru", bridge="state").float()
    decoding, head = cost.step_at(model, 1)[1], 2 * 16 * 20
    assert cost.flops_of_training(model, 10) == 3 * (decoding - head / 2)


def test_generation_continues_a_state() -> None:
    model = small("gru")
    prompt, state = model.start(SOURCES, 2)
    steps = torch.stack(list(generate(model, prompt, state, max_tokens=5, temperature=0)), 1)
    text = prompt
    for t in range(5):
        token = model(text, None, SOURCES)[0][:, -1].argmax(-1)
        assert torch.equal(token, steps[:, t])
        text = torch.cat((text, token[:, None]), 1)
