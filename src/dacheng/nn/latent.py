"""Multi-head latent attention (DeepSeek-V2, section 2.1): keys and values come from one small vector per token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dacheng.nn.contexts import AttentionLayer, Context
from dacheng.nn.linear import Dense
from dacheng.nn.norms import RMSNorm
from dacheng.nn.rope import rotate

NORM_EPS = 1e-6  # of the two inner norms, whatever the config says of the others


@dataclass(frozen=True, kw_only=True)
class LatentTraits:
    """Widths of a head's parts. query_rank: None where queries are not compressed. A head's key is `plain_width`
    dimensions from the latent vector and `rope_width` rotated ones that all heads share."""

    kv_rank: int
    query_rank: int | None = None
    plain_width: int = 128
    rope_width: int = 64
    value_width: int = 128

    @property
    def head_width(self) -> int:
        return self.plain_width + self.rope_width


class LatentAttention(nn.Module):
    """x (B, T, D) -> (B, T, D). Keys and values are expanded from the latent vector before `context.attend` (eq. 9 to
    19); caching the vector itself is the same mathematics with other memory."""

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        latent: LatentTraits,
        bias: bool,
        interleaved: bool,
        layer: AttentionLayer,
    ) -> None:
        super().__init__()
        t = latent
        self.heads, self.latent, self.interleaved, self.layer = heads, latent, interleaved, layer
        if t.query_rank is None:
            self.q = Dense(width, heads * t.head_width, bias=False)
        else:
            self.q_a = Dense(width, t.query_rank, bias=bias)
            self.q_a_norm = RMSNorm(t.query_rank, NORM_EPS)
            self.q_b = Dense(t.query_rank, heads * t.head_width, bias=False)
        self.kv_a = Dense(width, t.kv_rank + t.rope_width, bias=bias)
        self.kv_a_norm = RMSNorm(t.kv_rank, NORM_EPS)
        self.kv_b = Dense(t.kv_rank, heads * (t.plain_width + t.value_width), bias=False)
        self.o = Dense(heads * t.value_width, width, bias=bias)

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor] | None,
        context: Context,
        value_embedding: Tensor | None = None,
    ) -> Tensor:
        t = self.latent
        B, T, _ = x.shape
        q = self.q(x) if t.query_rank is None else self.q_b(self.q_a_norm(self.q_a(x)))
        q = q.view(B, T, self.heads, t.head_width).transpose(1, 2)  # (B, H, T, E)
        latent, shared = self.kv_a(x).split((t.kv_rank, t.rope_width), dim=-1)
        kv = self.kv_b(self.kv_a_norm(latent)).view(B, T, self.heads, t.plain_width + t.value_width).transpose(1, 2)
        k_plain, v = kv.split((t.plain_width, t.value_width), dim=-1)
        q_plain, q_rope = q.split((t.plain_width, t.rope_width), dim=-1)
        k_rope = shared.view(B, 1, T, t.rope_width)
        if rotation is not None:
            q_rope = rotate(q_rope, *rotation, self.interleaved)
            k_rope = rotate(k_rope, *rotation, self.interleaved)
        q = torch.cat((q_plain, q_rope), dim=-1)
        k = torch.cat((k_plain, k_rope.expand(B, self.heads, T, t.rope_width)), dim=-1)
        out = context.attend(self.layer, q, k, v)  # (B, H, T, value_width)
        return self.o(out.transpose(1, 2).reshape(B, T, self.heads * t.value_width))

    @torch.no_grad()
    def reset(self, std: float, residual_std: float, generator: torch.Generator | None) -> None:
        for module in self.children():
            if isinstance(module, Dense):
                module.reset(residual_std if module is self.o else std, generator)
