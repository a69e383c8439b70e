"""Exact search among vectors of length 1, held in half precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dacheng.errors import UsageError
from dacheng.ops.block_formats import BlockFormat
from dacheng.ops.packed_linear import make_panels, packed_linear, why_no_kernel
from dacheng.ops.qtensor import QTensor

CHUNK = 8192  # rows made float32 at a time, and in one piece of the coarse copy
SKETCH_FROM = 20_000
"""Rows from which a coarse copy is worth its memory (measured: docs/lab-notes/retrieval.md)."""
_SKETCH = "Q8_0"
_BLOCK = 32  # numbers with one scale, in a sketch and in what the kernel makes of a query
_CANDIDATES = 4096  # more than these near the border: the coarse look has not helped


@dataclass(frozen=True, slots=True)
class _Sketch:
    """The rows in eight bits, how far the worst of them lies from its row, and the length of the longest."""

    panels: list[Tensor]  # of CHUNK rows each
    format: BlockFormat
    off: float
    longest: float


class VectorIndex:
    """rows (N, D) by ids (N,): the k with the largest dot product; of equals at the border, any.

    Rows are kept as float16 and multiplied in float32: 768 MB for a million of 384. From SKETCH_FROM rows, where this
    machine has kernels, a copy in eight bits (408 MB more) is looked through first. What it may have got wrong is
    bounded by Cauchy-Schwarz, |r·q - r̂·q̂| ≤ ‖r - r̂‖‖q‖ + ‖r̂‖‖q - q̂‖, so every row that could be among the best is
    multiplied exactly: the answer is that of the rows themselves, and not approximate.

    It does not change, and may be searched from several threads.
    """

    def __init__(self, ids: Tensor, rows: Tensor, *, sketch: bool | None = None) -> None:
        """ids (N,) int64, ascending; rows (N, D) of any float dtype (float16 is not copied). sketch: None decides by
        size. Raises UsageError where they do not fit together."""
        if ids.ndim != 1 or rows.ndim != 2 or len(ids) != len(rows):
            raise UsageError("a vector for each id", field="rows", value=[list(ids.shape), list(rows.shape)],
                             remedy="pass ids (N,) and rows (N, D)")  # fmt: skip
        self.ids, self.rows = ids, rows.to(torch.float16).contiguous()
        wanted = len(ids) >= SKETCH_FROM if sketch is None else sketch
        self._sketch = self._made_sketch() if wanted and len(ids) else None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        """What it keeps in memory."""
        coarse = 0 if self._sketch is None else sum(panels.nbytes for panels in self._sketch.panels)
        return self.ids.nbytes + self.rows.nbytes + coarse

    def search(self, queries: Tensor, k: int) -> list[list[tuple[int, float]]]:
        """For each of queries (Q, D) the k nearest, best first: (id, cosine). Fewer than k rows give as many."""
        if queries.ndim != 2 or queries.shape[1] != self.rows.shape[1]:
            raise UsageError("queries of another width", field="queries", value=list(queries.shape),
                             remedy=f"pass (Q, {self.rows.shape[1]})")  # fmt: skip
        if k < 1:
            raise UsageError("must be at least 1", field="k", value=k, remedy="5 is customary")
        k = min(k, len(self.ids))
        if k == 0:
            return [[] for _ in queries]
        queries = queries.float()
        if self._sketch is not None:
            return [self._by_sketch(query, k) for query in queries]
        return [self._named(scores, rows) for scores, rows in zip(*self._scan(queries, k))]

    def scores(self, query: Tensor, ids: Tensor) -> Tensor:
        """Cosines of query (D,) with those of the rows that `ids` name, in their order; NaN where there is no such
        id."""
        at = torch.searchsorted(self.ids, ids).clamp(max=max(len(self.ids) - 1, 0))
        if not len(self.ids):
            return torch.full(ids.shape, math.nan)
        found = self.rows[at].float() @ query.float()
        return torch.where(self.ids[at] == ids, found, torch.nan)

    def cosines(self, query: Tensor, ids: Sequence[int]) -> dict[int, float]:
        """`scores` by id, of those that have a row."""
        found = self.scores(query, torch.tensor(ids, dtype=torch.int64)).tolist()
        return {number: score for number, score in zip(ids, found) if not math.isnan(score)}

    def _scan(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Scores and row numbers (Q, k), all rows multiplied."""
        best = torch.full((len(queries), 0), 0.0)
        at = torch.zeros(len(queries), 0, dtype=torch.int64)
        for start in range(0, len(self.rows), CHUNK):
            scores = queries @ self.rows[start : start + CHUNK].float().T
            top = scores.topk(min(k, scores.shape[1]))
            best, at = torch.cat((best, top.values), 1), torch.cat((at, top.indices + start), 1)
            order = best.argsort(dim=1, descending=True, stable=True)[:, :k]
            best, at = best.gather(1, order), at.gather(1, order)
        return best, at

    def _named(self, scores: Tensor, rows: Tensor) -> list[tuple[int, float]]:
        found = list(zip(self.ids[rows].tolist(), scores.tolist()))
        return sorted(found, key=lambda pair: (-pair[1], pair[0]))

    # --- the coarse copy ----------------------------------------------------------------------------------------------
    def _made_sketch(self) -> _Sketch | None:
        panels: list[Tensor] = []
        off = longest = 0.0
        for start in range(0, len(self.rows), CHUNK):
            part = self.rows[start : start + CHUNK].float()
            coarse = QTensor.from_float(part, _SKETCH)
            if why_no_kernel(coarse.format, part.shape[1]):
                return None
            values = coarse.dequantize(torch.float32)
            off = max(off, (values - part).norm(dim=1).max().item())
            longest = max(longest, values.norm(dim=1).max().item())
            panels.append(make_panels(coarse))
        return _Sketch(panels, coarse.format, off, longest)

    def _coarse(self, query: Tensor, sketch: _Sketch) -> Tensor:
        """Scores (N,) by the eight bits."""
        starts = range(0, len(self.rows), CHUNK)
        counts = [min(CHUNK, len(self.rows) - start) for start in starts]
        return torch.cat(
            [packed_linear(query, panels, None, sketch.format, n) for panels, n in zip(sketch.panels, counts)]
        )

    def _by_sketch(self, query: Tensor, k: int) -> list[tuple[int, float]]:
        sketch = self._sketch
        assert sketch is not None
        coarse = self._coarse(query, sketch)
        # The kernel rounds each block of the query to steps of its largest / 127, so by at most half a step a number.
        steps = query.view(-1, _BLOCK).abs().amax(1) / 127
        query_off = (steps.square().sum() * _BLOCK).sqrt().item() / 2
        off = sketch.off * query.norm().item() + sketch.longest * query_off
        border = coarse.topk(k).values[-1].item() - 2 * off - 1e-5  # what is rounded in float32
        rows = (coarse >= border).nonzero()[:, 0]
        if len(rows) > _CANDIDATES:
            scores, at = self._scan(query[None], k)
            return self._named(scores[0], at[0])
        scores = self.rows[rows].float() @ query
        order = scores.argsort(descending=True, stable=True)[:k]
        return self._named(scores[order], rows[order])
