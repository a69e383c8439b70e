"""What a classifier says of texts, and how often it is right: accuracy, recall of each class, macro F1, intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dacheng.data.text_rows import length_batches, padded, token_rows
from dacheng.errors import UsageError
from dacheng.evaluate.intervals import Interval, wilson

if TYPE_CHECKING:
    from dacheng.models.classifier import Classifier
    from dacheng.text import Tokenizer

BATCH_TOKENS = 2048  # padding included


@torch.inference_mode()
def predict(model: Classifier, tokenizer: Tokenizer, texts: Sequence[str], *, longest: int | None = None) -> Tensor:
    """Logits (N, C) float32 in the texts' order, with those of about one length together. What is longer than the
    encoder reads is cut."""
    rows, _ = token_rows(tokenizer, texts, longest or model.traits.encoder.longest_text)
    return predict_rows(model, rows, tokenizer.pad_id)


@torch.inference_mode()
def predict_rows(model: Classifier, rows: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    """Logits (N, C) of rows of ids."""
    device = next(iter([*model.parameters(), *model.buffers()])).device
    out = torch.empty(len(rows), len(model.labels))
    for batch in length_batches([len(row) for row in rows], BATCH_TOKENS):
        tokens, lengths = padded([rows[i] for i in batch], pad_id)
        out[batch] = model(tokens.to(device), lengths.to(device)).float().cpu()
    return out


@dataclass(frozen=True, slots=True)
class ClassificationReport:
    """accuracy with Wilson's interval, mean F1 over the classes that occur, recall of each class. `right` (N,) says of
    each text whether it was told right: for paired comparisons."""

    accuracy: Interval
    macro_f1: float
    recall: dict[str, float]
    right: npt.NDArray[np.bool_] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        return {"accuracy": self.accuracy.to_dict(), "macro_f1": self.macro_f1, "recall": dict(self.recall)}


def report(
    predicted: Sequence[int] | Tensor, labels: Sequence[int] | Tensor, names: Sequence[str]
) -> ClassificationReport:
    """Of numbers of classes. Raises UsageError for none, or as many predictions as labels are not there."""
    guess, truth = np.asarray(predicted, np.int64), np.asarray(labels, np.int64)
    if guess.shape != truth.shape or not len(truth):
        raise UsageError("as many predictions as labels, and at least one", field="labels",
                         value=[len(guess), len(truth)], remedy="predict every text")  # fmt: skip
    right = guess == truth
    hits = np.bincount(truth[right], minlength=len(names))
    there, said = np.bincount(truth, minlength=len(names)), np.bincount(guess, minlength=len(names))
    f1 = 2 * hits / np.maximum(there + said, 1)
    recall = {name: float(hits[i] / there[i]) for i, name in enumerate(names) if there[i]}
    return ClassificationReport(wilson(int(right.sum()), len(right)), float(f1[there > 0].mean()), recall, right)
