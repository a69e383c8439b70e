"""Text that may be shown: independent of how it is cut into tokens, and free of stop strings."""

import pytest
from engine_fakes import PieceTokenizer, Scripted, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.engine import Engine
from dacheng.engine.stops import OutputText, StopMatcher
from dacheng.protocols import SamplingParams
from dacheng.text.streaming import StreamDecoder

WORDS = st.text(alphabet="ab\n", min_size=1, max_size=4)


def cut_by_definition(text: str, stops: list[str]) -> str:
    """Reading character by character: at the first end of any stop, the text before its longest one."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab\n", max_size=24), st.lists(WORDS, max_size=3), st.data())
def test_the_result_does_not_depend_on_the_pieces(text, stops, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    matcher, shown = StopMatcher(stops), ""
    for start, end in zip([0, *cuts], [*cuts, len(text)]):
        shown += matcher.push(text[start:end])
        assert not any(stop in shown for stop in stops)
        assert cut_by_definition(text, stops).startswith(shown)  # nothing shown is ever taken back
    assert shown + matcher.release() == cut_by_definition(text, stops)
    assert matcher.stopped == any(stop in text for stop in stops)


def test_no_more_is_held_back_than_could_become_a_stop():
    matcher = StopMatcher(["</s>", "\n\n"])
    assert [matcher.push(piece) for piece in ("a<", "/", "b", "\n", "c", "x</s", ">y")] == [
        "a",
        "",
        "</b",
        "",
        "\nc",
        "x",
        "",
    ]
    assert matcher.stopped and matcher.release() == ""
    assert matcher.push("more") == ""


def test_the_stop_that_ends_first_wins():
    assert StopMatcher(["abc", "b"]).push("abc") == "a"
    assert StopMatcher(["bc", "abc"]).push("xabc") == "x"


def test_characters_are_whole_and_a_cut_one_is_marked_at_the_end():
    tokenizer = PieceTokenizer()
    text = OutputText(tokenizer.stream_decoder())
    released = [text.push(byte) for byte in "aé大🙂".encode()]
    assert released == ["a", "", "é", "", "", "大", "", "", "", "🙂"]
    assert text.push(0xE5) == ""
    assert text.finish() == "\ufffd" and text.finish() == ""
    assert text.text == "aé大🙂\ufffd" == "".join(text.pieces)


def test_the_decoder_reads_the_prompt_first():
    """A SentencePiece decoder drops the space that begins a text; a continuation's first space is a space."""
    pieces = {0: b" Once", 1: b" upon", 2: "é".encode()[:1], 3: "é".encode()[1:]}
    after_prompt = OutputText(StreamDecoder(pieces.__getitem__, drop_first_space=True), prompt=[0])
    assert after_prompt.push(1) == " upon"
    alone = OutputText(StreamDecoder(pieces.__getitem__, drop_first_space=True))
    assert alone.push(1) == "upon"
    inside_a_character = OutputText(StreamDecoder(pieces.__getitem__), prompt=[0, 2])
    assert inside_a_character.push(3) == "é"


SAID = "Once upon a time, 大成 said STOP and then more"


def scripted_engine(pieces: list[str]) -> tuple[Engine, list[int]]:
    tokenizer = PieceTokenizer(sorted(set(pieces)))
    ids = [token for piece in pieces for token in tokenizer.encode(piece)]
    engine = Engine(
        tiny_model(vocab_size=tokenizer.vocab_size),
        tokenizer,
        executor=Scripted([*ids, tokenizer.eos_id], tokenizer.vocab_size),
    )
    return engine, ids


@pytest.mark.parametrize("cut", range(1, len(SAID)))
def test_streamed_equals_generated_for_a_stop_cut_anywhere(cut):
    """The stop string comes as one token, as two cut at each place, and with text before and behind it in a token."""
    engine, _ = scripted_engine([SAID[:cut], SAID[cut:]])
    params = SamplingParams(max_tokens=200, temperature=0, stop=("STOP",))
    whole = engine.generate(["x"], params)[0]
    assert whole.text == "Once upon a time, 大成 said " and whole.finish_reason == "stop"
    stream = engine.stream("x", params)
    pieces = list(stream)
    assert "".join(pieces) == whole.text and all(pieces)


def test_text_held_back_is_shown_when_no_stop_follows():
    engine, _ = scripted_engine(["never ST", "OP?", "ST"])
    params = SamplingParams(max_tokens=100, temperature=0, stop=("STOP!",))
    assert engine.generate(["x"], params)[0].text == "never STOP?ST"
    assert list(engine.stream("x", params)) == ["never ", "STOP?", "ST"]


def test_eos_and_stop_ids_end_the_text_and_are_not_in_it():
    engine, ids = scripted_engine(["one", "two", "three"])
    greedy = {"max_tokens": 100, "temperature": 0}
    ended = engine.generate(["x"], SamplingParams(**greedy))[0]
    assert (ended.text, ended.finish_reason, ended.token_ids) == ("onetwothree", "stop", [*ids, 256])
    by_id = engine.generate(["x"], SamplingParams(**greedy, stop_token_ids=(ids[1],)))[0]
    assert (by_id.text, by_id.finish_reason, by_id.token_ids) == ("one", "stop", ids[:2])
    on_and_on = engine.generate(["x"], SamplingParams(max_tokens=6, temperature=0, ignore_eos=True))[0]
    assert (on_and_on.text, on_and_on.finish_reason) == ("onetwothreeonetwo", "length")
