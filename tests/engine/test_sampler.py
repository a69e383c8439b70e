"""The sampler against a straightforward reading of each definition, one row and one token at a time."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.engine import sampler
from dacheng.engine.adjust import adjusted
from dacheng.engine.params import check_params
from dacheng.engine.sampler import (
    SamplerState,
    draw,
    first_largest,
    greedy,
    penalise,
    probabilities,
    sample,
    tempered,
)
from dacheng.errors import UsageError
from dacheng.protocols import SamplingParams

# Few different values, so that ties are common; -inf is what a grammar's mask puts there.
VALUES = st.sampled_from([-math.inf, -3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 4.0])
ROWS = st.lists(VALUES, min_size=6, max_size=6).filter(lambda row: max(row) > -math.inf)
LOGITS = st.lists(ROWS, min_size=1, max_size=4)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.3, 0.7, 1.0, 2.5]),
    top_k=st.integers(0, 7),
    top_p=st.sampled_from([0.0, 0.05, 0.3, 0.62, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.07, 0.45, 1.0]),
)


def softmax(logits: list[float], temperature: float) -> list[float]:
    top = max(logits)
    weights = [math.exp((x - top) / temperature) for x in logits]
    return [w / sum(weights) for w in weights]


def kept_by_definition(logits: list[float], params: SamplingParams) -> set[int]:
    """Ids that may be drawn, by the definitions: sort by probability (then id), top-k, top-p of the rest, min-p."""
    probs = softmax(logits, params.temperature)
    order = sorted(range(len(probs)), key=lambda i: (-probs[i], i))
    if params.top_k:
        order = order[: params.top_k]
    if params.top_p < 1:
        total, mass, nucleus = sum(probs[i] for i in order), 0.0, []
        for i in order:
            nucleus.append(i)
            mass += probs[i]
            if mass >= params.top_p * total - 1e-6:
                break
        order = nucleus
    return {i for i in order if probs[i] >= params.min_p * max(probs) - 1e-9 and probs[i] > 0}


def support(probs_V: torch.Tensor) -> set[int]:
    return set(probs_V.nonzero().flatten().tolist())


@settings(max_examples=150, deadline=None)
@given(LOGITS, st.data())
def test_what_may_be_drawn(rows, data):
    params = [data.draw(PARAMS) for _ in rows]
    probs = probabilities(torch.tensor(rows), params)
    for row, logits, own in zip(probs, rows, params):
        kept = kept_by_definition(logits, own)
        assert support(row) == kept
        exact = softmax(logits, own.temperature)
        assert row.tolist() == pytest.approx([exact[i] if i in kept else 0.0 for i in range(len(exact))], abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(1, 9))
def test_top_k_keeps_exactly_k(row, k):
    kept = first_largest(torch.tensor([row]), torch.tensor([min(k, 6)]))[0]
    assert kept.sum() == min(k, 6)
    order = sorted(range(6), key=lambda i: (-row[i], i))
    assert support(kept) == set(order[: min(k, 6)])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**16), st.floats(0.01, 0.999), st.sampled_from([1, 4, 600]))
def test_top_p_keeps_the_smallest_set_with_its_mass(seed, top_p, prefix):
    """On 600 distinct values, with a prefix that must be widened, just one that holds some, and a whole sort."""
    logits = torch.randn(2, 600, generator=torch.Generator().manual_seed(seed)) * 2
    exact = torch.softmax(logits.double(), -1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "TOP_P_PREFIX", prefix)
        kept = probabilities(logits, [SamplingParams(top_p=top_p)] * 2) > 0
    for probs, mask in zip(exact, kept):
        assert probs[mask].sum() >= top_p - 1e-6
        assert probs[mask].sum() - probs[mask].min() < top_p + 1e-6
        assert mask.all() or probs[mask].min() >= probs[~mask].max()


@settings(max_examples=60, deadline=None)
@given(ROWS, st.floats(0.0, 1.0))
def test_min_p_is_a_share_of_the_most_likely(row, min_p):
    probs = torch.softmax(torch.tensor([row]), -1)
    kept = support(probabilities(torch.tensor([row]), [SamplingParams(min_p=min_p)])[0])
    clear = (probs - min_p * probs.max()).abs()[0] > 1e-6
    for i in clear.nonzero().flatten().tolist():
        assert (i in kept) == (probs[0, i] > min_p * probs.max() and probs[0, i] > 0)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.lists(st.booleans(), min_size=6, max_size=6), st.sampled_from([0.5, 1.0, 1.3, 4.0]))
def test_repetition_penalty_formula(row, seen, penalty):
    got = penalise(torch.tensor([row]), torch.tensor([seen]), torch.tensor([[penalty]]))[0].tolist()
    expected = [(x / penalty if x > 0 else x * penalty) if s else x for x, s in zip(row, seen)]
    assert got == pytest.approx(expected, rel=1e-6)


GENERATED = st.lists(st.integers(0, 5), max_size=8)
BIASES = st.dictionaries(st.integers(0, 5), st.sampled_from([-100.0, -1.5, 2.0]), max_size=3)


@settings(max_examples=100, deadline=None)
@given(
    LOGITS,
    st.lists(st.tuples(GENERATED, st.sampled_from([0.0, 0.5, -2.0]), st.sampled_from([0.0, 0.3, -1.0]), BIASES)),
    st.sampled_from([1.0, 1.3]),
    st.integers(0, 5),
)
def test_adjusted_logits_by_definition(rows, drawn, repetition, min_tokens):
    """Each row with penalties, biases and a history of its own; some with none."""
    states, expected = [], []
    for i, row in enumerate(rows):
        generated, presence, frequency, bias = drawn[i] if i < len(drawn) else ([], 0.0, 0.0, {})
        params = SamplingParams(
            presence_penalty=presence,
            frequency_penalty=frequency,
            repetition_penalty=repetition,
            logit_bias=tuple(bias.items()),
            min_tokens=min_tokens,
        )
        states.append(SamplerState(params, 0, 6, [2], forbidden={1, 4}))
        for token in generated:
            states[-1].note(token)
        values = [x + bias.get(i, 0.0) for i, x in enumerate(row)]
        values = [
            (x / repetition if x > 0 else x * repetition) if i in {2, *generated} else x for i, x in enumerate(values)
        ]
        values = [x - generated.count(i) * frequency - (i in generated) * presence for i, x in enumerate(values)]
        forbidden = {1, 4} if len(generated) < min_tokens else set()
        expected.append([-math.inf if i in forbidden else x for i, x in enumerate(values)])
    logits = torch.tensor(rows)
    for found, values in zip(adjusted(logits, states).tolist(), expected):
        assert found == pytest.approx(values, rel=1e-5, abs=1e-5)
    assert torch.equal(logits, torch.tensor(rows)), "the model's own logits stay as they are"


def test_top_logprobs_are_the_best_of_the_model_itself():
    logits = torch.tensor([[1.0, 2.0, 0.5, -1.0]] * 3)
    exact = torch.log_softmax(logits, -1)[0].tolist()
    states = [
        SamplerState(
            SamplingParams(logprobs=True, top_logprobs=count, temperature=0, logit_bias=((3, 50.0),)), 0, 4, []
        )
        for count in (2, 0, 4)
    ]
    two, none, four = sample(logits, states)
    assert two.token_id == none.token_id == four.token_id == 3
    assert none.top_logprobs is None and none.logprob == pytest.approx(exact[3], abs=1e-6)
    assert [token for token, _ in two.top_logprobs] == [1, 0] and [t for t, _ in four.top_logprobs] == [1, 0, 2, 3]
    assert [x for _, x in four.top_logprobs] == pytest.approx([exact[i] for i in (1, 0, 2, 3)], abs=1e-6)


def test_penalties_push_a_greedy_text_off_its_own_words():
    """Always the same logits: each token is said until its penalty has brought it below the next."""
    logits = torch.tensor([[3.0, 2.0, 0.0]])

    def said(**penalties) -> list[int]:
        state, tokens = SamplerState(SamplingParams(temperature=0, **penalties), 0, 3, [0, 0, 0]), []
        for _ in range(5):
            tokens.append(sample(logits, [state])[0].token_id)
            state.note(tokens[-1])
        return tokens

    assert said() == [0] * 5  # what is in the prompt costs nothing
    assert said(presence_penalty=1.5) == [0, 1, 0, 0, 0]
    assert said(frequency_penalty=0.6) == [0, 0, 1, 0, 1]
    assert said(frequency_penalty=-0.5) == [0] * 5


@pytest.mark.parametrize("temperature", [1e-3, 1e-10, 1e-44, 1e-308])
def test_temperature_to_zero_is_greedy(temperature):
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(0)) * 3
    probs = tempered(logits, torch.full((5, 1), temperature))
    assert probs.argmax(-1).tolist() == greedy(logits)[0]
    assert probs.amax(-1).tolist() == pytest.approx([1.0] * 5, abs=1e-3)


def test_greedy_takes_the_lowest_id_of_equals_and_reports_near_ties():
    logits = torch.tensor(
        [
            [0.0, 5.0, 1.0, 5.0],
            [0.0, 1.0, 5.0, 5.0 - 5e-5],
            [9.0, 0.0, 0.0, 0.0],
            [-math.inf, 2.0, -math.inf, -math.inf],
        ]
    )
    assert greedy(logits) == ([1, 2, 0, 1], [True, True, False, False])
    wide = torch.zeros(2, 9000)
    wide[:, [8000, 300, 4000]] = 7.0
    assert greedy(wide) == ([300, 300], [True, True])
    assert greedy(torch.zeros(2, 1)) == ([0, 0], [False, False])


def test_draw_inverts_the_distribution():
    probs = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]])
    last = 1 - 2**-53
    for uniform, token in [(0.0, 1), (0.2499, 1), (0.25, 3), (0.7499, 3), (0.75, 4), (last, 4)]:
        assert draw(probs * 3, torch.tensor([uniform], dtype=torch.float64)).tolist() == [token]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=50).filter(any), st.floats(0, 1, exclude_max=True))
def test_draw_never_takes_what_is_impossible(weights, uniform):
    probs = torch.tensor([weights])
    token = int(draw(probs, torch.tensor([uniform], dtype=torch.float64)))
    assert probs[0, token] > 0


def test_frequencies_follow_the_probabilities():
    """20,000 draws over 5 tokens: each frequency within 4 standard deviations."""
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0, 0.5]]).expand(500, 5)
    states = [SamplerState(SamplingParams(temperature=0.8), seed, 5, []) for seed in range(500)]
    counts = torch.zeros(5)
    for _ in range(40):
        for choice in sample(logits, states):
            counts[choice.token_id] += 1
    exact = torch.softmax(logits[0] / 0.8, -1)
    deviation = (20000 * exact * (1 - exact)).sqrt()
    assert ((counts - 20000 * exact).abs() < 4 * deviation).all()


def test_a_request_draws_the_same_in_any_company():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(20, 3, 40, generator=generator)
    params = [
        SamplingParams(temperature=0.9, top_k=10, repetition_penalty=1.2),
        SamplingParams(temperature=0.0, logprobs=True),
        SamplingParams(temperature=1.3, top_p=0.8, min_p=0.05, logprobs=True),
    ]

    def run(rows: list[int]) -> dict[int, list]:
        states = {row: SamplerState(params[row], 100 + row, 40, [1, 2]) for row in rows}
        drawn: dict[int, list] = {row: [] for row in rows}
        for step in logits:
            for row, choice in zip(rows, sample(step[rows], list(states.values()))):
                states[row].note(choice.token_id)
                drawn[row].append((choice.token_id, choice.logprob and round(choice.logprob, 5)))
        return drawn

    together = run([0, 1, 2])
    for rows in ([0], [1], [2], [2, 0], [1, 0]):
        for row, drawn in run(rows).items():
            assert drawn == together[row]


def test_logprobs_are_those_of_the_model_itself():
    logits = torch.tensor([[1.0, 2.0, 0.5]])
    state = SamplerState(SamplingParams(temperature=0.1, top_k=1, repetition_penalty=3.0, logprobs=True), 0, 3, [0])
    (choice,) = sample(logits, [state])
    assert choice.token_id == 1
    assert choice.logprob == pytest.approx(float(torch.log_softmax(logits, -1)[0, 1]), abs=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rows_without_a_distribution_get_nothing_and_disturb_no_other(bad):
    logits = torch.zeros(4, 5)
    logits[1, 2] = bad
    logits[2] = -math.inf
    states = [SamplerState(SamplingParams(), seed, 5, []) for seed in range(4)]
    streams = [state.generator.get_state() for state in states]
    choices = sample(logits, states)
    assert [choice is None for choice in choices] == [False, True, True, False]
    moved = [not torch.equal(state.generator.get_state(), before) for state, before in zip(states, streams)]
    assert moved == [True, False, False, True]
    alone = [SamplerState(SamplingParams(), seed, 5, []) for seed in (0, 3)]
    assert sample(logits[[0, 3]], alone) == [choices[0], choices[3]]
    assert sample(logits[1:3], states[1:3]) == [None, None]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("repetition_penalty", 0.0),
        ("seed", 2**64),
        ("stop", "text"),
        ("stop", ("",)),
        ("stop_token_ids", (50,)),
        ("presence_penalty", math.inf),
        ("frequency_penalty", math.nan),
        ("logit_bias", ((50, 1.0),)),
        ("logit_bias", ((1, math.nan),)),
        ("min_tokens", -1),
        ("min_tokens", 129),
        ("top_logprobs", -1),
        ("top_logprobs", 3),  # without logprobs
        ("prompt_logprobs", -1),
        ("grammar", "root ::= x"),
    ],
)
def test_parameters_out_of_range_are_refused_by_name(field, value):
    check_params(SamplingParams(), 50)
    with pytest.raises(UsageError) as refusal:
        check_params(SamplingParams(**{field: value}), 50)
    assert refusal.value.field == field and refusal.value.value is value


@pytest.mark.oracle
def test_the_filters_are_those_of_transformers(goldens):
    """tests/goldens/make_sampling.py: the logits processors of transformers on distinct logits."""
    golden = json.loads((goldens / "sampling.json").read_text())
    for case in golden["cases"]:
        params = SamplingParams(**case["params"])
        state = SamplerState(params, 0, 40, case["seen"], forbidden=params.stop_token_ids)
        probs = probabilities(adjusted(torch.tensor([case["logits"]]), [state]), [params])
        probs = probs / probs.sum()
        assert probs[0].tolist() == pytest.approx(case["probabilities"], abs=1e-6), case["params"]
