"""Lists of encoded texts on disk: all ids in one array, all lengths in another."""

from pathlib import Path

import numpy as np

from seqzoo.data.tokenizers import Tokenizer, cut


def save_encoded(folder: Path, name: str, texts: list[str], tokenizer: Tokenizer) -> None:
    """Encode texts and write `NAME.npy` and `NAME.lengths.npy`."""
    ids = tokenizer.encode_many(texts)
    np.save(folder / f"{name}.npy", np.concatenate([tokenizer.encode(""), *ids]))
    np.save(folder / f"{name}.lengths.npy", np.array([len(i) for i in ids], int))


def load_encoded(folder: Path, name: str) -> list[np.ndarray]:
    """The ids of each text that `save_encoded` wrote."""
    lengths = np.load(folder / f"{name}.lengths.npy")
    return cut(np.load(folder / f"{name}.npy"), lengths.tolist())
