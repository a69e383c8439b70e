"""The decoder-only transformer, assembled from traits."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dacheng.models.cache import LayerCache
from dacheng.models.traits import DecoderTraits
from dacheng.nn.attention import Attention
from dacheng.nn.contexts import AttentionLayer, Context
from dacheng.nn.embedding import Embedding
from dacheng.nn.latent import LatentAttention
from dacheng.nn.linear import Dense
from dacheng.nn.mlp import MLP
from dacheng.nn.moe import MoE
from dacheng.nn.ngrams import NgramEmbedding
from dacheng.nn.norms import LayerNorm, RMSNorm, make_norm
from dacheng.nn.packed import Packed, PackedEmbedding
from dacheng.nn.rope import Rotary

Rotations = dict[str, tuple[Tensor, Tensor]]


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): pre-norm (Xiong et al. 2020), unless the traits place the norms
    behind the branches, around them or over the sums, or let both branches read the same x."""

    def __init__(self, traits: DecoderTraits, index: int) -> None:
        super().__init__()
        t = traits
        before, after = t.norm_placement in ("pre", "both"), t.norm_placement != "pre"
        self.parallel = t.parallel_branches
        self.norm_of_sum = t.norm_placement == "sum"
        local = t.rope_window_theta is not None and t.layer_window(index) is not None
        self.rotation = None if not t.is_rotated(index) else "window" if local else "main"
        self.attention_norm = _norm(t) if before else None
        self.attention = _attention(t, index)
        self.attention_post_norm = _norm(t) if after else None
        self.mlp_norm = _norm(t) if before else None
        self.mlp: MLP | MoE
        if t.moe is not None and t.is_moe(index):
            self.mlp = MoE(t.width, t.moe, t.activation, t.mlp_bias)
        else:
            self.mlp = MLP(t.width, t.mlp_size, t.activation, t.mlp_bias)
        self.mlp_post_norm = _norm(t) if after else None

    def forward(self, x: Tensor, rotations: Rotations, context: Context, value_embedding: Tensor | None) -> Tensor:
        rotation = rotations[self.rotation] if self.rotation is not None else None
        attended = self.attention(_apply(self.attention_norm, x), rotation, context, value_embedding)
        if self.parallel:
            return x + attended + self.mlp(_apply(self.mlp_norm, x))
        if self.norm_of_sum:
            x = _apply(self.attention_post_norm, x + attended)
            return _apply(self.mlp_post_norm, x + self.mlp(x))
        x = x + _apply(self.attention_post_norm, attended)
        return x + _apply(self.mlp_post_norm, self.mlp(_apply(self.mlp_norm, x)))


def _apply(norm: RMSNorm | LayerNorm | None, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)


def _norm(t: DecoderTraits) -> RMSNorm | LayerNorm:
    return make_norm(t.norm, t.width, t.norm_eps, t.norm_weight, t.norm_offset)


def _attention(t: DecoderTraits, index: int) -> Attention | LatentAttention:
    layer = AttentionLayer(index, window=t.layer_window(index), scale=t.attention_scale, soft_cap=t.attention_soft_cap)
    if t.latent is not None:
        return LatentAttention(
            width=t.width,
            heads=t.heads,
            latent=t.latent,
            bias=t.attention_bias,
            interleaved=t.rope_interleaved,
            layer=layer,
        )
    norms = None
    if t.qk_norm:
        q_width, k_width = (t.heads, t.n_kv_heads) if t.qk_norm_whole else (1, 1)
        norms = (
            RMSNorm(q_width * t.head_size, t.norm_eps, t.qk_norm_weight, t.norm_offset),
            RMSNorm(k_width * t.head_size, t.norm_eps, t.qk_norm_weight, t.norm_offset),
        )
    return Attention(
        width=t.width,
        heads=t.heads,
        kv_heads=t.n_kv_heads,
        head_width=t.head_size,
        bias=t.attention_bias,
        output_bias=t.has_output_bias,
        norms=norms,
        whole_norm=t.qk_norm_whole,
        interleaved=t.rope_interleaved,
        value_gate=t.has_value_embedding(index),
        sinks=t.attention_sinks,
        layer=layer,
    )


class Stream(NamedTuple):
    """One forward between its blocks: the embedded tokens x0 (B, T, D), and what is the same in every block."""

    x0: Tensor
    tokens: Tensor
    context: Context
    rotations: Rotations
    ngrams: list[Tensor]


