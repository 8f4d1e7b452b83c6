"""The tensors of a run to and from safetensors files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from seqzoo.errors import UserError
from seqzoo.state import State, leaves, rebuild, to

MODEL, OPTIMIZER, REST = "model.safetensors", "optimizer.safetensors", "state.safetensors"


def save(folder: Path, *, model: nn.Module, optimizer: Any, state: State) -> None:
    """Write the weights, the optimiser's moments, the carried state and the random numbers."""
    save_weights(model, folder / MODEL)
    moments = {
        f"{index}.{key}": value.contiguous()
        for index, slots in optimizer.state_dict()["state"].items()
        for key, value in slots.items()
    }
    save_file(moments, folder / OPTIMIZER)
    rest = {f"state.{i}": leaf.detach().contiguous() for i, leaf in enumerate(leaves(state))}
    rest["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        rest["rng.cuda"] = torch.cuda.get_rng_state()
    save_file(rest, folder / REST)


def load(folder: Path, *, model: nn.Module, optimizer: Any, template: Callable[[], State]) -> State:
    """Put back what `save` wrote; the carried state is returned."""
    device = next(model.parameters()).device
    load_weights(folder / MODEL, model)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in load_file(folder / OPTIMIZER).items():
        index, key = name.split(".", 1)
        moments.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    rest = load_file(folder / REST)
    parts = [rest[f"state.{i}"] for i in range(sum(name.startswith("state.") for name in rest))]
    state = to(rebuild(template(), parts), device) if parts else None
    torch.set_rng_state(rest["rng.cpu"])
    if torch.cuda.is_available() and "rng.cuda" in rest:
        torch.cuda.set_rng_state(rest["rng.cuda"])
    return state


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the parameters and buffers of a model; a tied matrix once, under the first of its names
    in alphabetical order."""
    tensors, tied = model.state_dict(), _names(model)
    also = {other: names[0] for names in tied for other in names[1:]}
    kept = {names[0]: tensors[names[0]].contiguous() for names in tied}
    save_file(kept, path, metadata=also or None)


def _names(model: nn.Module) -> list[list[str]]:
    """The names of each parameter and buffer: several where it is tied.

    `safetensors.torch.save_model` finds tied tensors by their storage, and refuses tensors that are
    views of a larger one. On CUDA the weights of an LSTM are views of one flat buffer for cuDNN.
    """
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    return [sorted(each) for each in names.values()]


def load_weights(path: Path, model: nn.Module) -> None:
    """Load a safetensors file into a model of the same shape.

    Raises:
        UserError: it is damaged, or holds the weights of another model.
    """
    try:
        tensors = load_file(path, device=str(next(model.parameters()).device))
        for names in _names(model):
            kept = [tensors[name] for name in names if name in tensors]
            tensors.update({name: kept[0] for name in names if kept})
        model.load_state_dict(tensors)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: damaged or not readable ({error}): put it back, give another checkpoint, or "
            "train the model again"
        ) from None
    except (RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise UserError(
            f"{path}: weights of another model ({first}): "
            "use the configuration they were saved with"
        ) from None
