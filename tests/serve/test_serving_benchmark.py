"""What benchmarks/serve.py counts and compares, without a server."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from serve_fakes import chat_tokenizer


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]  # their short names are not for other tests


def answer(*pieces, times=(), due=0.0, tokens=None):
    """pieces: (text, log-probabilities of the two likeliest), a token each."""
    return {
        "texts": [text for text, _ in pieces],
        "logprobs": [[{"tokens": [text], "top_logprobs": [{"a": top[0], "b": top[1]}]}] for text, top in pieces],
        "times": list(times),
        "due": due,
        "usage": {"completion_tokens": len(pieces) if tokens is None else tokens},
    }


def test_texts_are_compared_until_a_near_tie(benchmarks):
    from serve_texts import compare_with_alone, compare_with_peer

    clear, tie = (-0.1, -2.0), (-0.7, -0.70005)
    alone = answer(("the ", clear), ("cat", tie), (" sat", clear))
    same, other, early = (answer((text, clear)) for text in ("the cat sat", "the mat sat", "a cat"))
    found = compare_with_alone([alone] * 3, [same, other, early])
    assert (found["equal"], found["equal_until_near_tie"], found["different"]) == (1, 1, 1)
    assert found["gaps_where_different"] == [1.9]
    late = answer(("the ", clear), ("cat", clear), ("!", tie))  # a tie behind the difference excuses nothing
    assert compare_with_alone([late], [other])["different"] == 1

    ended = answer(("the cat", clear), ("<|im_end|>", clear), ("x", clear))
    ended["texts"][1] = ""
    found = compare_with_peer([ended, alone], [answer(("the cat and more", clear)), other])
    assert found["equal"] == 1 and found["mean_share_before_difference"] == pytest.approx((1 + 4 / 11) / 2, abs=1e-3)


def test_figures_of_known_times(benchmarks):
    from serve import cached_share, figures, percentile

    p = ("x", (0.0, -1.0))
    slow, quick = answer(p, p, p, times=(1.0, 1.5, 2.0)), answer(p, p, times=(1.25, 1.5), due=1.0, tokens=6)
    found = figures([slow, quick])
    assert found["throughput"] == pytest.approx(9 / 2.0)
    assert found["first text p50"] == pytest.approx((1000 + 250) / 2)
    assert found["between pieces p50"] == pytest.approx(500) and found["per token p95"] > found["per token p50"]
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0 and percentile([1.0, 2.0], 0.95) == pytest.approx(1.95)
    for one, cached in ((slow, 30), (quick, 0)):
        one["usage"] |= {"prompt_tokens": 50, "prompt_tokens_details": {"cached_tokens": cached}}
    assert cached_share([slow, quick]) == pytest.approx(0.3)


def test_traffic_is_the_same_for_a_seed(benchmarks):
    from serve_traffic import ANSWER, make_traffic

    text = "the cat sat on the mat, 大成 若缺 。\n" * 50
    one, again, other = (
        make_traffic(chat_tokenizer("chatml"), text, requests=60, systems=3, seed=seed) for seed in (1, 1, 2)
    )
    assert one == again and one != other and one.described() == again.described()
    assert len({tuple(prompt[:100]) for prompt in one.prompts}) <= 3  # they begin with one of three
    assert len({tuple(prompt) for prompt in one.prompts}) > 50
    assert all(ANSWER[0] <= tokens <= ANSWER[1] for tokens in one.answers)
    arrivals = one.arrivals(2.0)
    assert arrivals[0] == 0 and arrivals == sorted(arrivals) and 15 < arrivals[-1] < 60  # about 60 / 2
    assert set(one.arrivals(0)) == {0.0}
