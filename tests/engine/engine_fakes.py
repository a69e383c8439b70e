"""Tokenizers, models and executors that are small enough to reason about."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dacheng.engine.cache import KVCache
from dacheng.engine.executor import StepResult
from dacheng.engine.readings import Reading
from dacheng.engine.step_plan import StepPlan
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.nn.contexts import DenseCausal
from dacheng.text.streaming import StreamDecoder


class PieceTokenizer:
    """Every byte is a token, and so is each of `pieces`; the longest that fits is taken."""

    bos_id: int | None = None

    def __init__(self, pieces: Sequence[str] = ()) -> None:
        self.vocabulary = [bytes([b]) for b in range(256)] + [b"", b""] + [piece.encode() for piece in pieces]
        self.eos_id, self.pad_id, self.vocab_size = 256, 257, len(self.vocabulary)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        rest, ids = text.encode(), [self.bos_id] if add_special_tokens and self.bos_id is not None else []
        while rest:
            best = max(
                range(self.vocab_size), key=lambda i: len(self.vocabulary[i]) * rest.startswith(self.vocabulary[i])
            )
            ids.append(best)
            rest = rest[len(self.vocabulary[best]) :]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.vocabulary[i] for i in ids).decode(errors="replace")

    def stream_decoder(self) -> StreamDecoder:
        return StreamDecoder(lambda i: self.vocabulary[i])


TRAITS: dict[str, dict] = {
    "plain": {},
    "gqa": {"kv_heads": 2},
    "mqa": {"kv_heads": 1},
    "window": {"window": 5, "window_pattern": "SL", "layers": 3},
    "windows_only_but_last": {"window": 7, "window_pattern": "S", "kv_heads": 1},
    "qk_norm": {"qk_norm": True, "qk_norm_weight": True},
    "soft_caps": {"logit_soft_cap": 15.0, "attention_soft_cap": 5.0, "kv_heads": 2},
    "value_embeddings": {"value_embeddings": True, "residual_scalars": True},
    "ngrams": {"ngram_rows": 64, "ngram_longest": 4},
    "all": {
        "ngram_rows": 64,
        "kv_heads": 2,
        "window": 5,
        "window_pattern": "SSL",
        "layers": 4,
        "qk_norm": True,
        "logit_soft_cap": 15.0,
        "attention_soft_cap": 5.0,
        "value_embeddings": True,
        "residual_scalars": True,
        "embedding_norm": True,
        "tied_head": False,
        "attention_bias": True,
        "activation": "relu2",
    },
}


def tiny_model(seed: int = 0, **traits) -> Decoder:
    """Random in every parameter, gains and gates included, with logits that differ by whole units."""
    settings = {"vocab_size": 258, "width": 32, "layers": 2, "heads": 4, "max_positions": 96} | traits
    model = Decoder(DecoderTraits(**settings)).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.normal_(0.0, 0.25, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(1.0)
    return model


@torch.no_grad()
def plain_logits(model: Decoder, ids: Sequence[int]) -> Tensor:
    """(T, V), by one forward without any cache."""
    tokens = torch.tensor([list(ids)])
    return model.head(model(tokens, torch.arange(len(ids))[None], DenseCausal()))[0]


def is_greedy(model: Decoder, prompt: Sequence[int], ids: Sequence[int]) -> bool:
    """Whether each id is the argmax of a plain forward over all before it."""
    return plain_logits(model, [*prompt, *ids])[len(prompt) - 1 : -1].argmax(-1).tolist() == list(ids)


class AllLogits(Reading):
    """Reads a text and keeps the logits of every position."""

    def __init__(self, ids: Sequence[int]) -> None:
        super().__init__(ids)
        self.logits: list[Tensor] = []

    def logit_rows(self, start: int, stop: int) -> range:
        return range(start, stop)

    def read(self, positions: range, logits_RV: Tensor, hidden_sum_D: Tensor | None) -> bool:
        self.logits.append(logits_RV.clone())
        return bool(logits_RV.isfinite().all())


class Scripted:
    """An executor whose model says, after any prompt, the ids of its script."""

    name = "scripted"

    def __init__(self, script: Sequence[int], vocab_size: int) -> None:
        self.script, self.vocab_size = list(script), vocab_size

    def run(self, plan: StepPlan, cache: KVCache) -> StepResult:
        rows = []
        for chunk in plan.chunks:
            for position in chunk.logit_rows:
                row = torch.zeros(self.vocab_size)
                said = position + 1 - len(chunk.request.prompt_token_ids)
                row[self.script[said % len(self.script)]] = 10.0
                rows.append(row)
        return StepResult(torch.stack(rows) if rows else torch.zeros(0, self.vocab_size))
