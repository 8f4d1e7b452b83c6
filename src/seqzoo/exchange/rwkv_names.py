"""Official RWKV checkpoints, versions 4 to 7: names of their tensors, and what their shapes tell.

The RWKV modules here have the official names and shapes, so a tensor is renamed and never reshaped,
except by dimensions of one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from seqzoo.errors import UserError
from seqzoo.models.zoo import model_keys

PREFIXES = (  # the beginning of a name here, and its official form
    (r"embedding\.", "emb."),
    (r"norm_in\.", "blocks.0.ln0."),
    (r"norm_out\.", "ln_out."),
    (r"layers\.(\d+)\.norm\.", r"blocks.\1.ln1."),
    (r"layers\.(\d+)\.channel_norm\.", r"blocks.\1.ln2."),
    (r"layers\.(\d+)\.mixer\.", r"blocks.\1.att."),
    (r"layers\.(\d+)\.channel\.", r"blocks.\1.ffn."),
)
MARKS = {  # a tensor that only the checkpoints of one version have
    "rwkv7": "blocks.0.att.r_k",
    "rwkv6": "blocks.0.att.time_maa_w1",
    "rwkv5": "blocks.0.att.time_mix_g",
    "rwkv4": "blocks.0.att.time_first",
}
UNUSED = re.compile(r"blocks\.0\.att\.v[012]$")  # RWKV-7: layer 0 has no earlier values to mix in


def official_name(name: str) -> str:
    """The official name of a parameter."""
    for ours, theirs in PREFIXES:
        renamed, found = re.subn(f"^{ours}", theirs, name)
        if found:
            return renamed
    return name


def recognise(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The model's configuration, from names and shapes.

    Raises:
        UserError: no RWKV of version 4 to 7, or a shape that the models here cannot have.
    """
    name = next((name for name, mark in MARKS.items() if mark in tensors), None)
    if name is None:
        some = ", ".join(list(tensors)[:3]) or "nothing"
        raise UserError(f"not an RWKV checkpoint of version 4 to 7: it has {some}")
    different = f"no {name} as the official code saves it"
    try:
        return model_keys(name, **_sizes(name, tensors))
    except KeyError as error:
        raise UserError(f"{different}: {error} is missing") from None
    except (IndexError, ValueError):
        raise UserError(f"{different}: a tensor has another shape") from None


def _sizes(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The keys of a version's model that its shapes tell."""
    dim = tensors["emb.weight"].shape[1]
    inner = tensors["blocks.0.att.key.weight"].shape[0]
    if inner != dim:
        raise UserError(f"an attention width of {inner} beside a width of {dim} is not supported")
    layers = {int(n.split(".")[1]) for n in tensors if n.startswith("blocks.")}
    keys: dict[str, Any] = {
        "dim": dim,
        "n_layers": len(layers),
        "mlp_ratio": tensors["blocks.0.ffn.key.weight"].shape[0] / dim,
        "tie_embeddings": False,
    }

    def rank(matrix: str) -> int:
        return tensors[f"blocks.{max(layers)}.att.{matrix}"].shape[1]

    if name in ("rwkv5", "rwkv6"):
        keys["n_heads"] = tensors["blocks.0.att.time_faaaa"].shape[0]
    if name == "rwkv6":
        keys |= {"mix_rank": rank("time_maa_w1") // 5, "decay_rank": rank("time_decay_w1")}
    if name == "rwkv7":
        keys["n_heads"] = tensors["blocks.0.att.r_k"].shape[0]
        keys |= {"decay_rank": rank("w1"), "rate_rank": rank("a1"), "gate_rank": rank("g1")}
        if len(layers) > 1:
            keys["value_rank"] = rank("v1")
    return keys
