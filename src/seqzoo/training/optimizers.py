"""Optimisers, with the parameter groups that a model's parameters call for.

A parameter may have two attributes: `lr_scale`, a multiple of the learning rate (RWKV's decays have
it), and `no_decay`, where it is an embedding although it is not of an `nn.Embedding`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from inspect import unwrap
from itertools import islice
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from seqzoo.config.schema import checked
from seqzoo.config.values import Amount, Beta, Count, Described, Positive

Betas = Annotated[
    Sequence[Beta],
    Field(min_length=2, max_length=2),
    Described("two numbers from 0 to 0.99999, such as [0.9,0.99]"),
]


@checked()
def adamw(model: nn.Module, *, lr: Positive, weight_decay: Amount, betas: Betas) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101); matrices are decayed, but not biases,
    norms, mixes and embeddings."""
    return _adamw(_groups(model, model.parameters(), lr, weight_decay), betas)


@checked()
def muon(
    model: nn.Module,
    *,
    lr: Positive,
    weight_decay: Amount,
    betas: Betas,
    momentum: Beta,
    newton_schulz_steps: Count,
) -> Optimizer:
    """Muon for the matrices in the model's blocks, AdamW for all other parameters.

    Muon orthogonalises the momentum of a matrix (Jordan et al. 2024). Its updates are scaled to the
    root mean square of AdamW's (arXiv 2502.16982, eq. 4), so both take the same `lr` and
    `weight_decay`.
    """
    embeddings = _embeddings(model)
    blocks: Any = model.blocks
    matrices = {
        id(parameter)
        for block in blocks
        for parameter in block.parameters()
        if parameter.ndim == 2 and min(parameter.shape) > 1 and id(parameter) not in embeddings
    }
    inside = [p for p in model.parameters() if id(p) in matrices]
    others = [p for p in model.parameters() if id(p) not in matrices]
    if not inside:
        return _adamw(_groups(model, others, lr, weight_decay), betas)
    orthogonal = Muon(
        _groups(model, inside, lr, weight_decay),
        momentum=momentum,
        ns_steps=newton_schulz_steps,
    )
    return Together(orthogonal, _adamw(_groups(model, others, lr, weight_decay), betas))


class Eager(Optimizer):
    """An optimiser without torch's compiler, which takes a second to load.

    torch wraps these methods for code that compiles whole steps; each wrapper loads the compiler
    when it is first called. Here a step is never compiled.
    """

    add_param_group: Any = unwrap(Optimizer.add_param_group)
    zero_grad: Any = unwrap(Optimizer.zero_grad)
    state_dict: Any = unwrap(Optimizer.state_dict)
    load_state_dict: Any = unwrap(Optimizer.load_state_dict)


class AdamW(Eager, torch.optim.AdamW):
    step: Any = torch.no_grad()(unwrap(torch.optim.AdamW.step))


class Muon(Eager, torch.optim.Muon):
    """torch's Muon, which orthogonalises matrices of one shape together: small ones on a CPU in two
    thirds of the time.

    An update is as large as AdamW's.
    """

    def __init__(self, params: Iterable[Any], **keys: Any) -> None:
        super().__init__(params, adjust_lr_fn="match_rms_adamw", **keys)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(parameter.shape, []).append(parameter)
            for shape, matrices in shapes.items():
                size = 0.2 * max(shape) ** 0.5  # arXiv 2502.16982, eq. 4
                updates = _orthogonal(self._momentum(matrices, group["momentum"]), group)
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(matrices, updates.unbind(), alpha=-group["lr"] * size)

    def _momentum(self, matrices: list[Tensor], decay: float) -> Tensor:
        """Nesterov's momentum of matrices of one shape, stacked, after their gradients."""
        gradients = [p.grad for p in matrices if p.grad is not None]
        means = []
        for parameter in matrices:
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            means.append(state["momentum_buffer"])
        torch._foreach_lerp_(means, gradients, 1 - decay)
        return torch.stack(torch._foreach_lerp(gradients, means, decay))


def _orthogonal(matrices: Tensor, group: dict[str, Any]) -> Tensor:
    """(N, rows, columns), with singular values of about 1: the Newton-Schulz iterations of Muon."""
    a, b, c = group["ns_coefficients"]
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Together(Eager):
    """Several optimisers, each over its own parameters, as one that has their groups and state."""

    def __init__(self, *parts: Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Give the parts this optimiser's groups, in order, and its state."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = list(islice(groups, len(part.param_groups)))
            part.state = self.state


def _adamw(groups: list[dict[str, Any]], betas: Sequence[float]) -> AdamW:
    return AdamW(groups, betas=(betas[0], betas[1]), fused=True)


def _groups(
    model: nn.Module, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Parameters by their weight decay and learning rate, in the order in which they come."""
    embeddings = _embeddings(model)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in parameters:
        matrix = parameter.squeeze().ndim >= 2 and id(parameter) not in embeddings
        key = (weight_decay if matrix else 0.0, getattr(parameter, "lr_scale", 1.0))
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": same, "weight_decay": decay, "lr": lr * scale}
        for (decay, scale), same in groups.items()
    ]


def _embeddings(model: nn.Module) -> set[int]:
    """The identities of the parameters that are embeddings."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return tables | {id(p) for p in model.parameters() if getattr(p, "no_decay", False)}
