"""The engine as its users meet it: batches, streams, scores, vectors, refusals, cancellation."""

import math
from dataclasses import replace

import pytest
import torch
from engine_fakes import PieceTokenizer, is_greedy, plain_logits, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.engine import Engine, Request
from dacheng.engine.readings import Embedding, Scoring
from dacheng.errors import DachengError, UsageError
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.nn.contexts import DenseCausal
from dacheng.nn.rope import RopeScaling
from dacheng.protocols import LanguageModel, SamplingParams

TOKENIZER = PieceTokenizer()
MODEL = tiny_model(kv_heads=2, window=9, window_pattern="SL")
GREEDY = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
SAMPLED = SamplingParams(max_tokens=20, temperature=0.8, top_k=40, top_p=0.9, repetition_penalty=1.2, ignore_eos=True)
PROMPTS = ["a", "The quick brown fox", "大成", "def main():\n    return", "x" * 50, "", "0123456789"]


def engine(**settings) -> Engine:
    return Engine(MODEL, TOKENIZER, **settings)


def params_for(index: int) -> SamplingParams:
    """Greedy and sampled side by side, each with its own seed and length."""
    return replace((GREEDY, SAMPLED)[index % 2], seed=1000 + index, max_tokens=5 + 2 * index)


ALONE = [engine().generate([prompt], params_for(i))[0] for i, prompt in enumerate(PROMPTS)]


def test_it_is_a_language_model():
    assert isinstance(engine(), LanguageModel)


@settings(max_examples=8, deadline=None)
@given(st.permutations(range(len(PROMPTS))), st.integers(1, 8), st.integers(0, 40))
def test_a_text_does_not_depend_on_its_company(order, max_batch, extra):
    """Any order, batch size and token budget, so any mix of chunks and single tokens, joining and leaving."""
    together = engine(max_batch=max_batch, max_tokens_per_step=max_batch + extra).generate(
        [PROMPTS[i] for i in order], [params_for(i) for i in order]
    )
    for i, completion in zip(order, together):
        assert completion.token_ids == ALONE[i].token_ids
        assert completion.text == ALONE[i].text


def test_requests_join_and_leave_between_steps():
    shared = engine(max_batch=3, max_tokens_per_step=16)
    requests = [Request(TOKENIZER.encode(prompt) or [256], params_for(i)) for i, prompt in enumerate(PROMPTS)]
    texts: dict[int, str] = {}
    queue = list(requests)
    while queue or shared.has_work:
        if queue:
            texts[shared.add(queue.pop())] = ""
        for output in shared.step():
            texts[output.request_id] += output.text
    for request, alone in zip(requests, ALONE):
        assert request.finished and request.token_ids == alone.token_ids
        assert texts[request.id] == request.completion().text == alone.text
    assert shared.cache.open_slots == 0


def test_greedy_is_the_argmax_of_a_plain_forward():
    ids = TOKENIZER.encode("The quick")
    (completion,) = engine().generate([ids], GREEDY)
    assert len(completion.token_ids) == 20 and is_greedy(MODEL, ids, completion.token_ids)
    assert completion.prompt_token_ids == ids
    assert completion.finish_reason == "length"
    assert completion.text == TOKENIZER.decode(completion.token_ids)


def test_logprobs_are_those_of_a_plain_forward():
    (completion,) = engine().generate(["abc"], replace(SAMPLED, logprobs=True, seed=5))
    ids = completion.prompt_token_ids + completion.token_ids
    expected = torch.log_softmax(plain_logits(MODEL, ids), -1)
    chosen = [float(expected[len("abc") - 1 + i, token]) for i, token in enumerate(completion.token_ids)]
    assert completion.logprobs == pytest.approx(chosen, abs=1e-4)


