"""The one table from a model's name to what builds it.

To add a family: a file in ``mixers/``, a line here, and ``configs/model/NAME.yaml`` with a value
for every key. This module loads no torch until something is built, so that a wrong key is refused
at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from seqzoo.config import cache_policy, check, check_keys, defaults, nearest
from seqzoo.errors import UserError

if TYPE_CHECKING:
    from seqzoo.models.language_model import LanguageModel

POSITIONS = ("rope", "learned", "sinusoidal", "none")
CHOICES = {  # of keys that families share
    "block": ("classic", "prenorm"),
    "norm": ("layer", "rms"),
    "activation": ("gelu", "relu", "relu2", "swiglu"),
}


@dataclass(frozen=True)
class Family:
    """How a family is built.

    Args:
        mixer: where its time mixer is, ``package.module:Class``.
        classic: the arrangement its paper has: `stack`, `residual`, `postnorm` or `prenorm`.
        channel: the channel mixer of its classic block; the pre-norm recipe always has the MLP.
        norm_in: whether there is a layer norm after the embedding, as its `init` may need.
        init: what initialises embedding and head.
        head_multiple: what the numbers of a head must be a multiple of.
        choices: the values allowed for its own keys.
        yaml: where its default values are, if not in ``configs/model``.
    """

    mixer: str
    classic: str
    channel: str = "seqzoo.mixers.mlp:MLP"
    norm_in: bool = False
    init: str = "seqzoo.models.init:normal"
    head_multiple: int = 1
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    yaml: str | None = None


FAMILIES: dict[str, Family] = {
    "rnn": Family("seqzoo.mixers.recurrent:RNN", "stack", init="seqzoo.models.init:uniform"),
    "lstm": Family("seqzoo.mixers.recurrent:LSTM", "stack", init="seqzoo.models.init:uniform"),
    "gru": Family("seqzoo.mixers.recurrent:GRU", "stack", init="seqzoo.models.init:uniform"),
    "transformer": Family(
        "seqzoo.mixers.attention:CausalAttention", "postnorm", choices={"position": POSITIONS}
    ),
    "linear_transformer": Family(
        "seqzoo.mixers.linear_attention:LinearAttention",
        "postnorm",
        choices={
            "position": POSITIONS,
            "decay": ("none", "retention"),
            "feature": ("elu", "relu", "learned", "taylor"),
            "normaliser": ("sum", "rms"),
        },
    ),
    "rwkv4": Family(
        "seqzoo.mixers.rwkv4:TimeMix",
        "prenorm",
        channel="seqzoo.mixers.rwkv4:ChannelMix",
        norm_in=True,
        init="seqzoo.models.init:rwkv4",
    ),
    "rwkv5": Family(
        "seqzoo.mixers.rwkv5:TimeMix",
        "prenorm",
        channel="seqzoo.mixers.rwkv4:ChannelMix",
        norm_in=True,
        init="seqzoo.models.init:rwkv",
    ),
    "rwkv6": Family(
        "seqzoo.mixers.rwkv6:TimeMix",
        "prenorm",
        channel="seqzoo.mixers.rwkv6:ChannelMix",
        norm_in=True,
        init="seqzoo.models.init:rwkv",
    ),
    "rwkv7": Family(
        "seqzoo.mixers.rwkv7:TimeMix",
        "prenorm",
        channel="seqzoo.mixers.rwkv7:ChannelMix",
        norm_in=True,
        init="seqzoo.models.init:rwkv",
    ),
    "retnet": Family("seqzoo.mixers.retention:Retention", "prenorm", head_multiple=2),
    "gla": Family("seqzoo.mixers.gla:GatedLinearAttention", "prenorm", head_multiple=2),
    "deltanet": Family("seqzoo.mixers.deltanet:DeltaNet", "prenorm"),
    "mamba2": Family("seqzoo.mixers.mamba2:Mamba2", "residual"),
    "mingru": Family("seqzoo.mixers.minimal:MinGRU", "prenorm"),
    "minlstm": Family("seqzoo.mixers.minimal:MinLSTM", "prenorm"),
}
ALIASES = {"rwkv": "rwkv7"}  # the newest of a line; configs/model/rwkv.yaml says the same to Hydra


def family(name: str) -> Family:
    """The entry of a name or alias.

    Raises:
        UserError: no such model; the nearest name is offered.
    """
    name = ALIASES.get(name, name)
    if name not in FAMILIES:
        raise UserError(f"model={name}: no such model{nearest(name, [*FAMILIES, *ALIASES])}")
    return FAMILIES[name]


def check_model(keys: Mapping[str, Any]) -> None:
    """Refuse a model configuration that could not be built, before torch is loaded.

    Raises:
        UserError: an unknown key, a value out of range, heads that do not divide the width.
    """
    entry = family(keys["name"])
    check_keys(
        "model", keys, defaults("model", ALIASES.get(keys["name"], keys["name"]), entry.yaml)
    )
    check("model", keys, choices={**CHOICES, **entry.choices})
    dim, heads = keys["dim"], keys.get("n_heads", 1)
    if dim % heads:
        below = dim - dim % heads or heads
        fits = min(
            (h for h in range(1, dim + 1) if dim % h == 0), key=lambda h: (abs(h - heads), -h)
        )
        raise UserError(
            f"model.dim ({dim}) must be divisible by model.n_heads ({heads}): "
            f"try model.dim={below} or model.n_heads={fits}"
        )
    if dim // heads % entry.head_multiple:
        unit = heads * entry.head_multiple
        raise UserError(
            f"model.dim ({dim}) / model.n_heads ({heads}) must be a multiple of "
            f"{entry.head_multiple}: try model.dim={max(1, dim // unit) * unit}"
        )
    if keys.get("position") == "rope" and dim // heads % 2:
        raise UserError(
            f"model.position=rope turns pairs, and a head has {dim // heads} numbers "
            "(dim / n_heads): choose an even size, or model.position=sinusoidal"
        )
    if keys.get("position") == "rope" and keys.get("feature") == "taylor":
        raise UserError(
            "model.position=rope turns pairs, and model.feature=taylor makes an odd number of "
            "features: choose another position or feature"
        )
    if keys.get("cache") is not None:
        cache_policy("model.cache", keys["cache"])
    shared = keys.get("n_kv_heads") or heads
    if heads % shared:
        raise UserError(
            f"model.n_heads ({heads}) must be divisible by model.n_kv_heads ({shared}): "
            f"try model.n_kv_heads={max(d for d in range(1, shared + 1) if heads % d == 0)}"
        )


def model_keys(name: str, **keys: Any) -> dict[str, Any]:
    """The whole configuration of a model: its YAML's values, with `keys` in place of some,
    checked."""
    entry = family(name)
    name = ALIASES.get(name, name)
    merged = {**defaults("model", name, entry.yaml), **keys, "name": name}
    check_model(merged)
    return merged


def build(name: str, *, vocab_size: int, **keys: Any) -> LanguageModel:
    """Build any model of the zoo, with fresh weights from torch's global generator.

    Args:
        name: one of FAMILIES, such as `lstm`, or an alias such as `rwkv`.
        vocab_size: number of tokens V.
        **keys: any of the model's own keys (``configs/model/NAME.yaml``), such as dim, n_layers,
            dropout.

    Returns:
        A module: ``logits, state = model(tokens, state)``, tokens (B, T), logits (B, T, V), state
            None at first.

    Raises:
        UserError: an unknown name or key, or a value that is not allowed.
    """
    from seqzoo.models.block import ARRANGEMENTS
    from seqzoo.models.language_model import LanguageModel, PositionEmbedding

    entry = family(name)
    keys = model_keys(name, **keys)
    classic = keys.get("block", "classic") == "classic"
    arrangement = entry.classic if classic else "prenorm"
    layers: list[Any] = []
    added = keys.get("position") in ("learned", "sinusoidal")
    if added:
        layers.append(
            PositionEmbedding(dim=keys["dim"], kind=keys["position"], max_len=keys["max_len"])
        )
    for layer in range(keys["n_layers"]):
        given = {**keys, "layer": layer, "mixer": _make(entry.mixer, {**keys, "layer": layer})}
        if arrangement in ("prenorm", "postnorm"):
            given["channel"] = _make(entry.channel if classic else Family.channel, given)
        layers.append(_call(ARRANGEMENTS[arrangement], given))
    model = LanguageModel(
        vocab_size=vocab_size,
        dim=keys["dim"],
        layers=layers,
        dropout=keys["dropout"],
        tie_embeddings=keys["tie_embeddings"],
        norm_in=entry.norm_in,
        norm_out=arrangement in ("prenorm", "residual"),
        norm=keys.get("norm", "layer"),
        max_len=keys["max_len"] if added else None,
    )
    _load(entry.init)(model.embedding, model.head)
    return model


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def _make(path: str, given: Mapping[str, Any]) -> Any:
    return _call(_load(path), given)


def _call(constructor: Any, given: Mapping[str, Any]) -> Any:
    """Call with those of the given keywords that the constructor has."""
    wanted = inspect.signature(constructor).parameters
    return constructor(**{key: value for key, value in given.items() if key in wanted})
