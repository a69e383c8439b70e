"""A reward's answers are checked before anyone uses them, and a recipe makes rewards."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dacheng.align.rewards import (
    KINDS,
    FunctionReward,
    Reward,
    RewardError,
    RewardMix,
    Sample,
    describe_rewards,
    mix_from_config,
    reward_from_config,
)
from dacheng.errors import UsageError

SAMPLES = [Sample("p", response="one"), Sample("p", response="three", meta={"id": "row-7"}), Sample("p")]


class Says:
    """A reward with a prepared answer."""

    def __init__(self, answer, name="says"):
        self.answer, self.name = answer, name

    def __call__(self, samples):
        return self.answer


def by_length(sample: Sample) -> float:
    return float(len(sample.response))


def of_batch(samples, factor=1):
    return [factor * len(sample.response) for sample in samples]


def as_trl(prompts, completions, answer, **rest):
    assert prompts == ["p"] * 2 and rest == {"other": [None, 3]}
    return [float(text == right) for text, right in zip(completions, answer)]


def answered(prompts, completions, answer, **rest):
    return [None if right is None else float(text == right) for text, right in zip(completions, answer, strict=True)]


def chatty(prompts, completions, **rest):
    return [
        float(prompt[-1]["content"] in completion[0]["content"]) for prompt, completion in zip(prompts, completions)
    ]


def test_the_sum_is_weighted_and_the_parts_are_not():
    mix = RewardMix([(FunctionReward("length", by_length), 0.5), (Says([1.0, -2.0, 0.0]), 2)])
    judged = mix(SAMPLES)
    assert [one.total for one in judged] == [3.5, -1.5, 0.0]
    assert judged[1].parts == {"length": 5.0, "says": -2.0}
    assert mix([]) == []
    assert isinstance(Says([]), Reward)


def test_a_reward_that_can_not_say_is_left_out():
    rewards = [(Says([None, 1.0, None], "a"), 1.0), (Says([None, None, 3.0], "b"), 2.0)]
    assert [one.total for one in RewardMix(rewards)(SAMPLES)] == [None, 1.0, 6.0]
    assert [one.total for one in RewardMix(rewards, missing="drop")(SAMPLES)] == [None, None, None]
    assert [sorted(one.parts) for one in RewardMix(rewards)(SAMPLES)] == [[], ["a"], ["b"]]


@pytest.mark.parametrize("value", [1, 2.5, True, np.float32(0.5), np.int64(3), torch.tensor(1.5), torch.tensor([2.0])])
def test_what_counts_as_a_number(value):
    assert RewardMix([(Says([value] * 3), 1.0)])(SAMPLES)[0].total == float(value)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([0.0, float("nan"), 0.0], ["no finite number", "sample 1", "row-7", "three"]),
        ([0.0, 0.0, float("inf")], ["no finite number", "sample 2"]),
        ([0.0, 1e400, 0.0], ["no finite number"]),
        ([0.0, "1.0", 0.0], ["no number", "sample 1"]),
        ([0.0, [1.0], 0.0], ["no number"]),
        ([0.0, torch.zeros(2), 0.0], ["no number"]),
        ([0.0, torch.tensor(float("nan")), 0.0], ["no finite number"]),
        ([0.0, 1j, 0.0], ["no number"]),
        ([0.0, 0.0], ["2 values for 3 samples"]),
        ([0.0] * 4, ["4 values for 3 samples"]),
        ([], ["0 values for 3 samples"]),
        (None, ["did not return a list", "NoneType"]),
        ("abc", ["did not return a list"]),
        (1.0, ["did not return a list", "float"]),
    ],
)
def test_what_is_no_reward_is_refused_by_name(answer, words):
    with pytest.raises(RewardError) as caught:
        RewardMix([(FunctionReward("fine", by_length), 1.0), (Says(answer), 1.0)])(SAMPLES)
    for word in ["says", *words]:
        assert word in str(caught.value)


def test_a_reward_that_raises_is_named_with_its_sample():
    def broken(sample):
        return 1 / (len(sample.response) - 5)

    with pytest.raises(RewardError, match=r"reward broken raised ZeroDivisionError.*sample 1 \(id row-7\)") as caught:
        RewardMix([(FunctionReward("broken", broken), 1.0)])(SAMPLES)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)

    class Breaks:
        name = "breaks"

        def __call__(self, samples):
            raise OSError("no disk")

    with pytest.raises(RewardError, match="reward breaks raised OSError: no disk"):
        RewardMix([(Breaks(), 1.0)])(SAMPLES)


@pytest.mark.parametrize(
    ("rewards", "words"),
    [
        ([], "no rewards"),
        ([(Says([]), 1.0), (Says([]), 1.0)], "one name"),
        ([(Says([]), math.nan)], "finite"),
        ([(Says([]), math.inf)], "finite"),
        ([(Says([]), "1")], "finite"),
        ([(Says([]), True)], "finite"),
    ],
)
def test_a_mix_that_is_none(rewards, words):
    with pytest.raises(UsageError, match=words):
        RewardMix(rewards)


def test_every_kind_of_a_recipe_can_be_made():
    needed = {
        "function": {"path": f"{__name__}:by_length"},
        "length": {"maximum": 9, "unit": "characters"},
    }
    for kind in KINDS:
        reward = reward_from_config({"kind": kind, "name": "x", **needed.get(kind, {})})
        assert reward.name == "x" and isinstance(reward, Reward)
        values = reward([Sample("p", response="def f(): pass", finish_reason="stop")])
        assert len(values) == 1


def test_a_mix_from_a_recipe():
    mix = mix_from_config(
        [
            {"kind": "function", "path": f"{__name__}:by_length", "weight": 0.5},
            {"kind": "function", "path": f"{__name__}:of_batch", "style": "batch", "arguments": {"factor": 2}},
            {"kind": "finished", "weight": -1},
        ]
    )
    assert mix.names == ["by_length", "of_batch", "finished"]
    judged = mix([Sample("p", response="abc", finish_reason="stop"), Sample("p", response="abc")])
    assert [one.total for one in judged] == [6.5, 7.5]


def test_functions_of_trl():
    reward = reward_from_config({"kind": "function", "path": f"{__name__}:as_trl", "style": "trl"})
    samples = [
        Sample("p", response="a", meta={"answer": "a", "other": None}),
        Sample("p", response="b", meta={"answer": "c", "other": 3}),
    ]
    assert reward(samples) == [1.0, 0.0]
    late = reward_from_config({"kind": "function", "path": f"{__name__}:answered", "style": "trl"})
    assert late([Sample("p", response="b"), *samples]) == [None, 1.0, 0.0]  # a column that the first has not
    chat = reward_from_config({"kind": "function", "path": f"{__name__}:chatty", "style": "trl"})
    assert chat([Sample("", messages=[{"role": "user", "content": "hi"}], response="hi there")]) == [1.0]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"kind": "exat"}, "did you mean exact"),
        ({}, "no such kind"),
        ({"kind": ["x"]}, "no such kind"),
        ("exact", "a section"),
        ({"kind": "exact", "anwser": "x"}, "unknown key"),
        ({"kind": "exact", "tolerance": "much"}, "tolerance"),
        ({"kind": "exact", "extract": "boxes"}, "boxed"),
        ({"kind": "function"}, "path"),
        ({"kind": "function", "path": "nowhere:f"}, "no module nowhere"),
        ({"kind": "function", "path": f"{__name__}:missing"}, "has no missing"),
        ({"kind": "function", "path": "os:sep"}, "not a function"),
        ({"kind": "format", "pattern": "("}, "no regular expression"),
        ({"kind": "length"}, "no room between the bounds"),
        ({"kind": "length", "maximum": 10, "soft": 5, "minimum": 6}, "no room"),
        ({"kind": "judge"}, "model"),
        ({"kind": "model"}, "model"),
        ({"kind": "judge", "model": "http://127.0.0.1:1"}, "URL"),
    ],
)
def test_recipes_that_are_wrong(config, words):
    with pytest.raises(UsageError, match=words):
        reward_from_config(config)


def test_a_weight_that_is_none():
    with pytest.raises(UsageError, match="finite"):
        mix_from_config([{"kind": "finished", "weight": "much"}])


def test_how_rewards_are_spread():
    judged = RewardMix([(FunctionReward("length", by_length), 1.0), (Says([1.0, None, 1.0], "half"), 1.0)])(SAMPLES)
    found = describe_rewards(judged, lengths=[3, 5, 0])
    assert found["length"].n == 3 and found["length"].silent == 0
    assert found["length"].mean == pytest.approx(8 / 3)
    assert found["length"].std == pytest.approx(np.std([3, 5, 0], ddof=1))
    assert found["length"].quantiles == pytest.approx(np.quantile([3, 5, 0], [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]))
    assert found["length"].histogram == tuple(np.histogram([3, 5, 0], 20)[0])
    assert found["length"].length_correlation == pytest.approx(1.0)
    assert (found["half"].n, found["half"].silent, found["half"].length_correlation) == (2, 1, None)
    nothing = describe_rewards(RewardMix([(Says([None] * 3), 1.0)])(SAMPLES))
    assert nothing["reward"].n == 0 and nothing["reward"].silent == 3
