"""A GPT in the shape of nanoGPT, written anew: what many would train instead of our Transformer.

Pre-norm blocks, learned positions, an MLP with GELU of four times the width, the embedding as head
(Radford et al. 2019, GPT-2), and biases only on request. B batch, T time, D width, H heads, V
vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Causal softmax attention by PyTorch's fused kernel; x (B, T, D) to (B, T, D)."""

    def __init__(self, *, dim: int, n_heads: int, bias: bool) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (3, self.n_heads, -1))  # (B, T, 3, H, D / H)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, T, D / H) each
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, *, dim: int, n_heads: int, bias: bool) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(dim, bias=bias)
        self.attention = Attention(dim=dim, n_heads=n_heads, bias=bias)
        self.norm_mlp = nn.LayerNorm(dim, bias=bias)
        self.up = nn.Linear(dim, 4 * dim, bias=bias)
        self.down = nn.Linear(4 * dim, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_in(x))
        hidden = F.gelu(self.up(self.norm_mlp(x)))
        wider: Tensor = x + self.down(hidden)
        return wider


class GPT(nn.Module):
    """The language model. Given targets, it also computes the loss, so that a compiled model
    contains it.

    Args:
        max_len: positions there are.
        bias: whether linear maps and norms have biases; nanoGPT's own training has none.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        n_layers: int,
        dim: int,
        n_heads: int,
        max_len: int,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim)
        self.positions = nn.Embedding(max_len, dim)
        self.blocks = nn.ModuleList(
            Block(dim=dim, n_heads=n_heads, bias=bias) for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(dim, bias=bias)
        self.head = nn.Linear(dim, vocab_size, bias=False)
        self.head.weight = self.embedding.weight
        self._initialise(n_layers)

    def _initialise(self, n_layers: int) -> None:
        """Normal with a deviation of 0.02, less where a block adds to the residual stream (GPT-2,
        section 2.3)."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                last = name.endswith(("attention.out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * n_layers) ** 0.5 if last else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of tokens (B, T); with targets (B, T) their summed loss in nats
        instead."""
        x = self.embedding(tokens) + self.positions(
            torch.arange(tokens.shape[1], device=tokens.device)
        )
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
