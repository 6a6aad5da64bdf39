"""OpenCLIP's text tower as Stable Diffusion 2 uses it: penultimate block, then the final norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import TextConfig


class _Block(nn.Module):
    """Pre-norm transformer block with causal attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.ln_2 = nn.LayerNorm(width)
        self.fc = nn.Linear(width, 4 * width)
        self.proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        qkv = self.qkv(self.ln_1(x)).view(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixture = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixture.transpose(1, 2).reshape(n, tokens, width))
        out: Tensor = x + self.proj(F.gelu(self.fc(self.ln_2(x))))
        return out


class TextTower(nn.Module):
    """Token ids to the context of the UNet's cross-attention.

    The last block of the released tower is skipped, and `text_projection` and `logit_scale` belong
    to the contrastive objective: none of them is held.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.positional_embedding = nn.Parameter(torch.zeros(config.tokens, config.width))
        self.blocks = nn.ModuleList(
            _Block(config.width, config.heads) for _ in range(config.layers - 1)
        )
        self.ln_final = nn.LayerNorm(config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (n, 77) int64 -> context (n, 77, width)."""
        x = self.token_embedding(tokens) + self.positional_embedding
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.ln_final(x)
        return out
