"""Hashed n-gram embeddings: what the last few tokens were, looked up instead of computed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dacheng.nn.contexts import Context

# Odd 62-bit constants (the first digits of SplitMix64's mixing constants): one a place, and two to mix the sum.
_PLACES = (0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9, 0x14D049BB133111EB, 0x2545F4914F6CDD1D)
_MIX = 0x3F51AFD7ED558CCD
LONGEST = len(_PLACES)


def ngram_rows(tokens: Tensor, context: Context, length: int, rows: int) -> Tensor:
    """Row of each token's n-gram (itself and the `length` - 1 before it in its text) in a table of `rows`: (B, T).

    Different n-grams may share a row: a hash in 64-bit integers, the same on every machine. A text's first tokens
    have fewer before them, which is an n-gram too.
    """
    key = (tokens + 1) * _PLACES[0]
    for distance in range(1, length):
        key = key + (context.preceding(tokens, distance) + 1) * _PLACES[distance]
    key = (key ^ (key >> 31)) * _MIX
    return (key ^ (key >> 29)) % rows


class NgramEmbedding(nn.Module):
    """One table of `rows` vectors for the n-grams of one length, zero at the start.

    Lookups cost no matrix product: at small budgets they give a decoder the counts that an n-gram model lives on (Roy
    et al. 2022, N-Grammer; Huang et al. 2025, Over-Tokenized Transformer, section 3).
    """

    def __init__(self, length: int, rows: int, width: int) -> None:
        super().__init__()
        self.length, self.rows = length, rows
        self.weight = nn.Parameter(torch.zeros(rows, width))

    def forward(self, tokens: Tensor, context: Context) -> Tensor:
        """tokens (B, T) -> (B, T, D)."""
        return nn.functional.embedding(ngram_rows(tokens, context, self.length, self.rows), self.weight)
