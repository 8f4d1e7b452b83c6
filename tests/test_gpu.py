"""The laws, training and decoding on CUDA."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from calls import GROWING
from seqzoo import laws, ops
from seqzoo.decoding.graph import GraphStep
from seqzoo.decoding.sampling import generate
from seqzoo.decoding.step import prepare
from seqzoo.models.zoo import FAMILIES
from seqzoo.ops.registry import fla_installed
from seqzoo.state import leaves
from seqzoo.training.device import float32_products
from seqzoo.training.forward import Forward
from test_cuda import KERNELS, SIZES, inputs, results
from test_decoding import small
from test_device import JOINED, VARIANTS, label, model_of, training_step
from test_native import difference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here"),
    pytest.mark.filterwarnings("ignore"),  # of Triton and fla
]
CUDA = torch.device("cuda")
BOUNDED = sorted(set(FAMILIES) - GROWING)


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    with float32_products(CUDA, "float32"):
        yield


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


@pytest.mark.skipif(not fla_installed(), reason="fla-core is not installed")
@pytest.mark.parametrize("K, V", SIZES)
@pytest.mark.parametrize(("kernel", "keys"), KERNELS, ids=str)
@pytest.mark.parametrize("bound", (None, -0.5))
def test_fla_is_the_definition(K: int, V: int, kernel: str, keys: dict, bound: Any) -> None:
    """Over some of its chunks; its products and what it keeps are in bfloat16."""
    named = inputs(K, V, **keys, T=150)
    more = {"min_log_w": bound} if "log_w" in named else {}
    pairs = zip(*(results(form, "cuda", **named, **more) for form in ("naive", "fla")), strict=True)
    assert max(difference(expected, given) for expected, given in pairs) < 0.03


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_training_on_cuda(name: str, dtype: str, tmp_path: Path, text_file: Path) -> None:
    from test_training import fit

    summary = fit(tmp_path, text_file, name, max_steps=30, device="cuda", dtype=dtype)
    assert summary["device"] == "cuda" and summary["val/loss"] < 4


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize(("name", "keys"), [*VARIANTS, *JOINED], ids=label)
def test_a_step_waits_for_nothing(name: str, keys: dict, dtype: str) -> None:
    model = model_of(name, keys).cuda().train()
    forward = Forward(model, CUDA, dtype)
    with float32_products(CUDA, dtype):
        training_step(model, forward, CUDA)  # libraries initialise
        torch.cuda.set_sync_debug_mode("error")
        try:
            training_step(model, forward, CUDA)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", BOUNDED)
@torch.inference_mode()
def test_a_captured_step_is_the_model_on_cuda(name: str) -> None:
    model = small(name, seed=1).float().cuda()
    tokens = torch.randint(11, (3, 40), generator=torch.Generator().manual_seed(2)).cuda()
    _, state = model(tokens[:, :5])
    step = prepare(model, state, 3, 35)
    assert isinstance(step, GraphStep)
    for t in range(5, 40):
        logits, state = model(tokens[:, t : t + 1], state)
        assert difference(logits[:, 0], step(tokens[:, t])) < 1e-4
    for expected, given in zip(leaves(state), leaves(step.state()), strict=True):
        assert difference(expected, given) < 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_generating_on_cuda(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The likeliest tokens, with and without a captured step."""
    model = small(name, seed=3).float().cuda()
    prompt = torch.randint(1, 11, (4, 6), generator=torch.Generator().manual_seed(4)).cuda()
    texts = []
    for worth in (1, 10**9):  # always, never
        monkeypatch.setattr("seqzoo.decoding.step.WORTH", worth)
        with ops.recording() as forms:
            texts.append(torch.stack(list(generate(model, prompt, max_tokens=30, temperature=0))))
        assert ("step graph" in forms) == (worth == 1 and name in BOUNDED)
    assert torch.equal(*texts)
