"""Texts as rows: cut where the encoder ends, batched by length, padded."""

from __future__ import annotations

import classifier_toys as toys

from dacheng.data.text_rows import length_batches, padded, token_rows


def test_batches_are_bounded_and_whole():
    lengths = [5, 1, 30, 2, 5, 1, 5, 7, 30, 5]
    found = list(length_batches(lengths, 20))
    assert sorted(i for batch in found for i in batch) == list(range(10))
    assert [lengths[i] for batch in found for i in batch] == sorted(lengths)
    assert all(max(lengths[i] for i in batch) * len(batch) <= 20 or len(batch) == 1 for batch in found)
    assert list(length_batches([], 20)) == []


def test_a_long_text_keeps_its_end_and_is_counted(tmp_path):
    words = toys.tokenizer(tmp_path)
    rows, cut = token_rows(words, ["cat " * 50, "dog", ""], 6)
    assert cut == 1 and [len(row) for row in rows] == [6, 3, 2]
    assert rows[0][0] == words.token_to_id("[CLS]") and rows[0][-1] == words.eos_id
    tokens, lengths = padded(rows, words.pad_id)
    assert tokens.shape == (3, 6) and lengths.tolist() == [6, 3, 2]
    assert bool((tokens[2, 2:] == words.pad_id).all()) and tokens[1, :3].tolist() == rows[1]
