"""What has to hold between several keys, for `seqzoo.config.schema.checked`. Loads no torch.

A rule takes the keys that are known so far, by name, and what begins their names in a message, such
as `model.`; it raises UserError. It holds where one of its keys is missing, as a constructor knows
only its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seqzoo.errors import UserError

Keys = Mapping[str, Any]


# ---- of models and architectures


def heads_divide_width(keys: Keys, where: str) -> None:
    """Every head has dim / n_heads numbers."""
    if _known(keys, "dim", "n_heads"):
        dim, heads = keys["dim"], keys["n_heads"]
        also = f"{where}dim={dim - dim % heads or heads} or "
        _divides(f"{where}n_heads", heads, f"{where}dim", dim, also)


def heads_divide_inner_width(keys: Keys, where: str) -> None:
    """Every head has expand * dim / n_heads numbers."""
    if _known(keys, "dim", "n_heads", "expand"):
        inner = keys["expand"] * keys["dim"]
        _divides(f"{where}n_heads", keys["n_heads"], f"{where}expand * {where}dim", inner)


def heads_of_blocks(keys: Keys, where: str) -> None:
    """Every head has 2 dim / n_heads numbers, a multiple of 4."""
    if _known(keys, "dim", "n_heads") and keys["dim"] % (2 * keys["n_heads"]):
        dim, heads = keys["dim"], keys["n_heads"]
        raise UserError(
            f"2 * {where}dim ({2 * dim}) / {where}n_heads ({heads}) must be a multiple of 4: "
            f"try {where}dim={max(1, dim // (2 * heads)) * 2 * heads}"
        )


def head_size_is_even(keys: Keys, where: str) -> None:
    """dim / n_heads is a multiple of 2."""
    if not _known(keys, "dim", "n_heads"):
        return
    dim, heads = keys["dim"], keys["n_heads"]
    if dim // heads % 2:
        raise UserError(
            f"{where}dim ({dim}) / {where}n_heads ({heads}) must be a multiple of 2: "
            f"try {where}dim={max(1, dim // (2 * heads)) * 2 * heads}"
        )


def angles_divide_state(keys: Keys, where: str) -> None:
    """Angles turn pairs of all numbers of a head's state, or of half of them."""
    if not _known(keys, "state_size", "rotary"):
        return
    size, rotary = keys["state_size"], keys["rotary"]
    unit = {"half": 4, "full": 2, "none": 1}[rotary]
    if size % unit:
        raise UserError(
            f"{where}state_size ({size}) must be a multiple of {unit} for {where}rotary={rotary}: "
            f"try {where}state_size={size - size % unit or unit}"
        )


def even_heads_for_rope(keys: Keys, where: str) -> None:
    """Rotary positions turn pairs of numbers of a head."""
    if not _known(keys, "dim", "n_heads") or keys.get("position") != "rope":
        return
    size = keys["dim"] // keys["n_heads"]
    if size % 2:
        raise UserError(
            f"{where}position=rope turns pairs, and a head has {size} numbers (dim / n_heads): "
            f"choose an even size, or {where}position=sinusoidal"
        )


def even_features_for_rope(keys: Keys, where: str) -> None:
    """Rotary positions turn pairs of features, and a Taylor series has 1 + K + K^2 of them."""
    if keys.get("position") == "rope" and keys.get("feature") == "taylor":
        raise UserError(
            f"{where}position=rope turns pairs, and {where}feature=taylor makes an odd number of "
            "features: choose another position or feature"
        )


def kv_heads_divide_heads(keys: Keys, where: str) -> None:
    """Each head of keys and values serves equally many heads of queries."""
    heads, shared = keys.get("n_heads"), keys.get("n_kv_heads")
    if heads and shared:
        _divides(f"{where}n_kv_heads", shared, f"{where}n_heads", heads)


def window_or_cache(keys: Keys, where: str) -> None:
    """A window bounds the state already, so no cache policy can be given beside it."""
    if keys.get("window") is not None and keys.get("cache") is not None:
        raise UserError(
            f"{where}window={keys['window']} with {where}cache={keys['cache']}: the state of a "
            f"window has a fixed size already: give {where}cache=null, or {where}window=null"
        )


def value_residual_has_layers(keys: Keys, where: str) -> None:
    """The first layer hands its values to later ones."""
    if keys.get("value_residual") and keys.get("n_layers") == 1:
        raise UserError(
            f"{where}value_residual=true: no layer follows the first one with {where}n_layers=1: "
            f"give {where}value_residual=false, or {where}n_layers=2"
        )


def window_reads_forwards(keys: Keys, where: str) -> None:
    """A text that is read both ways is seen whole by every token."""
    if keys.get("window") is not None and keys.get("bidirectional"):
        raise UserError(
            f"{where}bidirectional=true: every token sees the whole text, and no window of "
            f"{keys['window']}: give {where}bidirectional=false, or {_of_model(where)}window=null"
        )


