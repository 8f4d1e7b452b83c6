"""Checkpoints that are whole or absent: written beside, flushed, renamed, and checked by digest
when read.

A checkpoint is a folder of safetensors and JSON, no pickle, so reading one runs no code.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from seqzoo.errors import UserError
from seqzoo.state import State, leaves, rebuild, to

MANIFEST = "manifest.json"


def save(
    folder: Path,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: State,
    progress: Mapping[str, Any],
) -> None:
    """Write everything a run needs to go on as if it had not stopped.

    Args:
        folder: made whole or not at all.
        state: what the model carries from batch to batch.
        progress: counters and the like, JSON.
    """
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_model(model, str(draft / "model.safetensors"))
    moments = {
        f"{index}.{key}": value.contiguous()
        for index, slots in optimizer.state_dict()["state"].items()
        for key, value in slots.items()
    }
    save_file(moments, draft / "optimizer.safetensors")
    rest = {f"state.{i}": leaf.detach().contiguous() for i, leaf in enumerate(leaves(state))}
    rest["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        rest["rng.cuda"] = torch.cuda.get_rng_state()
    save_file(rest, draft / "state.safetensors")
    (draft / "progress.json").write_text(json.dumps(dict(progress), indent=1))
    digests = {path.name: sha256(path) for path in sorted(draft.iterdir())}
    (draft / MANIFEST).write_text(json.dumps(digests, indent=1))
    for path in draft.iterdir():
        _flush(path)
    _flush(draft)
    if folder.exists():  # left by a run that died before it could say so
        shutil.rmtree(folder)
    os.replace(draft, folder)
    _flush(folder.parent)


def load(
    folder: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer, template: State
) -> tuple[State, dict[str, Any]]:
    """Put a checkpoint into a model and its optimiser, and the random numbers back where they were.

    Args:
        template: a state of the model's structure, to rebuild the carried one.

    Returns:
        The carried state, and the progress that was saved.

    Raises:
        UserError: the checkpoint is damaged or does not fit.
    """
    verify(folder)
    device = next(model.parameters()).device
    load_weights(folder / "model.safetensors", model)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in load_file(folder / "optimizer.safetensors").items():
        index, key = name.split(".", 1)
        moments.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    rest = load_file(folder / "state.safetensors")
    torch.set_rng_state(rest["rng.cpu"])
    if torch.cuda.is_available() and "rng.cuda" in rest:
        torch.cuda.set_rng_state(rest["rng.cuda"])
    carried = [rest[f"state.{i}"] for i in range(sum(name.startswith("state.") for name in rest))]
    state = to(rebuild(template, carried), device) if carried else None
    return state, json.loads((folder / "progress.json").read_text())


def load_weights(path: Path, model: nn.Module) -> None:
    """Load a safetensors file into a model of the same shape."""
    try:
        load_model(model, str(path), device=str(next(model.parameters()).device))
    except (RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise UserError(
            f"{path}: weights of another model ({first}): "
            "use the configuration they were saved with"
        ) from None


def load_mean(folders: Sequence[Path], model: nn.Module) -> None:
    """Give a model the mean of the weights of several checkpoints.

    Raises:
        UserError: a checkpoint is damaged or does not fit.
    """
    total: dict[str, Any] = {}
    for folder in folders:
        verify(folder)
        load_weights(folder / "model.safetensors", model)
        for name, value in model.state_dict().items():
            total[name] = total.get(name, 0) + value.double()
    model.load_state_dict({name: value / len(folders) for name, value in total.items()})


def verify(folder: Path) -> None:
    """Check every file of a checkpoint against the digests written with it.

    Raises:
        UserError: a file is missing or was changed.
    """
    try:
        digests = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        raise UserError(
            f"{folder}: no readable {MANIFEST}: not a checkpoint, or a damaged one"
        ) from None
    for name, digest in digests.items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            raise UserError(
                f"{folder / name}: missing or changed since it was written: put it back, or start "
                "a new run"
            )


def point(
    checkpoints: Path, name: str, target: Path, why: Mapping[str, float] | None = None
) -> None:
    """Make the name (`last`, `best`) mean a checkpoint, in one step; `read_best` returns `why`."""
    if why is not None:
        write(checkpoints / f"{name}.json", json.dumps(dict(why)))
    draft = checkpoints / f".{name}.{os.getpid()}"
    draft.unlink(missing_ok=True)
    draft.symlink_to(target.name)
    os.replace(draft, checkpoints / name)


def read_best(checkpoints: Path) -> dict[str, float]:
    """What made a checkpoint the best; {} where none was judged."""
    path = checkpoints / "best.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def prune(checkpoints: Path, *, keep: Sequence[Path] = ()) -> None:
    """Remove every checkpoint that no name means, but those to keep, and what saves that were
    killed left behind."""
    kept = {(checkpoints / name).resolve() for name in ("last", "best")}
    kept |= {path.resolve() for path in keep}
    for path in [*checkpoints.glob("step-*"), *checkpoints.glob(".step-*")]:
        if path.resolve() not in kept:
            shutil.rmtree(path)


def write(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
