"""From a mixer to a layer: four arrangements of mixer, norm, residual and channel mixer, and where
a decoder's attention to its source stands in them."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from seqzoo.config import values
from seqzoo.config.schema import checked
from seqzoo.config.values import Count
from seqzoo.ops.norms import norm
from seqzoo.state import State

Norm = Literal["layer", "rms"]


class LayerNorm(nn.LayerNorm):
    """`ops.norms.norm` over the last dimension.

    Args:
        reader: what reads the result; if it `begins_with_product`, that is in autocast's type.
    """

    def __init__(self, dim: int, reader: nn.Module | None = None) -> None:
        super().__init__(dim)
        self.product = begins_with_product(reader)

    def forward(self, x: Tensor) -> Tensor:
        return norm(x, self.weight, self.bias, self.eps, centred=True, product=self.product)


class RMSNorm(nn.RMSNorm):
    """As `LayerNorm`, but without a mean and a bias."""

    def __init__(self, dim: int, reader: nn.Module | None = None) -> None:
        super().__init__(dim, eps=1e-6)
        self.product = begins_with_product(reader)

    def forward(self, x: Tensor) -> Tensor:
        eps = self.eps or 0.0
        return norm(x, self.weight, None, eps, centred=False, product=self.product)


def begins_with_product(reader: nn.Module | None) -> bool:
    """Whether matrix products alone read the input of a module."""
    return isinstance(reader, nn.Linear) or getattr(reader, "begins_with_product", False)


NORMS: dict[str, Any] = {"layer": LayerNorm, "rms": RMSNorm}


class Stack(nn.Module):
    """dropout(mixer(x)): recurrent layers as Zaremba et al. 2014 (arXiv 1409.2329) stack them."""

    @checked()
    def __init__(self, *, mixer: nn.Module, dropout: values.Dropout) -> None:
        super().__init__()
        self.mixer = mixer
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        y, state = self.mixer(x, state)
        return self.dropout(y), state


class PreNorm(nn.Module):
    """x + mixer(norm(x)), then x + channel(norm(x)): GPT-2's and RWKV's block.

    State: the states of the two mixers, and in a decoder the source of `cross`, the attention to it
    that stands between the two.

    Attributes:
        hands_on: the class of a mixer that takes and returns further tensors, `extra` (RWKV-7: the
            values of the first layer), which go to the next layer with a mixer of this class.
    """

    norms_are_read_by_mixers = True

    @checked()
    def __init__(
        self,
        *,
        mixer: nn.Module,
        channel: nn.Module,
        dim: Count,
        dropout: values.Dropout,
        norm: Norm = "layer",
        cross: nn.Module | None = None,
    ) -> None:
        super().__init__()
        readers = (mixer, channel) if self.norms_are_read_by_mixers else (None, None)
        self.norm, self.channel_norm = (NORMS[norm](dim, reader) for reader in readers)
        self.mixer, self.channel = mixer, channel
        self.hands_on = type(mixer) if getattr(mixer, "hands_on", False) else None
        self.dropout = Dropout(dropout)
        self.cross = cross
        self.cross_norm = nn.Identity() if cross is None else NORMS[norm](dim)

    def forward(self, x: Tensor, state: State = None, *extra: Tensor) -> tuple[Any, ...]:
        time_state, channel_state, *source = state or (None, None)
        y, time_state, *extra_out = self.mixer(self.norm(x), time_state, *extra)
        x = x + self.dropout(y.to(x.dtype))
        if self.cross is not None:
            y, *source = self.cross(self.cross_norm(x), *source)
            x = x + self.dropout(y.to(x.dtype))
        y, channel_state = self.channel(self.channel_norm(x), channel_state)
        return x + self.dropout(y.to(x.dtype)), (time_state, channel_state, *source), *extra_out

    def remember(self, encoded: Tensor, valid: Tensor) -> State:
        """A decoder's state before its first token, as `CrossAttention.remember`."""
        return None, None, _remember(self.cross, encoded, valid)


class Residual(nn.Module):
    """x + mixer(norm(x)), for a mixer that also mixes channels: Mamba's block. State: the
    mixer's."""

    @checked()
    def __init__(
        self, *, mixer: nn.Module, dim: Count, dropout: values.Dropout, norm: Norm = "layer"
    ) -> None:
        super().__init__()
        self.norm = NORMS[norm](dim, mixer)
        self.mixer = mixer
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        y, state = self.mixer(self.norm(x), state)
        return x + self.dropout(y.to(x.dtype)), state


class PostNorm(PreNorm):
    """norm(x + mixer(x)), then norm(x + channel(x)): the block of Vaswani et al. 2017. State and
    `cross` as in `PreNorm`."""

    norms_are_read_by_mixers = False  # but by the next residual sum too

    def forward(self, x: Tensor, state: State = None, *extra: Tensor) -> tuple[Any, ...]:
        time_state, channel_state, *source = state or (None, None)
        y, time_state, *extra_out = self.mixer(x, time_state, *extra)
        x = self.norm(x + self.dropout(y.to(x.dtype)))
        if self.cross is not None:
            y, *source = self.cross(x, *source)
            x = self.cross_norm(x + self.dropout(y.to(x.dtype)))
        y, channel_state = self.channel(x, channel_state)
        x = self.channel_norm(x + self.dropout(y.to(x.dtype)))
        return x, (time_state, channel_state, *source), *extra_out


class WithCrossAttention(nn.Module):
    """A layer without a channel mixer, then x + cross(norm(x)). State: the layer's, and the
    source."""

    @checked()
    def __init__(
        self,
        *,
        layer: nn.Module,
        cross: nn.Module,
        dim: Count,
        dropout: values.Dropout,
        norm: Norm = "layer",
    ) -> None:
        super().__init__()
        self.layer, self.cross = layer, cross
        self.norm = NORMS[norm](dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        own, *source = state or (None,)
        x, own = self.layer(x, own)
        y, *source = self.cross(self.norm(x), *source)
        return x + self.dropout(y), (own, *source)

    def remember(self, encoded: Tensor, valid: Tensor) -> State:
        """The state before the first token, as `CrossAttention.remember`."""
        return None, _remember(self.cross, encoded, valid)


def _remember(cross: Any, encoded: Tensor, valid: Tensor) -> State:
    return cross.remember(encoded, valid)


class Dropout(nn.Module):
    """`nn.Dropout`, whose mask on a CPU comes from random bytes, eight a draw: four times faster
    there (`scripts/measure_ops.py`).

    `nn.Dropout` draws one number an element, on one thread: 8.6 ms for a million elements, on a CPU
    that multiplies matrices of that size in 1 ms. The price: p is rounded to 1/256.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        dropped = min(255, round(self.p * 256))
        if x.device.type != "cpu" or not dropped:
            return nn.functional.dropout(x, self.p)
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        keep = (words.view(torch.uint8)[: x.numel()] >= dropped).view(x.shape)
        return x * (keep.to(x.dtype) * (256 / (256 - dropped)))

    def extra_repr(self) -> str:
        return f"p={self.p}"


ARRANGEMENTS: dict[str, Any] = {
    "stack": Stack,
    "residual": Residual,
    "prenorm": PreNorm,
    "postnorm": PostNorm,
}