def test_seeds():
    prompts = ["same"] * 4

    def texts(engine_seed: int, seeds: list[int | None]) -> list[list[int]]:
        completions = engine(seed=engine_seed).generate(prompts, [replace(SAMPLED, seed=s) for s in seeds])
        return [completion.token_ids for completion in completions]

    by_seed = texts(0, [7, 7, 8, -1])
    assert by_seed[0] == by_seed[1] and len(set(map(tuple, by_seed))) == 3
    assert texts(1, [7, 7, 8, -1]) == by_seed  # a request's own seed is all that counts
    drawn = texts(0, [None] * 4)
    assert len(set(map(tuple, drawn))) == 4
    assert texts(0, [None] * 4) == drawn and texts(1, [None] * 4) != drawn
    assert texts(0, [7, None, None, None])[1:] == drawn[1:]  # one with a seed moves no other


def test_stream_equals_generate_and_returns_the_completion():
    for i, prompt in enumerate(PROMPTS):
        stream, pieces = engine().stream(prompt, params_for(i)), []
        try:
            while True:
                pieces.append(next(stream))
        except StopIteration as end:
            assert end.value.token_ids == ALONE[i].token_ids
        assert "".join(pieces) == ALONE[i].text and "" not in pieces


def test_two_streams_share_an_engine():
    shared = engine()
    first, second = shared.stream(PROMPTS[0], params_for(0)), shared.stream(PROMPTS[1], params_for(1))
    texts = ["", ""]
    done = [False, False]
    while not all(done):
        for i, stream in enumerate((first, second)):
            piece = next(stream, None)
            done[i] = piece is None
            texts[i] += piece or ""
    assert texts == [ALONE[0].text, ALONE[1].text]


def test_closing_a_stream_cancels_it():
    shared = engine()
    stream = shared.stream("abc", GREEDY)
    next(stream)
    assert shared.has_work and shared.cache.open_slots == 1
    stream.close()
    assert not shared.has_work and shared.cache.open_slots == 0
    assert shared.metrics["finished_cancelled"] == 1


def test_cancel_frees_the_slot_of_a_running_and_the_place_of_a_waiting_request():
    shared = engine(max_batch=1)
    running, waiting, last = (Request([i], GREEDY) for i in (1, 2, 3))
    for request in (running, waiting, last):
        shared.add(request)
    shared.step()
    assert shared.cancel(waiting.id) and shared.cancel(running.id)
    assert not shared.cancel(running.id) and not shared.cancel(99)
    assert running.completion().finish_reason == waiting.completion().finish_reason == "cancelled"
    assert len(running.token_ids) == 1 and waiting.token_ids == []
    assert shared.cache.open_slots == 0
    while shared.has_work:
        shared.step()
    assert len(last.token_ids) == 20 and is_greedy(MODEL, [3], last.token_ids)


def test_a_text_ends_where_the_context_does():
    small = engine(max_context=30)
    (completion,) = small.generate([[5] * 25], replace(GREEDY, max_tokens=100))
    assert completion.finish_reason == "length" and len(completion.token_ids) == 5
    (last,) = small.generate([[5] * 29], replace(GREEDY, max_tokens=100))
    assert len(last.token_ids) == 1


