"""The stream shows whole characters only, and in the end exactly what decode shows."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_corpora import HARD, any_text

from dacheng.text import StreamDecoder


def of_bytes(pieces: list[bytes], **options) -> list[str]:
    decoder = StreamDecoder(pieces.__getitem__, **options)
    return [*(decoder.push(i) for i in range(len(pieces))), decoder.finish()]


@settings(max_examples=200, deadline=None)
@given(text=any_text, data=st.data())
def test_every_split_of_a_text_gives_the_text_in_whole_characters(text, data):
    encoded = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(encoded)), max_size=12)))
    pieces = [encoded[a:b] for a, b in zip([0, *cuts], [*cuts, len(encoded)])]
    shown = of_bytes(pieces)
    assert "".join(shown) == text
    assert sum(part.count("\ufffd") for part in shown) == text.count("\ufffd")
    given = out = b""
    for piece, part in zip(pieces, shown):  # as early as can be: what is held back is less than a character
        given += piece
        out += part.encode()
        assert given.startswith(out)
        assert len(given) - len(out) < 4


@settings(max_examples=200, deadline=None)
@given(pieces=st.lists(st.binary(max_size=5), max_size=12))
def test_any_bytes_come_out_as_if_decoded_at_once(pieces):
    assert "".join(of_bytes(pieces)) == b"".join(pieces).decode("utf-8", "replace")


def test_a_character_waits_for_its_last_byte():
    woman = "👩".encode()
    assert of_bytes([woman[:1], woman[1:3], woman[3:], b"!"]) == ["", "", "👩", "!", ""]
    assert of_bytes([woman[:3]]) == ["", "\ufffd"]
    assert of_bytes([woman[:3], b"a"]) == ["", "\ufffda", ""]
    assert of_bytes([b"\x80", b"a"]) == ["\ufffd", "a", ""]


@pytest.mark.parametrize("text", HARD)
def test_the_stream_of_a_tokenizer_is_its_decode(tokenizer, text):
    ids = tokenizer.encode(text)
    decoder = tokenizer.stream_decoder()
    for _ in range(2):  # finish begins anew
        parts = [decoder.push(i) for i in ids]
        assert decoder.finish() == ""
        assert "".join(parts) == text


def test_special_tokens_are_shown_when_asked(tokenizer):
    ids = tokenizer.encode("a<|endoftext|>b", allow_special=True)
    for skip, expected in ((True, ["a", "", "b"]), (False, ["a", "<|endoftext|>", "b"])):
        decoder = tokenizer.stream_decoder(skip_special_tokens=skip)
        assert [decoder.push(i) for i in ids] == expected


def test_a_special_token_does_not_close_a_character(trained):
    bpe = trained["bpe"]
    first, *rest = [next(i for i in range(bpe.vocab_size) if bpe.token_bytes(i) == bytes([b])) for b in "é".encode()]
    decoder = bpe.stream_decoder()
    assert [decoder.push(i) for i in (first, bpe.pad_id, *rest)] == ["", "", "é"]
    assert bpe.decode([first, bpe.pad_id, *rest]) == "é"


def test_the_first_space_is_dropped_once():
    assert of_bytes([b"", b" ", b" a", b" b"], drop_first_space=True) == ["", "", " a", " b", ""]
    assert of_bytes([b"x", b" a"], drop_first_space=True) == ["x", " a", ""]
