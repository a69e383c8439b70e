"""What a decoder is made of: a frozen record of traits. A family of models is a mapping onto these, not a subclass."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from dacheng.errors import UsageError

ACTIVATIONS = ("swiglu", "geglu_tanh", "relu2", "gelu_tanh", "gelu", "silu")
GATED = ("swiglu", "geglu_tanh")


@dataclass(frozen=True, kw_only=True)
class DecoderTraits:
    """The shape and the choices of a decoder-only transformer.

    Sources: SwiGLU (Shazeer 2020, eq. 6), ReLU² (So et al. 2021, Primer), GQA (Ainslie et al. 2023), RoPE (Su et al.
    2021, eq. 34), QK-norm (Dehghani et al. 2023; Henry et al. 2020), logit soft-cap (Gemma 2, section 2), sliding
    windows (Mistral 7B; Longformer), value embeddings with gates and residual scalars (modded-nanogpt; nanochat),
    n-gram tables (N-Grammer, Roy et al. 2022).
    """

    vocab_size: int
    width: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int | None = None  # None: as many as heads
    head_width: int | None = None  # None: width / heads
    mlp_width: int | None = None  # None: 4 * width, or 8/3 * width rounded up to 32 when gated
    activation: str = "swiglu"
    norm_eps: float = 1e-6
    norm_weight: bool = True  # RMS norms carry a learnt gain
    rope_theta: float = 10000.0
    max_positions: int = 2048
    tied_head: bool = True
    attention_bias: bool = False  # on q, k, v and o
    mlp_bias: bool = False
    qk_norm: bool = False
    qk_norm_weight: bool = False
    logit_soft_cap: float | None = None
    attention_soft_cap: float | None = None
    window: int | None = None  # tokens an "S" layer looks back over, itself included
    window_pattern: str = "L"  # S: sliding window, L: long; repeated over the layers; the last layer is always long
    value_embeddings: bool = False  # every second layer, the last included
    residual_scalars: bool = False
    embedding_norm: bool = False
    ngram_rows: int | None = None  # rows of each hashed n-gram table; None: no tables
    ngram_longest: int = 3  # a table for each length from 2 to this
    initializer_range: float = 0.02

    @property
    def n_kv_heads(self) -> int:
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def head_size(self) -> int:
        return self.width // self.heads if self.head_width is None else self.head_width

    @property
    def mlp_size(self) -> int:
        if self.mlp_width is not None:
            return self.mlp_width
        if self.activation in GATED:
            return (self.width * 8 // 3 + 31) // 32 * 32
        return 4 * self.width

    @property
    def gated(self) -> bool:
        return self.activation in GATED

    def layer_window(self, layer: int) -> int | None:
        """Tokens that layer `layer` looks back over (itself included), or None for all."""
        if self.window is None or layer == self.layers - 1:
            return None
        return self.window if self.window_pattern[layer % len(self.window_pattern)] == "S" else None

    def has_value_embedding(self, layer: int) -> bool:
        return self.value_embeddings and layer % 2 == (self.layers - 1) % 2

    @property
    def ngram_lengths(self) -> tuple[int, ...]:
        return () if self.ngram_rows is None else tuple(range(2, self.ngram_longest + 1))

    def validate(self) -> DecoderTraits:
        """Returns self. Raises UsageError naming the first trait that cannot be built, its value and what would do."""
        for name in ("vocab_size", "width", "layers", "heads", "n_kv_heads", "head_size", "mlp_size", "max_positions"):
            if getattr(self, name) < 1:
                raise UsageError("a size must be at least 1", field=name, value=getattr(self, name), remedy="raise it")
        if self.head_width is None and self.width % self.heads:
            near = [h for h in range(1, self.width + 1) if self.width % h == 0]
            best = min(near, key=lambda h: abs(h - self.heads))
            raise UsageError(
                f"width {self.width} is not divisible by heads",
                field="heads",
                value=self.heads,
                remedy=f"use heads={best}, or width={self.heads * max(1, self.width // self.heads)}, or set head_width",
            )
        if self.heads % self.n_kv_heads:
            raise UsageError(
                f"heads {self.heads} is not divisible by kv_heads",
                field="kv_heads",
                value=self.n_kv_heads,
                remedy=f"use a divisor of {self.heads}",
            )
        if self.head_size % 2:
            raise UsageError(
                "rotary positions need an even head width",
                field="head_width",
                value=self.head_size,
                remedy=f"use {self.head_size + 1}",
            )
        if self.activation not in ACTIVATIONS:
            raise UsageError(
                "unknown activation",
                field="activation",
                value=self.activation,
                remedy="one of " + ", ".join(ACTIVATIONS),
            )
        if not self.window_pattern or set(self.window_pattern) - {"S", "L"}:
            raise UsageError(
                "a window pattern is made of S and L",
                field="window_pattern",
                value=self.window_pattern,
                remedy='for example "SSSL"',
            )
        if "S" in self.window_pattern and self.window is None:
            raise UsageError(
                "window_pattern has S but no window is set", field="window", value=None, remedy="set window, in tokens"
            )
        if self.ngram_rows is not None and (self.ngram_rows < 1 or not 2 <= self.ngram_longest <= 4):
            raise UsageError(
                "n-gram tables need rows, and lengths from 2 to at most 4",
                field="ngram_longest" if self.ngram_rows > 0 else "ngram_rows",
                value=self.ngram_longest if self.ngram_rows > 0 else self.ngram_rows,
                remedy="for example ngram_rows: 32768, ngram_longest: 3",
            )
        for name in ("norm_eps", "rope_theta", "logit_soft_cap", "attention_soft_cap"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError("must be above 0", field=name, value=value, remedy="leave it out for the default")
        return self

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DecoderTraits:
        """Raises UsageError on a key that is no trait: a field that would be ignored is an error."""
        known = {f.name for f in fields(cls)}
        for name in values:
            if name not in known:
                raise UsageError("unknown trait", field=name, value=values[name], remedy="remove it, or update dacheng")
        return cls(**values).validate()
