"""What is chosen and prepared for CUDA, on a machine without it: which form runs, what fla is
given, when a batch is made, and how a captured step is used."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from calls import GROWING
from seqzoo import ops
from seqzoo.decoding.graph import GraphStep
from seqzoo.decoding.sampling import generate
from seqzoo.models.zoo import FAMILIES
from seqzoo.ops import registry
from seqzoo.ops.fla import LARGEST_KEY
from seqzoo.ops.matrix_state import matrix_state
from seqzoo.ops.native.program import Unrecordable
from seqzoo.state import leaves
from seqzoo.training.hooks import Hook
from seqzoo.training.step import take_step
from seqzoo.training.training import Training
from test_decoding import small
from test_native import difference, randn
from test_training import fit

CPU = torch.device("cpu")

# ---- which form runs


@pytest.fixture
def medium() -> Any:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


def query(device: str, dtype: torch.dtype) -> Any:
    """An input of which only device and type are known."""
    return SimpleNamespace(device=torch.device(device), dtype=dtype)


def chosen(device: str, dtype: torch.dtype, length: int) -> str:
    """The form of a matrix state."""
    with ops.recording() as forms:
        registry.choose("matrix_state", query(device, dtype), length)
    (form,) = forms
    return form.split()[1]


def test_fla_runs_on_cuda_where_products_may_be_rounded(medium: None, monkeypatch: Any) -> None:
    monkeypatch.setattr(registry, "fla_installed", lambda: True)
    assert chosen("cuda", torch.float32, 70) == "fla"
    assert chosen("cuda", torch.float32, 1) == "naive"
    assert chosen("cuda", torch.float64, 70) == "blocked"
    assert chosen("meta", torch.float32, 70) == "blocked"
    assert chosen("cpu", torch.float32, 70) == "chunked"
    torch.set_float32_matmul_precision("high")
    assert chosen("cuda", torch.float32, 70) == "blocked"
    torch.set_float32_matmul_precision("medium")
    assert registry.fla_takes(query("cuda", torch.float32), 70)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not registry.fla_takes(query("cuda", torch.float32), 70)


def test_without_fla_nothing_is_imported_or_said(medium: None, monkeypatch: Any, capfd) -> None:
    def absent(name: str) -> str:
        raise registry.PackageNotFoundError(name)

    registry.fla_installed.cache_clear()
    monkeypatch.setattr(registry, "version", absent)
    try:
        assert chosen("cuda", torch.float32, 70) == "blocked"
    finally:
        registry.fla_installed.cache_clear()
    assert "fla" not in sys.modules and capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cuda", "bfloat16", "medium"),
        ("cuda", "float32", "highest"),
        ("cpu", "bfloat16", "highest"),
    ],
)
def test_float32_products_may_be_rounded_beside_bfloat16(device, dtype, expected) -> None:
    from seqzoo.training.device import float32_products

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with float32_products(torch.device(device), dtype):
        assert torch.get_float32_matmul_precision() == expected
        assert torch.backends.cudnn.allow_tf32 == (dtype == "bfloat16" or device == "cpu")
    assert before == (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)


# ---- what fla is given: its functions, written from the equations in its documentation


def recurrence(q, k, v, decay, start, scale, a=None, b=None, u=None):
    """S_t = diag(e^g_t) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T and o_t = scale q_t^T S_t; with a
    bonus o_t = scale q_t^T (S_{t-1} + diag(u) k_t v_t^T). Inputs (B, T, H, ..), decay (B, T, H, K)
    or (B, T, H), start (B, H, K, V)."""
    S, outputs = start, []
    for t in range(q.shape[1]):
        before, new = S, k[:, t, :, :, None] * v[:, t, :, None]
        g = decay[:, t, ..., None] if decay.ndim == 4 else decay[:, t, :, None, None]
        S = g.exp() * before + new
        if a is not None:
            S = S + b[:, t, :, :, None] * (a[:, t, :, :, None] * before).sum(2, keepdim=True)
        seen = S if u is None else before + u[:, :, None] * new
        outputs.append(scale * (q[:, t, :, :, None] * seen).sum(2))
    return torch.stack(outputs, 1), S


class Stand:
    """fla's modules; `calls` are the functions that ran, with what they were given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        for module, name, function in (
            ("simple_gla", "chunk_simple_gla", self.simple_gla),
            ("gla", "chunk_gla", self.gla),
            ("rwkv6", "chunk_rwkv6", self.rwkv6),
            ("generalized_delta_rule", "chunk_dplr_delta_rule", self.dplr),
        ):
            made = ModuleType(f"fla.ops.{module}")
            setattr(made, name, function)
            monkeypatch.setitem(sys.modules, made.__name__, made)
        for package in ("fla", "fla.ops"):
            monkeypatch.setitem(sys.modules, package, ModuleType(package))

    def run(self, name: str, state: Tensor, final: bool, **given: Any) -> tuple[Tensor, Tensor]:
        self.calls.append((name, given))
        q, k, v, decay = given["q"], given["k"], given["v"], given["decay"]
        assert q.shape == k.shape and q.shape[:3] == v.shape[:3] == decay.shape[:3]
        assert state.shape == (q.shape[0], q.shape[2], q.shape[3], v.shape[3]) and final
        assert state.dtype == decay.dtype == torch.float32
        assert q.dtype == k.dtype == v.dtype == torch.bfloat16
        assert not any(x.shape[-1] % 16 for x in (q, v))
        wide = {key: x.float() if isinstance(x, Tensor) else x for key, x in given.items()}
        wide.pop("lower_bound", None)
        y, end = recurrence(start=state, **wide)
        return y.to(q.dtype), end

    def simple_gla(self, *, q, k, v, g, scale, initial_state, output_final_state):
        given = {"q": q, "k": k, "v": v, "decay": g, "scale": scale}
        assert g.ndim == 3
        return self.run("simple_gla", initial_state, output_final_state, **given)

    def gla(self, *, q, k, v, g, scale, initial_state, output_final_state):
        given = {"q": q, "k": k, "v": v, "decay": g, "scale": scale}
        assert g.shape == q.shape
        return self.run("gla", initial_state, output_final_state, **given)

    def rwkv6(self, *, r, k, v, w, u, scale, initial_state, output_final_state):
        given = {"q": r, "k": k, "v": v, "decay": w, "u": u, "scale": scale}
        assert w.shape == r.shape and u.shape == r.shape[2:]
        return self.run("rwkv6", initial_state, output_final_state, **given)

    def dplr(self, *, q, k, v, a, b, gk, scale, initial_state, output_final_state, lower_bound):
        assert gk.shape == a.shape == b.shape == q.shape
        assert lower_bound is None or (lower_bound < 0 and bool((gk >= lower_bound).all()))
        given = {"q": q, "k": k, "v": v, "a": a, "b": b, "decay": gk, "scale": scale}
        return self.run("dplr", initial_state, output_final_state, lower_bound=lower_bound, **given)


