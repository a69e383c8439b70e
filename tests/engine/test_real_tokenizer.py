"""The engine with the tokenizers of the house, whose tokens end inside characters and hold parts of stop strings."""

import pytest
from engine_fakes import Scripted, tiny_model

from dacheng.engine import Engine
from dacheng.engine.boundary import encode_pair, encode_prompt
from dacheng.protocols import SamplingParams
from dacheng.text import Tokenizer, train_tokenizer

TEXTS = [
    "the cat sat on the mat, 大成 若缺 。\n\n",
    "def main():\n    return 大成(the_cat)\n",
    "🙂 the END of the story END\n",
] * 20


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request) -> Tokenizer:
    return train_tokenizer(TEXTS, kind=request.param, vocab_size=340)


@pytest.mark.parametrize("stop", ["END", "大成", "\n\n", "cat sat", "🙂"])
def test_stops_with_real_tokens(tokenizer, stop):
    said = "the cat sat on 大成 若 the END 🙂\n\nmore 大 END"
    script = [*tokenizer.encode(said), tokenizer.eos_id]
    engine = Engine(
        tiny_model(vocab_size=tokenizer.vocab_size), tokenizer, executor=Scripted(script, tokenizer.vocab_size)
    )
    params = SamplingParams(temperature=0, stop=(stop,))
    prompt = "return"  # a text before it: what is said is a continuation
    (completion,) = engine.generate([prompt], params)
    assert completion.text == said.partition(stop)[0]
    assert completion.finish_reason == "stop"
    assert "".join(engine.stream(prompt, params)) == completion.text


def test_random_tokens_stream_as_they_decode(tokenizer):
    """Token ids at random are mostly no UTF-8: what streams is still what decodes, with its U+FFFD."""
    engine = Engine(tiny_model(vocab_size=tokenizer.vocab_size), tokenizer, max_batch=4)
    params = [SamplingParams(max_tokens=40, temperature=2.0, seed=seed, ignore_eos=True) for seed in range(6)]
    prompts = ["the cat", "大", "", "def", "🙂", "\n"]
    for prompt, own, completion in zip(prompts, params, engine.generate(prompts, params)):
        prompt_ids = completion.prompt_token_ids
        assert prompt_ids == encode_prompt(tokenizer, prompt) and len(completion.token_ids) == 40
        before, whole = tokenizer.decode(prompt_ids), tokenizer.decode(prompt_ids + completion.token_ids)
        assert whole == before + completion.text
        assert "".join(engine.stream(prompt, own)) == completion.text


def test_pairs_are_scored_over_all_of_the_continuation(tokenizer):
    for context, continuation in [
        ("the cat", " sat"),
        ("the cat ", "sat"),
        ("大", "成"),
        ("retu", "rn 大成"),
        ("", "END"),
    ]:
        pair = encode_pair(tokenizer, context, continuation)
        scored = tokenizer.decode_bytes(pair.token_ids[pair.score_from :]).decode()
        assert scored.strip() == continuation.strip(), pair.how
