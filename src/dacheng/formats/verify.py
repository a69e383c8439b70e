"""Whether two model directories compute the same."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dacheng.errors import DachengError
from dacheng.formats.model_directory import load_model, load_tokenizer
from dacheng.models.decoder import Decoder
from dacheng.nn.contexts import DenseCausal

ROWS, LENGTH = 4, 64


def verify(
    directory_a: Path | str,
    directory_b: Path | str,
    *,
    texts: Sequence[str] | None = None,
    ids: Sequence[Sequence[int]] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Logits of both models in float32 on the same tokens: the rows of `ids`, or `texts` in the tokenizer of
    `directory_a` (both must have the same one), or four rows of 64 random ids drawn from `seed`.

    Returns max_abs and mean_abs (of the difference of logits), top1_agreement (share of positions where both prefer the
    same token), kl (mean over positions of KL(a ‖ b), nats), positions, vocab_size, input. One model is in memory at a
    time. Raises DachengError when the models cannot be compared.
    """
    if texts is not None and ids is not None:
        raise DachengError("give texts or ids, not both", field="ids", value=len(ids), remedy="drop one of them")
    given = ids if texts is None else _encode(directory_a, directory_b, texts)
    model = load_model(directory_a, dtype="float32").model
    vocab_size, length = model.traits.vocab_size, model.traits.longest_text
    rows = _random_ids(vocab_size, min(LENGTH, length), seed) if given is None else [list(row) for row in given]
    _check(rows, vocab_size, length, directory_a)
    logits_a = _logits(model, rows)
    del model
    gc.collect()  # the first model's memory is given back before the second takes as much
    model = load_model(directory_b, dtype="float32").model
    if model.traits.vocab_size != vocab_size:
        raise DachengError(
            f"{directory_a} has {vocab_size} tokens and {directory_b} has {model.traits.vocab_size}",
            field="vocab_size",
            value=model.traits.vocab_size,
            remedy="compare models of one vocabulary",
        )
    _check(rows, vocab_size, model.traits.longest_text, directory_b)
    source = "texts" if texts is not None else "ids" if ids is not None else f"random ids, seed {seed}"
    return _compare(logits_a, _logits(model, rows)) | {"vocab_size": vocab_size, "input": source}


def _encode(directory_a: Path | str, directory_b: Path | str, texts: Sequence[str]) -> list[list[int]]:
    a, b = load_tokenizer(directory_a), load_tokenizer(directory_b)
    if a.fingerprint != b.fingerprint:
        raise DachengError(
            "the two directories have different tokenizers",
            field="tokenizer",
            value=[a.fingerprint[:12], b.fingerprint[:12]],
            remedy="compare on ids",
        )
    return a.encode_batch(list(texts))


def _random_ids(vocab_size: int, length: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (ROWS, length), generator=generator).tolist()


def _check(rows: list[list[int]], vocab_size: int, length: int, directory: Path | str) -> None:
    if not any(rows):
        raise DachengError("there are no tokens to compare on", field="ids", value=rows, remedy="give some text or ids")
    for i, row in enumerate(rows):
        if len(row) > length:
            raise DachengError(
                f"{directory} takes at most {length} tokens", field=f"row {i}", value=len(row), remedy="split the text"
            )
        if row and not all(0 <= x < vocab_size for x in row):
            wrong = next(x for x in row if not 0 <= x < vocab_size)
            raise DachengError(
                f"an id is outside the vocabulary of {vocab_size}",
                field=f"row {i}",
                value=wrong,
                remedy="correct the ids",
            )


@torch.inference_mode()
def _logits(model: Decoder, rows: list[list[int]]) -> list[Tensor]:
    """One (T, V) tensor a row; rows go through alone, so no padding can differ."""
    out = []
    for row in filter(None, rows):
        tokens = torch.tensor([row])
        out.append(model.head(model(tokens, torch.arange(len(row))[None], DenseCausal())[0]))
    return out


def _compare(logits_a: list[Tensor], logits_b: list[Tensor]) -> dict[str, Any]:
    largest = total = agree = kl = 0.0
    positions = count = 0
    for a, b in zip(logits_a, logits_b, strict=True):
        a, b = a.double(), b.double()
        difference = (a - b).abs()
        largest = max(largest, difference.max().item()) if not difference.isnan().any() else float("nan")
        total += difference.sum().item()
        count += difference.numel()
        agree += (a.argmax(-1) == b.argmax(-1)).sum().item()
        log_a, log_b = a.log_softmax(-1), b.log_softmax(-1)
        kl += (log_a.exp() * (log_a - log_b)).sum().item()
        positions += len(a)
    return {
        "max_abs": largest,
        "mean_abs": total / count,
        "top1_agreement": agree / positions,
        "kl": kl / positions,
        "positions": positions,
    }
