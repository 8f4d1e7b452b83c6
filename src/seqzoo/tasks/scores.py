"""How good translations are: exact match, BLEU, chrF, and the same by the length of the source."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

WORD_BINS = (5, 10, 15, 20, 30)  # upper ends of the ranges of source lengths, in words
LETTER_BINS = (10, 20, 30, 40)  # the same in letters, where sources are single words


def score(outputs: Sequence[str], references: Sequence[str], language: str) -> dict[str, float]:
    """Exact match in percent; sacreBLEU's BLEU and chrF; and `bleu_tokenised`, the BLEU of older
    papers, of lower-cased text that Moses' rules cut into tokens.

    BLEU counts four-grams. Where no reference has four tokens, as with single words, it is 0 for
    every model and left out.
    """
    scores = {"exact": exact(outputs, references)}
    tokenised = moses(outputs, language), moses(references, language)
    has_four_grams = any(len(reference.split()) > 3 for reference in tokenised[1])
    for name, metric in _metrics().items():
        if name == "chrf" or has_four_grams:
            ours, theirs = tokenised if name == "bleu_tokenised" else (outputs, references)
            scores[name] = metric.corpus_score(list(ours), [list(theirs)]).score
    return scores


def signatures() -> dict[str, str]:
    """sacreBLEU's signature of each metric, which tells how it was computed."""
    found = {}
    for name, metric in _metrics().items():
        metric.corpus_score(["a"], [["a"]])  # the signature has the number of references
        found[f"{name}_signature"] = str(metric.get_signature())
    return found


def _metrics() -> dict[str, Any]:
    from sacrebleu.metrics import BLEU, CHRF

    return {
        "bleu": BLEU(),
        "chrf": CHRF(),
        "bleu_tokenised": BLEU(lowercase=True, tokenize="none", force=True),
    }


def exact(outputs: Sequence[str], references: Sequence[str]) -> float:
    """Outputs that equal their references, in percent."""
    same = sum(output == reference for output, reference in zip(outputs, references, strict=True))
    return 100 * same / max(1, len(references))


def moses(sentences: Sequence[str], language: str) -> list[str]:
    """Sentences cut into tokens by the rules of Moses' tokenizer, with spaces between."""
    tokenizer = _moses(language)
    return [tokenizer.tokenize(text, return_str=True, escape=False) for text in sentences]


@cache
def _moses(language: str) -> Any:
    from sacremoses import MosesTokenizer

    return MosesTokenizer(lang=language)


def by_length(
    outputs: Sequence[str], references: Sequence[str], sources: Sequence[str]
) -> dict[str, float]:
    """Scores by the length of the source, such as `bleu_by_words/06-10`, for the ranges that occur.

    Lengths are in words, or in letters where all sources are single words. The score is BLEU, or
    exact match in percent where all references are single words.
    """
    from sacrebleu.metrics import BLEU

    letters, exactly = (not any(" " in text for text in side) for side in (sources, references))
    lengths = [len(source) if letters else len(source.split()) for source in sources]
    kind = f"{'exact' if exactly else 'bleu'}_by_{'letters' if letters else 'words'}"
    scores: dict[str, float] = {}
    above = 0
    for limit in (*(LETTER_BINS if letters else WORD_BINS), None):
        rows = [i for i, n in enumerate(lengths) if above < n and (limit is None or n <= limit)]
        name = f"{kind}/{above + 1:02}-" + (f"{limit:02}" if limit else "")
        ours, theirs = ([side[i] for i in rows] for side in (outputs, references))
        if rows and exactly:
            scores[name] = exact(ours, theirs)
        elif rows:
            scores[name] = BLEU().corpus_score(ours, [theirs]).score
        above = limit or 0
    return scores