def inputs(
    K: int,
    V: int,
    decay: str,
    *,
    delta: bool = False,
    bonus: bool = False,
    heads: int = 3,
    T: int = 21,
) -> dict[str, Tensor]:
    """Arguments of `matrix_state`, those that fla rounds in numbers that bfloat16 has."""
    B, H = 2, 3
    shapes = {"none": (1, 1, 1, 1), "head": (1, H, 1, 1), "token": (B, H, T, 1)}
    shapes |= {"fixed": (1, H, 1, K), "channel": (B, H, T, K)}
    named = {
        "q": randn(B, heads, T, K, seed=1, dtype=torch.float32),
        "k": randn(B, heads, T, K, seed=2, dtype=torch.float32) / K**0.5,
        "v": randn(B, H, T, V, seed=3, dtype=torch.float32),
        "S": randn(B, H, K, V, seed=4, dtype=torch.float32),
    }
    if decay != "none":
        named["log_w"] = -0.5 * randn(*shapes[decay], seed=5, dtype=torch.float32).sigmoid()
    if delta:
        named["b"] = F.normalize(randn(B, H, T, K, seed=6, dtype=torch.float32), dim=-1)
        named["a"] = -0.7 * named["b"]
    if bonus:
        named["u"] = randn(H, K, seed=7, dtype=torch.float32)
    exact = {key: x.bfloat16().float() for key, x in named.items() if key not in ("S", "log_w")}
    return {key: x.requires_grad_() for key, x in (named | exact).items()}


