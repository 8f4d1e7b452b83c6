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
    "head": ("decoder_only", "encoder_decoder"),
    "bridge": ("attention", "state"),
    "attention": ("dot", "bahdanau", "luong"),
    "bidirectional": ("auto", True, False),
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
        encoder: the mixer of an encoder that reads both ways in one stack, where there is one.
        head_multiple: what the numbers of a head must be a multiple of.
        choices: the values allowed for its own keys.
        yaml: where its default values are, if not in ``configs/model``.
    """

    mixer: str
    classic: str
    channel: str = "seqzoo.mixers.mlp:MLP"
    norm_in: bool = False
    init: str = "seqzoo.models.init:normal"
    encoder: str | None = None
    head_multiple: int = 1
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    yaml: str | None = None


FAMILIES: dict[str, Family] = {
    "rnn": Family("seqzoo.mixers.recurrent:RNN", "stack", init="seqzoo.models.init:uniform"),
    "lstm": Family("seqzoo.mixers.recurrent:LSTM", "stack", init="seqzoo.models.init:uniform"),
    "gru": Family("seqzoo.mixers.recurrent:GRU", "stack", init="seqzoo.models.init:uniform"),
    "transformer": Family(
        "seqzoo.mixers.attention:CausalAttention",
        "postnorm",
        encoder="seqzoo.mixers.attention:FullAttention",
        choices={"position": POSITIONS},
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
    choices = {**CHOICES, **entry.choices}
    known = _defaults(keys["name"], head(keys))
    check_keys("model", keys, {k: keys.get(k, v) if k in choices else v for k, v in known.items()})
    check("model", keys, choices=choices)
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
    if head(keys) == "encoder_decoder":
        _check_bridge({**known, **keys})
    shared = keys.get("n_kv_heads") or heads
    if heads % shared:
        raise UserError(
            f"model.n_heads ({heads}) must be divisible by model.n_kv_heads ({shared}): "
            f"try model.n_kv_heads={max(d for d in range(1, shared + 1) if heads % d == 0)}"
        )


def _check_bridge(keys: Mapping[str, Any]) -> None:
    """Refuse an encoder and a decoder that do not fit together."""
    if keys["bridge"] == "attention":
        dim, heads = keys["dim"], keys["source_heads"]
        if keys["attention"] == "dot" and dim % heads:
            raise UserError(
                f"model.dim ({dim}) must be divisible by model.source_heads ({heads}): "
                f"try model.source_heads={max(h for h in range(1, heads) if dim % h == 0)}"
            )
        return
    if keys["bidirectional"] is True:
        raise UserError(
            "model.bridge=state hands on the state after the last token, which an encoder has that "
            "reads one way: give model.bidirectional=false, or model.bridge=attention"
        )
    if keys["attention"] != "dot":
        raise UserError(
            f"model.attention={keys['attention']}: model.bridge=state has none: leave it out, or "
            "give model.bridge=attention"
        )
    if keys["encoder_layers"] not in (None, keys["n_layers"]):
        raise UserError(
            f"model.bridge=state hands on a state a layer: give model.encoder_layers=null, or "
            f"{keys['n_layers']} as model.n_layers"
        )


def model_keys(name: str, **keys: Any) -> dict[str, Any]:
    """The whole configuration of a model: its YAML's values, with `keys` in place of some,
    checked."""
    name = ALIASES.get(name, name)
    merged = {**_defaults(name, head(keys)), **keys, "name": name}
    check_model(merged)
    return merged


def head(keys: Mapping[str, Any]) -> str:
    """Which head a model's configuration has; one that is older than the key has no encoder."""
    return str(keys.get("head", "decoder_only"))


def _defaults(name: str, kind: str) -> dict[str, Any]:
    """Every key of a family with a head."""
    if kind not in CHOICES["head"]:
        raise UserError(f"model.head={kind}: choose one of {', '.join(map(str, CHOICES['head']))}")
    known = defaults("model", ALIASES.get(name, name), family(name).yaml)
    return {**known, **defaults("head", kind)}


def build(
    name: str, *, vocab_size: int, source_vocab_size: int | None = None, **keys: Any
) -> LanguageModel:
    """Build any model of the zoo, with fresh weights from torch's global generator.

    Args:
        name: one of FAMILIES, such as `lstm`, or an alias such as `rwkv`.
        vocab_size: number of tokens V.
        source_vocab_size: of the source of head=encoder_decoder; None: as many, the same.
        **keys: any of the model's own keys (``configs/model/NAME.yaml``), such as dim, n_layers,
            dropout.

    Returns:
        A module: ``logits, state = model(tokens, state)``, tokens (B, T), logits (B, T, V), state
            None at first; with head=encoder_decoder it is ``model.encode(source)``.

    Raises:
        UserError: an unknown name or key, or a value that is not allowed.
    """
    from seqzoo.models.encoder_decoder import EncoderDecoder
    from seqzoo.models.language_model import LanguageModel

    entry = family(name)
    keys = model_keys(name, **keys)
    encodes = keys["head"] == "encoder_decoder"
    whole: dict[str, Any] = {
        "vocab_size": vocab_size,
        "dim": keys["dim"],
        "layers": _decoder(entry, keys) if encodes else _layers(entry, keys),
        "dropout": keys["dropout"],
        "tie_embeddings": keys["tie_embeddings"],
        "norm_in": entry.norm_in,
        "norm_out": _normed(entry, keys) and not (encodes and _is_fed(keys)),
        "norm": keys.get("norm", "layer"),
        "max_len": keys["max_len"] if _adds_positions(keys) else None,
    }
    if not encodes:
        model = LanguageModel(**whole)
        _load(entry.init)(model.embedding, model.head)
        return model
    encoder = _encoder(entry, keys, source_vocab_size or vocab_size)
    model = EncoderDecoder(encoder=encoder, bridge=keys["bridge"], **whole)
    _load(entry.init)(model.embedding, model.head)
    if keys["share_embeddings"]:
        if source_vocab_size not in (None, vocab_size):
            raise UserError(
                f"model.share_embeddings=true: the source has {source_vocab_size} tokens and the "
                f"target {vocab_size}: give model.share_embeddings=false"
            )
        encoder.embedding, encoder.norm_in = model.embedding, model.norm_in
    return model


