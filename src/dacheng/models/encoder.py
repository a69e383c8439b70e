"""The bidirectional encoder (BERT, Devlin et al. 2019), assembled from the decoder's blocks, and the vector of a text
that it is asked for."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from dacheng.errors import UsageError
from dacheng.models.decoder import Block, Stream
from dacheng.models.traits import DecoderTraits
from dacheng.nn.contexts import Bidirectional, Context
from dacheng.nn.embedding import Embedding
from dacheng.nn.linear import Dense
from dacheng.nn.norms import LayerNorm

POOLINGS = ("mean", "cls")


@dataclass(frozen=True, kw_only=True)
class EncoderTraits:
    """The shape and the choices of an encoder: learned positions, layer norms of the sums, biases everywhere.

    pooling: how token states become one vector: "mean" of all tokens of the text, what stands around it included
    (Reimers & Gurevych 2019), or the state of its first ("cls"). normalized: the vector gets length 1. longest: tokens
    of a text that the encoder was trained to embed, at most max_positions (None: that many). pooler: BERT's tanh layer
    over the first token, which next-sentence prediction and classifiers use; vectors of texts do without.
    """

    vocab_size: int
    width: int = 384
    layers: int = 6
    heads: int = 12
    mlp_width: int = 1536
    activation: str = "gelu"
    norm_eps: float = 1e-12
    max_positions: int = 512
    token_types: int = 2
    pooler: bool = False
    pooling: str = "mean"
    normalized: bool = True
    longest: int | None = None
    initializer_range: float = 0.02

    @property
    def longest_text(self) -> int:
        return self.max_positions if self.longest is None else self.longest

    def block_traits(self) -> DecoderTraits:
        """Of the blocks, which are the decoder's: what sees the future is the context's affair."""
        return DecoderTraits(
            vocab_size=self.vocab_size,
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            mlp_width=self.mlp_width,
            activation=self.activation,
            norm="layer",
            norm_eps=self.norm_eps,
            norm_placement="sum",
            positions="learned",
            max_positions=self.max_positions,
            attention_bias=True,
            mlp_bias=True,
            initializer_range=self.initializer_range,
        )

    def validate(self) -> EncoderTraits:
        """Returns self. Raises UsageError naming the first trait that cannot be built, its value and what would do."""
        self.block_traits().validate()
        if self.token_types < 1:
            raise UsageError("a size must be at least 1", field="token_types", value=self.token_types, remedy="2")
        if self.pooling not in POOLINGS:
            raise UsageError("unknown pooling", field="pooling", value=self.pooling, remedy=" or ".join(POOLINGS))
        if not 1 <= self.longest_text <= self.max_positions:
            raise UsageError(
                "no text can be so long", field="longest", value=self.longest, remedy=f"at most {self.max_positions}"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EncoderTraits:
        """Raises UsageError on a key that is no trait."""
        for name in values.keys() - {f.name for f in fields(cls)}:
            raise UsageError("unknown trait", field=name, value=values[name], remedy="remove it, or update dacheng")
        return cls(**values).validate()


class Encoder(nn.Module):
    """model(tokens (B, T), positions (B, T), context) -> hidden (B, T, D); model.embed_texts(tokens, lengths (B,)) ->
    vectors (B, D)."""

    def __init__(self, traits: EncoderTraits) -> None:
        """Raises UsageError when the traits cannot be built. Weights are as torch leaves them: call init_weights."""
        super().__init__()
        t = self.traits = traits.validate()
        blocks = t.block_traits()
        self.family: str | None = None  # what it was read as
        self.embed = Embedding(t.vocab_size, t.width)
        self.position_embedding = Embedding(t.max_positions, t.width)
        self.type_embedding = Embedding(t.token_types, t.width)
        self.embed_norm = LayerNorm(t.width, t.norm_eps)
        self.blocks = nn.ModuleList(Block(blocks, i) for i in range(t.layers))
        self.pooler = Dense(t.width, t.width) if t.pooler else None

    def forward(self, tokens: Tensor, positions: Tensor, context: Context, types: Tensor | None = None) -> Tensor:
        """tokens, positions and types (B, T) int64 (types None: all 0) -> hidden states (B, T, D).

        Raises IndexError for an id outside the vocabulary, the types or max_positions.
        """
        stream = self.begin(tokens, positions, context, types)
        x = stream.x0
        for i in range(len(self.blocks)):
            x = self.advance(i, x, stream)
        return x

    def begin(self, tokens: Tensor, positions: Tensor, context: Context, types: Tensor | None = None) -> Stream:
        """What all blocks of one forward share, for those who go through them one at a time."""
        kinds = self.type_embedding.weight[0] if types is None else self.type_embedding(types)
        x = self.embed_norm(self.embed(tokens) + self.position_embedding(positions) + kinds)
        return Stream(x, tokens, context, {}, [])

    def advance(self, i: int, x: Tensor, stream: Stream) -> Tensor:
        """x (B, T, D) through block i; the first block's is stream.x0."""
        return self.blocks[i](x, stream.rotations, stream.context, None)

    def embed_texts(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """One vector a text: tokens (B, T) int64, padded behind lengths (B,) -> (B, D) float32, of length 1 where the
        traits say so."""
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        pooled = self.pool(self(tokens, positions, Bidirectional(lengths)).float(), lengths)
        return nn.functional.normalize(pooled, dim=-1) if self.traits.normalized else pooled

    def pool(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """hidden (B, T, D) -> (B, D), by the traits' pooling, padding left out. A row of length 0 gives zeros."""
        if self.traits.pooling == "cls":
            return hidden[:, 0]
        return mean_state(hidden, lengths)

    def pooled_output(self, hidden: Tensor) -> Tensor:
        """tanh(W h₀ + b) of the first token (Devlin et al. 2019, section 3.1): (B, T, D) -> (B, D). Raises UsageError
        where the encoder has no pooler."""
        if self.pooler is None:
            raise UsageError("this encoder has no pooler", field="pooler", value=False, remedy="set the trait")
        return torch.tanh(self.pooler(hidden[:, 0]))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> Encoder:
        """Normal(0, initializer_range), norms 1 and biases 0, as BERT begins. Returns self."""
        std = self.traits.initializer_range
        for table in (self.embed, self.position_embedding, self.type_embedding):
            table.weight.normal_(0.0, std, generator=generator)
        for module in self.modules():
            if isinstance(module, LayerNorm):
                module.reset()
            elif isinstance(module, Dense):
                module.reset(std, generator)
        return self


def mean_state(hidden: Tensor, lengths: Tensor) -> Tensor:
    """hidden (B, T, D) -> (B, D): the mean over the first lengths (B,) tokens. A row of length 0 gives zeros."""
    real = (torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]).to(hidden.dtype)
    return torch.einsum("btd,bt->bd", hidden, real) / lengths.clamp(min=1)[:, None].to(hidden.dtype)
