"""Checkpoints that are whole or absent: written beside, flushed, renamed, and checked by digest
when read.

A checkpoint is a folder `step-00000500` of safetensors and JSON, no pickle, so reading one runs no
code. The names `last` and `best` are links to one. Loads torch only where it reads or writes
tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqzoo.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from seqzoo.state import State

MANIFEST = "manifest.json"


class Checkpoints:
    """The folder `checkpoints` of a run directory, which may not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    # ---- writing

    def save(
        self,
        step: int,
        *,
        model: nn.Module,
        optimizer: Any,
        state: State,
        progress: Mapping[str, Any],
    ) -> Path:
        """Write everything a run needs to go on as if it had not stopped: whole or not at all.

        Args:
            optimizer: with `state_dict`, whose `state` holds tensors by the parameters' numbers.
            state: what the model carries from batch to batch.
            progress: counters and the like, JSON.
        """
        from seqzoo.runs import tensors

        target = self.at(step)
        draft = self.path / f".{target.name}.{os.getpid()}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        tensors.save(draft, model=model, optimizer=optimizer, state=state)
        (draft / "progress.json").write_text(json.dumps(dict(progress), indent=1))
        digests = {path.name: sha256(path) for path in sorted(draft.iterdir())}
        (draft / MANIFEST).write_text(json.dumps(digests, indent=1))
        for path in draft.iterdir():
            _flush(path)
        _flush(draft)
        if target.exists():  # of a run that was killed before `last` became a link to it
            shutil.rmtree(target)
        os.replace(draft, target)
        _flush(self.path)
        return target

    def point(self, name: str, target: Path, why: Mapping[str, float] | None = None) -> None:
        """Make `last` or `best` a link to a checkpoint, in one step. `why` is kept beside it."""
        if why is not None:
            write_text(self.path / f"{name}.json", json.dumps(dict(why)))
        draft = self.path / f".{name}.{os.getpid()}"
        draft.unlink(missing_ok=True)
        draft.symlink_to(target.name)
        os.replace(draft, self.path / name)

    def prune(self, *, keep: Sequence[Path] = ()) -> None:
        """Remove all checkpoints but `last`, `best` and those to keep; and what is left of saves
        that were killed."""
        kept = {(self.path / name).resolve() for name in ("last", "best")}
        kept |= {path.resolve() for path in keep}
        for path in [*self.path.glob("step-*"), *self.path.glob(".step-*")]:
            if path.resolve() not in kept:
                shutil.rmtree(path)

    # ---- finding

    def at(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.path / f"step-{step:08d}"

    def resolve(self, name: str) -> Path | None:
        """The checkpoint that `last` or `best` is a link to; None while there is none."""
        path = self.path / name
        return path.resolve() if path.exists() else None

    def best(self) -> dict[str, float]:
        """The `value` of the metric that made a checkpoint the best, and its `step`; {} where none
        was measured."""
        path = self.path / "best.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def recent(self, n: int, every: int | None) -> list[Path]:
        """The last `n` checkpoints among `last` and those of a step that is a multiple of `every`,
        in order."""
        last = self.resolve("last")
        due = [
            path
            for path in sorted(self.path.glob("step-*"))
            if (every and step_of(path) % every == 0) or path.resolve() == last
        ]
        return due[-n:] if n else []

    def verify(self, checkpoint: str | Path) -> Path:
        """Check every file of a checkpoint, `last`, `best` or a folder, against the digests that
        were written with it.

        Returns:
            Its folder.

        Raises:
            UserError: there is none, or a file is missing or was changed.
        """
        folder = checkpoint if isinstance(checkpoint, Path) else self.path / checkpoint
        try:
            digests = json.loads((folder / MANIFEST).read_text())
        except (OSError, ValueError):
            raise UserError(
                f"{folder}: no readable {MANIFEST}: not a checkpoint, or a damaged one"
            ) from None
        for name, digest in digests.items():
            if not (folder / name).is_file() or sha256(folder / name) != digest:
                raise UserError(
                    f"{folder / name}: missing or changed since it was written: put it back, or "
                    "start a new run"
                )
        return folder

    # ---- reading

    def load(
        self,
        checkpoint: str | Path,
        *,
        model: nn.Module,
        optimizer: Any,
        template: Callable[[], State],
    ) -> tuple[State, dict[str, Any]]:
        """Put a checkpoint into a model and its optimiser, and the random numbers back where they
        were.

        Args:
            template: gives a state of the model's structure, to rebuild the carried one.

        Returns:
            The carried state, and the progress that was saved.

        Raises:
            UserError: the checkpoint is damaged or does not fit.
        """
        from seqzoo.runs import tensors

        folder = self.verify(checkpoint)
        state = tensors.load(folder, model=model, optimizer=optimizer, template=template)
        return state, json.loads((folder / "progress.json").read_text())

    def load_weights(self, checkpoint: str | Path, model: nn.Module) -> None:
        """Give a model the weights of a checkpoint.

        Raises:
            UserError: the checkpoint is damaged or does not fit.
        """
        from seqzoo.runs import tensors

        tensors.load_weights(self.verify(checkpoint) / tensors.MODEL, model)

    def load_mean(self, checkpoints: Sequence[Path], model: nn.Module) -> None:
        """Give a model the mean of the weights of several checkpoints.

        Raises:
            UserError: a checkpoint is damaged or does not fit.
        """
        total: dict[str, Any] = {}
        for checkpoint in checkpoints:
            self.load_weights(checkpoint, model)
            for name, value in model.state_dict().items():
                total[name] = total.get(name, 0) + value.double()
        mean = {name: value / len(checkpoints) for name, value in total.items()}
        model.load_state_dict(mean)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def sha256(path: Path) -> str:
    """The digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Have the system write a file or folder to the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
