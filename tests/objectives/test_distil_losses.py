"""Losses of distillation beside TRL's, DistilBERT's, TinyBERT's and MiniLM's (goldens/make_distillation.py), and what
holds by definition."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.errors import UsageError
from dacheng.objectives.distil_losses import (
    attention_scores,
    cosine_states,
    generalized_jsd,
    relation_heads,
    relation_kl,
    soft_targets,
    squared_scores,
    squared_states,
    stored_targets,
)


@pytest.fixture(scope="module")
def golden(goldens) -> dict[str, Any]:
    return json.loads((goldens / "distillation.json").read_text(encoding="utf-8"))


def tensor(numbers: list, ndim: int = 3) -> torch.Tensor:
    return torch.tensor(numbers[:-ndim]).reshape([int(n) for n in numbers[-ndim:]])


@pytest.mark.oracle
def test_generalized_jsd_equals_trls(golden):
    case = golden["jsd"]
    student, teacher = tensor(case["student"]), tensor(case["teacher"])
    kept = torch.tensor(case["labels"]) != -100
    for row in case["rows"]:
        found = generalized_jsd(student, teacher, row["beta"], row["temperature"])[kept]
        assert float(found.sum() / kept.sum()) == pytest.approx(row["loss"], rel=1e-6, abs=1e-6), row


@pytest.mark.oracle
def test_distilberts_three_terms_equal_its_own_code(golden):
    case = golden["distilbert"]
    s, t = tensor(case["s_logits"]), tensor(case["t_logits"])
    real = torch.arange(4) < torch.tensor(case["lengths"])[:, None]
    ce = float(soft_targets(s[real], t[real], 2.0).mean())
    cos = float(cosine_states(tensor(case["s_hidden"])[real], tensor(case["t_hidden"])[real]).mean())
    mlm = float(torch.nn.functional.cross_entropy(s.flatten(0, 1), torch.tensor(case["labels"]).flatten()))
    assert ce == pytest.approx(case["ce"], rel=1e-6) and cos == pytest.approx(case["cos"], rel=1e-6)
    assert 5 * ce + 2 * mlm + cos == pytest.approx(case["total"], rel=1e-6)


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["whole", "padded"])
def test_minilms_relations_equal_an_implementation_on_real_berts(golden, name):
    case = golden[name]
    mine, theirs = ({part: tensor(case[side][part], 4) for part in "qkv"} for side in ("student", "teacher"))
    real = torch.arange(5) < torch.tensor(case["lengths"])[:, None]
    visible = real[:, None, None, :]

    def mean(per_token: torch.Tensor) -> float:
        """Theirs is a mean over a text's tokens, then over texts."""
        return float(((per_token * real).sum(-1) / real.sum(-1)).mean())

    def relation(part: str, heads: int) -> torch.Tensor:
        a, b = relation_heads(mine[part], heads), relation_heads(theirs[part], heads)
        scale = a.shape[-1] ** -0.5
        return relation_kl(attention_scores(a, a, scale), attention_scores(b, b, scale), visible)

    scale = mine["q"].shape[-1] ** -0.5
    attention = relation_kl(
        attention_scores(mine["q"], mine["k"], scale), attention_scores(theirs["q"], theirs["k"], scale), visible
    )
    assert mean(attention) + mean(relation("v", 3)) == pytest.approx(case["minilm"], rel=2e-5)
    for heads, expected in case["minilm2"].items():
        assert sum(mean(relation(part, int(heads))) for part in "qkv") == pytest.approx(expected, rel=2e-5)


@pytest.mark.oracle
def test_tinyberts_scores_and_states_equal_its_formula(golden):
    case = golden["whole"]
    mine, theirs = case["student"], case["teacher"]
    scale = tensor(mine["q"], 4).shape[-1] ** -0.5
    scores = [attention_scores(tensor(side["q"], 4), tensor(side["k"], 4), scale) for side in (mine, theirs)]
    visible = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    assert float(squared_scores(*scores, visible).mean()) == pytest.approx(case["tinybert_attention"], rel=1e-5)
    states = [tensor(side["hidden"]) for side in (mine, theirs)]
    assert float(squared_states(*states).mean()) == pytest.approx(case["tinybert_states"], rel=1e-5)


def test_soft_targets_are_torchs_kl_div_times_t_squared_and_zero_for_the_teacher_itself():
    generator = torch.Generator().manual_seed(0)
    s, t = torch.randn(6, 9, generator=generator), torch.randn(6, 9, generator=generator)
    for temperature in (1.0, 2.0, 5.0):
        expected = torch.nn.functional.kl_div(
            (s / temperature).log_softmax(-1), (t / temperature).softmax(-1), reduction="none"
        ).sum(-1)
        torch.testing.assert_close(soft_targets(s, t, temperature), expected * temperature**2)
    assert soft_targets(t, t, 3.0).abs().max() < 1e-6
    for beta in (0.0, 0.3, 1.0):
        assert generalized_jsd(t, t + 4.0, beta).abs().max() < 1e-6  # a constant changes no distribution


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), k=st.integers(1, 12), temperature=st.sampled_from([1.0, 2.0]))
def test_what_is_stored_never_says_more_than_the_whole_and_all_of_it_when_all_is_stored(seed, k, temperature):
    generator = torch.Generator().manual_seed(seed)
    s, t = (2 * torch.randn(3, 12, generator=generator) for _ in range(2))
    logps, tokens = (t / temperature).log_softmax(-1).topk(k)
    whole, found = soft_targets(s, t, temperature), stored_targets(s, tokens, logps, temperature)
    assert bool((found <= whole + 1e-4).all()) and bool((found >= -1e-4).all())
    if k == 12:
        torch.testing.assert_close(found, whole, atol=2e-4, rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), beta=st.floats(0.01, 0.99))
def test_the_divergence_is_bounded_and_symmetric_where_it_should_be(seed, beta):
    generator = torch.Generator().manual_seed(seed)
    s, t = (3 * torch.randn(2, 8, generator=generator) for _ in range(2))
    found = generalized_jsd(s, t, beta)
    entropy = -(beta * math.log(beta) + (1 - beta) * math.log(1 - beta))  # of the coin that picks p or q
    assert bool((found >= -1e-6).all()) and bool((found <= entropy + 1e-5).all())
    torch.testing.assert_close(generalized_jsd(t, s, 1 - beta), found, atol=1e-6, rtol=1e-5)


def test_padding_and_grouped_keys_change_nothing():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 4, 5, 6, generator=generator), torch.randn(1, 2, 5, 6, generator=generator)
    full = attention_scores(q, k, 0.5)
    assert torch.allclose(full[:, 3], q[:, 3] @ k[:, 1].transpose(-1, -2) * 0.5)
    other = full + torch.randn(full.shape, generator=generator)
    seen = torch.tensor([[True, True, True, False, False]])[:, None, None, :]
    for loss in (relation_kl, squared_scores):
        padded, alone = loss(full, other, seen), loss(full[..., :3], other[..., :3], seen[..., :3])
        torch.testing.assert_close(padded, alone)


def test_teachers_of_other_outcomes_and_heads_that_do_not_divide_are_refused():
    with pytest.raises(UsageError, match="tells 4 outcomes apart and the student 3") as error:
        soft_targets(torch.zeros(1, 3), torch.zeros(1, 4))
    assert error.value.field == "teacher"
    with pytest.raises(UsageError, match="no whole number of heads"):
        relation_heads(torch.zeros(1, 3, 2, 4), 5)