def source_heads_divide_width(keys: Keys, where: str) -> None:
    """Every head of the attention to a source has dim / source_heads numbers."""
    dots = keys.get("bridge", "attention") == "attention" and keys.get("attention", "dot") == "dot"
    if dots and _known(keys, "dim", "source_heads"):
        dim, heads = keys["dim"], keys["source_heads"]
        _divides(f"{where}source_heads", heads, f"{_of_model(where)}dim", dim)


def state_bridge_fits(keys: Keys, where: str) -> None:
    """With bridge=state the decoder begins in the encoder's final state: one for each layer, of an
    encoder that reads forwards, and no attention."""
    if keys.get("bridge") != "state":
        return
    if keys.get("bidirectional") is True:
        raise UserError(
            f"{where}bridge=state needs the encoder's state after the last token, and an encoder "
            f"that reads both ways has none: give {where}bidirectional=false, or "
            f"{where}bridge=attention"
        )
    if keys.get("attention", "dot") != "dot":
        raise UserError(
            f"{where}attention={keys['attention']}: {where}bridge=state has none: leave it out, or "
            f"give {where}bridge=attention"
        )
    encoder, decoder = keys.get("encoder_layers"), keys.get("n_layers")
    if encoder and decoder and encoder != decoder:
        raise UserError(
            f"{where}bridge=state needs one state for each layer of the decoder: give "
            f"{where}encoder_layers=null, or {decoder} as {_of_model(where)}n_layers"
        )


def _known(keys: Keys, *names: str) -> bool:
    return all(name in keys for name in names)


def _of_model(where: str) -> str:
    """What begins a key of the model, in a message about keys of the architecture."""
    return "model." if where == "architecture." else where


def _divides(key: str, heads: int, whole: str, size: int, also: str = "") -> None:
    """Refuse a number of heads that does not divide a size, and offer the nearest that does; of
    two, the larger."""
    if size % heads:
        divisors = (h for h in range(1, size + 1) if size % h == 0)
        fits = min(divisors, key=lambda h: (abs(h - heads), -h))
        raise UserError(
            f"{whole} ({size}) must be divisible by {key} ({heads}): try {also}{key}={fits}"
        )


# ---- of the trainer

LIMITS = ("max_steps", "max_seconds", "max_epochs")


def a_limit_is_set(keys: Keys, where: str) -> None:
    """Refuse a training without an end."""
    if all(keys.get(limit) is None for limit in LIMITS):
        names = [f"{where or 'trainer.'}{limit}" for limit in LIMITS]
        raise UserError(f"trainer: no end: set {names[0]}, {names[1]} or {names[2]}")


# ---- of the keys that name a task's data

TABLES = ("path", "val_path", "test_path")
TWINS = ("source", "target", "val_source", "val_target", "test_source", "test_target")


def corpus_or_files(keys: Keys, where: str) -> None:
    """Refuse a corpus beside files, and a file for validation or test without one to train on."""
    tables, twins = _given(keys, TABLES), _given(keys, TWINS)
    if keys.get("corpus") is not None and (tables or twins):
        raise UserError(f"{where}corpus={keys['corpus']}, and files too, are given: give one")
    if tables and twins:
        raise UserError(
            f"{where}path, and {where}source with {where}target, are both given: give one"
        )
    if tables and keys.get("path") is None:
        raise UserError(f"{where}{tables[0]} is given without {where}path: give both")


def twins_are_complete(keys: Keys, where: str) -> None:
    """Refuse a file of sources without its file of targets, or the reverse."""
    for option in (given := _given(keys, TWINS)):
        prefix, side = option[:-6], option[-6:]
        other = {"source": "target", "target": "source"}[side]
        for needed in (f"{prefix}{other}", side):
            if needed not in given:
                raise UserError(f"{where}{option} is given without {where}{needed}: give both")


def lowercase_needs_files(keys: Keys, where: str) -> None:
    """Refuse lower case for pairs that are made, which are used as they are."""
    corpus = keys.get("corpus") or "numbers"
    made = not _given(keys, TABLES + TWINS) and "/" not in corpus
    if keys.get("lowercase") and made:
        raise UserError(
            f"{where}lowercase=true: of files and hub data sets: {where}corpus={corpus} is used as "
            "it is: leave it out"
        )


def bpe_dropout_has_words(keys: Keys, where: str) -> None:
    """Only whole texts under byte-pair encoding can be cut into tokens anew."""
    if not keys.get("bpe_dropout"):
        return
    for key, needed in (("tokenizer", "bpe"), ("long_pairs", "drop")):
        if keys.get(key, needed) != needed:
            raise UserError(
                f"{where}bpe_dropout={keys['bpe_dropout']} with {where}{key}={keys[key]}: "
                f"give {where}{key}={needed}, or no {where}bpe_dropout"
            )


def _given(keys: Keys, options: tuple[str, ...]) -> list[str]:
    return [option for option in options if keys.get(option) is not None]