def results(form: str, device: str, **named: Any) -> list[Tensor]:
    """Outputs, and the gradients of a fixed mixture of them, of a matrix state by one form."""
    moved = {
        key: x.detach().to(device).requires_grad_() if isinstance(x, Tensor) else x
        for key, x in named.items()
    }
    with ops.backend(form):
        outputs = matrix_state(**moved)
    random = torch.Generator().manual_seed(1)
    loss = sum((torch.randn(y.shape, generator=random).to(device) * y).sum() for y in outputs)
    wanted = [x for x in moved.values() if isinstance(x, Tensor)]
    return [x.cpu() for x in (*outputs, *torch.autograd.grad(loss, wanted))]


KERNELS = [
    ("simple_gla", {"decay": "none"}),
    ("simple_gla", {"decay": "head"}),
    ("simple_gla", {"decay": "token", "heads": 1}),
    ("gla", {"decay": "fixed"}),
    ("gla", {"decay": "channel"}),
    ("rwkv6", {"decay": "fixed", "bonus": True}),
    ("rwkv6", {"decay": "channel", "bonus": True}),
    ("rwkv6", {"decay": "none", "bonus": True}),
    ("dplr", {"decay": "channel", "delta": True}),
    ("dplr", {"decay": "none", "delta": True}),
    ("dplr", {"decay": "token", "delta": True}),
]
SIZES = [(16, 16), (32, 64), (8, 5), (40, 33)]


@pytest.mark.parametrize("K, V", SIZES)
@pytest.mark.parametrize(("kernel", "keys"), KERNELS, ids=str)
@pytest.mark.parametrize("bound", (None, -0.5))
def test_fla_is_given_our_recurrence(K, V, kernel, keys, bound, monkeypatch) -> None:
    stand, named = Stand(monkeypatch), inputs(K, V, **keys)
    more = {} if "log_w" not in named else {"min_log_w": bound}
    found = [results(form, "cpu", **named, **more) for form in ("naive", "fla")]
    ((name, given),) = stand.calls
    assert name == kernel
    if kernel == "dplr":  # without a decay the bound is 0, which fla refuses
        assert given["lower_bound"] == (bound if "log_w" in named else None)
    for expected, result in zip(*found, strict=True):
        assert expected.shape == result.shape and expected.dtype == result.dtype
        # bfloat16 has 8 bits; beyond its output and gradients fla's stand-in rounds nothing.
        assert difference(expected, result) < 2**-7


