"""Cleaning filters: what they change, what they drop, and that the counts add up."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dacheng import recipes
from dacheng.data.cleaning import CleaningConfig, clean, duplicate_line_char_fraction, letter_fraction
from dacheng.errors import UsageError
from dacheng.records import Drops, Record


def run(texts: list[str], **options) -> tuple[list[str], Drops]:
    drops = Drops()
    records = (Record(id=str(i), text=text) for i, text in enumerate(texts))
    return [r.text or "" for r in drops.watch(clean(records, CleaningConfig(**options), drops))], drops


def test_code_keeps_everything_but_line_ends_and_control_characters():
    source = "\tif x:\f\r\n    é = 'e\u0301'\x00  \r"
    texts, drops = run([source, "plain\n"])
    assert texts == ["\tif x:\f\n    é = 'e\u0301'  \n", "plain\n"]
    assert drops.altered == {"newlines_normalised": 1, "control_characters_removed": 1}
    assert drops.examples["newlines_normalised"] == "0"


def test_prose_is_composed():
    texts, drops = run(["e\u0301te\u0301", "été"], profile="prose")
    assert texts == ["été", "été"] and drops.altered == {"unicode_normalised": 1}


def test_control_characters_can_drop_the_record():
    texts, drops = run(["fine", "b\x07ell"], control_characters="drop")
    assert (
        texts == ["fine"] and drops.dropped == {"control_characters": 1} and drops.examples["control_characters"] == "1"
    )


def test_mojibake_is_mended_before_its_control_characters_go():
    pytest.importorskip("ftfy")
    broken = "â\x80\x9cquotedâ\x80\x9d and a cafÃ©"
    texts, drops = run([broken], profile="prose", mojibake=True)
    assert texts == ["“quoted” and a café"] and drops.altered == {"mojibake_mended": 1}


def test_length_bounds_ignore_outer_white_space():
    texts, drops = run(["  ab  ", "abc", "abcdef", " \n"], min_chars=3, max_chars=5)
    assert texts == ["abc"] and drops.dropped == {"too_short": 1, "too_long": 1, "empty": 1}


def test_web_filters_name_their_reason_and_leave_chinese_alone():
    prose = "The committee met on Tuesday and agreed, after some discussion, to publish its findings in full.\n"
    chinese = (
        "大成若缺，其用不弊。大盈若冲，其用不穷。大直若屈，大巧若拙，大辩若讷。"
        "静胜躁，寒胜热。清静为天下正。天下有道，却走马以粪。天下无道，戎马生于郊。"
    )
    texts, drops = run(
        [prose, chinese, prose * 4, "# # # # a b c d e f g h i j k l m n o p q r s t u v w x y z aa bb cc",
         "* one and a half\n" * 1 + "".join(f"* item number {i} of the list\n" for i in range(9)),
         "".join(f"this goes on and on {i} ...\n" for i in range(9)), "=-=-=-=-=-=-=-=-=-=" * 5, "short"],
        profile="web", mojibake=False,
    )  # fmt: skip
    assert texts == [prose, chinese]
    assert drops.dropped == {
        "max_duplicate_lines": 1, "max_symbol_ratio": 2, "max_bullet_lines": 1, "min_letters": 1, "too_short": 1,
    }  # fmt: skip


def test_statistics():
    lines = ["aa", "bbbb", "aa", "aa"]
    assert duplicate_line_char_fraction("", lines) == 4 / 10
    assert letter_fraction("a1 大-") == 3 / 4
    assert letter_fraction(" ") == 0 == duplicate_line_char_fraction("", [])


def test_profiles_fill_in_what_was_left_out():
    resolved = CleaningConfig(profile="web", min_chars=7).resolved()
    assert resolved.min_chars == 7 and resolved.max_symbol_ratio == 0.1 and resolved.unicode_form == "NFC"
    for profile in ("code", "prose", "web", "none"):
        assert None not in recipes.to_dict(CleaningConfig(profile=profile).resolved()).values()
    assert recipes.load(CleaningConfig, {"profile": "prose"}) == CleaningConfig(profile="prose")
    with pytest.raises(UsageError, match="negative"):
        CleaningConfig(max_symbol_ratio=-0.1)


def test_records_without_text_pass():
    chat = Record(id="c", messages=[{"role": "user", "content": "hi\r\n"}])
    drops = Drops()
    assert list(clean(iter([chat]), CleaningConfig(profile="web", mojibake=False), drops)) == [chat]
    assert not drops.altered and not drops.dropped


@given(st.lists(st.text(), max_size=8), st.sampled_from(["code", "prose", "none"]))
def test_kept_and_dropped_add_up_and_cleaning_twice_is_cleaning_once(texts, profile):
    once, drops = run(texts, profile=profile)
    assert drops.kept + sum(drops.dropped.values()) == len(texts)
    twice, again = run(once, profile=profile)
    assert twice == once and not again.altered and not again.dropped
    if profile == "prose":
        assert all(unicodedata.is_normalized("NFC", text) for text in once)
