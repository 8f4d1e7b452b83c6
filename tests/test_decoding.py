"""Beam search against a plain one that reads every beginning anew."""

import pytest
import torch

import seqzoo
from calls import KERNELS
from seqzoo import ops
from seqzoo.decoding import step
from seqzoo.decoding.beam import Hypothesis, beam_search
from seqzoo.decoding.sampling import generate
from seqzoo.models.language_model import LanguageModel

STOP, V = 0, 11


def small(name: str, seed: int, **keys: object) -> LanguageModel:
    torch.manual_seed(seed)
    model = seqzoo.build(name, vocab_size=V, dim=16, n_layers=1, **keys).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def plain(
    model: LanguageModel,
    prompt: list[int],
    beams: int,
    max_tokens: int,
    penalty: float,
    *source: torch.Tensor,
) -> list[Hypothesis]:
    live, found = [([], 0.0)], []
    for t in range(1, max_tokens + 1):
        ways = []
        for text, score in live:
            logits, _ = model(torch.tensor([prompt + text]), None, *source)
            for token, value in enumerate(logits[0, -1].log_softmax(-1).tolist()):
                ways.append((text, token, score + value))
        ways.sort(key=lambda way: -way[2])
        found += [Hypothesis(x, s / t**penalty) for x, token, s in ways[:beams] if token == STOP]
        found = sorted(found, key=lambda h: -h.score)[:beams]
        live = [(x + [token], s) for x, token, s in ways[: 2 * beams] if token != STOP][:beams]
        if len(found) == beams and live[0][1] / t**penalty <= found[-1].score:
            return found
    for text, score in live:
        if len(found) < beams:
            found.append(Hypothesis(text, score / max_tokens**penalty))
    return sorted(found, key=lambda h: -h.score)


@pytest.mark.parametrize("name", ("lstm", "transformer"))
@pytest.mark.parametrize("beams", (1, 2, 5))
@pytest.mark.parametrize("penalty", (0.0, 1.0))
def test_beam_search_is_the_plain_one(name: str, beams: int, penalty: float) -> None:
    model = small(name, seed=beams)
    prompts = torch.randint(1, V, (3, 3), generator=torch.Generator().manual_seed(1))
    found = beam_search(
        model, prompts, beams=beams, max_tokens=6, stop=STOP, length_penalty=penalty
    )
    for prompt, ours in zip(prompts.tolist(), found, strict=True):
        expected = plain(model, prompt, beams, 6, penalty)
        assert [h.tokens for h in ours] == [h.tokens for h in expected]
        assert [h.score for h in ours] == pytest.approx([h.score for h in expected], abs=1e-5)


@pytest.mark.parametrize("keys", ({}, {"attention": "bahdanau"}, {"bridge": "state"}), ids=str)
def test_beam_search_behind_a_source_is_the_plain_one(keys: dict) -> None:
    model = small("lstm", 7, architecture="encoder_decoder", **keys)
    sources = torch.randint(1, V, (3, 4), generator=torch.Generator().manual_seed(1))
    prompt, state = model.start(sources, 1)
    found = beam_search(model, prompt, state, beams=3, max_tokens=6, stop=STOP, length_penalty=1.0)
    for source, ours in zip(sources, found, strict=True):
        expected = plain(model, [1], 3, 6, 1.0, source[None])
        assert [h.tokens for h in ours] == [h.tokens for h in expected]
        assert [h.score for h in ours] == pytest.approx([h.score for h in expected], abs=1e-5)


@pytest.mark.parametrize(
    "name, keys",
    [
        ("lstm", {}),
        ("transformer", {}),
        ("rwkv7", {}),
        ("transformer", {"architecture": "encoder_decoder"}),
        ("gru", {"architecture": "encoder_decoder", "attention": "bahdanau"}),
    ],
    ids=str,
)
def test_beams_by_a_prepared_step(name: str, keys: dict, monkeypatch) -> None:
    """Rows end one after the other, and beams change places; no hypothesis changes."""
    model = small(name, 3, **keys).float()
    sources = torch.randint(1, V, (6, 4), generator=torch.Generator().manual_seed(3))
    options = {"beams": 3, "max_tokens": 24, "stop": STOP, "length_penalty": 0.5}
    found = []
    for worth in (1000, 16):
        monkeypatch.setattr("seqzoo.decoding.step.WORTH", worth)
        prompt, state = model.start(sources, 1) if keys else (sources, None)
        with ops.recording() as forms:
            found.append(beam_search(model, prompt, state, **options))
        assert ("step prepared" in forms) == (worth == 16 and KERNELS)
    for plainly, prepared in zip(*found, strict=True):
        assert [h.tokens for h in prepared] == [h.tokens for h in plainly]
        scores = [h.score for h in plainly]
        assert [h.score for h in prepared] == pytest.approx(scores, abs=1e-5)
    assert len({len(h.tokens) for hypotheses in found[0] for h in hypotheses}) > 1


@pytest.mark.skipif(not KERNELS, reason="no kernels in C++")
def test_many_rows_are_read_by_the_model() -> None:
    """Whose products of many rows are faster."""
    model = small("gru", 3).float()
    for rows, prepared in ((step.MOST_ROWS, True), (step.MOST_ROWS + 1, False)):
        with torch.no_grad():
            _, state = model(torch.ones(rows, 2, dtype=torch.int64))
            assert (step.prepare(model, state, rows, step.WORTH) is not None) == prepared


def test_one_beam_is_greedy_and_more_are_no_worse() -> None:
    model = small("gru", seed=3)
    prompts = torch.randint(1, V, (9, 3), generator=torch.Generator().manual_seed(2))
    columns = torch.stack(
        list(generate(model, prompts, max_tokens=12, temperature=0, stop=STOP)), 1
    )
    one, many = (
        beam_search(model, prompts, beams=n, max_tokens=12, stop=STOP, length_penalty=0.0)
        for n in (1, 8)
    )
    for row, (greedy, better) in enumerate(zip(one, many, strict=True)):
        said = columns[row].tolist()
        said = said[: said.index(STOP)] if STOP in said else said
        assert greedy[0].tokens == said
        assert better[0].score >= greedy[0].score - 1e-6
    assert any(b[0].score > a[0].score + 0.1 for a, b in zip(one, many, strict=True))
