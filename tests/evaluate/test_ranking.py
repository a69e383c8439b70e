"""Measures of rankings beside trec_eval's (goldens/ranking.json, make_ranking.py), and by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dacheng.errors import UsageError
from dacheng.evaluate.ranking import (
    average_precision,
    by_score,
    ndcg,
    recall,
    reciprocal_rank,
    score_rankings,
    summarise,
)

LINES = json.loads((Path(__file__).resolve().parent.parent / "goldens" / "ranking.json").read_text())
THEIRS = {"ndcg": "ndcg", "recip_rank": "mrr", "map": "map"} | {
    f"{theirs}_{k}": f"{ours}@{k}"
    for theirs, ours, cuts in (
        ("ndcg_cut", "ndcg", (1, 5, 10, 100)),
        ("recall", "recall", (1, 5, 10, 100)),
        ("map_cut", "map", (5, 10)),
    )
    for k in cuts
}


@pytest.mark.oracle
def test_every_measure_equals_that_of_trec_eval():
    for line in LINES:
        assert line["measures"].keys() == THEIRS.keys()
        ours = score_rankings({"q": by_score(line["scores"])}, {"q": line["relevance"]}, list(THEIRS.values()))
        for theirs, name in THEIRS.items():
            assert ours[name][0] == pytest.approx(line["measures"][theirs], abs=1e-12), (theirs, line)
    values = [line["measures"]["ndcg_cut_10"] for line in LINES]
    assert 0 < sum(values) / len(values) < 1 and 0.0 in values and len(set(values)) > 20  # the goldens say something


def test_by_hand():
    ranking, relevance = ["a", "b", "c", "d"], {"b": 2, "d": 1, "x": 3}
    assert ndcg(ranking, relevance, 3) == pytest.approx((2 / math.log2(3)) / (3 + 2 / math.log2(3) + 1 / math.log2(4)))
    assert recall(ranking, relevance, 2) == 1 / 3 and recall(ranking, relevance) == 2 / 3
    assert reciprocal_rank(ranking, relevance) == 1 / 2 and reciprocal_rank(ranking, relevance, 1) == 0
    assert average_precision(ranking, relevance) == pytest.approx((1 / 2 + 2 / 4) / 3)
    assert ndcg([3, 1], {1: 1}, 10) == pytest.approx(1 / math.log2(3))  # ids may be numbers


@given(
    st.permutations(list("abcdefgh")), st.dictionaries(st.sampled_from("abcdefghxy"), st.integers(-1, 3), min_size=1)
)
def test_measures_lie_between_0_and_1_and_the_best_order_gets_1(ranking, relevance):
    for function in (ndcg, recall, reciprocal_rank, average_precision):
        assert 0 <= function(ranking, relevance, 5) <= 1 + 1e-12
    best = sorted(relevance, key=lambda number: -relevance[number])
    if any(grade > 0 for grade in relevance.values()):
        for function in (ndcg, recall, reciprocal_rank, average_precision):
            assert function(best, relevance) == pytest.approx(1)


def test_a_query_without_ranking_counts_as_zero():
    scores = score_rankings({"one": ["a"]}, {"one": {"a": 1}, "two": {"a": 1}})
    assert scores == {"ndcg@10": [1, 0], "recall@5": [1, 0], "mrr": [1, 0], "map": [1, 0]}
    found = summarise(scores)["mrr"]
    assert found.estimate == 0.5 and found.n == 2


@pytest.mark.parametrize(
    ("rankings", "measures", "field"),
    [
        ({"q": ["a", "b", "a"]}, ["map"], "ranking"),
        ({"p": ["a"]}, ["map"], "query"),
        ({"q": ["a"]}, ["precision"], "measures"),
        ({"q": ["a"]}, ["ndcg@0"], "measures"),
    ],
)
def test_what_is_wrong_is_named(rankings, measures, field):
    with pytest.raises(UsageError) as error:
        score_rankings(rankings, {"q": {"a": 1}}, measures)
    assert error.value.field == field
