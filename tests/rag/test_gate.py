"""The gate: what it looks at, how it is fitted, and that what it says of held-out questions is honest."""

from __future__ import annotations

import json

import numpy as np
import pytest
from rag_fakes import FakeRetriever, FakeStore, library

from dacheng.errors import DamagedFile, UsageError
from dacheng.evaluate.answers import auroc
from dacheng.rag.calibration import calibrate
from dacheng.rag.gate import FALSE_PASS, FEATURES, Gate, best_threshold, gate_features
from dacheng.rag.questions import Rarity, split_questions


def _clouds(seed: int, n: int = 60, apart: float = 3.0):
    generator = np.random.default_rng(seed)
    y = np.arange(n) % 3 != 0
    x = generator.normal(size=(n, len(FEATURES)))
    x[:, 3] += apart * y
    return list(x), y.tolist()


def test_a_fit_is_the_maximum_of_the_penalised_likelihood():
    """Its gradient is zero: each class has half of the weight, L2 of 1 on standardised features, none on the bias."""
    x, y = _clouds(0)
    gate = Gate.fit(x, y)
    z = (np.array(x) - gate.mean) / gate.scale
    labels = np.array(y)
    share = np.where(labels, len(y) / (2 * labels.sum()), len(y) / (2 * (~labels).sum()))
    p = 1 / (1 + np.exp(-(z @ np.array(gate.weights) + gate.bias)))
    assert np.abs(z.T @ (share * (p - labels)) + np.array(gate.weights)).max() < 1e-6
    assert abs((share * (p - labels)).sum()) < 1e-4


def test_figures_are_of_held_out_questions():
    x, y = _clouds(1)
    gate = Gate.fit(x, y)
    assert gate.auroc > 0.9
    noise = Gate.fit(*_clouds(2, n=40, apart=0.0))
    seen = auroc([noise.score_features(row) for row in _clouds(2, n=40, apart=0.0)[0]], _clouds(2, n=40, apart=0.0)[1])
    assert noise.auroc < 0.7 < seen  # fitted to noise it looks good on what it has seen; its own figure does not


def test_the_same_seed_gives_the_same_gate_and_json_keeps_it():
    x, y = _clouds(3)
    gate = Gate.fit(x, y, seed=5)
    assert Gate.fit(x, y, seed=5) == gate
    assert Gate.from_dict(json.loads(json.dumps(gate.to_dict()))) == gate


@pytest.mark.parametrize(
    "change", [{"weights": [1.0]}, {"features": ["a"]}, {"scale": [0.0] * len(FEATURES)}, {"bias": "x"}]
)
def test_a_gate_that_is_none(change):
    with pytest.raises(DamagedFile):
        Gate.from_dict({**Gate.uncalibrated().to_dict(), **change})
    with pytest.raises(DamagedFile):
        Gate.from_dict(None)


def test_the_threshold_has_the_best_balanced_accuracy():
    scores, labels = np.array([0.1, 0.2, 0.7, 0.3, 0.8, 0.9]), np.array([0, 0, 0, 1, 1, 1], dtype=bool)
    threshold, accuracy = best_threshold(scores, labels)
    every = [((scores[labels] >= t).mean() + (scores[~labels] < t).mean()) / 2 for t in np.linspace(0, 1, 101)]
    assert accuracy == pytest.approx(max(every))
    assert ((scores[labels] >= threshold).mean() + (scores[~labels] < threshold).mean()) / 2 == pytest.approx(accuracy)


def test_a_threshold_lets_no_more_pass_than_it_may():
    scores = np.array([0.1, 0.2, 0.7, 0.75, 0.3, 0.6, 0.8, 0.9])
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1], dtype=bool)
    for most in (0.0, 0.25, 0.5, 1.0):
        threshold, _ = best_threshold(scores, labels, most)
        assert (scores[~labels] >= threshold).mean() <= most
    assert best_threshold(scores, labels, 0.0)[0] == pytest.approx(0.775)
    x, y = _clouds(4, n=300, apart=1.0)
    gate = Gate.fit(x, y)
    passing = [gate.passes(gate.score_features(row)) for row, yes in zip(x, y) if not yes]
    assert sum(passing) / len(passing) <= FALSE_PASS + 0.05  # the bound is of held-out folds


def test_too_few_questions():
    x, y = _clouds(0)
    with pytest.raises(UsageError, match="too few"):
        Gate.fit(x[:5], y[:5])
    with pytest.raises(UsageError):
        Gate.fit([row[:2] for row in x], y)


def test_on_a_library_it_tells_what_is_there_from_what_is_not():
    passages = library()
    splits = split_questions(passages, 0, train=10, calibration=90, exam=60)
    retriever = FakeRetriever(passages)
    gate = calibrate(retriever, splits.calibration, splits.rarity)
    assert gate.auroc > 0.8
    scores = [gate.score(q.question, retriever.search(q.question, 5), splits.rarity) for q in splits.exam]
    assert auroc(scores, [q.answerable for q in splits.exam]) > 0.8
    right = [gate.passes(s) == q.answerable for s, q in zip(scores, splits.exam)]
    assert sum(right) / len(right) > 0.7


def test_without_calibration_half_of_the_question_must_be_there():
    passages = library()
    retriever = FakeRetriever(passages)
    assert calibrate(retriever, [], retriever.rarity) == Gate.uncalibrated()
    gate, rarity = Gate.uncalibrated(), retriever.rarity
    there = "What does " + passages[0].heading + " return?"
    assert gate.passes(gate.score(there, retriever.search(there), rarity))
    nowhere = "Who painted the ceiling of the Sistine Chapel?"
    assert not gate.passes(gate.score(nowhere, retriever.search(nowhere), rarity))
    assert gate.score("anything", [], rarity) == 0.0


def test_of_many_passages_every_nth_is_counted():
    store = FakeStore(library())
    whole, part = Rarity.of_store(store), Rarity.of_store(store, limit=50)
    assert whole.passages == len(store) == 150
    assert part.passages == 50
    assert whole.idf("shelf") == pytest.approx(part.idf("shelf"), abs=0.7)
    assert "sistine" not in whole


def test_features_are_in_bounds_whatever_is_asked():
    retriever = FakeRetriever(library(5))
    for text in ("", "?", "the of", "board " * 500, "木板是什么？", passages_text(retriever)):
        row = gate_features(text, retriever.search(text), retriever.rarity)
        assert row.shape == (len(FEATURES),)
        assert np.isfinite(row).all()


def passages_text(retriever):
    return retriever.store.passages[0].text
