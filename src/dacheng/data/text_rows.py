"""Texts as rows of token ids for an encoder: cut where the encoder ends, put together by length, padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dacheng.text import Tokenizer

_CHARACTERS = 64  # of a text for each token that is read of it: more is cut before the tokenizer sees it


def token_rows(tokenizer: Tokenizer, texts: Sequence[str], longest: int) -> tuple[list[list[int]], int]:
    """The ids of each text with the tokens that the tokenizer puts around it, at most `longest`, and how many texts
    were cut. Of a cut one the end of text stays at the end."""
    short = [text[: longest * _CHARACTERS] for text in texts]
    rows = tokenizer.encode_batch(short, add_special_tokens=True)
    cut = 0
    for i, row in enumerate(rows):
        if len(row) > longest:
            rows[i] = row[: longest - 1] + [row[-1]] if row[-1] == tokenizer.eos_id else row[:longest]
        cut += len(row) > longest or len(short[i]) < len(texts[i])
    return rows, cut


def padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """tokens (B, T) int64, padded behind lengths (B,)."""
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.full((len(rows), int(lengths.max())), pad_id)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = torch.tensor(row)
    return tokens, lengths


def length_batches(lengths: Sequence[int], most_tokens: int) -> Iterator[list[int]]:
    """The numbers 0 … N - 1 by ascending length, in batches that together, padded to their longest, have at most
    `most_tokens`: little is padding."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or lengths[order[end]] * (end + 1 - start) > most_tokens:
            yield order[start:end]
            start = end
