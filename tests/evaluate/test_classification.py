"""Accuracy, recall and F1 by their definitions."""

from __future__ import annotations

import classifier_toys as toys
import pytest
import torch

from dacheng.errors import UsageError
from dacheng.evaluate.classification import predict, report
from dacheng.evaluate.intervals import wilson


def test_figures_by_definition():
    found = report([0, 0, 1, 2, 2], [0, 1, 1, 2, 0], ("a", "b", "c", "never"))
    assert found.accuracy == wilson(3, 5) and found.right.tolist() == [True, False, True, True, False]
    assert found.recall == {"a": 0.5, "b": 0.5, "c": 1.0}
    assert found.macro_f1 == pytest.approx((1 / 2 + 2 / 3 + 2 / 3) / 3)
    assert report([3], [0], ("a", "b", "c", "d")).macro_f1 == 0.0
    with pytest.raises(UsageError, match="as many predictions"):
        report([], [], ("a",))


def test_texts_are_answered_in_their_order_whatever_their_lengths(tmp_path):
    words = toys.tokenizer(tmp_path)
    model = toys.classifier(words.vocab_size).eval()
    texts = ["cat " * n for n in (9, 1, 30, 4)] + ["", "moon"]
    together = predict(model, words, texts)
    for text, row in zip(texts, together):
        torch.testing.assert_close(predict(model, words, [text])[0], row, atol=2e-6, rtol=1e-5)