@pytest.mark.parametrize(
    ("prompt", "params", "field"),
    [
        ([5] * 96, GREEDY, "max_context"),
        ([], GREEDY, "prompt_token_ids"),
        ([5, 258], GREEDY, "prompt_token_ids"),
        ([-1], GREEDY, "prompt_token_ids"),
        ([5], replace(GREEDY, top_p=2.0), "top_p"),
        ([5], replace(GREEDY, stop_token_ids=(258,)), "stop_token_ids"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name_and_leaves_nothing_behind(prompt, params, field):
    shared = engine()
    with pytest.raises(DachengError) as refusal:
        shared.generate([[1, 2], prompt], [GREEDY, params])
    assert refusal.value.field == field and refusal.value.remedy
    assert not shared.has_work and shared.cache.open_slots == 0
    with pytest.raises(DachengError):
        shared.stream(prompt, params)  # at the call, not at the first piece
    assert is_greedy(MODEL, [1, 2], shared.generate([[1, 2]], GREEDY)[0].token_ids)


def test_misuse_is_refused():
    with pytest.raises(UsageError, match="one length"):
        engine().generate(["a", "b"], [GREEDY])
    with pytest.raises(UsageError, match="sequences"):
        engine().generate("one text, not a list of them", GREEDY)
    with pytest.raises(UsageError) as too_long:
        engine(max_context=97)
    assert too_long.value.field == "max_context"
    for no_ids in ("text", [1.5]):
        with pytest.raises(TypeError):
            Request(no_ids)
    shared, request = engine(), Request([1], GREEDY)
    shared.add(request)
    with pytest.raises(UsageError, match="added once"):
        shared.add(request)


def test_without_a_tokenizer_it_works_on_ids():
    plain = Engine(MODEL)
    (completion,) = plain.generate([[1, 2, 3]], replace(GREEDY, stop_token_ids=(4,)))
    assert completion.text == ""
    assert is_greedy(MODEL, [1, 2, 3], completion.token_ids)
    for wants_text in (
        lambda: plain.generate(["text"], GREEDY),
        lambda: plain.generate([[1]], replace(GREEDY, stop=("x",))),
        lambda: plain.stream([1], GREEDY),
        lambda: plain.loglikelihood([("a", "b")]),
        lambda: plain.embed(["a"]),
    ):
        with pytest.raises(UsageError, match="tokenizer"):
            wants_text()


def test_padding_of_the_vocabulary_is_never_sampled():
    padded = tiny_model(vocab_size=320)
    with torch.no_grad():
        padded.embed.weight[258:] *= 30.0  # tied head: these would win about half of the time
    raw = Engine(padded).generate([[1, 2, 3]], GREEDY)[0]
    assert max(raw.token_ids) >= 258
    (completion,) = Engine(padded, TOKENIZER).generate([[1, 2, 3]], GREEDY)
    assert max(completion.token_ids) < 258


def broken_model():
    """Token 7 makes every hidden state that sees it NaN; as an output it is harmless."""
    model = tiny_model()
    with torch.no_grad():
        model.embed.weight[7] = float("nan")
    model.head = lambda hidden: torch.nn.functional.linear(hidden, model.embed.weight.nan_to_num())
    return model


def test_a_request_that_breaks_the_model_is_the_only_one_to_suffer():
    shared = Engine(broken_model(), TOKENIZER)
    good, bad = Request([1, 2], GREEDY), Request([7, 7], GREEDY)
    shared.add(good)
    shared.add(bad)
    outputs = {output.request_id: output for output in shared.step()}
    assert outputs[bad.id].finish_reason == bad.completion().finish_reason == "error"
    assert "finite" in str(bad.error)
    assert len(outputs[good.id].token_ids) == 1
    while shared.has_work:
        shared.step()
    assert good.token_ids == Engine(broken_model(), TOKENIZER).generate([[1, 2]], GREEDY)[0].token_ids
    assert shared.cache.open_slots == 0


def test_a_nan_is_an_error_and_never_a_result():
    shared = Engine(broken_model(), TOKENIZER)
    for ask in (
        lambda: shared.generate(["fine", "\x07"], GREEDY),
        lambda: list(shared.stream("\x07", GREEDY)),
        lambda: shared.loglikelihood([("fine", "too"), ("a\x07", "b")]),
        lambda: shared.embed(["fine", "a\x07b"]),
    ):
        with pytest.raises(DachengError, match="not finite"):
            ask()
        assert not shared.has_work and shared.cache.open_slots == 0


@pytest.mark.parametrize("budget", [6, 512])
def test_what_a_failing_executor_left_half_done_is_done_anew(budget):
    """It fails when all is written: in a window layer, over tokens that a repeated chunk would look at."""
    shared = engine(max_batch=4, max_tokens_per_step=budget)
    writers = [Request(TOKENIZER.encode(PROMPTS[i]), params_for(i)) for i in (1, 3)]
    readers = [Scoring(TOKENIZER.encode("y" * 30), score_from=2), Embedding(TOKENIZER.encode("z" * 30))]
    for request in (*writers, *readers):
        shared.add(request)
    run, calls = shared.executor.run, 0

    def fail_at_times(plan, cache):
        nonlocal calls
        calls += 1
        result = run(plan, cache)
        if calls in (2, 3, 9, 17):
            raise RuntimeError("out of memory, say")
        return result

    shared.executor.run = fail_at_times
    failures = 0
    while shared.has_work:
        try:
            shared.step()
        except RuntimeError:
            failures += 1
    assert failures >= 3
    assert [request.token_ids for request in writers] == [ALONE[i].token_ids for i in (1, 3)]
    scored = torch.log_softmax(plain_logits(MODEL, readers[0].prompt_token_ids), -1)[1:29, ord("y")].sum()
    assert readers[0].nats == pytest.approx(float(scored), abs=1e-3)
    assert readers[1].vector() == pytest.approx(engine().embed(["z" * 30])[0], abs=1e-5)


PAIRS = [("The answer is", " 42"), ("", "hello"), ("a", "b"), ("大", "成" * 12), ("x" * 60, "y" * 30)]


@pytest.mark.parametrize("budget", [6, 40, 512])
def test_loglikelihood_is_the_sum_from_a_plain_forward(budget):
    scores = engine(max_batch=3, max_tokens_per_step=budget).loglikelihood(PAIRS)
    for (context, continuation), (nats, _) in zip(PAIRS, scores):
        ids = (TOKENIZER.encode(context) or [TOKENIZER.eos_id]) + TOKENIZER.encode(continuation)
        logprobs = torch.log_softmax(plain_logits(MODEL, ids), -1)
        scored = len(TOKENIZER.encode(continuation))
        expected = sum(float(logprobs[i - 1, ids[i]]) for i in range(len(ids) - scored, len(ids)))
        assert nats == pytest.approx(expected, abs=1e-3)


def test_loglikelihood_says_what_greedy_would_do():
    prompt = "The answer is"
    best = engine().generate([prompt], replace(GREEDY, max_tokens=3))[0].token_ids
    text = bytes(best).decode("latin-1")
    tokenizer = PieceTokenizer()
    tokenizer.encode = lambda s, **_: list(s.encode("latin-1"))  # every byte is a text
    likely, unlikely = Engine(MODEL, tokenizer).loglikelihood([(prompt, text), (prompt, text[:2] + chr(best[2] ^ 1))])
    assert likely[1] and not unlikely[1] and likely[0] > unlikely[0]


def test_loglikelihood_counts_what_it_did_at_the_boundary_and_truncates_nothing():
    shared = Engine(tiny_model(vocab_size=260), PieceTokenizer([" b", "cd"]))
    shared.loglikelihood([("a", " b"), ("a ", "b"), ("c", "d")])
    counted = {name: n for name, n in shared.metrics.items() if name.startswith("boundary")}
    assert counted == {"boundary_exact": 1, "boundary_moved": 1, "boundary_split": 1}
    shared.loglikelihood([("x" * 96, "y")])  # 96 positions: the last token is only a target
    with pytest.raises(DachengError) as refusal:
        shared.loglikelihood([("a", "b"), ("x" * 97, "y")])
    assert refusal.value.field == "max_context" and not shared.has_work


@pytest.mark.parametrize("budget", [4, 512])
def test_embed_is_the_normalised_mean_of_the_last_hidden_states(budget):
    texts = ["one text", "大成", "", "x" * 80]
    vectors = engine(max_batch=4, max_tokens_per_step=budget).embed(texts)
    for text, vector in zip(texts, vectors):
        ids = torch.tensor([TOKENIZER.encode(text) or [TOKENIZER.eos_id]])
        with torch.no_grad():
            hidden = MODEL(ids, torch.arange(ids.shape[1])[None], DenseCausal())[0]
        expected = torch.nn.functional.normalize(hidden.mean(0), dim=0)
        assert vector == pytest.approx(expected.tolist(), abs=1e-5)
        assert math.hypot(*vector) == pytest.approx(1.0, abs=1e-5)


def test_reading_and_writing_share_steps():
    shared = engine(max_batch=4, max_tokens_per_step=16)
    writer = Request(TOKENIZER.encode(PROMPTS[1]), params_for(1))
    shared.add(writer)
    scores, vectors = shared.loglikelihood(PAIRS), shared.embed(["abc"])
    while shared.has_work:
        shared.step()
    assert writer.token_ids == ALONE[1].token_ids
    assert [nats for nats, _ in scores] == pytest.approx([nats for nats, _ in engine().loglikelihood(PAIRS)], abs=1e-3)
    assert vectors[0] == pytest.approx(engine().embed(["abc"])[0], abs=1e-5)


def test_near_ties_are_counted():
    level = tiny_model()
    with torch.no_grad():
        level.embed.weight[100] = level.embed.weight[101]
        level.head = lambda hidden: (
            torch.nn.functional.one_hot(torch.full((len(hidden),), 100), 258).float()
            + (torch.nn.functional.one_hot(torch.full((len(hidden),), 101), 258) * (1 - 5e-5))
        )
    shared = Engine(level, TOKENIZER)
    (completion,) = shared.generate([[1]], replace(GREEDY, max_tokens=5))
    assert completion.token_ids == [100] * 5
    assert completion.metrics["near_ties"] == 5 == shared.metrics["near_ties"]
    assert ALONE[0].metrics["near_ties"] == 0


def test_metrics_count_the_work():
    shared = engine(max_tokens_per_step=16)
    completions = shared.generate(["x" * 20, "y"], GREEDY)
    assert shared.metrics["tokens_generated"] == 40
    assert shared.metrics["tokens_computed"] == 21 + 2 * 19  # the last token of each is not computed
    assert shared.metrics["finished_length"] == 2
    assert shared.metrics["steps"] == 21  # one more than tokens: the first prompt takes two
    for completion in completions:
        assert 0 < completion.metrics["time_to_first_token_s"] < completion.metrics["total_s"]


def test_sampling_leaves_a_training_model_in_training():
    model = tiny_model()
    model.train()
    evaluated = Engine(tiny_model(), TOKENIZER).generate(["a"], GREEDY)[0].token_ids
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Engine(model, TOKENIZER).generate(["a"], GREEDY)[0].token_ids == evaluated
    assert model.training and model.blocks[0].training
    hidden = model(torch.tensor([[1, 2]]), torch.tensor([[0, 1]]), DenseCausal())
    hidden.sum().backward()  # nothing that the engine touched is an inference tensor
    assert model.embed.weight.grad is not None


def test_a_bfloat16_model_keeps_a_bfloat16_cache():
    model = tiny_model(kv_heads=2).bfloat16()
    narrow = Engine(model, TOKENIZER, max_batch=2)
    full = Engine(tiny_model(kv_heads=2), TOKENIZER, max_batch=2)
    for each in (narrow, full):
        assert len(each.generate(["abc", "de"], GREEDY)[0].token_ids) == 20
    assert narrow.cache.bytes() * 2 == full.cache.bytes()


def test_longrope_ends_where_its_short_factors_do():
    factors = {"short_factors": (1.0,) * 4, "long_factors": (2.0,) * 4}
    scaling = RopeScaling(kind="longrope", factor=4.0, original_positions=16, **factors)
    traits = DecoderTraits(vocab_size=40, width=16, layers=1, heads=2, max_positions=64, rope_scaling=scaling)
    engine = Engine(Decoder(traits).init_weights())
    assert engine.max_context == 16
    longer = Decoder(replace(traits, rope_scaling=replace(scaling, long=True))).init_weights()
    assert Engine(longer).max_context == 64
