"""Official RWKV checkpoints of versions 4 to 7, in and out.

Our RWKV modules have the official names and shapes, so a checkpoint is renamed, never reshaped but
by dimensions of one.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_model
from torch import Tensor

from seqzoo import config
from seqzoo.data.tokenizers import KINDS, Tokenizer
from seqzoo.errors import UserError
from seqzoo.models.zoo import build, model_keys
from seqzoo.runs.checkpoint import sha256
from seqzoo.runs.run import Run
from seqzoo.training.loop import describe

OFFICIAL = (  # a name of ours, the official one; in order, on the beginning of a name
    (r"embedding\.", "emb."),
    (r"norm_in\.", "blocks.0.ln0."),
    (r"norm_out\.", "ln_out."),
    (r"layers\.(\d+)\.norm\.", r"blocks.\1.ln1."),
    (r"layers\.(\d+)\.channel_norm\.", r"blocks.\1.ln2."),
    (r"layers\.(\d+)\.mixer\.", r"blocks.\1.att."),
    (r"layers\.(\d+)\.channel\.", r"blocks.\1.ffn."),
)
MARKS = {  # what only the checkpoints of a version have
    "rwkv7": "blocks.0.att.r_k",
    "rwkv6": "blocks.0.att.time_maa_w1",
    "rwkv5": "blocks.0.att.time_mix_g",
    "rwkv4": "blocks.0.att.time_first",
}
UNUSED = re.compile(r"blocks\.0\.att\.v[012]$")  # of RWKV-7: layer 0 has no values to mix in


# ---- in


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pth or .safetensors file, as float32. Nothing in the file is run.

    Raises:
        UserError: no such file, or not one of tensors by name.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file: give an RWKV checkpoint, .pth or .safetensors")
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:  # files of before 2020 cannot be mapped
            mapped = zipfile.is_zipfile(path)
            with warnings.catch_warnings(action="ignore"):
                tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        if not all(isinstance(value, Tensor) for value in tensors.values()):
            raise TypeError
    except Exception:  # of many kinds; what torch advises to do about some of them is unsafe
        raise UserError(
            f"{path}: not a file of named tensors and nothing else (nothing in it was run): give "
            "an RWKV checkpoint, .pth or .safetensors"
        ) from None
    for name, value in tensors.items():
        if not value.is_floating_point() or not value.isfinite().all():
            raise UserError(
                f"{path}: {name} is of {value.dtype}, or not finite: give a checkpoint whose "
                "tensors are floating-point numbers"
            )
    return {str(name): value.float() for name, value in tensors.items()}


def recognise(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The model's configuration, read off names and shapes.

    Raises:
        UserError: no RWKV of version 4 to 7, or a shape that the models here cannot have.
    """
    name = next((name for name, mark in MARKS.items() if mark in tensors), None)
    some = ", ".join(list(tensors)[:3]) or "nothing"
    if name is None:
        raise UserError(f"not an RWKV checkpoint of version 4 to 7: it has {some}")
    try:
        return _read_off(name, tensors)
    except KeyError as error:
        raise UserError(f"no {name} as the official code saves it: {error} is missing") from None
    except (IndexError, ValueError):
        raise UserError(
            f"no {name} as the official code saves it: a tensor has another shape"
        ) from None


