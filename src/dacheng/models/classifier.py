"""An encoder with a classification head: BERT's own (Devlin et al. 2019, section 4.1), or one over the mean state."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dacheng.errors import UsageError
from dacheng.models.encoder import Encoder, EncoderTraits, mean_state
from dacheng.nn.contexts import Bidirectional, Context
from dacheng.nn.linear import Dense
from dacheng.nn.packed import Packed, PackedEmbedding

HEAD_POOLINGS = ("pooler", "mean", "cls")


@dataclass(frozen=True, kw_only=True)
class ClassifierTraits:
    """labels: the classes' names, in the order of the logits. pooling: what the head reads: "pooler", the tanh layer
    over the first token, as transformers' BertForSequenceClassification; "mean" of all tokens' states; "cls", the first
    token's state itself. dropout: of what the head reads, while training."""

    encoder: EncoderTraits
    labels: tuple[str, ...]
    pooling: str = "pooler"
    dropout: float = 0.1

    def validate(self) -> ClassifierTraits:
        """Returns self. Raises UsageError naming the first trait that cannot be built, its value and what would do."""
        if len(self.labels) < 2 or len(set(self.labels)) < len(self.labels):
            shown = list(self.labels)[:8]
            raise UsageError("a classifier tells two classes or more apart, each with a name of its own",
                             field="labels", value=shown, remedy="name each class once")  # fmt: skip
        if self.pooling not in HEAD_POOLINGS:
            raise UsageError("unknown pooling", field="pooling", value=self.pooling, remedy=" or ".join(HEAD_POOLINGS))
        if not 0 <= self.dropout < 1:
            raise UsageError("must lie in [0, 1)", field="dropout", value=self.dropout, remedy="0.1")
        if self.encoder.pooler != (self.pooling == "pooler"):
            raise UsageError("only the head of this pooling reads the encoder's pooler", field="pooling",
                             value=self.pooling, remedy="Classifier.around builds the encoder for it")  # fmt: skip
        self.encoder.validate()
        return self

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Classifier(nn.Module):
    """model(tokens (B, T), lengths (B,)) -> logits (B, C), C the number of labels."""

    def __init__(self, traits: ClassifierTraits) -> None:
        """Raises UsageError when the traits cannot be built. Weights are as torch leaves them: call init_weights, or
        build it `around` an encoder that is trained already."""
        super().__init__()
        self.traits = traits.validate()
        self.family: str | None = None
        self.encoder = Encoder(traits.encoder)
        self.classifier = Dense(traits.encoder.width, len(traits.labels))

    @classmethod
    def around(
        cls,
        encoder: Encoder,
        labels: tuple[str, ...],
        *,
        pooling: str = "pooler",
        dropout: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> Classifier:
        """A fresh head over `encoder`, which is taken over: its pooler goes where the head reads none, and a fresh one
        comes where it reads one and there is none. Raises UsageError for labels or a pooling that cannot be."""
        wanted = replace(encoder.traits, pooler=pooling == "pooler")
        traits = ClassifierTraits(encoder=wanted, labels=labels, pooling=pooling, dropout=dropout).validate()
        std = wanted.initializer_range
        if not wanted.pooler:
            encoder.pooler = None
        elif encoder.pooler is None:
            encoder.pooler = Dense(wanted.width, wanted.width)
            encoder.pooler.reset(std, generator)
        encoder.traits = wanted
        with torch.device("meta"):
            model = cls(traits)
        model.encoder = encoder
        model.classifier = Dense(wanted.width, len(labels))
        model.classifier.reset(std, generator)
        return model

    @property
    def labels(self) -> tuple[str, ...]:
        return self.traits.labels

    def forward(self, tokens: Tensor, lengths: Tensor, context: Context | None = None) -> Tensor:
        """tokens (B, T) int64, padded behind lengths (B,) -> logits (B, C) float32. context: another than that of the
        whole text, such as one that keeps what is attended with (nn.recording)."""
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        return self.head(self.encoder(tokens, positions, context or Bidirectional(lengths)), lengths)

    def head(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """hidden (B, T, D) -> logits (B, C) float32."""
        if self.traits.pooling == "pooler":
            pooled = self.encoder.pooled_output(hidden)
        elif self.traits.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            pooled = mean_state(hidden, lengths)
        return self.classifier(nn.functional.dropout(pooled, self.traits.dropout, self.training)).float()

    def init_weights(self, generator: torch.Generator | None = None) -> Classifier:
        """As BERT begins. Returns self."""
        self.encoder.init_weights(generator)
        self.classifier.reset(self.traits.encoder.initializer_range, generator)
        return self

    def params(self) -> dict[str, int]:
        """Numbers of parameters: total, embedding (every table), matrices, other; packed weights are counted too."""
        counts = {"embedding": 0, "matrices": 0, "other": 0}
        for module in self.modules():
            if isinstance(module, PackedEmbedding):
                counts["embedding"] += module.shape.numel()
            elif isinstance(module, Packed):
                counts["matrices"] += module.shape.numel()
                counts["other"] += 0 if module.bias is None else module.bias.numel()
        for name, parameter in self.named_parameters():
            kind = "embedding" if "embed" in name and parameter.ndim == 2 else "matrices"
            counts[kind if parameter.ndim == 2 else "other"] += parameter.numel()
        return {"total": sum(counts.values()), **counts}

    def flops(self, context_length: int, training: bool = True) -> float:
        """FLOPs of one token of a text of `context_length`: 2 per weight of a matrix product and 4·D per layer and
        token looked at; times 3 in training (Kaplan et al. 2020, table 1). The head, once a text, is left out."""
        t = self.traits.encoder
        forward = 2.0 * t.layers * (4 * t.width**2 + 2 * t.width * t.block_traits().mlp_size)
        forward += 4.0 * t.layers * t.width * context_length
        return forward * (3.0 if training else 1.0)
