"""FLOPs of reading a text token by token, as a function of its length. Loads no torch."""

from __future__ import annotations

from typing import NamedTuple


class TokenFlops(NamedTuple):
    """FLOPs of token t: ``first + growth (t - 1)``, less what bends take off.

    Attributes:
        first: of the first token, t = 1.
        growth: by how many more each token needs than the one before it.
        bends: (W, less): after W tokens, where a window is full, the growth is less by `less`.
    """

    first: int
    growth: int
    bends: tuple[tuple[int, int], ...] = ()

    def at(self, t: int) -> int:
        """Of token t."""
        full = sum(less * max(0, t - W) for W, less in self.bends)
        return self.first + self.growth * (t - 1) - full

    def total(self, n: int) -> int:
        """Of the first n tokens together."""
        full = sum(less * max(0, n - W) * (max(0, n - W) + 1) // 2 for W, less in self.bends)
        return n * self.first + self.growth * (n * (n - 1) // 2) - full