@pytest.mark.parametrize("keys", [{"K": LARGEST_KEY + 1}, {"delta": True, "bonus": True}], ids=str)
def test_what_fla_does_not_cover_is_blocked(keys: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    stand, named = Stand(monkeypatch), inputs(**{"K": 16, "V": 5, "decay": "token", **keys})
    with ops.backend("naive"):
        expected = matrix_state(**named)
    with ops.backend("fla"), ops.recording() as forms:
        given = matrix_state(**named)
    assert not stand.calls and "matrix_state blocked" in forms
    assert all(difference(a, b) < 1e-5 for a, b in zip(expected, given, strict=True))


# ---- batches


def test_the_next_batch_is_prepared_while_a_step_is_computed(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CUDA after the step was launched and before its loss is waited for; elsewhere when it is
    needed. The batches, and so the losses, are the same."""
    losses = []
    for device in ("cpu", "cuda"):
        events: list[str] = []

        class Watch(Hook):
            every = 2

            def on_start(self, training: Training, device=device, events=events) -> None:
                training.device = SimpleNamespace(type=device) if device == "cuda" else CPU
                training.meter.settle = lambda: events.append("wait")
                original = training.task.batch

                def batch(number: int) -> Any:
                    events.append(f"batch {number}")
                    made = original(number)
                    return SimpleNamespace(to=lambda _: made) if device == "cuda" else made

                training.task.batch = batch

            def on_step(self, training: Training, events=events) -> None:
                events.append(f"step {training.step}")

        monkeypatch.setattr("seqzoo.training.training.take_step", partial(on_cpu, take_step))
        keys = {"max_steps": 4, "log_every": 2, "grad_accumulation": 2}
        summary = fit(tmp_path / device, text_file, hooks=[Watch()], **keys)
        losses.append(summary["val/loss"])
        batches = [event for event in events if event.startswith("batch")]
        if device == "cpu":
            assert batches == [f"batch {i}" for i in range(8)]
            assert events.index("step 2") < events.index("batch 4")
        else:
            assert batches == [f"batch {i}" for i in range(10)]  # those of a step to come are left
            assert events.index("batch 5") < events.index("wait") < events.index("step 2")
    assert losses[0] == losses[1]


def on_cpu(step: Any, *args: Any, **more: Any) -> Any:
    return step(*args, **more | {"device": CPU})


# ---- a captured step


class Replay(TorchDispatchMode):
    """Runs the operations of a function again on the same memory, as a CUDA graph does with its
    kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise Unrecordable("a number is read")
        out = func(*args, **(kwargs or {}))
        self.done.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        for func, args, kwargs, out in self.done:
            again = func(*args, **kwargs)
            for old, new in zip(tensors(out), tensors(again), strict=True):
                if old is not new:
                    old.copy_(new)


def tensors(out: Any) -> list[Tensor]:
    return [x for x in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(x, Tensor)]


def capture(run: Callable[[], None], device: torch.device) -> Callable[[], object]:
    run()
    recorder = Replay()
    with recorder:
        run()

    def replay() -> None:
        with torch.no_grad():
            recorder.replay()

    return replay


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - GROWING))
@torch.inference_mode()
def test_a_captured_step_is_the_model(name: str) -> None:
    model = small(name, seed=1).float()
    tokens = torch.randint(11, (3, 20), generator=torch.Generator().manual_seed(2))
    _, state = model(tokens[:, :5])
    first, before = state, [leaf.clone() for leaf in leaves(state)]
    step = GraphStep(model, state, 3, 15, capture)
    for t in range(5, 20):
        logits, state = model(tokens[:, t : t + 1], state)
        assert difference(logits[:, 0], step(tokens[:, t])) < 1e-5
    for expected, given in zip(leaves(state), leaves(step.state()), strict=True):
        assert difference(expected, given) < 1e-5
    assert all(map(torch.equal, leaves(first), before))
    with pytest.raises(IndexError, match="no room"):
        step(tokens[:, 0])
    step.rewind()
    assert step.room == 15


@torch.inference_mode()
def test_a_state_that_grows_is_not_captured() -> None:
    model = small("transformer", seed=1).float()
    _, state = model(torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(Unrecordable, match="grows"):
        GraphStep(model, state, 1, 15, capture)


@pytest.mark.parametrize("keys", [{}, {"stop": 0}], ids=str)
def test_generating_with_a_captured_step(keys: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tokens, also where rows end."""

    def prepared(model: Any, state: Any, rows: int, room: int, *_: str) -> GraphStep | None:
        return GraphStep(model, state, rows, room, capture) if room else None

    model = small("rwkv7", seed=3).float()
    prompt = torch.randint(1, 11, (4, 6), generator=torch.Generator().manual_seed(4))
    texts = []
    for prepare in (lambda *_: None, prepared):
        monkeypatch.setattr("seqzoo.decoding.sampling.prepare", prepare)
        random = torch.Generator().manual_seed(5)
        with ops.recording() as forms:
            tokens = list(generate(model, prompt, max_tokens=30, generator=random, **keys))
        assert ("step graph" in forms) == (prepare is prepared)
        texts.append(torch.stack(tokens))
    assert torch.equal(*texts)


@torch.inference_mode()
def test_parts_of_a_state_may_change_places_or_stay() -> None:
    """As a source that is handed on, or the last tokens of a convolution."""

    class Shifts(torch.nn.Module):
        embedding = torch.nn.Embedding(5, 1)

        def forward(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
            last, older, kept = state
            return (100 * older + 10 * last + kept)[:, None], (tokens.float(), last, kept)

    state = tuple(torch.full((1, 1), float(x)) for x in (2, 1, 3))
    step = GraphStep(Shifts(), state, 1, 4, capture)  # type: ignore[arg-type]
    given = [step(torch.tensor([token])).item() for token in (4, 5, 6, 7)]
    assert given == [123, 243, 453, 563]
    assert [leaf.item() for leaf in step.state()] == [7, 6, 3]
