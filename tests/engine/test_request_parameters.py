"""What a request may ask for beside its text: how long at least, how likely, until when."""

import time
from dataclasses import replace

import pytest
import torch
from engine_fakes import PieceTokenizer, plain_logits, tiny_model

from dacheng.engine import Engine, Request
from dacheng.protocols import SamplingParams

MODEL = tiny_model(kv_heads=2, window=9, window_pattern="SL")
GREEDY = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
SAMPLED = SamplingParams(max_tokens=20, temperature=0.8, top_k=40, top_p=0.9, repetition_penalty=1.2, ignore_eos=True)


def engine(**settings) -> Engine:
    return Engine(MODEL, PieceTokenizer(), **settings)


def test_nothing_ends_a_text_before_min_tokens():
    """The end ids are the tokens that greedy decoding says first, and the stop string is in every text."""
    free = engine().generate(["The"], GREEDY)[0].token_ids
    ends = tuple(dict.fromkeys(free[:3]))
    for min_tokens in (0, 1, 6):
        params = replace(GREEDY, stop_token_ids=ends, min_tokens=min_tokens)
        (done,) = engine().generate(["The"], params)
        assert not set(done.token_ids[:min_tokens]) & set(ends)
        assert min_tokens > 0 or done.token_ids == free[:1]
        if done.finish_reason == "stop":
            assert len(done.token_ids) > min_tokens and done.token_ids[-1] in ends
    tokenizer = PieceTokenizer()
    tokenizer.vocabulary = [b"ab"] * 258
    for min_tokens, text in ((0, "a"), (1, "ab" + "a"), (4, "abababab" + "a")):
        params = replace(GREEDY, stop=("b",), min_tokens=min_tokens)
        (done,) = Engine(MODEL, tokenizer).generate([[1, 2]], params)
        assert done.text == text[: max(1, 2 * min_tokens - 1)] and done.finish_reason == "stop"


def test_top_logprobs_are_those_of_a_plain_forward():
    (completion,) = engine().generate(["abc"], replace(SAMPLED, logprobs=True, top_logprobs=3, seed=5))
    ids = completion.prompt_token_ids + completion.token_ids
    expected = torch.log_softmax(plain_logits(MODEL, ids), -1)[2:-1].topk(3)
    assert len(completion.top_logprobs) == 20 and completion.prompt_logprobs is None
    for best, values, tokens in zip(completion.top_logprobs, expected.values, expected.indices):
        assert [token for token, _ in best] == tokens.tolist()
        assert [value for _, value in best] == pytest.approx(values.tolist(), abs=1e-4)
    assert engine().generate(["abc"], SAMPLED)[0].top_logprobs is None


def test_deadlines_end_what_waits_and_what_runs():
    shared = engine(max_batch=1)
    now = time.monotonic()
    running, waiting, last = (
        Request([i], GREEDY, deadline=deadline) for i, deadline in ((1, now + 60), (2, now), (3, None))
    )
    for request in (running, waiting, last):
        shared.add(request)
    outputs = shared.step()
    assert [(o.request_id, o.finish_reason) for o in outputs] == [(waiting.id, "deadline"), (running.id, None)]
    running.deadline = now
    outputs = shared.step()
    assert [(o.request_id, o.finish_reason) for o in outputs] == [(running.id, "deadline"), (last.id, None)]
    assert len(running.token_ids) == 1 and shared.cache.open_slots == 1
    while shared.has_work:
        shared.step()
    assert last.finish_reason == "length" and shared.metrics["finished_deadline"] == 2
