"""What tests of several files call."""

from collections.abc import Callable

import pytest

from seqzoo.cli.main import main
from seqzoo.errors import UserError
from seqzoo.ops.native import library

# The families whose state grows; `test_laws.py` measures which do.
GROWING = {"transformer", "fox", "hybrid", "gated_deltanet_hybrid"}
KERNELS = library() is not None  # whether there are kernels in C++ here
LEFT_OPEN = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # datasets < 5.2


def status(*arguments: object) -> int:
    """The exit status of a command in this process."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def built(*forms: str) -> tuple[str, ...]:
    """Forms of operations, without `native` where there are no kernels."""
    return tuple(form for form in forms if form != "native" or KERNELS)


def assert_refused(call: Callable[[], object], *needed: str) -> None:
    """The error is one line, in which everything that is needed stands."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in needed:
        assert part in message
