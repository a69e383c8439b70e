"""A teacher's likeliest tokens, computed once and kept: training then needs no teacher."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dacheng.data.batches import IGNORED, Source, TokenBatch
from dacheng.data.top_tokens import TopTokens
from dacheng.errors import DachengError, UsageError
from dacheng.formats.safetensors_io import read_tensors, write_tensors
from dacheng.models.decoder import Decoder
from dacheng.objectives.next_token import context_for

_CHUNK = 256  # positions whose logits are held at once


@torch.no_grad()
def store_top_tokens(
    teacher: Decoder, batches: Iterable[TokenBatch], path: Path, *, k: int = 16, temperature: float = 1.0, key: str = ""
) -> dict[str, float]:
    """Writes the k likeliest tokens, and their log-probabilities at `temperature` (float16), of every position with a
    target. key: goes into the file's metadata, to tell by it what the file is of. Returns how many positions there are,
    and the mean of the probability that was kept.

    All is held in memory: 6 · k bytes a position. Raises UsageError for a k that the vocabulary does not have.
    """
    if not 1 <= k <= teacher.traits.vocab_size:
        raise UsageError("as many tokens as the vocabulary has, at most", field="top_k", value=k,
                         remedy=f"1 to {teacher.traits.vocab_size}; 16 is usual")  # fmt: skip
    tokens: list[Tensor] = []
    logps: list[Tensor] = []
    keys: list[int] = []
    counts: list[int] = []
    for batch in batches:
        hidden = teacher(batch.tokens, batch.positions, context_for(batch))
        for row in range(len(batch.tokens)):
            kept = batch.targets[row] != IGNORED
            for part in hidden[row][kept].split(_CHUNK):
                found = (teacher.head(part) / temperature).log_softmax(-1).topk(k)
                tokens.append(found.indices.to(torch.int32))
                logps.append(found.values.to(torch.float16))
            keys.append(_key(batch.tokens[row], batch.targets[row]))
            counts.append(int(kept.sum()))
    if not sum(counts):
        raise DachengError(
            "there is no position with a target", field="data", value=0, remedy="give text to learn from"
        )
    whole = torch.cat(logps)
    about = {"k": str(k), "temperature": str(temperature), "vocab_size": str(teacher.traits.vocab_size),
             "key": key}  # fmt: skip
    write_tensors(
        path, {"tokens": torch.cat(tokens), "logps": whole, "keys": torch.tensor(keys), "counts": torch.tensor(counts),
               "temperature": torch.tensor(float(temperature))}, about,
    )  # fmt: skip
    return {"positions": float(sum(counts)), "kept": float(whole.float().exp().sum(-1).mean())}


class StoredTeacher:
    """What `store_top_tokens` wrote. The rows are found by their content, whatever order they come in."""

    def __init__(self, path: Path) -> None:
        found = read_tensors(path)
        self.tokens, self.logps = found["tokens"], found["logps"]
        self.temperature = float(found["temperature"])
        ends = np.cumsum(found["counts"].numpy())
        starts = ends - found["counts"].numpy()
        self._rows = {int(key): (int(a), int(b)) for key, a, b in zip(found["keys"], starts, ends)}
        self.fingerprint = hashlib.sha256(self.logps.numpy().tobytes()).hexdigest()[:16]

    @property
    def kept(self) -> float:
        """The mean over the positions of the probability that the stored tokens have together."""
        return float(self.logps.float().exp().sum(-1).mean())

    def of(self, batch: TokenBatch) -> TopTokens:
        """The batch with the teacher's tokens. Raises DachengError for a row that was not stored."""
        B, T = batch.tokens.shape
        k = self.tokens.shape[1]
        tokens, logps = torch.zeros(B, T, k, dtype=torch.int64), torch.zeros(B, T, k)
        for row in range(B):
            place = self._rows.get(_key(batch.tokens[row], batch.targets[row]))
            if place is None:
                raise DachengError("the teacher has not seen this row", field="stored", value=row,
                                   remedy="store it again for this data and these settings")  # fmt: skip
            kept = batch.targets[row] != IGNORED
            tokens[row, kept] = self.tokens[slice(*place)].to(torch.int64)
            logps[row, kept] = self.logps[slice(*place)].float()
        return TopTokens(
            batch.tokens, batch.targets, batch.positions, batch.document_ids, batch.branch_ids, tokens, logps
        )  # fmt: skip


class WithTeacher:
    """A source whose batches carry what a stored teacher says."""

    def __init__(self, source: Source, teacher: StoredTeacher) -> None:
        self.source, self.teacher = source, teacher
        self.fingerprint = f"{source.fingerprint} {teacher.fingerprint}"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def next(self, step: int, model: Any = None, weights_version: int = 0) -> list[TopTokens]:
        return [self.teacher.of(batch) for batch in self.source.next(step, model, weights_version)]


def _key(tokens: Tensor, targets: Tensor) -> int:
    digest = hashlib.blake2b(tokens.numpy().tobytes() + targets.numpy().tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
