"""Log-probabilities of a reference policy, computed once for each row and kept on disk.

A reference does not change while a policy learns: one forward for each row, not one for each step. The same figures
serve every loss, seed and length of run on these pairs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dacheng.data.pairs import PairRows, Row, collate_rows
from dacheng.data.text_rows import length_batches
from dacheng.errors import DachengError
from dacheng.formats.json_files import read_json, write_json
from dacheng.machine import cache_dir
from dacheng.objectives.logps import model_logps
from dacheng.train.resume import digest

BATCH_TOKENS = 1024
SAVE_EVERY_S = 20.0
_CONTENTS = "sums of log-probabilities of a reference, by row"

Progress = Callable[[int, int], None]


def model_digest(model: nn.Module) -> str:
    """sha256 of every weight: two models of one digest give one log-probability."""
    return digest(dict(model.state_dict()))


class ReferenceCache:
    """Sums of log-probabilities of replies under one model, by the hash of the row; in one JSON file a model, written
    whole. The key of a row holds its ids and which of them are learnt, so no change of data, template or length finds a
    figure that is not its own."""

    def __init__(self, digest: str, folder: Path | None = None) -> None:
        """folder: $DACHENG_CACHE/reference when None. A file that is damaged is left aside and made again."""
        self.path = (cache_dir() / "reference" if folder is None else Path(folder)) / f"{digest[:32]}.json"
        self.sums: dict[str, float] = {}
        self.computed = 0
        try:
            found = read_json(self.path) if self.path.exists() else {}
        except DachengError:
            found = {}
        sums = found.get("sums")
        if found.get("contents") == _CONTENTS and found.get("digest") == digest and isinstance(sums, dict):
            self.sums = {key: value for key, value in sums.items() if type(value) is float}
        self._digest = digest

    def save(self) -> None:
        """Puts the file there whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {"contents": _CONTENTS, "digest": self._digest, "sums": self.sums})

    def fill(self, model: nn.Module, rows: Sequence[Row], pad_id: int = 0, progress: Progress | None = None) -> None:
        """Computes what is not there yet, shortest rows first, and saves from time to time and at the end, however that
        comes: a killed run keeps what it had. Which rows share a batch follows from `rows` alone, not from what was
        there: going on gives the same bits. Raises DachengError where the model gives no finite figure."""
        unique = list({row.key: row for row in rows}.values())
        todo = len(unique) - len(self.sums.keys() & {row.key for row in unique})
        done, saved = 0, time.monotonic()
        try:
            for numbers in length_batches([len(row.ids) for row in unique], BATCH_TOKENS):
                some = [unique[i] for i in numbers]
                if all(row.key in self.sums for row in some):
                    continue
                values = row_logps(model, some, pad_id).tolist()
                done += self._keep(some, values)
                if progress is not None:
                    progress(done, todo)
                if time.monotonic() - saved > SAVE_EVERY_S:
                    self.save()
                    saved = time.monotonic()
        finally:
            self.computed += done
            if done:
                self.save()

    def _keep(self, rows: Sequence[Row], values: Sequence[float]) -> int:
        """How many are new."""
        before = len(self.sums)
        for row, value in zip(rows, values):
            if not math.isfinite(value):
                raise DachengError("the reference has no finite log-probability for a row", field="reference",
                                   value=value, remedy="check the reference model")  # fmt: skip
            self.sums.setdefault(row.key, value)
        return len(self.sums) - before

    def of(self, pairs: Sequence[PairRows]) -> Tensor:
        """(N, 2) float32 of pairs that were filled in."""
        return torch.tensor([[self.sums[pair.first.key], self.sums[pair.second.key]] for pair in pairs])


@torch.no_grad()
def row_logps(model: nn.Module, rows: Sequence[Row], pad_id: int = 0) -> Tensor:
    """(B,) float32: sums of log-probabilities over what is learnt of each row. Leaves the model's mode as it was."""
    training = model.training
    model.eval()
    try:
        tokens, targets, _ = collate_rows(rows, pad_id)
        return model_logps(model, tokens, targets).sum(-1)
    finally:
        model.train(training)
