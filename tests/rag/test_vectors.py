"""Exact search in half precision, with and without the coarse copy in eight bits."""

from __future__ import annotations

import pytest
import torch

from dacheng.errors import UsageError
from dacheng.ops.block_formats import block_format
from dacheng.ops.packed_linear import why_no_kernel
from dacheng.rag import vectors
from dacheng.rag.vectors import VectorIndex

NO_KERNEL = why_no_kernel(block_format("Q8_0"), 64)


def drawn(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)))


def nearest(index: VectorIndex, rows: torch.Tensor, query: torch.Tensor, k: int) -> list[int]:
    return index.ids[(rows.half().float() @ query).argsort(descending=True)[:k]].tolist()


@pytest.mark.parametrize("sketch", [False, True])
@pytest.mark.parametrize(("count", "width", "k"), [(1, 32, 5), (700, 64, 5), (9000, 64, 20), (20_000, 32, 3)])
def test_the_nearest_are_those_of_a_plain_product(count, width, k, sketch):
    rows, queries = drawn(count, width), drawn(8, width, seed=1)
    index = VectorIndex(torch.arange(count) * 3 + 7, rows, sketch=sketch)
    for query, hits in zip(queries, index.search(queries, k)):
        assert [number for number, _ in hits] == nearest(index, rows, query, k)
        cosines = [cosine for _, cosine in hits]
        assert cosines == sorted(cosines, reverse=True)
        found = index.scores(query, torch.tensor([number for number, _ in hits]))
        torch.testing.assert_close(torch.tensor(cosines), found, atol=1e-6, rtol=0)


@pytest.mark.skipif(bool(NO_KERNEL), reason=NO_KERNEL)
@pytest.mark.parametrize("spread", [0.0, 0.02, 0.3])
def test_the_coarse_copy_never_loses_a_row_however_close_they_lie(spread, monkeypatch):
    """Rows around one direction: nearly all are near the border, or all."""
    centre = drawn(1, 64, seed=3)
    rows = torch.nn.functional.normalize(centre + spread * drawn(6000, 64))
    plain = VectorIndex(torch.arange(6000), rows, sketch=False)
    index = VectorIndex(torch.arange(6000), rows, sketch=True)
    assert index._sketch is not None
    for query in torch.cat((centre, drawn(4, 64, seed=5))):
        [one], [other] = index.search(query[None], 10), plain.search(query[None], 10)
        assert [score for _, score in one] == pytest.approx([score for _, score in other], abs=1e-6)
        if spread:
            assert [number for number, _ in one] == [number for number, _ in other]


def test_half_precision_ranks_as_single_precision_does():
    """What is stored decides the rank of a neighbour only where two cosines differ by less than one in ten thousand."""
    rows, queries = drawn(6000, 384), drawn(20, 384, seed=1)
    index = VectorIndex(torch.arange(6000), rows)
    exact = queries @ rows.T
    for query_scores, hits in zip(exact, index.search(queries, 10)):
        found = query_scores[[number for number, _ in hits]]
        best = query_scores.topk(10).values
        assert (found - best).abs().max() < 1e-4
        assert max(abs(cosine - score) for (_, cosine), score in zip(hits, found.tolist())) < 1e-4


def test_a_million_vectors_would_take_half_of_float32():
    index = VectorIndex(torch.arange(1000), drawn(1000, 384), sketch=False)
    assert index.nbytes == 1000 * (2 * 384 + 8)
    coarse = VectorIndex(torch.arange(1000), drawn(1000, 384), sketch=True)
    assert coarse.nbytes <= 1000 * (2 * 384 + 8 + 384 * 34 // 32) * 1.05


def test_none_few_and_what_does_not_fit():
    empty = VectorIndex(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 8))
    assert empty.search(torch.zeros(2, 8), 3) == [[], []] and len(empty) == 0
    assert empty.scores(torch.zeros(8), torch.tensor([4])).isnan().all()
    index = VectorIndex(torch.tensor([2, 5]), torch.eye(2))
    assert index.search(torch.tensor([[1.0, 0.0]]), 9) == [[(2, 1.0), (5, 0.0)]]
    scores = index.scores(torch.tensor([1.0, 0.0]), torch.tensor([5, 3, 2, 99]))
    assert scores[[0, 2]].tolist() == [0.0, 1.0] and scores[[1, 3]].isnan().all()
    for wrong in (lambda: VectorIndex(torch.arange(2), torch.zeros(3, 4)), lambda: index.search(torch.zeros(1, 3), 1)):
        with pytest.raises(UsageError):
            wrong()
    with pytest.raises(UsageError, match="at least 1"):
        index.search(torch.zeros(1, 2), 0)


def test_without_kernels_there_is_no_coarse_copy(monkeypatch):
    monkeypatch.setattr(vectors, "why_no_kernel", lambda *_: "none here")
    rows = drawn(300, 32)
    index = VectorIndex(torch.arange(300), rows, sketch=True)
    assert index.nbytes == 300 * (2 * 32 + 8)
    assert index.search(rows[:1], 1)[0][0][0] == 0
