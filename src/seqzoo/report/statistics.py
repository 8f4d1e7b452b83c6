"""Student's t distribution, for intervals over few measurements."""

from __future__ import annotations

# 97.5 % quantiles by degrees of freedom.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t distribution."""
    return _T[freedom - 1] if freedom <= len(_T) else 1.96 + 2.4 / freedom
