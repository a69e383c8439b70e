"""Cached equals uncached, chunked equals whole, batched equals single: logits and texts, for every trait."""

import pytest
import torch
from engine_fakes import TRAITS, AllLogits, is_greedy, plain_logits, tiny_model

from dacheng.engine import Engine, Request
from dacheng.engine import context as context_module
from dacheng.engine.context import CachedContext, Run
from dacheng.nn.contexts import AttentionLayer
from dacheng.protocols import SamplingParams

IDS = torch.randint(0, 258, (5, 40), generator=torch.Generator().manual_seed(1)).tolist()
TOLERANCE = 1e-4


def drive(engine: Engine) -> None:
    while engine.has_work:
        engine.step()


@pytest.mark.parametrize("name", TRAITS)
@pytest.mark.parametrize("budget", [1, 3, 16, 40])
def test_logits_of_a_chunked_prompt(name, budget):
    """budget 1 is pure decode, 40 the whole prompt at once, the others chunks with a past."""
    model = tiny_model(**TRAITS[name])
    reading = AllLogits(IDS[0])
    engine = Engine(model, max_batch=1, max_tokens_per_step=budget)
    engine.add(reading)
    drive(engine)
    expected = plain_logits(model, IDS[0])
    assert expected.std() > 0.5
    assert len(reading.logits) == -(-40 // budget)
    assert (torch.cat(reading.logits) - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", TRAITS)
@pytest.mark.parametrize("worth_padding", [-1, 128])
def test_logits_of_requests_that_share_steps(name, worth_padding, monkeypatch):
    """Different lengths, so that steps mix single tokens with chunks; with padded neighbours and one by one."""
    monkeypatch.setattr(context_module, "WORTH_PADDING", worth_padding)
    model = tiny_model(**TRAITS[name])
    lengths = [5, 33, 1, 40, 12]
    readings = [AllLogits(ids[:length]) for ids, length in zip(IDS, lengths)]
    writers = [Request(ids[:length], SamplingParams(max_tokens=12, temperature=0)) for ids, length in zip(IDS, lengths)]
    engine = Engine(model, max_batch=6, max_tokens_per_step=16)
    for reading, writer in zip(readings, writers):
        engine.add(writer)
        engine.add(reading)
    drive(engine)
    for reading in readings:
        expected = plain_logits(model, reading.prompt_token_ids)
        assert (torch.cat(reading.logits) - expected).abs().max() < TOLERANCE
    for writer in writers:
        assert len(writer.token_ids) == 12 and is_greedy(model, writer.prompt_token_ids, writer.token_ids)


def runs_of(engine: Engine) -> list:
    """Of the next step: first row in the cache, step and lengths of each run; of what is scattered, lengths."""
    context = CachedContext(engine.cache, engine.scheduler.schedule())
    singles = [one.tokens for one in context._group(AttentionLayer(0), torch.zeros(1)).singles]
    return [(one.first, one.step, one.lengths) if isinstance(one, Run) else one.lengths for one in singles]


def test_neighbours_attend_together_unless_padding_costs_more():
    """50 blocks in four lanes of 12, so 384 rows from one request to the next."""
    engine = Engine(tiny_model(max_positions=400), max_batch=4, max_tokens_per_step=400)
    for i, length in enumerate((10, 20, 300, 12)):
        engine.add(Request([i + 1] * length, SamplingParams(max_tokens=4, temperature=0)))
    engine.step()
    assert runs_of(engine) == [(0, 384, [11, 21]), (768, 0, [301]), (1152, 0, [13])]


def test_a_hole_left_by_a_finished_request_splits_the_neighbours():
    model = tiny_model()
    engine = Engine(model, max_batch=4)
    requests = [Request([i, 2, 3], SamplingParams(max_tokens=12, temperature=0)) for i in range(4)]
    for request in requests:
        engine.add(request)
    engine.step()
    assert runs_of(engine) == [(0, 96, [4, 4, 4, 4])]
    engine.cancel(requests[1].id)
    assert runs_of(engine) == [(0, 192, [4, 4]), (288, 0, [4])]
    drive(engine)
    for request in (requests[0], *requests[2:]):
        assert len(request.token_ids) == 12 and is_greedy(model, request.prompt_token_ids, request.token_ids)


def test_those_that_share_a_beginning_are_gathered(monkeypatch):
    """A block of their own lies elsewhere: one call for both, each with its own length, unless that is too long."""
    model, params = tiny_model(max_positions=192), SamplingParams(max_tokens=12, temperature=0)
    for longest, expected in ((512, [[41, 60]]), (50, [[41], [60]])):
        monkeypatch.setattr(context_module, "WORTH_GATHERING", longest)
        engine = Engine(model, max_batch=4)
        engine.generate([list(range(33))], SamplingParams(max_tokens=1, temperature=0))
        held = Request(list(range(100, 120)), params)  # takes the block behind the shared one
        requests = [held, *(Request([*range(32), i, *range(length)], params) for i, length in ((200, 7), (201, 26)))]
        for request in requests:
            engine.add(request)
        engine.step()
        assert [found for found in runs_of(engine) if isinstance(found, list)] == expected
        drive(engine)
        for request in requests:
            assert is_greedy(model, request.prompt_token_ids, request.token_ids)


def test_nobody_is_padded_over_what_another_one_holds():
    """Blocks 0, 1 and 2 of a pool of three: the first may not be padded over the second's block, nor past the end."""
    engine = Engine(tiny_model(), max_batch=3, cache_tokens=96)
    for i, length in enumerate((3, 30, 3)):
        engine.add(Request([i] * length, SamplingParams(max_tokens=2, temperature=0)))
    engine.step()
    assert runs_of(engine) == [(0, 32, [4, 31, 4])]
    long = Engine(tiny_model(), max_batch=2, cache_tokens=96)
    for i, length in enumerate((3, 40)):
        long.add(Request([i] * length, SamplingParams(max_tokens=2, temperature=0)))
    long.step()
    assert runs_of(long) == [(0, 0, [4]), (32, 0, [41])]


def test_a_window_longer_than_the_context_is_no_window():
    plain, windowed = tiny_model(), tiny_model(window=500, window_pattern="S")
    windowed.load_state_dict(plain.state_dict())
    params = SamplingParams(max_tokens=40, temperature=0)
    texts = [Engine(model, max_tokens_per_step=16).generate([IDS[0][:20]], params)[0] for model in (plain, windowed)]
    assert texts[0].token_ids == texts[1].token_ids


def test_nan_of_one_request_reaches_no_other():
    """Its blocks are wiped when it leaves: padding multiplies what is behind a shorter request by zero."""
    model = tiny_model()
    with torch.no_grad():
        model.embed.weight[7] = float("nan")
    engine = Engine(model, max_batch=2)
    engine.add(broken := AllLogits([7] * 30))
    drive(engine)
    assert torch.cat(broken.logits).isnan().all()
    with torch.no_grad():
        model.embed.weight[7] = 0.0
    requests = [
        Request([1, 2, 3], SamplingParams(max_tokens=4, temperature=0)),
        Request([4] * 20, SamplingParams(max_tokens=4, temperature=0)),
    ]
    for request in requests:
        engine.add(request)
    drive(engine)
    for request in requests:
        assert len(request.token_ids) == 4 and is_greedy(model, request.prompt_token_ids, request.token_ids)