def _adds_positions(keys: Mapping[str, Any]) -> bool:
    return keys.get("position") in ("learned", "sinusoidal")


def _arrangement(entry: Family, keys: Mapping[str, Any]) -> str:
    return entry.classic if keys.get("block", "classic") == "classic" else "prenorm"


def _normed(entry: Family, keys: Mapping[str, Any]) -> bool:
    """Whether a stack of such layers needs a norm after the last."""
    return _arrangement(entry, keys) in ("prenorm", "residual")


def _norm(entry: Family, keys: Mapping[str, Any]) -> Any:
    """What follows the last of a stack of layers."""
    from torch import nn

    from seqzoo.models.block import NORMS

    return NORMS[keys.get("norm", "layer")](keys["dim"]) if _normed(entry, keys) else nn.Identity()


def _is_fed(keys: Mapping[str, Any]) -> bool:
    return bool(keys["bridge"] == "attention" and keys["attention"] != "dot")


def _layers(
    entry: Family, keys: Mapping[str, Any], mixer: str | None = None, **more: Any
) -> list[Any]:
    """A stack of layers; `mixer` in place of the family's. `more` is what `CrossAttention` needs
    for one in every layer."""
    from seqzoo.models.block import ARRANGEMENTS, Attending
    from seqzoo.models.language_model import PositionEmbedding

    arrangement = _arrangement(entry, keys)
    channel = entry.channel if keys.get("block", "classic") == "classic" else Family.channel
    layers: list[Any] = []
    if _adds_positions(keys):
        layers.append(
            PositionEmbedding(dim=keys["dim"], kind=keys["position"], max_len=keys["max_len"])
        )
    for layer in range(keys["n_layers"]):
        given = {**keys, **more, "layer": layer}
        given["mixer"] = _make(mixer or entry.mixer, given)
        if more:
            given["cross"] = _make("seqzoo.mixers.cross_attention:CrossAttention", given)
        if arrangement in ("prenorm", "postnorm"):
            given["channel"] = _make(channel, given)
        layers.append(_call(ARRANGEMENTS[arrangement], given))
        if more and arrangement in ("stack", "residual"):
            layers[-1] = _call(Attending, {**given, "layer": layers[-1]})
    return layers


def _reads_both_ways(keys: Mapping[str, Any]) -> bool:
    return keys["bidirectional"] is True or (
        keys["bidirectional"] == "auto" and keys["bridge"] == "attention"
    )


def _encoder(entry: Family, keys: Mapping[str, Any], vocab_size: int) -> Any:
    from torch import nn

    from seqzoo.models.encoder_decoder import Encoder

    keys = {**keys, "n_layers": keys["encoder_layers"] or keys["n_layers"]}
    both = _reads_both_ways(keys)
    mixer = entry.encoder if both else None
    stacks = [_layers(entry, keys, mixer) for _ in range(1 if mixer or not both else 2)]
    embedding = nn.Embedding(vocab_size, keys["dim"])
    _load(entry.init)(embedding, nn.Linear(keys["dim"], vocab_size, bias=False))
    return Encoder(
        embedding=embedding,
        norm_in=nn.LayerNorm(keys["dim"]) if entry.norm_in else nn.Identity(),
        dropout=keys["dropout"],
        stacks=stacks,
        norms=[_norm(entry, keys) for _ in stacks],
    )


def _decoder(entry: Family, keys: Mapping[str, Any]) -> list[Any]:
    """The layers of a decoder, with what its bridge asks for."""
    from seqzoo.models.encoder_decoder import Fed

    if keys["bridge"] == "state":
        return _layers(entry, keys)
    two = _reads_both_ways(keys) and entry.encoder is None
    encoded_dim = keys["dim"] * (2 if two else 1)
    if keys["attention"] == "dot":
        return _layers(entry, keys, encoded_dim=encoded_dim)
    given = {"layers": _layers(entry, keys), "norm_out": _norm(entry, keys)}
    return [_call(Fed, {**keys, **given, "encoded_dim": encoded_dim})]


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def _make(path: str, given: Mapping[str, Any]) -> Any:
    return _call(_load(path), given)


def _call(constructor: Any, given: Mapping[str, Any]) -> Any:
    """Call with those of the given keywords that the constructor has."""
    wanted = inspect.signature(constructor).parameters
    return constructor(**{key: value for key, value in given.items() if key in wanted})
