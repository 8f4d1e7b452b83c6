"""Operations on a token and a few before it, and on one token, in C++."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqzoo.ops.channel import naive_gate, naive_relu2_product
from seqzoo.ops.local import naive_causal_conv, naive_shift_products
from seqzoo.ops.native import TO, backward_pass, call, expect, in_rows, run, type_of_products
from seqzoo.ops.native.matrix_states import readable, typed
from seqzoo.ops.native.norms import Recipe, recipe

MOST = 8  # mixes that a kernel takes
TAPS = 2, 3, 4  # of a convolution, that a kernel is built for


def shift_products(
    x: Tensor, last: Tensor, mixes: Tensor, moves: Tensor | None, *weights: Tensor
) -> tuple[Tensor, ...]:
    """The mixes are computed again in the backward pass: of a token only x and its moves are kept,
    and of a norm what it was made of."""
    to = type_of_products(x)
    if to not in TO or len(mixes) > MOST:
        return naive_shift_products(x, last, mixes, moves, *weights)
    moves = None if moves is None else in_rows(moves.to(to))
    shifted = Shifted(in_rows(x), in_rows(last), mixes, moves)
    out: tuple[Tensor, ...] = run(
        _ShiftProducts, *shifted, to, recipe(x), *(W.to(to) for W in weights)
    )
    return out


class Shifted(NamedTuple):
    """What mixes of each token with the one before it are made of."""

    x: Tensor  # (B, T, D)
    last: Tensor  # (B, D), the token before the first
    mixes: Tensor  # (n, D), shares of the token before
    moves: Tensor | None  # (n, B, T, D), what each token adds to them, in the type of products

    def mix(self, to: torch.dtype) -> tuple[Tensor, ...]:
        """n times (B, T, D)."""
        x = self.x
        expect(self.last, len(x), x.shape[2])
        out = tuple(x.new_empty(x.shape, dtype=to) for _ in self.mixes)
        call("token_shift_forward" + TO[to], len(self.mixes), *x.shape, *self, *out)
        return out

    def back(self, given: Sequence[Tensor | None], to: torch.dtype) -> Shifted:
        """Gradients, from those by each mix."""
        x, last, mixes, moves = self
        of_mixes = mixes.new_empty(len(x), *mixes.shape)  # for each row of the batch
        like = torch.zeros_like if any(g is None for g in given) else torch.empty_like
        of_moves = None if moves is None else like(moves)
        into = x.new_empty(x.shape), x.new_empty(last.shape), of_mixes, of_moves
        rows = [None if g is None else in_rows(g) for g in given]
        call("token_shift_backward" + TO[to], len(mixes), *x.shape, *self, *into, *rows)
        return Shifted(*into[:2], of_mixes.sum(0), of_moves)


class _ShiftProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Any:
        shifted, (to, made, *weights) = Shifted(*given[:4]), given[4:]
        own = (shifted.x, None, None) if made is None else made[:3]
        ctx.save_for_backward(*own, *shifted[1:], *weights)
        ctx.to, ctx.made, ctx.shape = to, None if made is None else made[3:], shifted.x.shape
        ctx.set_materialize_grads(False)
        return tuple(map(F.linear, shifted.mix(to), weights))

    @staticmethod
    @backward_pass
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: checkpointing hands them out once
        own, rest, weights = saved[:3], saved[3:6], saved[6:]
        x = own[0] if ctx.made is None else Recipe(*own, *ctx.made).again().view(ctx.shape)
        shifted = Shifted(x, *rest)
        of_weights: list[Tensor | None] = []
        of_mixed: list[Tensor | None] = []
        for g, mixed, W in zip(given, shifted.mix(ctx.to), weights, strict=True):
            of_weights.append(None if g is None else g.flatten(0, 1).T @ mixed.flatten(0, 1))
            of_mixed.append(None if g is None else g @ W)
        return *shifted.back(of_mixed, ctx.to), None, None, *of_weights


def causal_conv(x: Tensor, before: Tensor, taps: Tensor) -> Tensor:
    """Without a copy of x beside the tokens before it, and without one in the type of the sums."""
    if len(taps) not in TAPS:
        return naive_causal_conv(x, before, taps)
    y: Tensor = run(_CausalConv, readable(x, before.dtype), in_rows(before), taps)
    return y


class _CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, before: Tensor, taps: Tensor) -> Tensor:
        y = before.new_empty(x.shape)
        expect(before, len(x), len(taps) - 1, x.shape[2])
        call("causal_conv_forward", len(taps), *x.shape, x, before, taps, y)
        ctx.save_for_backward(x, before, taps)
        return y

    @staticmethod
    @backward_pass
    def backward(ctx: Any, of_y: Tensor) -> tuple[Tensor, ...]:
        x, before, taps = ctx.saved_tensors
        of_taps = before.new_empty(len(x), *taps.shape)  # for each row of the batch
        of_x, of_before = torch.empty_like(x), torch.empty_like(before)
        given = x, before, taps, in_rows(of_y)
        call("causal_conv_backward", len(taps), *x.shape, *given, of_before, of_taps, of_x)
        return of_x, of_before, of_taps.sum(0)


def relu2_product(h: Tensor, W: Tensor) -> Tensor:
    """The squared ReLU is computed again in the backward pass: of its numbers only h is kept."""
    to = type_of_products(h)
    if to not in TO:
        return naive_relu2_product(h, W)
    y: Tensor = run(_Relu2Product, h.to(to).contiguous(), W.to(to))
    return y


class _Relu2Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, W: Tensor) -> Tensor:
        ctx.save_for_backward(h, W)
        return F.linear(_squared_relu(h), W)

    @staticmethod
    @backward_pass
    def backward(ctx: Any, of_y: Tensor) -> tuple[Tensor, Tensor]:
        h, W = ctx.saved_tensors
        of_W = of_y.flatten(0, -2).T @ _squared_relu(h).flatten(0, -2)
        of_h = of_y @ W
        call("squared_relu_backward", h.numel(), h, of_h, of_h)
        return of_h, of_W


def _squared_relu(h: Tensor) -> Tensor:
    y = torch.empty_like(h)
    call("squared_relu_forward", h.numel(), h, y)
    return y


def gate(r: Tensor, x: Tensor) -> Tensor:
    """In one pass, and in one back."""
    if r.dtype != x.dtype:
        return naive_gate(r, x)
    y: Tensor = run(_Gate, r.contiguous(), x.contiguous())
    return y


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, r: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(r, x)
        y = torch.empty_like(x)
        call("gate_forward", x.numel(), r, x, y)
        return y

    @staticmethod
    @backward_pass
    def backward(ctx: Any, of_y: Tensor) -> tuple[Tensor, Tensor]:
        r, x = ctx.saved_tensors
        of_r, of_x = torch.empty_like(r), torch.empty_like(x)
        call("gate_backward", x.numel(), r, x, of_y.contiguous(), of_r, of_x)
        return of_r, of_x


def head_norm(
    y: Tensor, scale: Tensor, shift: Tensor, *, gate: Tensor | None, eps: float, centred: bool
) -> Tensor:
    """In one pass over y, and one back; the output is in the type of the gate."""
    read = None if gate is None else readable(gate, y.dtype)
    inputs = eps, centred, torch.stack((scale, shift)), in_rows(y), read
    out: Tensor = run(_HeadNorm, *inputs)
    return out if gate is None else out.to(gate.dtype)


class _HeadNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, eps: float, centred: bool, weights: Tensor, y: Tensor, gate: Tensor | None
    ) -> Tensor:
        B, H, T, V = y.shape
        out = (y if gate is None else gate).new_empty(B, T, H * V)
        ctx.head = B, H, T, V, int(centred), eps
        call("head_norm_forward", *ctx.head, weights, *typed(y, gate, out))
        ctx.save_for_backward(weights, y, gate)
        return out

    @staticmethod
    @backward_pass
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor | None, ...]:
        weights, y, gate = ctx.saved_tensors
        to = torch.empty_like(y), None if gate is None else torch.empty_like(gate)
        of_weights = weights.new_empty(len(y), *weights.shape)  # for each row of the batch
        given = weights, *typed(y, gate, in_rows(of_out))
        call("head_norm_backward", *ctx.head, *given, *typed(*to), of_weights)
        return None, None, of_weights.sum(0), *to
