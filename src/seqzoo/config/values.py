"""Types of configuration values, to annotate the keywords of constructors with, and the check of
a value against its type.

A constructor's annotations are the one declaration of its keys: the constructor itself, the command
line, `--help`, completion and the documentation read them (`seqzoo.config.schema`). Every check is
pydantic's. Importing this loads no torch.
"""

from __future__ import annotations

import functools
import re
from importlib.metadata import version
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, Field

from seqzoo.errors import UserError

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Smoothing = Annotated[float, Field(ge=0, le=0.99)]
Dropout = Annotated[float, Field(ge=0, le=0.95)]
Beta = Annotated[float, Field(ge=0, le=0.99999)]
LargestRate = Annotated[float, Field(ge=1, le=2)]  # of a delta rule: above 1, it can reverse signs
Seconds = Annotated[float, Field(ge=1e-3, allow_inf_nan=False)]
Alphabet = Annotated[int, Field(ge=2, le=26)]  # letters, of the Latin ones
Flag = bool
Text = str
Path = str  # of a file or folder: completion offers those there are


class Described(str):
    """What a type takes, in words, where its annotation does not tell: ``Annotated[str, ...]``."""


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|(cpu|cuda)(:\d+)?", name):
        raise ValueError(name)
    return name


Seed = Annotated[int, Field(ge=0, le=2**63 - 1), Described("a whole number from 0 to 2**63 - 1")]
Device = Annotated[str, AfterValidator(_device), Described("auto, cpu, cuda or cuda:N")]
Dtype = Literal["auto", "float32", "bfloat16"]
Tokenizer = Literal["char", "byte", "bpe"]
LongPairs = Literal["drop", "cut"]
EncodingErrors = Literal["strict", "replace"]


def check_value(name: str, value: Any, annotation: Any) -> None:
    """Refuse a value that its annotation does not allow, such as ``optim.lr=-1``.

    Raises:
        UserError: one line naming the key, the value and what is allowed.
    """
    from pydantic import ValidationError

    try:
        _adapter(annotation).validate_python(value, strict=True)
    except ValidationError:
        raise UserError(f"{name}={shown(value)}: give {describe(annotation)}") from None
    except UserError as error:  # of a type's own check
        raise UserError(f"{name}={shown(value)}: {error}") from None


def check_device(option: str, name: object) -> None:
    """Refuse what is no device, and CUDA with a torch that is built without."""
    check_value(option, name, Device)
    if str(name).startswith("cuda") and version("torch").endswith("+cpu"):
        raise UserError(
            f"{option}={name}: not on this machine, whose torch is built for CPUs: use cpu or auto"
        )


@functools.cache
def _adapter(annotation: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(annotation)


def describe(annotation: Any) -> str:
    """What an annotation allows, in words that end a sentence beginning with "give".

    `a whole number from 1 up`, `one of rope, none`, `text, or null`.
    """
    if annotation is NoneType:
        return "null"
    if get_origin(annotation) in (Union, UnionType):
        parts = [describe(part) for part in get_args(annotation)]
        return ", or ".join(dict.fromkeys(parts))
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(shown(value) for value in get_args(annotation))
    if get_origin(annotation) in (list, tuple):
        return f"a list, each item {describe(get_args(annotation)[0])}"
    base, limits = _limits(annotation)
    if words := [limit for limit in limits if isinstance(limit, Described)]:
        return str(words[0])
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return f"{kinds.get(base, 'a value')}{_range(limits)}"


def choices(annotation: Any) -> list[Any]:
    """The values an annotation lists, also as items: those of `Literal`, and true and false of a
    flag."""
    if annotation is bool:
        return [True, False]
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if get_origin(annotation) is Annotated:
        return choices(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType, list):
        listed = (value for part in get_args(annotation) for value in choices(part))
        return list(dict.fromkeys(listed))
    return [None] if annotation is NoneType else []


def shown(value: Any) -> str:
    """A value as it is typed on the command line: `null`, `true`, `"\\n"`, `[64,128]`."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(shown, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{shown(each)}" for key, each in value.items()) + "}"
    if isinstance(value, float):
        return repr(value)
    return value if isinstance(value, str) and value.isprintable() else repr(value)


def quoted(text: str) -> str:
    """A text as Hydra's grammar takes it whole, with commas and brackets in it."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _limits(annotation: Any) -> tuple[Any, list[Any]]:
    """The plain type of an annotation, and its limits as annotated-types writes them."""
    if get_origin(annotation) is not Annotated:
        return annotation, []
    base, *marks = get_args(annotation)
    inner, found = _limits(base)
    for mark in marks:
        found += getattr(mark, "metadata", [mark])  # a pydantic Field holds a list of them
    return inner, found


def _range(limits: list[Any]) -> str:
    low = next((x for x in limits if isinstance(x, (Ge, Gt))), None)
    high = next((x for x in limits if isinstance(x, (Le, Lt))), None)
    words = ""
    if isinstance(low, Gt):
        words = f" above {low.gt:g}"
    elif isinstance(low, Ge):
        words = f" from {low.ge:g}"
    if isinstance(high, Le):
        limit: Any = high.le
        return f"{words} to {limit:g}" if limit < 2**62 else f"{words} up"
    if isinstance(high, Lt):
        return f"{words} and below {high.lt:g}"
    return f"{words} up" if isinstance(low, Ge) else words


# ---- bounded caches, which are written as one word

CACHE_POLICIES = ("window", "sinks", "tova", "h2o", "random")
CACHE_READINGS = ("tokens", "prompt")
MAX_CACHE_SLOTS = 65_536  # a bounded cache is allocated whole
N_SINKS = 4  # first tokens that the policy `sinks` never drops


def cache_policy(text: str) -> tuple[str, int, str]:
    """`tova:256` or `tova:256:prompt` as a policy's name, its size, and how chunks are read.

    Raises:
        ValueError: any other text; the message names what is allowed.
    """
    name, _, rest = text.partition(":")
    size, _, reading = rest.partition(":")
    reading = reading or CACHE_READINGS[0]
    sized = re.fullmatch("[1-9][0-9]{0,4}", size) and int(size) <= MAX_CACHE_SLOTS
    if name in CACHE_POLICIES and sized and reading in CACHE_READINGS:
        if name == "sinks" and int(size) <= N_SINKS:
            raise ValueError(f"keeps the first {N_SINKS} tokens and needs more: try sinks:64")
        return name, int(size), reading
    raise ValueError(
        f"give POLICY:SIZE, such as tova:256, or POLICY:SIZE:prompt; SIZE up to "
        f"{MAX_CACHE_SLOTS}; policies: {', '.join(CACHE_POLICIES)}"
    )


def _cache_text(text: str) -> str:
    try:
        cache_policy(text)
    except ValueError as error:
        raise UserError(str(error)) from None
    return text


CachePolicy = Annotated[
    str, AfterValidator(_cache_text), Described("POLICY:SIZE, such as tova:256")
]