class Decoder(nn.Module):
    """model(tokens (B, T), positions (B, T), context) -> hidden (B, T, D); model.head(hidden) -> logits (..., V).

    The model never knows what `context` does with keys and values: see dacheng.nn.contexts.
    """

    def __init__(self, traits: DecoderTraits) -> None:
        """Raises UsageError when the traits cannot be built. Weights are as torch leaves them: call init_weights."""
        super().__init__()
        t = self.traits = traits.validate()
        self.checkpoint_activations = False
        self.family: str | None = None  # what it was read as: the first choice when it is written
        self.embed = Embedding(t.vocab_size, t.width)
        self.embed_norm = RMSNorm(t.width, t.norm_eps, weight=False) if t.embedding_norm else None
        self.position_embedding = Embedding(t.max_positions, t.width) if t.positions == "learned" else None
        self.blocks = nn.ModuleList(Block(t, i) for i in range(t.layers))
        self.rotaries = nn.ModuleDict(self._make_rotaries())
        self.norm = _norm(t)
        self.lm_head = None if t.tied_head else Dense(t.width, t.vocab_size, bias=False)
        self.value_embeddings = nn.ModuleDict(
            {
                str(i): nn.Embedding(t.vocab_size, t.n_kv_heads * t.head_size)
                for i in range(t.layers)
                if t.has_value_embedding(i)
            }
        )
        self.ngram_embeddings = nn.ModuleDict(
            {str(n): NgramEmbedding(n, t.ngram_rows or 0, t.width) for n in t.ngram_lengths}
        )
        if t.ngram_lengths:  # how much of each table each block is given: (lengths · L,), by length
            self.ngram_lambdas = nn.Parameter(torch.full((len(t.ngram_lengths) * t.layers,), 0.1))
        if t.residual_scalars:
            # x ← r·x + s·x₀ before each block, x₀ the embedding (modded-nanogpt; nanochat measured −.004 to −.008 bpb)
            self.residual_lambdas = nn.Parameter(torch.ones(t.layers))
            self.input_lambdas = nn.Parameter(torch.zeros(t.layers))

    def _make_rotaries(self) -> dict[str, Rotary]:
        """Those that some layer turns its heads with."""
        t = self.traits
        used = {block.rotation for block in self.blocks if isinstance(block, Block)}
        made = {}
        if "main" in used:
            made["main"] = Rotary(t.rotated_size, t.rope_theta, t.max_positions, t.rope_scaling)
        if "window" in used and t.rope_window_theta is not None:
            made["window"] = Rotary(t.rotated_size, t.rope_window_theta, t.max_positions)
        return made

    def forward(self, tokens: Tensor, positions: Tensor, context: Context) -> Tensor:
        """tokens, positions (B, T) int64 -> hidden states after the final norm (B, T, D).

        Raises IndexError for an id outside the vocabulary or a position past max_positions.
        """
        stream = self.begin(tokens, positions, context)
        x = stream.x0
        for i in range(len(self.blocks)):
            x = self.advance(i, x, stream)
        return self.norm(x)

    def begin(self, tokens: Tensor, positions: Tensor, context: Context) -> Stream:
        """What all blocks of one forward share, for those who go through them one at a time."""
        x = self._embedded(tokens, positions)
        rotations = {name: rotary(positions) for name, rotary in self.rotaries.items()}
        ngrams = [table(tokens, context).to(x.dtype) for table in self.ngram_embeddings.values()]
        return Stream(x, tokens, context, rotations, ngrams)

    def advance(self, i: int, x: Tensor, stream: Stream) -> Tensor:
        """x (B, T, D) through block i; the first block's is stream.x0."""
        t, block = self.traits, self.blocks[i]
        if t.residual_scalars:
            x = self.residual_lambdas[i] * x + self.input_lambdas[i] * stream.x0
        for j, ngram in enumerate(stream.ngrams):
            x = x + self.ngram_lambdas[j * t.layers + i] * ngram
        key = str(i)
        value_embedding = self.value_embeddings[key](stream.tokens) if key in self.value_embeddings else None
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(block, x, stream.rotations, stream.context, value_embedding, use_reentrant=False)
        return block(x, stream.rotations, stream.context, value_embedding)

    def _embedded(self, tokens: Tensor, positions: Tensor) -> Tensor:
        x = self.embed(tokens)
        scale = self.traits.embedding_scale
        if scale is not None:  # rounded as the weights are, as those who trained with it did (Gemma)
            x = x * torch.tensor(scale, dtype=x.dtype, device=x.device)
        if self.position_embedding is not None:
            x = x + self.position_embedding(positions)
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return x

    def head(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) -> logits (..., V) in float32, soft-capped where the traits say so."""
        logits = (self.embed.as_head(hidden) if self.lm_head is None else self.lm_head(hidden)).float()
        cap = self.traits.logit_soft_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @property
    def head_weight(self) -> Tensor:
        """(V, D): the embedding itself when tied; of a packed one, its numbers."""
        head = self.embed if self.lm_head is None else self.lm_head
        return head.qtensor.dequantize(torch.float32) if isinstance(head, Packed | PackedEmbedding) else head.weight

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> Decoder:
        """Normal(0, initializer_range) everywhere, outputs of the residual branches scaled by 1/sqrt(2L) (GPT-2,
        section 2.3). With `embedding_norm`, our recipe's start: unit embeddings, 1/sqrt(D) matrices, silent residual
        branches and a near-silent head, so that the first loss is ln V (nanochat). Returns self."""
        t = self.traits
        ours = t.embedding_norm
        std = t.width**-0.5 if ours else t.initializer_range
        residual_std = 0.0 if ours else t.initializer_range / math.sqrt(2 * t.layers)
        tied_std = t.initializer_range
        self.embed.weight.normal_(0.0, 1.0 if ours and not t.tied_head else tied_std, generator=generator)
        if self.position_embedding is not None:
            self.position_embedding.weight.normal_(0.0, t.initializer_range, generator=generator)
        for module in self.modules():
            if isinstance(module, RMSNorm | LayerNorm):
                module.reset()
        for block in self.blocks:
            assert isinstance(block, Block)
            block.attention.reset(std, residual_std, generator)
            block.mlp.reset(std, residual_std, generator)
        for embedding in self.value_embeddings.values():
            assert isinstance(embedding, nn.Embedding)
            embedding.weight.normal_(0.0, std, generator=generator)
        for table in self.ngram_embeddings.values():
            assert isinstance(table, NgramEmbedding)
            table.weight.zero_()
        if t.ngram_lengths:
            self.ngram_lambdas.fill_(0.1)
        if self.lm_head is not None:
            self.lm_head.reset(0.001 if ours else t.initializer_range, generator)
        if t.residual_scalars:
            self.residual_lambdas.fill_(1.0)
            self.input_lambdas.fill_(0.1)
        return self

    def params(self) -> dict[str, int]:
        """Numbers of parameters: total, embedding (every table), head (0 when tied), matrices, other."""
        counts = {"embedding": 0, "head": 0, "matrices": 0, "other": 0}
        for name, parameter in self.named_parameters():
            if name.startswith(("embed.", "position_embedding.", "value_embeddings.", "ngram_embeddings.")):
                counts["embedding"] += parameter.numel()
            elif name.startswith("lm_head."):
                counts["head"] += parameter.numel()
            else:
                matrix = parameter.ndim == 3 or (parameter.ndim == 2 and not name.endswith("_bias"))
                counts["matrices" if matrix else "other"] += parameter.numel()
        return {"total": sum(counts.values()), **counts}

    def active_params(self) -> int:
        """Weights of matrix products that one token goes through: of the experts, only those it chooses."""
        total = self.params()["matrices"]
        for block in self.blocks:
            if isinstance(block, Block) and isinstance(block.mlp, MoE):
                experts = sum(p.numel() for p in block.mlp.experts.parameters() if p.ndim == 3)
                m = block.mlp.traits
                total -= experts * (m.experts - m.experts_per_token) // m.experts
        return total

    def flops(self, context_length: int, training: bool = True) -> float:
        """FLOPs of one token at a mean position of a `context_length`-token text: 2 per weight of every matrix product
        (the head included, embeddings not) and 4·H·E per token looked at; times 3 in training (Kaplan et al. 2020,
        table 1; backward is twice the forward)."""
        t = self.traits
        weights = self.active_params() + t.vocab_size * t.width
        looked_at = 0.0
        for i in range(t.layers):
            window = min(t.layer_window(i) or context_length, context_length)
            # mean over positions p of min(p + 1, window)
            looked_at += window - window * (window - 1) / (2 * context_length)
        forward = 2.0 * weights + 2.0 * t.heads * (t.head_size + t.value_size) * looked_at
        return forward * (3.0 if training else 1.0)

    def cache_spec(self) -> list[LayerCache]:
        """What generation keeps, layer by layer."""
        t = self.traits
        return [
            LayerCache("window" if (w := t.layer_window(i)) else "paged", t.n_kv_heads, t.head_size, w, t.value_size)
            for i in range(t.layers)
        ]