def _read_off(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
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
    return model_keys(name, **keys)


def import_rwkv(path: Path, folder: Path, vocabulary: Path | None) -> dict[str, Any]:
    """Make a run directory of an official checkpoint.

    Args:
        vocabulary: the RWKV World vocabulary (a line a token: id, literal, length), or a
            `tokenizer.json`; None: bytes, where the model has 256 tokens.

    Returns:
        The model's configuration.

    Raises:
        UserError: a file that is something else, a tensor too many, missing or of another shape.
    """
    tensors = read(path)
    try:
        keys = recognise(tensors)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    vocab_size = tensors["emb.weight"].shape[0]
    tokenizer = _tokenizer(vocabulary, vocab_size)
    model = build(vocab_size=vocab_size, **keys)
    ours = {official(name): parameter for name, parameter in model.named_parameters()}
    for name in list(tensors):
        if UNUSED.search(name) and name not in ours:
            del tensors[name]
    for what, names in (("missing", ours.keys() - tensors), ("not known", tensors.keys() - ours)):
        if names:
            raise UserError(
                f"{path}: {min(names)} is {what}, of {len(names)}, for {keys['name']} with "
                f"{keys['n_layers']} layers"
            )
    with torch.no_grad():
        for name, parameter in ours.items():
            given = tensors[name]
            if given.squeeze().shape != parameter.squeeze().shape:
                raise UserError(
                    f"{path}: {name} is {tuple(given.shape)}, and should be "
                    f"{tuple(parameter.shape)}"
                )
            parameter.copy_(given.view_as(parameter))
    task = config.defaults("task", "charlm")
    if tokenizer.kind in KINDS:
        task = {**task, "tokenizer": tokenizer.kind}
    trainer = config.defaults("trainer", "default")
    whole = {"model": keys, "task": task, "trainer": trainer}
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
    describe(folder, keys, tokenizer, tokenizer, vocab_size)
    save_model(model, str(folder / "model" / "model.safetensors"))
    summary = {
        "model": keys["name"],
        "task": "charlm",
        "parameters": model.n_parameters(),
        "status": "imported",
        "imported_from": path.name,
        "sha256": sha256(path),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return keys


def _tokenizer(path: Path | None, vocab_size: int) -> Tokenizer:
    if path is None:
        if vocab_size == 256:
            return Tokenizer.train("byte", [])
        raise UserError(
            f"the model has {vocab_size:,} tokens: give what they stand for by --vocabulary FILE, "
            "the RWKV World vocabulary or a tokenizer.json"
        )
    if path.suffix == ".json":
        tokenizer = Tokenizer.load(path)
    else:
        tokenizer = Tokenizer.longest_match(_world(path))
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{path}: {tokenizer.vocab_size:,} tokens are more than the model's {vocab_size:,}"
        )
    return tokenizer


def _world(path: Path) -> dict[int, bytes]:
    """Ids and what they stand for, of a file with lines such as `257 "\\n\\n" 2`."""
    tokens = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text: give the RWKV World vocabulary") from None
    for number, line in enumerate(lines, 1):
        try:
            index, rest = line.split(" ", 1)
            literal, size = rest.rsplit(" ", 1)
            token = ast.literal_eval(literal)
            token = token.encode() if isinstance(token, str) else token
            if len(token) != int(size):
                raise ValueError
            tokens[int(index)] = token
        except (ValueError, SyntaxError, AttributeError, TypeError):
            raise UserError(
                f"{path}, line {number}: not `ID LITERAL LENGTH`: give the RWKV World vocabulary"
            ) from None
    return tokens


# ---- out


def export_rwkv(run: Run, path: Path) -> None:
    """Write what the `rwkv` package reads.

    Raises:
        UserError: not an RWKV with its own channel mixing.
    """
    keys = run.config["model"]
    name = keys["name"]
    if name not in MARKS or keys["block"] != "classic":
        raise UserError(
            f"--format rwkv: {run.folder} is a {name} with block={keys.get('block', 'prenorm')}: "
            f"only {', '.join(sorted(MARKS))} with block=classic have that form"
        )
    tensors = {official(n): p.detach().cpu().clone() for n, p in run.model.named_parameters()}
    if keys["tie_embeddings"]:
        tensors["head.weight"] = tensors["emb.weight"].clone()
    if path.suffix != ".pth":
        raise UserError(f"--out {path}: the rwkv package reads names that end in .pth")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, path)


def official(name: str) -> str:
    """The official name of a parameter of ours."""
    for ours, theirs in OFFICIAL:
        renamed, found = re.subn(f"^{ours}", theirs, name)
        if found:
            return renamed
    return name
