"""Every oracle in three ways: our kernels in float32 and in float64, and the definitions."""

from collections.abc import Iterator

import pytest
import torch

from seqzoo import ops

WAYS = [("native", torch.float32), ("native", torch.float64), ("naive", torch.float32)]


@pytest.fixture(autouse=True, params=WAYS, ids=lambda way: f"{way[0]}-{str(way[1])[6:]}")
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """The form of every operation that has it, and the type of numbers."""
    form, dtype = request.param
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with ops.backend(form):
            yield
    finally:
        torch.set_default_dtype(before)
