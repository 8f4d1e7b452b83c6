"""Lists of texts as ids: under tokenizers that exist, or under new ones, cached by content."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from seqzoo.data.cache import cached
from seqzoo.data.tokenizers import Tokenizer, cut

Texts = Mapping[str, list[str]]  # by the name of their file in the cache


def encode(
    kind: str,
    key: Mapping[str, object],
    texts: Mapping[str, Texts],
    existing: Mapping[str, Tokenizer],
    *,
    tokenizer: str,
    vocab_size: int,
    specials: Sequence[str],
) -> tuple[dict[str, Tokenizer], dict[str, list[np.ndarray]]]:
    """The tokenizers, and the ids of all texts, by their names.

    Args:
        kind: the folder of the cache.
        key: what the texts depend on; the tokenizer's keys are added to it.
        texts: for each tokenizer, by its name, the texts that it encodes. A new one is made of
            those whose name begins with `train`.
        existing: tokenizers to use in place of new ones.
        specials: of new tokenizers, `<unk>` among them.
    """
    if existing:
        used = {name: existing[name] for name in texts}
        ids = {
            part: used[name].encode_many(column)
            for name, columns in texts.items()
            for part, column in columns.items()
        }
        return used, ids

    def build(folder: Path) -> None:
        for name, columns in texts.items():
            known = [
                t for part, column in columns.items() if part.startswith("train") for t in column
            ]
            trained = Tokenizer.train(
                tokenizer, known, vocab_size=vocab_size, specials=specials, unknown="<unk>"
            )
            trained.save(folder / f"{name}.json")
            for part, column in columns.items():
                _save(folder, part, trained.encode_many(column), trained.dtype)

    size = vocab_size if tokenizer == "bpe" else 0
    folder = cached(kind, {**key, "tokenizer": tokenizer, "vocab_size": size}, build)
    made = {name: Tokenizer.load(folder / f"{name}.json") for name in texts}
    return made, {part: _load(folder, part) for columns in texts.values() for part in columns}


def _save(folder: Path, name: str, ids: list[np.ndarray], dtype: type) -> None:
    """All ids in one array, all lengths in another."""
    np.save(folder / f"{name}.npy", np.concatenate([np.zeros(0, dtype), *ids]))
    np.save(folder / f"{name}.lengths.npy", np.array([len(i) for i in ids], int))


def _load(folder: Path, name: str) -> list[np.ndarray]:
    lengths = np.load(folder / f"{name}.lengths.npy")
    return cut(np.load(folder / f"{name}.npy"), lengths.tolist())
