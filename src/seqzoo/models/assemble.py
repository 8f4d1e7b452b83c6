"""From a model's keys to the model: one function an architecture.

Every key reaches the constructors that have a parameter of its name; `zoo` has refused keys that
none has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from seqzoo.config import combinations
from seqzoo.config.schema import accepted, checked, load
from seqzoo.config.values import Count, Flag
from seqzoo.errors import UserError
from seqzoo.models import zoo
from seqzoo.models.block import ARRANGEMENTS, NORMS, WithCrossAttention
from seqzoo.models.classifier import Classifier
from seqzoo.models.encoder_decoder import Encoder, EncoderDecoder, StepwiseDecoder
from seqzoo.models.language_model import LanguageModel, PositionEmbedding

if TYPE_CHECKING:
    from seqzoo.models.zoo import Family

Keys = Mapping[str, Any]
CROSS_ATTENTION = "seqzoo.mixers.cross_attention:CrossAttention"
MLP = "seqzoo.mixers.mlp:MLP"


class Layer:
    """One layer of a model before it is built: a family's, with all its keys.

    Args:
        block: `classic` is the paper's arrangement, `prenorm` GPT-2's with an MLP.
    """

    @checked()
    def __init__(
        self, family: Family, keys: Keys, *, block: Literal["classic", "prenorm"] = "classic"
    ) -> None:
        self.family, self.keys = family, keys
        self.arrangement = family.classic if block == "classic" else "prenorm"
        self.channel = family.channel if block == "classic" else MLP

    def build(self, *, encoder: bool, encoded_dim: int | None, **place: Any) -> nn.Module:
        """The layer.

        Args:
            encoder: with the family's mixer that sees the whole sequence.
            encoded_dim: width of an encoded source, for attention to it.
            **place: the `layer`'s index of `n_layers`; whether it is the `first` of its family.
        """
        given = {**self.keys, **place, "encoded_dim": encoded_dim}
        given["mixer"] = _construct(self.family.encoder if encoder else self.family.mixer, given)
        if encoded_dim is not None:
            given["cross"] = _construct(CROSS_ATTENTION, given)
        if self.arrangement in ("prenorm", "postnorm"):
            given["channel"] = _construct(self.channel, given)
        layer = _construct(ARRANGEMENTS[self.arrangement], given)
        if encoded_dim is not None and self.arrangement in ("stack", "residual"):
            return _construct(WithCrossAttention, {**given, "layer": layer})
        return layer


class Backbone:
    """The layers of a model, and what is around them.

    Args:
        keys: the model's.
        n_layers: the layers there are, the position embedding aside.
        source_heads: of the attention to an encoded source.
    """

    @checked()
    def __init__(self, keys: Keys, *, n_layers: Count, source_heads: Count | None = None) -> None:
        self.keys = {**keys, "n_layers": n_layers, "source_heads": source_heads}
        self.family = zoo.family(keys["name"])
        self.plan = [
            Layer(family, own, **{key: own[key] for key in ("block",) if key in own})
            for family, own in zoo.layers(self.keys)
        ]

    @property
    def adds_positions(self) -> bool:
        return self.keys.get("position") in ("learned", "sinusoidal")

    @property
    def needs_final_norm(self) -> bool:
        """Whether the last layer leaves its output unnormalised."""
        return self.plan[-1].arrangement in ("prenorm", "residual")

    @property
    def sees_both_ways(self) -> bool:
        """Whether each family has a mixer that sees the whole sequence."""
        return all(layer.family.encoder for layer in self.plan)

    def final_norm(self) -> nn.Module:
        """What follows the last of the layers."""
        if not self.needs_final_norm:
            return nn.Identity()
        norm: nn.Module = NORMS[self.keys.get("norm", "layer")](self.keys["dim"])
        return norm

    def initialise(self, embedding: nn.Embedding, head: nn.Linear) -> None:
        load(self.family.init)(embedding, head)

    def layers(self, encoded_dim: int | None = None, *, encoder: bool = False) -> list[nn.Module]:
        """The layers in order, as `Layer.build`."""
        keys = self.keys
        layers: list[nn.Module] = []
        if self.adds_positions:
            kind = {"kind": keys["position"], "max_len": keys["max_len"]}
            layers.append(PositionEmbedding(dim=keys["dim"], **kind))
        names = [layer.keys["name"] for layer in self.plan]
        for number, layer in enumerate(self.plan):
            place = {"layer": number, "first": names[number] not in names[:number]}
            place |= {key: keys[key] for key in ("n_layers", "source_heads")}
            layers.append(layer.build(encoder=encoder, encoded_dim=encoded_dim, **place))
        return layers

    def reader(self, vocab_size: int, both_ways: bool) -> dict[str, Any]:
        """What `Encoder` and `Classifier` take: embedding, and one stack of layers; for both
        directions two, unless it `sees_both_ways`."""
        dim = self.keys["dim"]
        at_once = both_ways and self.sees_both_ways
        count = 2 if both_ways and not at_once else 1
        stacks = [self.layers(encoder=at_once) for _ in range(count)]
        embedding = nn.Embedding(vocab_size, dim)
        self.initialise(embedding, nn.Linear(dim, vocab_size, bias=False))
        return {
            "embedding": embedding,
            "norm_in": nn.LayerNorm(dim) if self.family.norm_in else nn.Identity(),
            "dropout": self.keys["dropout"],
            "stacks": stacks,
            "norms": [self.final_norm() for _ in stacks],
        }

    def language_model_keys(self) -> dict[str, Any]:
        """What `LanguageModel` takes, its layers and vocabulary aside."""
        keys = self.keys
        return {
            "dim": keys["dim"],
            "dropout": keys["dropout"],
            "tie_embeddings": keys["tie_embeddings"],
            "norm_in": self.family.norm_in,
            "norm": keys.get("norm", "layer"),
            "max_len": keys["max_len"] if self.adds_positions else None,
        }


def decoder_only(keys: Keys, *, vocab_size: int) -> LanguageModel:
    """A language model: one stack of layers."""
    backbone = Backbone(keys, n_layers=keys["n_layers"])
    model = LanguageModel(
        vocab_size=vocab_size,
        layers=backbone.layers(),
        norm_out=backbone.needs_final_norm,
        **backbone.language_model_keys(),
    )
    backbone.initialise(model.embedding, model.head)
    return model


@checked(combinations.source_heads_divide_width, combinations.state_bridge_fits)
def encoder_decoder(
    keys: Keys,
    *,
    vocab_size: int,
    source_vocab_size: int | None = None,
    bridge: Literal["attention", "state"],
    attention: Literal["dot", "bahdanau", "luong"],
    source_heads: Count,
    bidirectional: Literal["auto", True, False],
    encoder_layers: Count | None,
    share_embeddings: Flag,
) -> EncoderDecoder:
    """An encoder and a decoder of the same family.

    Args:
        bridge: what the decoder gets of the source: `attention` to all of it, or the final `state`.
        attention: `dot` in every layer; `bahdanau` or `luong` once, step by step.
        bidirectional: `auto` is true with bridge=attention.
        encoder_layers: None: as many as the decoder has.
    """
    attends = bridge == "attention"
    both_ways = attends if bidirectional == "auto" else bidirectional
    stepwise = attention if attends and attention != "dot" else None
    decoder = Backbone(keys, n_layers=keys["n_layers"], source_heads=source_heads)
    two_stacks = both_ways and not decoder.sees_both_ways
    encoded_dim = keys["dim"] * (2 if two_stacks else 1)
    layers = decoder.layers(encoded_dim=encoded_dim if attends and stepwise is None else None)
    if stepwise is not None:
        layers = [
            StepwiseDecoder(
                layers=layers,
                norm_out=decoder.final_norm(),
                attention=stepwise,
                dim=keys["dim"],
                encoded_dim=encoded_dim,
            )
        ]
    encoder_backbone = Backbone(keys, n_layers=encoder_layers or keys["n_layers"])
    encoder = Encoder(**encoder_backbone.reader(source_vocab_size or vocab_size, both_ways))
    model = EncoderDecoder(
        encoder=encoder,
        bridge=bridge,
        vocab_size=vocab_size,
        layers=layers,
        norm_out=decoder.needs_final_norm and stepwise is None,
        **decoder.language_model_keys(),
    )
    decoder.initialise(model.embedding, model.head)
    if share_embeddings:
        if source_vocab_size not in (None, vocab_size):
            raise UserError(
                f"architecture.share_embeddings=true: the source has {source_vocab_size} tokens "
                f"and the target {vocab_size}: give architecture.share_embeddings=false"
            )
        encoder.embedding, encoder.norm_in = model.embedding, model.norm_in
    return model


@checked(combinations.window_reads_forwards)
def classifier(
    keys: Keys,
    *,
    vocab_size: int,
    n_classes: int,
    pooling: Literal["last", "mean", "max"],
    bidirectional: Flag,
) -> Classifier:
    """Layers whose outputs are pooled into one vector, and a head over the classes."""
    backbone = Backbone(keys, n_layers=keys["n_layers"])
    return Classifier(
        **backbone.reader(vocab_size, bidirectional),
        pooling=pooling,
        bidirectional=bidirectional,
        n_classes=n_classes,
        max_len=keys["max_len"] if backbone.adds_positions else None,
    )


def _construct(constructor: Any, given: Mapping[str, Any]) -> nn.Module:
    """Call a constructor, or the one at an import path, with those keywords that it has."""
    if isinstance(constructor, str):
        constructor = load(constructor)
    module: nn.Module = constructor(
        **{k: v for k, v in given.items() if k in accepted(constructor)}
    )
    return module
