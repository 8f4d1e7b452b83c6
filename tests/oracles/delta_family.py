"""Layers as others have them, tied to our weights: those of the delta family."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from seqzoo.mixers.deltaproduct import DeltaProduct
from seqzoo.mixers.gated_deltanet import GatedDeltaNet
from seqzoo.mixers.kda import KimiDeltaAttention


def eps() -> float:
    """That of our norms."""
    return torch.finfo(torch.get_default_dtype()).eps


def their_gated_deltanet(ours: GatedDeltaNet) -> Callable[[Tensor], Tensor]:
    """That of OLMo Hybrid, whose rates are in (0, 1) or (0, 2)."""
    from transformers.models.olmo_hybrid.modeling_olmo_hybrid import OlmoHybridGatedDeltaNet

    D, H = ours.out.out_features, ours.n_heads
    config = SimpleNamespace(
        hidden_size=D,
        linear_num_value_heads=H,
        linear_num_key_heads=H,
        linear_key_head_dim=D // H,
        linear_value_head_dim=ours.expand_v * D // H,
        linear_conv_kernel_dim=4,
        linear_allow_neg_eigval=ours.beta_max == 2,
        linear_a_log_min=1.0,
        linear_a_log_max=16.0,
        linear_dt_min=1e-3,
        linear_dt_max=0.1,
        linear_dt_init_floor=1e-4,
        rms_norm_eps=eps(),
        hidden_act="silu",
        layer_types=["linear_attention"],
    )
    q, k, v = ours.qkv.weight.split([D, D, ours.expand_v * D])
    theirs = OlmoHybridGatedDeltaNet(config, 0)
    theirs.o_norm.variance_epsilon = eps()
    decay: Any = ours.decay.project
    tensors = {"q_proj.weight": q, "k_proj.weight": k, "v_proj.weight": v}
    tensors |= {"a_proj.weight": decay.weight, "A_log": ours.decay.A_log}
    tensors |= {"dt_bias": ours.decay.bias, "g_proj.weight": ours.gate.weight}
    return tied(theirs, {**tensors, **_of_both(ours)})


def their_kda(ours: KimiDeltaAttention) -> Callable[[Tensor], Tensor]:
    """That of Kimi Linear."""
    from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearDeltaAttention

    D, H = ours.out.out_features, ours.n_heads
    config = SimpleNamespace(
        hidden_size=D,
        linear_num_heads=H,
        linear_head_dim=D // H,
        linear_conv_kernel_dim=4,
        rms_norm_eps=eps(),
        hidden_act="silu",
        layer_types=["linear_attention"],
    )
    q, k, v = ours.qkv.weight.chunk(3)
    decay: Any = ours.decay.project
    tensors = {"q_proj.weight": q, "k_proj.weight": k, "v_proj.weight": v}
    tensors |= {"forget_gate.f_a_proj.weight": decay[0].weight}
    tensors |= {"forget_gate.f_b_proj.weight": decay[1].weight}
    tensors |= {"forget_gate.A_log": ours.decay.A_log, "forget_gate.dt_bias": ours.decay.bias}
    tensors |= {"g_a_proj.weight": ours.gate[0].weight, "g_b_proj.weight": ours.gate[1].weight}
    return tied(KimiLinearDeltaAttention(config, 0), {**tensors, **_of_both(ours)})


def their_deltaproduct(ours: DeltaProduct, recurrence: Any) -> Callable[[Tensor], Tensor]:
    """That of fla-core: its naive recurrence, with torch around it."""

    def read(x: Tensor) -> Tensor:
        (B, T, D), H, n = x.shape, ours.n_heads, ours.steps
        mixed = F.conv1d(ours.qkv(x).mT, ours.conv[:, None], padding=3, groups=len(ours.conv))
        parts = F.silu(mixed.mT[:, :T]).split([D, n * D, n * D], 2)
        q, k, v = (y.reshape(B, -1, H, D // H) for y in parts)  # a step after the other
        y, _ = recurrence(
            F.normalize(q, dim=-1),
            F.normalize(k, dim=-1),
            v,
            None if ours.decay is None else ours.decay(x),
            ours.beta_max * ours.beta(x).sigmoid().reshape(B, -1, H),
            scale=(D // H) ** -0.5,
            num_householder=n,
        )
        y = F.rms_norm(y, (D // H,), ours.norm, eps()).flatten(2)
        return ours.out(y if ours.gate is None else y * F.silu(ours.gate(x)))

    return read


def _of_both(ours: GatedDeltaNet | KimiDeltaAttention) -> dict[str, Tensor]:
    """The tensors whose names are the same in both of theirs."""
    found: dict[str, Tensor] = {"conv1d.weight": ours.conv, "b_proj.weight": ours.beta.weight}
    return found | {"o_norm.weight": ours.norm, "o_proj.weight": ours.out.weight}


def tied(theirs: nn.Module, tensors: Mapping[str, Tensor]) -> Callable[..., Any]:
    """`theirs` as a function, with these tensors in place of all its parameters: a gradient of what
    it computes reaches the parameters of ours that they are made of."""
    shapes = {name: parameter.shape for name, parameter in theirs.named_parameters()}
    assert tensors.keys() == shapes.keys()

    def forward(*inputs: Any, **more: Any) -> Any:
        shaped = {name: tensor.reshape(shapes[name]) for name, tensor in tensors.items()}
        return functional_call(theirs, shaped, inputs, more)

    return forward
