"""Folders that `transformers` loads: RWKV-4, and the Transformer as a Llama or a GPT-2."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from seqzoo.config.values import shown
from seqzoo.errors import UserError
from seqzoo.exchange.rwkv_names import official_name
from seqzoo.runs.run import Run


def export_hf(run: Run, folder: Path) -> str:
    """Write config.json, model.safetensors and the tokenizer for `transformers`.

    Returns:
        The name of the class that loads them.

    Raises:
        UserError: a configuration that no class of transformers has; the message gives the reason.
    """
    keys = run.config["model"]
    convert = {"rwkv4": _to_rwkv, "transformer": _to_transformer}.get(keys["name"])
    if convert is None:
        raise UserError(
            f"--format hf: transformers has no model like the {keys['name']} here: "
            "export rwkv4 or transformer"
        )
    tensors = {n: p.detach().cpu().contiguous() for n, p in run.model.named_parameters()}
    settings, named = convert(keys, tensors, run.config["task"].get("seq_len", 1024))
    settings |= {
        "vocab_size": run.model.vocab_size,
        "tie_word_embeddings": keys["tie_embeddings"],
        "torch_dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": None,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings, indent=1) + "\n")
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    run.tokenizer.save(folder / "tokenizer.json")
    # Without this file AutoTokenizer loads the usual tokenizer of the model type.
    loads = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(loads, indent=1) + "\n")
    return str(settings["architectures"][0])


Keys = Mapping[str, Any]
Tensors = Mapping[str, Tensor]
Converted = tuple[dict[str, Any], dict[str, Tensor]]  # config.json, and the tensors by their names


def _to_rwkv(keys: Keys, tensors: Tensors, context_length: int) -> Converted:
    if keys["block"] != "classic":
        raise UserError("--format hf: RwkvForCausalLM has RWKV's channel mixing: block=classic")
    if keys["n_layers"] == 1:
        raise UserError("--format hf: transformers cannot make an RWKV of one layer")
    long = {"time_mix_k": "time_mix_key", "time_mix_v": "time_mix_value"}
    long["time_mix_r"] = "time_mix_receptance"
    named = {}
    for name, tensor in tensors.items():
        name = official_name(name).replace("blocks.0.ln0.", "blocks.0.pre_ln.")
        name = name.replace(".att.", ".attention.").replace(".ffn.", ".feed_forward.")
        name = name.replace("emb.", "embeddings.", 1) if name.startswith("emb.") else name
        head, _, last = name.rpartition(".")
        name = f"{head}.{long.get(last, last)}"
        named[name if name.startswith("head.") else f"rwkv.{name}"] = tensor
    return {
        "architectures": ["RwkvForCausalLM"],
        "model_type": "rwkv",
        "hidden_size": keys["dim"],
        "attention_hidden_size": keys["dim"],
        "intermediate_size": round(keys["mlp_ratio"] * keys["dim"]),
        "num_hidden_layers": keys["n_layers"],
        "context_length": context_length,
        "rescale_every": 0,
        "layer_norm_epsilon": 1e-5,
    }, named


def _to_transformer(keys: Keys, tensors: Tensors, context_length: int) -> Converted:
    """A Llama or a GPT-2, whichever has the same form."""
    if keys.get("cache"):
        raise UserError("--format hf: transformers keeps the whole cache: model.cache=null")
    for key in ("window", "qk_norm", "softcap", "sinks", "value_residual"):
        if keys.get(key):
            off = "null" if key in ("window", "softcap") else "false"
            raise UserError(f"--format hf: neither Llama nor GPT-2 has it: model.{key}={off}")
    if keys["block"] != "prenorm":
        raise UserError("--format hf: neither Llama nor GPT-2 has a norm after the residual")
    forms: dict[str, dict[str, Any]] = {
        "Llama": {"position": "rope", "norm": "rms", "activation": "swiglu"},
        "GPT-2": {"position": "learned", "norm": "layer", "activation": "gelu", "n_kv_heads": None},
    }
    if keys["n_kv_heads"] == keys["n_heads"]:
        keys = {**keys, "n_kv_heads": None}
    needed = {
        name: [f"{k}={shown(v)}" for k, v in form.items() if keys[k] != v]
        for name, form in forms.items()
    }
    if not needed["Llama"]:
        return _to_llama(keys, tensors, context_length)
    if not needed["GPT-2"]:
        return _to_gpt2(keys, tensors)
    reasons = "; ".join(f"{name} would need {', '.join(keys)}" for name, keys in needed.items())
    raise UserError(f"--format hf: {reasons}")


def _to_llama(keys: Keys, tensors: Tensors, context_length: int) -> Converted:
    n_kv_heads = keys["n_kv_heads"] or keys["n_heads"]
    size = keys["dim"] // keys["n_heads"]
    named = {"model.embed_tokens.weight": tensors["embedding.weight"]}
    named["model.norm.weight"] = tensors["norm_out.weight"]
    if not keys["tie_embeddings"]:
        named["lm_head.weight"] = tensors["head.weight"]
    for i in range(keys["n_layers"]):
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        named[theirs + "input_layernorm.weight"] = tensors[ours + "norm.weight"]
        named[theirs + "post_attention_layernorm.weight"] = tensors[ours + "channel_norm.weight"]
        qkv, sizes = tensors[ours + "mixer.qkv.weight"], [keys["dim"], *[n_kv_heads * size] * 2]
        parts = qkv.split(sizes)  # type: ignore[no-untyped-call]
        for letter, part in zip("qkv", parts, strict=True):
            named[theirs + f"self_attn.{letter}_proj.weight"] = part.contiguous()
        named[theirs + "self_attn.o_proj.weight"] = tensors[ours + "mixer.out.weight"]
        for part in ("up", "gate", "down"):
            for kind in ("weight", "bias"):
                named[theirs + f"mlp.{part}_proj.{kind}"] = tensors[f"{ours}channel.{part}.{kind}"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": keys["dim"],
        "intermediate_size": round(keys["mlp_ratio"] * keys["dim"]),
        "num_hidden_layers": keys["n_layers"],
        "num_attention_heads": keys["n_heads"],
        "num_key_value_heads": n_kv_heads,
        "max_position_embeddings": context_length,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": True,
    }, named


def _to_gpt2(keys: Keys, tensors: Tensors) -> Converted:
    named = {
        "transformer.wte.weight": tensors["embedding.weight"],
        "transformer.wpe.weight": tensors["layers.0.table"],
        "transformer.ln_f.weight": tensors["norm_out.weight"],
        "transformer.ln_f.bias": tensors["norm_out.bias"],
    }
    if not keys["tie_embeddings"]:
        named["lm_head.weight"] = tensors["head.weight"]
    places = {"mixer.qkv": "attn.c_attn", "mixer.out": "attn.c_proj"}
    places |= {"channel.up": "mlp.c_fc", "channel.down": "mlp.c_proj"}
    for i in range(keys["n_layers"]):
        ours, theirs = f"layers.{i + 1}.", f"transformer.h.{i}."  # layer 0 here adds the positions
        for kind in ("weight", "bias"):
            named[theirs + f"ln_1.{kind}"] = tensors[ours + f"norm.{kind}"]
            named[theirs + f"ln_2.{kind}"] = tensors[ours + f"channel_norm.{kind}"]
        for place, their in places.items():
            weight = tensors[ours + place + ".weight"]
            named[theirs + their + ".weight"] = weight.t().contiguous()  # theirs is (input, output)
            bias = tensors.get(ours + place + ".bias")
            named[theirs + their + ".bias"] = (
                weight.new_zeros(len(weight)) if bias is None else bias
            )
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": keys["dim"],
        "n_layer": keys["n_layers"],
        "n_head": keys["n_heads"],
        "n_inner": round(keys["mlp_ratio"] * keys["dim"]),
        "n_positions": keys["max_len"],
        "activation_function": "gelu",
        **dict.fromkeys(("embd_pdrop", "resid_pdrop"), keys["dropout"]),
        "attn_pdrop": 0.0,
        "layer_norm_epsilon": 1e-5,
    }, named
