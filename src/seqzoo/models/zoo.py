"""The table from a model's name to what builds it, and `build`.

To add a family: a file in ``mixers/``, a line here, and ``configs/model/NAME.yaml`` with a value
for every key. This module loads no torch until something is built, so that a wrong key is refused
at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from seqzoo.config import files, plugins
from seqzoo.config.schema import Declaration, check, check_complete, check_keys, declared, load
from seqzoo.errors import UserError, is_out_of_memory
from seqzoo.models import hybrid

if TYPE_CHECKING:
    from seqzoo.models.language_model import LanguageModel


@dataclass(frozen=True)
class Family:
    """How a family is built.

    Attributes:
        mixer: where its time mixer is, ``package.module:Class``; None of a hybrid, whose layers are
            those of other families.
        classic: the arrangement its paper has: `stack`, `residual`, `postnorm` or `prenorm`.
        channel: the channel mixer of its classic block; block=prenorm always has the MLP.
        norm_in: whether there is a layer norm after the embedding, which some `init` need.
        init: what initialises embedding and head.
        encoder: the mixer of an encoder that reads both ways in one stack, where there is one.
    """

    mixer: str | None
    classic: str = "prenorm"
    channel: str = "seqzoo.mixers.mlp:MLP"
    norm_in: bool = False
    init: str = "seqzoo.models.init:normal"
    encoder: str | None = None


def _recurrent(name: str) -> Family:
    return Family(f"seqzoo.mixers.recurrent:{name}", "stack", init="seqzoo.models.init:uniform")


def _rwkv(version: int, channel: int, init: str = "rwkv") -> Family:
    return Family(
        f"seqzoo.mixers.rwkv{version}:TimeMix",
        "prenorm",
        channel=f"seqzoo.mixers.rwkv{channel}:ChannelMix",
        norm_in=True,
        init=f"seqzoo.models.init:{init}",
    )


FAMILIES: dict[str, Family] = {
    "rnn": _recurrent("RNN"),
    "lstm": _recurrent("LSTM"),
    "gru": _recurrent("GRU"),
    "transformer": Family(
        "seqzoo.mixers.attention:CausalAttention",
        "postnorm",
        encoder="seqzoo.mixers.attention:FullAttention",
    ),
    "linear_transformer": Family("seqzoo.mixers.linear_attention:LinearAttention", "postnorm"),
    "rwkv4": _rwkv(4, channel=4, init="rwkv4"),
    "rwkv5": _rwkv(5, channel=4),
    "rwkv6": _rwkv(6, channel=6),
    "rwkv7": _rwkv(7, channel=7),
    "retnet": Family("seqzoo.mixers.retention:Retention", "prenorm"),
    "gla": Family("seqzoo.mixers.gla:GatedLinearAttention", "prenorm"),
    "deltanet": Family("seqzoo.mixers.deltanet:DeltaNet", "prenorm"),
    "mamba2": Family("seqzoo.mixers.mamba2:Mamba2", "residual"),
    "mingru": Family("seqzoo.mixers.minimal:MinGRU", "prenorm"),
    "minlstm": Family("seqzoo.mixers.minimal:MinLSTM", "prenorm"),
    "gated_deltanet": Family("seqzoo.mixers.gated_deltanet:GatedDeltaNet", "prenorm"),
    "kda": Family("seqzoo.mixers.kda:KimiDeltaAttention", "prenorm"),
    "deltaproduct": Family("seqzoo.mixers.deltaproduct:DeltaProduct", "prenorm"),
    "hgrn2": Family("seqzoo.mixers.hgrn2:HGRN2", "prenorm"),
    "rglru": Family("seqzoo.mixers.rglru:RGLRU", "prenorm"),
    "mamba3": Family("seqzoo.mixers.mamba3:Mamba3", "prenorm"),
    "mlstm": Family("seqzoo.mixers.mlstm:MLSTM", "residual"),
    "slstm": Family("seqzoo.mixers.slstm:SLSTM", "prenorm"),
    "fox": Family("seqzoo.mixers.fox:ForgettingAttention", "prenorm"),
    **dict.fromkeys(("hybrid", "griffin", "samba", "gated_deltanet_hybrid", "xlstm"), Family(None)),
}
ALIASES = {"rwkv": "rwkv7"}  # the newest of a line; configs/model/rwkv.yaml is the alias for Hydra

ARCHITECTURES = {
    "decoder_only": "seqzoo.models.assemble:decoder_only",
    "encoder_decoder": "seqzoo.models.assemble:encoder_decoder",
    "classifier": "seqzoo.models.assemble:classifier",
}


def families() -> dict[str, Family]:
    """Every family by its name, those of plugins included."""
    return plugins.registered("models", FAMILIES)


def full_name(name: str) -> str:
    """The name that an alias stands for; any other name as it is."""
    return ALIASES.get(name, name)


def family(name: str) -> Family:
    """The entry of a name or alias.

    Raises:
        UserError: no such model; the nearest name is offered.
    """
    known = families()
    return files.entry("model", name, known | {old: known[new] for old, new in ALIASES.items()})


def keys_of(name: str) -> dict[str, Any]:
    """The section `model` that `model=NAME` gives: that of a family or an alias, or of a file in a
    folder of `--config-dir`, whose `name` is that of its family.

    Raises:
        UserError: no such file, no family in it, or a key of the family is missing.
    """
    keys = files.defaults("model", name)
    if not isinstance(keys.get("name"), str):
        raise UserError(
            f"{files.find('model', name)}: no model.name in it: give that of a family, or begin "
            "with defaults: [FAMILY]"
        )
    family(keys["name"])  # refuses an unknown one
    check_complete(files.defaults("model", full_name(keys["name"])), keys, "model.")
    return keys


def declaration(name: str) -> Declaration:
    """What the keys of a family allow, as the constructors declare that take them.

    Raises:
        UserError: its YAML has a key that none of them takes.
    """
    entry, keys = family(name), files.defaults("model", full_name(name))
    parts = [entry.mixer or hybrid.LAYERS, entry.channel, Family.channel, *_SHARED]
    whole = declared(parts[0])
    for path in parts[1:]:
        whole |= declared(path)
    for key in keys:
        if key not in whole.keys and key != "name":
            raise UserError(f"model.{key}: in the file of {name}, but no constructor takes it")
    return Declaration({k: v for k, v in whole.keys.items() if k in keys}, whole.rules)


_SHARED = (
    "seqzoo.models.assemble:Backbone",
    "seqzoo.models.assemble:Layer",
    "seqzoo.models.block:PreNorm",
    "seqzoo.models.language_model:PositionEmbedding",
    "seqzoo.models.language_model:LanguageModel",
    "seqzoo.models.width:solved",
)


def check_model(keys: Mapping[str, Any]) -> None:
    """Refuse the keys of a model that cannot be built, before torch is loaded.

    Raises:
        UserError: an unknown key, a value out of range, heads that do not divide the width.
    """
    name = keys["name"]
    family(name)  # refuses an unknown one
    check_keys(keys, files.defaults("model", full_name(name)), "model.")
    check(declaration(name), keys, "model.")
    for entry, own, whole in hybrid.entries(keys):
        if family(whole["name"]).mixer is None:
            raise UserError(
                f"model.pattern: {entry} is a hybrid itself: give the families of its layers"
            )
        found = declaration(whole["name"])
        where = f"model.layers.{entry}."
        check_keys(own, files.defaults("model", whole["name"]), where)
        check(Declaration(found.keys), own, where)
        check(Declaration({}, found.rules), whole, "model.")


def layers(keys: Mapping[str, Any]) -> list[tuple[Family, dict[str, Any]]]:
    """The family of each layer of a model, and the whole keys of that family."""
    families = {entry: (family(whole["name"]), whole) for entry, _, whole in hybrid.entries(keys)}
    if not families:
        return [(family(keys["name"]), dict(keys))] * keys["n_layers"]
    pattern = keys["pattern"]
    return [families[pattern[i % len(pattern)]] for i in range(keys["n_layers"])]


def check_architecture(keys: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """Refuse the keys of an architecture that are wrong, or do not fit the model's.

    Raises:
        UserError: as `check_model`.
    """
    name = keys["name"]
    check_keys(keys, files.defaults("architecture", name), "architecture.")
    found = declared(files.entry("architecture", name, ARCHITECTURES))
    check(Declaration(found.keys), keys, "architecture.")
    for rule in found.rules:
        rule({**model, **keys}, "architecture.")


def complete(
    name: str, architecture: str = "decoder_only", **keys: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The whole sections `model` and `architecture`: the files' values, with `keys` in place of
    some, checked."""
    whole = files.defaults("architecture", architecture)
    own = {key: value for key, value in keys.items() if key not in whole}
    model = hybrid.merged(keys_of(name), own)
    whole |= {key: value for key, value in keys.items() if key in whole}
    check_model(model)
    check_architecture(whole, model)
    return model, whole


