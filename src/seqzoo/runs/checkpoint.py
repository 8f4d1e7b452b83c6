"""Checkpoints that are whole or absent: written aside, flushed, renamed, and checked by digest when
read.

A checkpoint is a folder of safetensors and JSON. It holds no pickle, so reading one runs no code.
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
from seqzoo.runs.files import write_whole
from seqzoo.state import State, leaves, rebuild, to

MANIFEST = "manifest.json"


class Checkpoints:
    """The folder ``checkpoints/`` of a run: `step-00000500/`, ..., and the names `last` and `best`
    for two of them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    # ---- names

    def at(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.path / f"step-{step:08d}"

    def exists(self, name: str) -> bool:
        return (self.path / name).exists()

    def resolve(self, name: str) -> Path:
        """The folder that a name stands for."""
        return (self.path / name).resolve()

    def point(self, name: str, step: int, why: Mapping[str, float] | None = None) -> None:
        """Have a name (`last`, `best`) stand for a step's checkpoint, in one step; `why` can be
        read back with `reason`."""
        if why is not None:
            write_whole(self.path / f"{name}.json", json.dumps(dict(why)))
        draft = self.path / f".{name}.{os.getpid()}"
        draft.unlink(missing_ok=True)
        draft.symlink_to(self.at(step).name)
        os.replace(draft, self.path / name)

    def reason(self, name: str) -> dict[str, float]:
        """What was given when a name was pointed; {} where nothing was."""
        path = self.path / f"{name}.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def recent(self, count: int, every: int | None) -> list[Path]:
        """The last `count` checkpoints among those due every `every` steps and the last one."""
        if not count:
            return []
        last = self.resolve("last")
        due = [
            path
            for path in sorted(self.path.glob("step-*"))
            if every and step_of(path) % every == 0 or path.resolve() == last
        ]
        return due[-count:]

    def prune(self, keep: Sequence[Path] = ()) -> None:
        """Remove the checkpoints that no name stands for, but those to keep, and the drafts of
        saves that were killed."""
        kept = {self.resolve(name) for name in ("last", "best")} | {p.resolve() for p in keep}
        for path in [*self.path.glob("step-*"), *self.path.glob(".step-*")]:
            if path.resolve() not in kept:
                shutil.rmtree(path)

    # ---- contents

    def save(
        self,
        step: int,
        *,
        model: nn.Module,
        optimizer: Any,
        state: State,
        progress: Mapping[str, Any],
    ) -> None:
        """Write everything a run needs to go on as if it had not stopped, whole or not at all.

        Args:
            state: what the model carries from batch to batch.
            progress: counters and the like, as JSON.
        """
        folder = self.at(step)
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
        save_file(_state_and_rng(state), draft / "state.safetensors")
        (draft / "progress.json").write_text(json.dumps(dict(progress), indent=1))
        digests = {path.name: sha256(path) for path in sorted(draft.iterdir())}
        (draft / MANIFEST).write_text(json.dumps(digests, indent=1))
        for path in (*draft.iterdir(), draft):
            _flush(path)
        if folder.exists():  # left by a run that was killed before it could point to it
            shutil.rmtree(folder)
        os.replace(draft, folder)
        _flush(folder.parent)

    def load(
        self, name: str, *, model: nn.Module, optimizer: Any, template: State
    ) -> tuple[State, dict[str, Any]]:
        """Put a checkpoint into a model and its optimiser, and set the random generators.

        Args:
            template: a state of the model's structure, to rebuild the carried one.

        Returns:
            The carried state, and the progress that was saved.

        Raises:
            UserError: the checkpoint is damaged or does not fit.
        """
        folder = self.resolve(name)
        verify(folder)
        load_weights(folder / "model.safetensors", model)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in load_file(folder / "optimizer.safetensors").items():
            index, slot = key.split(".", 1)
            moments.setdefault(int(index), {})[slot] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        rest = load_file(folder / "state.safetensors")
        torch.set_rng_state(rest["rng.cpu"])
        if torch.cuda.is_available() and "rng.cuda" in rest:
            torch.cuda.set_rng_state(rest["rng.cuda"])
        n_leaves = sum(key.startswith("state.") for key in rest)
        carried = [rest[f"state.{i}"] for i in range(n_leaves)]
        device = next(model.parameters()).device
        state = to(rebuild(template, carried), device) if carried else None
        return state, json.loads((folder / "progress.json").read_text())

    def load_mean(self, folders: Sequence[Path], model: nn.Module) -> None:
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


def step_of(folder: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(folder.name.rpartition("-")[2])


def _state_and_rng(state: State) -> dict[str, Tensor]:
    tensors = {f"state.{i}": leaf.detach().contiguous() for i, leaf in enumerate(leaves(state))}
    tensors["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    return tensors


def load_weights(path: Path, model: nn.Module) -> None:
    """Load a safetensors file into a model of the same shape.

    Raises:
        UserError: the weights of another model.
    """
    try:
        load_model(model, str(path), device=str(next(model.parameters()).device))
    except (RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise UserError(
            f"{path}: weights of another model ({first}): "
            "use the configuration they were saved with"
        ) from None


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


def sha256(path: Path) -> str:
    """The digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
