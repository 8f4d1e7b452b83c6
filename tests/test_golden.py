"""Numbers that other people's implementations made; see `tests/golden.py`."""

import pytest
import torch
from torch.testing import assert_close

import golden


@pytest.mark.parametrize("case", (*golden.MODELS, *golden.MIXERS, *golden.OPERATIONS))
def test_golden(case: str) -> None:
    expected = torch.tensor(golden.recorded()[case])
    assert_close(golden.ours(case), expected, atol=1e-4 * float(expected.abs().max()), rtol=0)
