"""Hashed n-gram tables: which row a token reads."""

import torch

from dacheng.nn.contexts import DenseCausal, PackedDocuments
from dacheng.nn.ngrams import LONGEST, NgramEmbedding, ngram_rows


def test_the_row_depends_on_the_n_gram_and_nothing_else():
    tokens = torch.tensor([[5, 1, 2, 3, 9, 1, 2, 3]])
    rows = ngram_rows(tokens, DenseCausal(), 3, 10_007)
    assert rows[0, 3] == rows[0, 7]  # 1 2 3 both times
    assert rows[0, 2] != rows[0, 6]  # 5 1 2 and 9 1 2
    assert rows[0, 5] != rows[0, 1]


def test_the_hash_is_the_same_on_every_machine():
    tokens = torch.tensor([[1, 2, 3, 4]])
    assert ngram_rows(tokens, DenseCausal(), 2, 32768).tolist() == [[14744, 32219, 25476, 21102]]


def test_rows_are_used_evenly():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 4096, (64, 512), generator=generator)
    for length in range(2, LONGEST + 1):
        rows = ngram_rows(tokens, DenseCausal(), length, 256)
        assert rows.min() >= 0 and rows.max() < 256
        counts = torch.bincount(rows.flatten(), minlength=256).float()
        assert counts.std() / counts.mean() < 0.15  # 128 a row: Poisson gives 0.09


def test_a_document_does_not_see_the_one_before():
    row = torch.tensor([[7, 8, 9, 1, 2]])
    packed = ngram_rows(row, PackedDocuments(torch.tensor([[0, 0, 0, 1, 1]])), 3, 10_007)
    alone = ngram_rows(row[:, 3:], DenseCausal(), 3, 10_007)
    assert packed[0, 3:].tolist() == alone[0].tolist()


def test_a_table_starts_silent_and_learns_only_the_rows_it_read():
    table = NgramEmbedding(2, 50, 4)
    tokens = torch.tensor([[1, 2, 3]])
    out = table(tokens, DenseCausal())
    assert not out.any()
    out.sum().backward()
    read = set(ngram_rows(tokens, DenseCausal(), 2, 50).flatten().tolist())
    assert table.weight.grad is not None
    assert set(table.weight.grad.abs().sum(1).nonzero().flatten().tolist()) == read
