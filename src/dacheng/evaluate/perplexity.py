"""How well a model predicts text: nats over held-out tokens, stated per byte so that tokenizers compare.

bits per byte = nats / ln 2 / bytes (of the text itself, in UTF-8); perplexity = exp(nats / tokens), which only compares
between models of one tokenizer. Specials stand for no bytes and are not scored, here as in the n-gram floors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from dacheng.errors import UsageError
from dacheng.evaluate.intervals import bootstrap_ratio
from dacheng.nn.contexts import DenseCausal, PackedDocuments

if TYPE_CHECKING:
    from dacheng.data.batches import TokenBatch

IGNORED = -100
LONGEST_WINDOW = 2048  # tokens, where nobody says: attention over 131,072 positions would take all memory
_LOGITS = 1 << 22  # logits held at once: 16 MB
_SORTED_BATCHES = 16  # windows are sorted by length among this many batches, which saves padding


@dataclass(slots=True)
class _Window:
    """inputs[i] predicts targets[i]; the last `scored` of them count, those before are context."""

    document: int
    inputs: list[int]
    targets: list[int]
    scored: int


class _Tally:
    """Nats, tokens and bytes of each unit (document, or piece of one)."""

    def __init__(self) -> None:
        self.nats: list[float] = []
        self.tokens: list[int] = []
        self.bytes: list[int] = []

    def extend(self, nats: Iterable[float], tokens: Iterable[int], n_bytes: Iterable[int]) -> None:
        self.nats.extend(nats)
        self.tokens.extend(tokens)
        self.bytes.extend(n_bytes)

    def result(self, level: float, seed: int) -> dict[str, Any]:
        nats, tokens, n_bytes = np.array(self.nats), sum(self.tokens), np.array(self.bytes)
        if not tokens or not n_bytes.sum():
            raise UsageError("there is no text to score", field="texts", value=len(self.nats), remedy="give some text")
        total = math.fsum(self.nats)
        result = {
            "bits_per_byte": total / math.log(2) / int(n_bytes.sum()),
            "perplexity": math.exp(min(total / tokens, 700.0)),
            "nats": total,
            "tokens": tokens,
            "bytes": int(n_bytes.sum()),
            "documents": len(self.nats),
        }
        kept = n_bytes > 0
        if kept.sum() >= 2:
            interval = bootstrap_ratio(nats[kept] / math.log(2), n_bytes[kept], level=level, seed=seed)
            result |= {"bits_per_byte_low": interval.low, "bits_per_byte_high": interval.high}
        return result


def evaluate_text(
    model: Any,
    tokenizer: Any,
    texts: Iterable[str],
    *,
    context_length: int,
    stride: int | None = None,
    batch: int = 8,
    level: float = 0.95,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Scores each token of each text exactly once. The first is conditioned on BOS (EOS where there is none).

    A text longer than context_length is scored in windows: the first scores all its tokens, each further one the next
    `stride` (default: half the context), with as many tokens before them as fit. A smaller stride gives more context
    and takes longer. batch: windows at once. progress: called with the tokens scored so far.

    Returns bits_per_byte, perplexity, nats, tokens, bytes, documents; altered_documents (whose tokens stand for more or
    fewer bytes than the text has: the figure is then not about this text alone); from two documents on also
    bits_per_byte_low and _high, a bootstrap interval at `level` over documents.
    Raises UsageError for a stride or context out of range and where there is nothing to score.
    """
    stride = max(1, context_length // 2) if stride is None else stride
    if not 1 <= stride <= context_length:
        raise UsageError("stride is 1 to context_length", field="stride", value=stride, remedy=f"<= {context_length}")
    longest = getattr(getattr(model, "traits", None), "longest_text", context_length)
    if context_length > longest:
        raise UsageError(
            "the model has fewer positions", field="context_length", value=context_length, remedy=f"at most {longest}"
        )
    first = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    lengths = np.asarray(tokenizer.byte_lengths())
    tally, altered, done = _Tally(), 0, 0

    def windows() -> Iterator[_Window]:
        nonlocal altered
        for document, text in enumerate(texts):
            ids = tokenizer.encode(text)
            n_bytes = len(text.encode("utf-8", "surrogatepass"))
            altered += int(lengths[np.asarray(ids, dtype=np.int64)].sum()) != n_bytes
            tally.extend([0.0], [len(ids)], [n_bytes])
            yield from _windows(document, [first, *ids], context_length, stride)

    with scoring(model):
        for rows in _by_length(windows(), batch):
            for window, nats in zip(rows, _score(model, rows), strict=True):
                tally.nats[window.document] += nats
                done += window.scored
            if progress is not None:
                progress(done)
    return tally.result(level, seed) | {"altered_documents": altered}


def evaluate_source(
    model: Any, batches: Iterable[TokenBatch], byte_lengths: ArrayLike, *, level: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """The same figures over prepared batches: every target that is not -100 and stands for at least one byte.

    byte_lengths (vocab_size,): bytes each token stands for (`Tokenizer.byte_lengths()`). Targets without bytes (EOS and
    other specials) are left out and counted as skipped_tokens. A document is a piece of a row with one document id (a
    row, where there are none): one that goes on in another row counts as two in the interval.
    """
    tally, skipped = _Tally(), 0
    with scoring(model):
        device = _device(model)
        lengths = torch.as_tensor(np.asarray(byte_lengths, dtype=np.int64), device=device)
        for cpu_batch in batches:
            item = cpu_batch.to(device)
            wanted = item.targets != IGNORED
            n_bytes = torch.where(wanted, lengths[item.targets.clamp(min=0)], 0)  # (B, T)
            skipped += int((wanted & (n_bytes == 0)).sum())
            wanted &= n_bytes > 0
            if not bool(wanted.any()):
                continue
            context = DenseCausal() if item.document_ids is None else PackedDocuments(item.document_ids)
            hidden = model(item.tokens, item.positions, context)  # (B, T, D)
            nats = token_nats(model, hidden[wanted], item.targets[wanted]).cpu().numpy().astype(np.float64)
            units, numbers = np.unique(_units(item)[wanted].cpu().numpy(), return_inverse=True)
            counted = n_bytes[wanted].cpu().numpy()
            tally.extend(
                np.bincount(numbers, weights=nats, minlength=len(units)).tolist(),
                np.bincount(numbers, minlength=len(units)).tolist(),
                np.bincount(numbers, weights=counted, minlength=len(units)).astype(np.int64).tolist(),
            )
    return tally.result(level, seed) | {"skipped_tokens": skipped}


def token_nats(model: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """-log p of each target. hidden (N, D), targets (N,) -> (N,) float32. Holds few logits at a time."""
    vocab_size = int(model.head(hidden[:1]).shape[-1]) if len(hidden) else 1
    rows = max(1, _LOGITS // vocab_size)
    parts = [
        torch.nn.functional.cross_entropy(
            model.head(hidden[i : i + rows]).float(), targets[i : i + rows], reduction="none"
        )
        for i in range(0, len(hidden), rows)
    ]
    return torch.cat(parts) if parts else hidden.new_zeros(0)


@contextmanager
def scoring(model: Any) -> Iterator[None]:
    """The model in evaluation mode and without gradients; as it was afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _windows(document: int, ids: list[int], context_length: int, stride: int) -> Iterator[_Window]:
    """Windows over `ids`, whose first one is given and not scored."""
    done, count = 0, len(ids) - 1
    while done < count:
        end = min(count, context_length if done == 0 else done + stride)
        start = max(0, end - context_length)
        yield _Window(document, ids[start:end], ids[start + 1 : end + 1], end - done)
        done = end


def _by_length(windows: Iterable[_Window], batch: int) -> Iterator[list[_Window]]:
    if batch < 1:
        raise UsageError("must be at least 1", field="batch", value=batch, remedy="8 is usual")
    held: list[_Window] = []
    for window in windows:
        held.append(window)
        if len(held) == batch * _SORTED_BATCHES:
            yield from _batches(held, batch)
            held = []
    yield from _batches(held, batch)


def _batches(held: list[_Window], batch: int) -> Iterator[list[_Window]]:
    held.sort(key=lambda window: len(window.inputs), reverse=True)
    for start in range(0, len(held), batch):
        yield held[start : start + batch]


def _score(model: Any, windows: list[_Window]) -> list[float]:
    """Nats of the scored targets of each window. Padding follows the tokens, so causal attention never sees it."""
    device, width = _device(model), max(len(window.inputs) for window in windows)
    tokens = torch.zeros(len(windows), width, dtype=torch.int64)
    targets = torch.full((len(windows), width), IGNORED, dtype=torch.int64)
    for row, window in enumerate(windows):
        length = len(window.inputs)
        tokens[row, :length] = torch.tensor(window.inputs)
        targets[row, length - window.scored : length] = torch.tensor(window.targets[-window.scored :])
    tokens, targets = tokens.to(device), targets.to(device)
    positions = torch.arange(width, device=device).expand(len(windows), width)
    wanted = targets != IGNORED
    hidden = model(tokens, positions, DenseCausal())  # (B, T, D)
    nats = token_nats(model, hidden[wanted], targets[wanted]).cpu().numpy().astype(np.float64)
    owner = torch.nonzero(wanted)[:, 0].cpu().numpy()
    return [float(total) for total in np.bincount(owner, weights=nats, minlength=len(windows))]


def _units(batch: TokenBatch) -> Tensor:
    """(B, T): a number for each document of each row."""
    rows, width = batch.tokens.shape
    row = torch.arange(rows, device=batch.tokens.device)[:, None].expand(rows, width)
    if batch.document_ids is None:
        return row
    ids = batch.document_ids - batch.document_ids.min()
    return row * (ids.max() + 1) + ids


def _device(model: Any) -> torch.device:
    for parameter in model.parameters():
        return parameter.device
    return torch.device("cpu")