def model_keys(name: str, **keys: Any) -> dict[str, Any]:
    """The whole section `model` that `keys_of` gives, with `keys` in place of some, checked."""
    return complete(name, **keys)[0]


def one_width(dim: object, parameters: object) -> UserError:
    """The refusal of a width beside a number of parameters that gives another one."""
    return UserError(
        f"model.dim={dim} and model.parameters={parameters}: the number of parameters gives the "
        "width: leave model.dim out, or give model.parameters=null"
    )


def build_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration's model and architecture, as `build` takes them. Its width is that of
    `model.dim`, which a run with `model.parameters` has solved for."""
    architecture = dict(config["architecture"])
    whole = {**config["model"], "architecture": architecture.pop("name"), **architecture}
    return {key: value for key, value in whole.items() if key != "parameters"}


def build(
    name: str, *, vocab_size: int, architecture: str = "decoder_only", **keys: Any
) -> LanguageModel:
    """Build any model of the zoo, with fresh weights from torch's global generator.

    Args:
        name: one of FAMILIES, such as `lstm`, an alias such as `rwkv`, or a file as for `keys_of`.
        vocab_size: number of tokens V.
        architecture: `decoder_only`, `encoder_decoder` or `classifier`.
        **keys: any key of the model (``configs/model/NAME.yaml``), such as dim, n_layers, dropout,
            or of the architecture; `parameters`, of the whole model, in place of dim;
            `source_vocab_size` of an encoder-decoder (default: one vocabulary for both sides);
            `n_classes` of a classifier.

    Returns:
        A module: ``logits, state = model(tokens, state)`` with tokens (B, T), logits (B, T, V) and
        state None at first. The first state of an encoder-decoder is ``model.encode(source)``; a
        classifier's logits are (B, n_classes).

    Raises:
        UserError: an unknown name or key, a value that is not allowed, or more weights than there
            is memory for.
    """
    from seqzoo.ops.registry import load_forms

    load_forms()
    if (parameters := keys.pop("parameters", None)) is not None:
        from seqzoo.models.width import solved

        if "dim" in keys:
            raise one_width(keys["dim"], parameters)
        keys |= {"name": name, "vocab_size": vocab_size, "architecture": architecture}
        return build(**solved(keys, parameters=parameters))
    sizes = {key: keys.pop(key, None) for key in ("source_vocab_size", "n_classes")}
    sizes = {key: size for key, size in sizes.items() if size is not None}
    model, whole = complete(name, architecture, **keys)
    options = {key: value for key, value in whole.items() if key != "name"} | sizes
    assemble: Callable[[], LanguageModel] = partial(
        load(ARCHITECTURES[architecture]), model, vocab_size=vocab_size, **options
    )
    try:
        return assemble()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        import torch

        with torch.device("meta"):
            n_bytes = 4 * assemble().n_parameters()
        raise UserError(
            f"model.dim={model['dim']}, model.n_layers={model['n_layers']}, a vocabulary of "
            f"{vocab_size:,}: the weights alone need {n_bytes:,} bytes of memory, which could not "
            "be allocated: lower one of them"
        ) from None
