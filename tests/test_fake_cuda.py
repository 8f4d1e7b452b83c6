"""Reading, training and decoding on CUDA, by torch's own rules of which operation takes which
device and gives which shape. No GPU is needed, but a torch that is built for CUDA
(`make check-cuda`): the tensors have a device and a shape, and no numbers.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

from seqzoo import ops
from seqzoo.models.zoo import build, model_keys
from seqzoo.ops.tensors import to_device
from seqzoo.training.forward import Forward
from test_device import (
    JOINED,
    VARIANTS,
    all_on,
    label,
    read,
    training_step,
)

pytestmark = [
    pytest.mark.skipif(torch.version.cuda is None, reason="torch is not built for CUDA"),
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor"),
]
CUDA = torch.device("cuda:0")
PEERS = Path(__file__).parents[1] / "scripts" / "peers"


class NothingWaits(TorchDispatchMode):
    """Refuses what makes the CPU wait for the GPU: any copy to the CPU, and one to the GPU that is
    not from pinned memory and `non_blocking`. (Numbers, and shapes that depend on numbers, are
    refused by fake tensors.)"""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func is torch.ops.aten._to_copy.default and out.device != args[0].device:
            pinned = getattr(args[0], "pinned", False) and kwargs.get("non_blocking")
            assert pinned, f"a copy from {args[0].device} to {out.device} waits"
        return out


def gradients_of(loss: Tensor) -> dict[Tensor, Tensor]:
    """The gradient of each leaf, node by node in Python: torch's engine needs a driver."""
    leaves: dict[Tensor, Tensor] = {}
    uses: Counter[Any] = Counter()  # edges to a node that are still to be followed
    found, todo = {loss.grad_fn}, [loss.grad_fn]
    while todo:
        for after, _ in todo.pop().next_functions:
            if after is not None:
                uses[after] += 1
                if after not in found:
                    found.add(after)
                    todo.append(after)
    given: dict[Any, dict[int, Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss)}}
    ready = [loss.grad_fn]
    while ready:
        node = ready.pop()
        gradients = given.pop(node, {})
        if hasattr(node, "variable"):
            leaf = node.variable
            if gradients:
                assert gradients[0].shape == leaf.shape and gradients[0].device == leaf.device
                leaves[leaf] = gradients[0]
            continue
        needed = [
            gradients[i] if i in gradients else torch.zeros(x.shape, dtype=x.dtype, device=CUDA)
            for i, x in enumerate(node._input_metadata)
        ]
        made = node(*needed)
        made = made if isinstance(made, tuple) else (made,)
        for (after, i), gradient in zip(node.next_functions, made, strict=True):
            if after is None:
                continue
            if gradient is not None:
                wanted = after._input_metadata[i]
                gradient = gradient.sum_to_size(wanted.shape).to(wanted.dtype)
                place = given.setdefault(after, {})
                place[i] = place[i] + gradient if i in place else gradient
            uses[after] -= 1
            if not uses[after]:
                ready.append(after)
    return leaves


def backward(loss: Tensor, *args: object) -> None:
    """As `loss.backward()`."""
    for leaf, gradient in gradients_of(loss).items():
        leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient


def grad(loss: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """As `torch.autograd.grad`, of leaves."""
    found = gradients_of(loss)
    return tuple(found[x] for x in inputs)


def pin_memory(x: Tensor) -> Tensor:
    """As `Tensor.pin_memory`, which fake tensors lack. What is not contiguous would be copied to
    other memory first, which is not pinned."""
    x.pinned = x.is_contiguous()
    return x


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors without numbers. cuDNN looks for a driver, so torch's own recurrent kernels run."""
    monkeypatch.setattr(Tensor, "backward", backward)
    monkeypatch.setattr(torch.autograd, "grad", grad)
    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    with FakeTensorMode(), torch.backends.cudnn.flags(enabled=False):
        yield


def fake_model(name: str, keys: dict) -> Any:
    sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "max_len": 600}
    known = {key: size for key, size in sizes.items() if key in model_keys(name)}
    with CUDA:
        return build(name, vocab_size=11, **known, **keys)


def test_what_waits_is_caught() -> None:
    x = torch.zeros(2, device=CUDA)
    with NothingWaits():
        for copy in (x.cpu, lambda: torch.zeros(2).to(CUDA), lambda: torch.tensor([1]).cuda()):
            with pytest.raises(AssertionError, match="waits"):
                copy()
        for ask in (x.sum().item, x.nonzero, lambda: x[x > 0], lambda: bool(x.any())):
            with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
                ask()
        with pytest.raises(RuntimeError, match="device"):
            x + torch.zeros(2)
        to_device(torch.zeros(2), CUDA)


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize(("name", "keys"), [*VARIANTS, *JOINED], ids=label)
def test_reading_decoding_and_training(name: str, keys: dict, dtype: str) -> None:
    # torch has no fake version of its kernel of the GRU.
    with_gru = "gru" in (name, *keys.get("pattern", ()))
    with ops.backend("naive") if with_gru else nullcontext():
        model = fake_model(name, keys)
        forward = Forward(model, CUDA, dtype)
        with NothingWaits():
            with torch.no_grad(), ops.recording() as forms:
                read(model.eval(), forward, "cuda")
            result = training_step(model.train(), forward, CUDA)
    assert all_on("cuda", result.loss, result.grad_norm, result.state)
    assert all(p.grad is None and p.device == CUDA for p in model.parameters())
    assert not {"matrix_state chunked", "wkv4 chunked", "linear_scan loop"} & forms
    assert not any(form.endswith("native") for form in forms)


@pytest.mark.parametrize("name", ("lstm", "rnn", "peak", "delta-32", "linear-attention", "mingru"))
def test_both_sides_of_a_pair_are_on_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PEERS)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    bench, timing = import_module("bench"), import_module("timing")
    pair, options = bench.PAIRS[name], timing.Options(rounds=1, tiny=True, device=CUDA)
    if lacks := pair.missing():
        pytest.skip(lacks)
    made: list[Any] = []

    def timed(call: Any, *_: object) -> tuple[float, Any]:
        made.append(call())
        return 1.0, made[-1]  # there is no driver to wait for

    monkeypatch.setattr(timing, "timed", timed)
    try:
        timing.build_on(options.device)
        assert bench.load(pair.function)(options, **pair.keys)
    finally:
        timing.build_on(torch.device("cpu"))
    assert all_on("cuda", *made)
