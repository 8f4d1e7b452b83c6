"""Official RWKV checkpoints, versions 4 to 7, imported and exported."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from seqzoo.config import files
from seqzoo.data.tokenizers import KINDS, Tokenizer
from seqzoo.errors import UserError
from seqzoo.exchange import world
from seqzoo.exchange.rwkv_names import MARKS, UNUSED, official_name, recognise
from seqzoo.models.language_model import LanguageModel
from seqzoo.models.zoo import build
from seqzoo.runs.checkpoint import sha256
from seqzoo.runs.directory import RunDirectory
from seqzoo.runs.run import Run


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pth or .safetensors file, as float32. No code in the file is run.

    Raises:
        UserError: no such file, or not a file of tensors by name.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file: give an RWKV checkpoint, .pth or .safetensors")
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            mapped = zipfile.is_zipfile(path)  # files from before 2020 cannot be memory-mapped
            with warnings.catch_warnings(action="ignore"):
                tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        if not all(isinstance(value, Tensor) for value in tensors.values()):
            raise TypeError
    except Exception:  # of many kinds, and what torch advises in some of them is unsafe
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


def import_rwkv(path: Path, folder: Path, vocabulary: Path | None) -> dict[str, Any]:
    """Make a run directory from an official checkpoint.

    Args:
        folder: the new run directory.
        vocabulary: the RWKV World vocabulary (a line a token: id, literal, length), or a
            `tokenizer.json`; None: bytes, for a model of 256 tokens.

    Returns:
        The model's configuration.

    Raises:
        UserError: another kind of file; a tensor that is missing, unknown or of another shape.
    """
    tensors = read(path)
    try:
        keys = recognise(tensors)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    vocab_size = tensors["emb.weight"].shape[0]
    tokenizer = _tokenizer(vocabulary, vocab_size)
    model = build(vocab_size=vocab_size, **keys)
    _copy(path, tensors, model)
    config = _config(keys)
    if tokenizer.kind in KINDS:
        config["task"]["tokenizer"] = tokenizer.kind
    run = RunDirectory.claim(folder)
    run.write_config(config)
    run.describe_model(config, {"vocab_size": vocab_size}, {"tokenizer": tokenizer})
    run.save_model(model)
    run.write_summary(
        {
            "model": keys["name"],
            "task": "charlm",
            "parameters": model.n_parameters(),
            "status": "imported",
            "imported_from": path.name,
            "sha256": sha256(path),
        }
    )
    return keys


def _config(model: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration: the model's keys, and defaults in the other sections."""
    choices = {
        "architecture": "decoder_only",
        "task": "charlm",
        "optim": "adamw",
        "schedule": "cosine",
        "trainer": "default",
    }
    defaults = {section: files.defaults(section, name) for section, name in choices.items()}
    return {"model": model, **defaults, "logger": {}}


def _copy(path: Path, tensors: dict[str, Tensor], model: LanguageModel) -> None:
    """Copy official tensors into a model's parameters.

    Raises:
        UserError: a tensor that is missing, unknown or of another shape.
    """
    ours = {official_name(name): parameter for name, parameter in model.named_parameters()}
    given = {n: t for n, t in tensors.items() if n in ours or not UNUSED.search(n)}
    for problem, names in (("missing", ours.keys() - given), ("not known", given.keys() - ours)):
        if names:
            raise UserError(f"{path}: {min(names)} is {problem}, of {len(names)}")
    with torch.no_grad():
        for name, parameter in ours.items():
            if given[name].squeeze().shape != parameter.squeeze().shape:
                raise UserError(
                    f"{path}: {name} is {tuple(given[name].shape)}, and should be "
                    f"{tuple(parameter.shape)}"
                )
            parameter.copy_(given[name].view_as(parameter))


def _tokenizer(path: Path | None, vocab_size: int) -> Tokenizer:
    if path is None:
        if vocab_size == 256:
            return Tokenizer.train("byte", [])
        raise UserError(
            f"the model has {vocab_size:,} tokens: give their vocabulary by --vocabulary FILE, "
            "the RWKV World vocabulary or a tokenizer.json"
        )
    if path.suffix == ".json":
        tokenizer = Tokenizer.load(path)
    else:
        tokenizer = Tokenizer.longest_match(world.read(path))
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{path}: {tokenizer.vocab_size:,} tokens are more than the model's {vocab_size:,}"
        )
    return tokenizer


def export_rwkv(run: Run, path: Path) -> None:
    """Write the weights in the form that the `rwkv` package reads.

    Raises:
        UserError: not an RWKV with its own channel mixing and rates up to 1, or a name that does
            not end in .pth.
    """
    keys = run.config["model"]
    if keys["name"] not in MARKS or keys["block"] != "classic":
        raise UserError(
            f"--format rwkv: {run.folder} is a {keys['name']} with "
            f"block={keys.get('block', 'prenorm')}: only {', '.join(sorted(MARKS))} with "
            "block=classic have that form"
        )
    if keys.get("beta_max", 1) > 1:
        raise UserError(
            f"--format rwkv: {run.folder} has beta_max={keys['beta_max']}, and the rwkv package "
            "knows only rates up to 1"
        )
    if path.suffix != ".pth":
        raise UserError(f"--out {path}: the rwkv package reads names that end in .pth")
    parameters = run.model.named_parameters()
    tensors = {official_name(name): p.detach().cpu().clone() for name, p in parameters}
    if keys["tie_embeddings"]:
        tensors["head.weight"] = tensors["emb.weight"].clone()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, path)
