"""Which tokens of a (context, continuation) pair are scored."""

import pytest
from engine_fakes import PieceTokenizer

from dacheng.engine.boundary import encode_pair, encode_prompt
from dacheng.errors import DachengError

TOKENIZER = PieceTokenizer([" Paris", "is", " is", "The", "ab", "bc", "abc"])


def scored(context: str, continuation: str) -> tuple[str, str, str]:
    pair = encode_pair(TOKENIZER, context, continuation)
    ids = pair.token_ids
    return TOKENIZER.decode(ids[: pair.score_from]), TOKENIZER.decode(ids[pair.score_from :]), pair.how


def test_exact_where_no_token_crosses():
    assert scored("The answer is", " Paris") == ("The answer is", " Paris", "exact")
    assert scored("Q:\n", "Paris") == ("Q:\n", "Paris", "exact")  # white space alone moves nothing


def test_a_space_that_belongs_to_the_next_token_moves():
    assert scored("The answer is ", "Paris") == ("The answer is", " Paris", "moved")
    pair = encode_pair(TOKENIZER, "The answer is ", "Paris")
    assert pair.token_ids[pair.score_from :] == TOKENIZER.encode(" Paris")


def test_any_other_crossing_token_is_split():
    """ "a" + "bc" is one token: the context's ids stay, the continuation's are its own."""
    assert scored("a", "bc") == ("a", "bc", "split")
    assert encode_pair(TOKENIZER, "a", "bc").token_ids == [*TOKENIZER.encode("a"), *TOKENIZER.encode("bc")]


def test_an_empty_context_is_bos_or_eos():
    assert encode_pair(TOKENIZER, "", "abc").token_ids == [TOKENIZER.eos_id, *TOKENIZER.encode("abc")]


def test_a_family_that_begins_texts_with_bos_does_so_here_and_only_there():
    class Family(PieceTokenizer):
        bos_id = 3

        def encode(self, text, *, add_special_tokens=False):
            ids = super().encode(text)
            return [3, *ids, 4] if add_special_tokens else ids

    assert encode_prompt(Family(), "ab") == [3, *b"ab"]
    assert encode_prompt(Family(), "") == [3]
    pair = encode_pair(Family(), "ab", "c")
    assert (pair.token_ids, pair.score_from, pair.how) == ([3, *b"abc"], 3, "exact")
    assert encode_pair(Family(), "", "c").token_ids == [3, ord("c")]


@pytest.mark.parametrize("context", ["some context", "some context ", ""])
def test_nothing_to_score_is_refused(context):
    with pytest.raises(DachengError) as refusal:
        encode_pair(TOKENIZER, context, "")
    assert refusal.value.field == "continuation"
