"""The laws, and a training run, on CUDA."""

from pathlib import Path

import pytest
import torch

from seqzoo import laws
from seqzoo.models.zoo import FAMILIES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here"),
]


@pytest.mark.parametrize("name", FAMILIES)
def test_laws_on_cuda(name: str) -> None:
    for keys in laws.variants(name):
        for dtype, tolerance in laws.TOLERANCE.items():
            f = laws.example(name, dtype, **keys).cuda()
            x = torch.randn(3, 130, 16, dtype=dtype).cuda()
            assert laws.chunk_law(f, x, [1, 64, 100]) <= tolerance
            assert laws.causality(f, x, 65) == 0
            for form in ("sdpa", "blocked", "scan", "torch"):
                assert laws.definition_law(f, x, form) <= tolerance


@pytest.mark.parametrize("name", FAMILIES)
def test_training_on_cuda(name: str, tmp_path: Path, text_file: Path) -> None:
    from test_training import fit

    summary = fit(tmp_path, text_file, name, max_steps=30, device="cuda", dtype="bfloat16")
    assert summary["device"] == "cuda" and summary["val/loss"] < 4
