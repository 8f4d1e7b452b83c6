"""Which form of an operation runs where.

Every operation has a `naive` form, the definition written from its paper's equations, and faster
forms that the definition law (`seqzoo.laws`) holds to it. `BACKENDS` lists the forms of each
operation; the first whose condition holds runs. A form that may run on another device than a CPU
fetches nothing from it.

To add a form: write a function with the signature of the operation's `naive` form, and add a line
here with the condition under which it is chosen. Another package adds one with
``Plugin(backends={"matrix_state.triton": Backend("package.module:function", when=...)})``, or with
the import path of such an object; forms of plugins are tried first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqzoo.config import plugins
from seqzoo.config.schema import load
from seqzoo.ops.native import available, takes

Condition = Callable[[Tensor, int], bool]  # (an input of the operation, its length in tokens)


def always(x: Tensor, length: int) -> bool:
    return True


def never(x: Tensor, length: int) -> bool:
    return False


def one_token(x: Tensor, length: int) -> bool:
    return length == 1


def on_cpu(x: Tensor, length: int) -> bool:
    return x.device.type == "cpu"


def one_token_on_cpu(x: Tensor, length: int) -> bool:
    return length == 1 and x.device.type == "cpu"


def small_scores_in_bfloat16(x: Tensor, length: int) -> bool:
    """On a CPU in bfloat16, SDPA's flash kernel is slower than two matrix products and a softmax
    while the score matrix fits the cache, and always for one query (`scripts/measure_ops.py`)."""
    small = length <= 512 or x.shape[-2] == 1
    return x.device.type == "cpu" and x.dtype == torch.bfloat16 and small


@cache
def fla_installed() -> bool:
    """Whether the kernels of fla-core, and Triton, which compiles them, are here. Imports
    neither."""
    try:
        return version("fla-core").startswith("0.6.") and bool(version("triton"))
    except PackageNotFoundError:
        return False


def fla_takes(x: Tensor, length: int) -> bool:
    """Whether fla's kernels run: on CUDA, where the products of float32 numbers may be computed in
    bfloat16 (`torch.set_float32_matmul_precision("medium")`), and not while torch.compile traces,
    which cannot look into them."""
    return (
        x.device.type == "cuda"
        and x.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and torch.get_float32_matmul_precision() == "medium"
        and fla_installed()
    )


def native_attention(x: Tensor, length: int) -> bool:
    return x.shape[-2] > 1 and available(x, length, "attention_forward")


def native_lstm(x: Tensor, length: int) -> bool:
    """In float32 oneDNN is faster, but for few tokens, where it takes long to convert the
    weights."""
    rounded = x.dtype != torch.float32 or torch.is_autocast_enabled("cpu")
    return (rounded or length <= 16) and available(x, length)


def few_logits(x: Tensor, length: int) -> bool:
    """Those of which a copy in float32 needs no more than 16 MiB."""
    return length <= 2**22


class Backend(NamedTuple):
    """One form of an operation.

    Attributes:
        function: its import path, `package.module:function`.
        when: whether to choose it, given an input of the operation and its length in tokens.
        rounded: whether it rounds inputs to 16 bits, so that the laws in float32 are not for it.
    """

    function: str
    when: Condition = always
    rounded: bool = False


def around_a_recurrence(native: str, naive: str) -> dict[str, Backend]:
    """Forms of an operation whose naive form calls `matrix_state`: `backend` then chooses the form
    of that one."""
    definition = Backend(naive)
    return {
        "native": Backend(native, when=available),
        **dict.fromkeys(("naive", "chunked", "blocked"), definition),
    }


BACKENDS: dict[str, dict[str, Backend]] = {
    "attention": {
        "native": Backend("seqzoo.ops.native.attention:attention", when=native_attention),
        "naive": Backend("seqzoo.ops.attention:naive", when=small_scores_in_bfloat16),
        "sdpa": Backend("seqzoo.ops.attention:sdpa"),
    },
    "causal_conv": {
        "native": Backend("seqzoo.ops.native.local:causal_conv", when=available),
        "naive": Backend("seqzoo.ops.local:naive_causal_conv"),
    },
    "cross_entropy": {
        "native": Backend(
            "seqzoo.ops.native.cross_entropy:cross_entropy", when=takes("cross_entropy_forward")
        ),
        "naive": Backend("seqzoo.ops.cross_entropy:naive", when=few_logits),
        "chunked": Backend("seqzoo.ops.cross_entropy:chunked"),
    },
    "delta_net": around_a_recurrence(
        "seqzoo.ops.native.matrix_states:delta_net", "seqzoo.ops.delta_net:naive"
    ),
    "gate": {
        "native": Backend("seqzoo.ops.native.local:gate", when=takes("gate_forward")),
        "naive": Backend("seqzoo.ops.channel:naive_gate"),
    },
    "head_norm": {
        "native": Backend("seqzoo.ops.native.local:head_norm", when=available),
        "naive": Backend("seqzoo.ops.outputs:naive_head_norm"),
    },
    "linear_attention": around_a_recurrence(
        "seqzoo.ops.native.linear_attention:linear_attention", "seqzoo.ops.linear_attention:naive"
    ),
    "linear_gelu": {
        "naive": Backend("seqzoo.ops.activations:naive_linear_gelu", when=one_token),
        "native": Backend("seqzoo.ops.native.activations:linear_gelu", when=takes("gelu_forward")),
        "torch": Backend("seqzoo.ops.activations:naive_linear_gelu"),
    },
    "linear_scan": {
        "native": Backend("seqzoo.ops.native.scans:linear_scan", when=available),
        "naive": Backend("seqzoo.ops.linear_scan:naive", when=one_token),
        "loop": Backend("seqzoo.ops.linear_scan:loop", when=on_cpu),
        "scan": Backend("seqzoo.ops.linear_scan:scan"),
    },
    "lstm": {
        "naive": Backend("seqzoo.ops.recurrent:naive", when=one_token_on_cpu),
        "native": Backend("seqzoo.ops.native.recurrent:recurrent", when=native_lstm),
        "torch": Backend("seqzoo.ops.recurrent:fused"),
    },
    "mamba2": around_a_recurrence(
        "seqzoo.ops.native.matrix_states:mamba2", "seqzoo.ops.mamba2:naive"
    ),
    "matrix_state": {
        "native": Backend("seqzoo.ops.native.matrix_states:matrix_state", when=available),
        "naive": Backend("seqzoo.ops.matrix_state:naive", when=one_token),
        "fla": Backend("seqzoo.ops.fla:matrix_state", when=fla_takes, rounded=True),
        "chunked": Backend("seqzoo.ops.matrix_state:chunked", when=on_cpu),
        "blocked": Backend("seqzoo.ops.matrix_state:blocked"),
    },
    "mlstm": {
        "native": Backend("seqzoo.ops.native.mlstm:mlstm", when=available),
        "naive": Backend("seqzoo.ops.mlstm:naive", when=one_token),
        "parallel": Backend("seqzoo.ops.mlstm:parallel"),
    },
    "norm": {
        "naive": Backend("seqzoo.ops.norms:naive_norm", when=one_token),
        "native": Backend("seqzoo.ops.native.norms:norm", when=available),
        "torch": Backend("seqzoo.ops.norms:naive_norm"),
    },
    "recurrent": {
        "naive": Backend("seqzoo.ops.recurrent:naive", when=one_token_on_cpu),
        "native": Backend("seqzoo.ops.native.recurrent:recurrent", when=available),
        "torch": Backend("seqzoo.ops.recurrent:fused"),
    },
    "relu2_product": {
        "native": Backend("seqzoo.ops.native.local:relu2_product", when=takes("gate_forward")),
        "naive": Backend("seqzoo.ops.channel:naive_relu2_product"),
    },
    "rg_lru": {
        "native": Backend("seqzoo.ops.native.scans:rg_lru", when=takes("rg_lru_forward")),
        "naive": Backend("seqzoo.ops.rg_lru:naive"),
    },
    "shift_products": {
        "native": Backend("seqzoo.ops.native.local:shift_products", when=available),
        "naive": Backend("seqzoo.ops.local:naive_shift_products"),
    },
    "rwkv7": around_a_recurrence("seqzoo.ops.native.matrix_states:rwkv7", "seqzoo.ops.rwkv7:naive"),
    "slstm": {
        "naive": Backend("seqzoo.ops.slstm:naive", when=one_token),
        "native": Backend("seqzoo.ops.native.slstm:slstm", when=available),
        "torch": Backend("seqzoo.ops.slstm:naive"),
    },
    "trapezoidal": {
        "naive": Backend("seqzoo.ops.mamba3:naive", when=one_token),
        "native": Backend("seqzoo.ops.mamba3:turned", when=available),
        **dict.fromkeys(("chunked", "blocked"), Backend("seqzoo.ops.mamba3:turned")),
    },
    "wkv4": {
        "native": Backend("seqzoo.ops.native.scans:wkv4", when=takes("gate_forward")),
        "naive": Backend("seqzoo.ops.wkv4:naive", when=one_token),
        "chunked": Backend("seqzoo.ops.wkv4:chunked", when=on_cpu),  # falls back to `scan`
        "scan": Backend("seqzoo.ops.wkv4:scan"),
    },
}
_forced: ContextVar[str | None] = ContextVar("seqzoo_backend", default=None)
_recorded: ContextVar[set[str] | None] = ContextVar("seqzoo_recorded", default=None)


def backends() -> dict[str, dict[str, Backend]]:
    """The forms of every operation, those of plugins first."""
    table: dict[str, dict[str, Backend]] = {operation: {} for operation in BACKENDS}
    for path, entry in plugins.registered("backends", {}).items():
        operation, _, name = path.partition(".")
        table[operation][name] = load(entry) if isinstance(entry, str) else entry
    return {operation: added | BACKENDS[operation] for operation, added in table.items()}


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Run the form `name` of every operation that has one.

    Raises:
        ValueError: no operation has a form of that name.
    """
    known = {form for forms in backends().values() for form in forms}
    if name not in known:
        raise ValueError(f"no backend {name!r}: choose one of {', '.join(sorted(known))}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


@contextmanager
def recording() -> Iterator[set[str]]:
    """Collect the forms that run inside, such as `attention sdpa`."""
    recorded: set[str] = set()
    token = _recorded.set(recorded)
    try:
        yield recorded
    finally:
        _recorded.reset(token)


def record(operation: str, form: str) -> None:
    """Record that a form runs."""
    recorded = None if torch.compiler.is_compiling() else _recorded.get()
    if recorded is not None:
        recorded.add(f"{operation} {form}")


def choose(operation: str, x: Tensor, length: int) -> Callable[..., Any]:
    """The form to run for an input x of an operation over `length` tokens."""
    compiling = torch.compiler.is_compiling()
    if not compiling:
        load_forms()
    forms = _loaded[operation]
    name = None if compiling else _forced.get()
    if name is None or name not in forms:
        for name, (_, when) in forms.items():  # noqa: B007
            if when(x, length):
                break
        else:
            raise LookupError(f"no form of {operation} is for {x.device} and {length} tokens")
    record(operation, name)
    return forms[name][0]


_loaded: dict[str, dict[str, tuple[Callable[..., Any], Condition]]] = {}
_loaded_at = -1  # the `changes` of plugins then


def load_forms() -> None:
    """Import the functions of all forms: ours, and those of the plugins in use; once, until plugins
    are added.

    `choose` does it, but not where torch.compile traces it, as imports cannot be traced; so `build`
    does it too.
    """
    global _loaded_at
    if _loaded_at == plugins.changes:
        return
    for operation, forms in backends().items():
        _loaded[operation] = {
            name: (load(form.function), form.when) for name, form in forms.items()
        }
    _loaded_at = plugins.changes
