"""Pure sequence maths: each operation has a `naive` definition, written from its paper's equations,
beside its fast forms. `registry` chooses which form runs; `watch` collects attention weights."""

from seqzoo.ops.registry import BACKENDS, Backend, backend, backends, recording
from seqzoo.ops.tensors import float32_or_wider, unit
from seqzoo.ops.watch import watching

__all__ = [
    "BACKENDS",
    "Backend",
    "backend",
    "backends",
    "float32_or_wider",
    "recording",
    "unit",
    "watching",
]
