"""Norms in C++."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from seqzoo.ops.native import PARTS, TO, backward_pass, call, in_rows, run, type_of_products


def norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, *, centred: bool, product: bool
) -> Tensor:
    """In the type of autocast's products, if only those read it; else in the type of x, and with a
    `Recipe`."""
    wanted = type_of_products(x) if product else x.dtype
    to = wanted if wanted in TO else x.dtype
    of_type = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    rows = in_rows(x).reshape(-1, x.shape[-1])
    y: Tensor = run(_Norm, rows, *of_type, eps, centred, to)
    y = y.view(x.shape)
    if to == x.dtype and torch.is_grad_enabled():
        given = rows, *of_type
        _recipes[y] = Recipe(*given, eps, centred), _versions(y, *given)
    return y


class Recipe(NamedTuple):
    """What a norm was made of, which is kept for its backward pass anyway: an operation that reads
    the norm can make it again instead of keeping it too."""

    x: Tensor  # (rows, D)
    weight: Tensor
    bias: Tensor | None
    eps: float
    centred: bool

    def again(self) -> Tensor:
        """The norm (rows, D), to the same bits."""
        y, beside = torch.empty_like(self.x), self.x.new_empty(len(self.x), 2)
        sizes = *self.x.shape, int(self.centred), self.eps
        call("norm_forward", *sizes, self.x, self.weight, self.bias, beside, y)
        return y


def recipe(y: Tensor) -> Recipe | None:
    """Of a norm that was not changed since, nor what it was made of; None of any other tensor."""
    found, versions = _recipes.get(y, (None, None))
    same = found is not None and versions == _versions(y, *found[:3])
    return found if same else None


# Of results that are still there, with the versions of all tensors then.
_recipes: Any = WeakIdKeyDictionary()


def _versions(*tensors: Tensor | None) -> list[int | None]:
    return [None if x is None else x._version for x in tensors]


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        centred: bool,
        to: torch.dtype,
    ) -> Tensor:
        y, kept = torch.empty_like(x, dtype=to), x.new_empty(len(x), 2)
        ctx.sizes, ctx.to = (*x.shape, int(centred), eps), to
        call("norm_forward" + TO[to], *ctx.sizes, x, weight, bias, kept, y)
        ctx.save_for_backward(x, weight, bias, kept)
        ctx.set_materialize_grads(False)
        return y

    @staticmethod
    @backward_pass
    def backward(ctx: Any, of_y: Tensor | None) -> tuple[Tensor | None, ...]:
        if of_y is None:  # what reads y has no gradient itself
            return (None,) * 6
        x, weight, bias, kept = ctx.saved_tensors  # once: checkpointing hands them out once
        of_x, of_weight = torch.empty_like(x), weight.new_zeros(PARTS, len(weight))
        of_bias = None if bias is None else torch.zeros_like(of_weight)
        name = "norm_backward" + TO[ctx.to]
        given = x, weight, bias, kept, PARTS, in_rows(of_y)
        call(name, *ctx.sizes, *given, of_x, of_weight, of_bias)
        return of_x, of_weight.sum(0), None if of_bias is None else of_bias.sum(0), None, None, None
