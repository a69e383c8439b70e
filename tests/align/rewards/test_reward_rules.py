"""Exact answers, forms, lengths, syntax, instructions: what each rule says of texts made for it."""

from __future__ import annotations

import gzip
import itertools
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.align.rewards import (
    ExactReward,
    FinishedReward,
    FormatReward,
    InstructionsReward,
    LengthReward,
    ModelReward,
    RewardError,
    RewardMix,
    Sample,
    SyntaxReward,
    final_answer,
    same_answer,
)
from dacheng.align.rewards.syntax import code_of
from dacheng.errors import UsageError


def one(reward, response="", **fields):
    return RewardMix([(reward, 1.0)])([Sample(fields.pop("prompt", ""), response=response, **fields)])[0].total


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{\\frac{1}{2}}. And \\boxed{3}", "3"),
        ("\\boxed{\\{1, \\frac{2}{3}\\}}", "\\{1, \\frac{2}{3}\\}"),
        ("$\\boxed 7$ is it", "7"),
        ("\\fbox{x}", "x"),
        ("5 + 5\n#### 1,200", "1,200"),
        ("The answer is 42.", "42"),
        ("The final answer is: **-7** apples.", "-7"),
        ("Answer: 3/4", "3/4"),
        ("the answer is (1, 2).", "(1, 2)"),
        ("答案是12。", "12"),
        ("答案：5", "5"),
        ("first 3, then $4.50", "$4.50"),
        ("3 of 5, so 60%", "60%"),
        ("\\boxed{unclosed", None),
        ("no number here", None),
        ("", None),
        ("v1.2.3x", None),
    ],
)
def test_where_an_answer_is_found(text, answer):
    assert final_answer(text) == answer


def test_one_way_of_finding_is_only_that():
    text = "\\boxed{1} #### 2\nthe answer is 3. 4"
    ways = {"boxed": "1", "hashes": "2", "phrase": "3", "number": "4", "whole": text}
    assert {way: final_answer(text, way) for way in ways} == ways
    assert final_answer("no box", "boxed") is None


@pytest.mark.parametrize(
    ("one_text", "other"),
    [
        ("1/2", "0.5"), ("\\frac{1}{2}", ".5"), ("\\dfrac12", "50/100"), ("$1,234.50", "1234.5"), ("18 dollars", "18"),
        ("x=5", "5"), ("(1, 2)", "(1.0,2)"), ("1 1/2", "3/2"), ("50\\%", "50"), ("\\text{yes}", "yes"), ("-3.0", "-3"),
        ("2\\sqrt{3}", "2 \\sqrt{3}"), ("\\sqrt{16}", "4"), ("1e3", "1000"), ("90^\\circ", "90"), ("２", "2"),
        ("\\left(1,\\frac{1}{2}\\right)", "(1, 0.5)"), ("−4", "-4"), ("2^10", "1024"), ("12 cm", "12"),
        ("3²", "9"),
    ],
)  # fmt: skip
def test_equal_answers(one_text, other):
    assert same_answer(one_text, other) and same_answer(other, one_text)


@pytest.mark.parametrize(
    ("one_text", "other"),
    [
        ("1", "10"), ("3", "-3"), ("[0,1)", "(0,1)"), ("(1,2)", "(2,1)"), ("(1,2)", "(1,2,3)"), ("", ""), ("1/0", "1"),
        ("\\sqrt{2}", "1.414"), ("1,2", "12"), ("9" * 60, "9" * 59 + "8"), ("0.1", "0.10000001"), ("yes", "no"),
        ("9**9**9", "1"), ("1e999", "1e998"), ("10^900", "\\sqrt{2}"), ("\\sqrt{2*10^999}", "1"), ("3²", "32"),
    ],
)  # fmt: skip
def test_unequal_answers(one_text, other):
    assert not same_answer(one_text, other)


@settings(deadline=None)
@given(st.text(max_size=80), st.text(max_size=80))
def test_any_text_is_an_answer_or_none_without_raising(one_text, other):
    assert same_answer(one_text, other) == same_answer(other, one_text)
    final_answer(one_text)


@settings(deadline=None)
@given(st.integers(-(10**9), 10**9), st.integers(1, 1000))
def test_a_fraction_equals_itself_in_other_dress(top, bottom):
    assert same_answer(f"\\frac{{{top}}}{{{bottom}}}", f"{2 * top}/{2 * bottom}")
    assert not same_answer(f"{top}/{bottom}", f"{top * bottom + 1}/{bottom * bottom}")


def test_exact_reward():
    reward = ExactReward(wrong=-0.5, missing=-1.0)
    assert one(reward, "the answer is 4", meta={"answer": 4}) == 1.0
    assert one(reward, "the answer is 5", meta={"answer": 4}) == -0.5
    assert one(reward, "I do not know", meta={"answer": 4}) == -1.0
    assert one(reward, "", meta={"answer": 4}) == -1.0
    assert one(reward, "4", meta={}) is None
    assert one(reward, "0.333", meta={"answer": "1/3"}) == -0.5
    assert one(ExactReward(tolerance=1e-2), "0.333", meta={"answer": "1/3"}) == 1.0
    assert one(ExactReward(tolerance=1e-2), "\\boxed{10^900}", meta={"answer": "5"}) == 0.0
    assert one(ExactReward(tolerance=1e-2), "\\boxed{10^900+1}", meta={"answer": "10^900"}) == 1.0
    assert one(ExactReward(tolerance=1e-2), "0.009", meta={"answer": "0.001"}) == 0.0  # of the number, not of 1
    assert one(ExactReward(answer="gold.value"), "#### 7", meta={"gold": {"value": ["6", "7"]}}) == 1.0
    assert one(ExactReward(), "72", meta={"answer": "He sold 48/2=<<48/2=24>>24\n#### 72"}) == 1.0


def test_the_answers_of_gsm8k(shared_data):
    """The answer taken out of each worked solution is the one that the authors' pattern finds; it is no other's."""
    with gzip.open(shared_data / "gsm8k" / "test.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    authors = [re.search(r"#### (\-?[0-9\.\,]+)", row["answer"])[1].replace(",", "") for row in rows]
    reward = ExactReward()
    samples = [Sample("", response=row["answer"], meta={"answer": gold}) for row, gold in zip(rows, authors)]
    assert reward(samples) == [1.0] * 1319
    spoken = [
        Sample("", response=f"So it is ${gold}.", meta={"answer": row["answer"]}) for row, gold in zip(rows, authors)
    ]
    assert sum(reward(spoken)) == 1319
    others = [Sample("", response=row["answer"], meta={"answer": gold}) for row, gold in zip(rows, authors[1:])]
    same = sum(a == b for a, b in itertools.pairwise(authors))
    assert sum(reward(others)) == same


def test_format_reward():
    good = "<think>2 + 2\nis 4</think>\n<answer>4</answer>"
    reward = FormatReward()
    assert one(reward, good) == 1.0
    for bad in (
        "",
        "4",
        f"{good} more",
        "<think>a</think><think>b</think><answer>4</answer>",
        good.replace("</think>", ""),
    ):
        assert one(reward, bad) == 0.0
    assert one(FormatReward(pattern=r"\d+", where="anywhere", wrong=-1.0), "is 4") == 1.0
    assert one(FormatReward(pattern=r"\d+", where="whole", wrong=-1.0), "is 4") == -1.0


def test_soft_overlong_punishment():
    """DAPO, equation 13, with L_max 20 and L_cache 8."""
    reward = LengthReward(maximum=20, soft=8)
    for length, value in ((1, 0.0), (12, 0.0), (13, -1 / 8), (16, -0.5), (20, -1.0), (21, -1.0), (1000, -1.0)):
        assert one(reward, "x", completion_tokens=length) == pytest.approx(value)
    assert one(LengthReward(maximum=3, unit="words"), "one two three") == 0.0
    assert one(LengthReward(maximum=3, unit="words"), "one two three four") == -1.0
    assert one(LengthReward(minimum=4, unit="characters"), "ab") == -0.5
    assert one(LengthReward(minimum=4, unit="characters"), "") == -1.0
    with pytest.raises(UsageError, match="how many tokens"):
        one(reward, "uncounted")


def test_finished_reward():
    reward = FinishedReward(wrong=-1.0)
    assert [one(reward, "x", finish_reason=reason) for reason in ("stop", "length", None)] == [1.0, -1.0, None]


def test_code_out_of_a_response():
    text = "Here:\n```python\nx = 1\n```\nor\n```py\ny = 2\n```\n"
    assert code_of(text) == "y = 2\n" == code_of(text, "required")
    assert code_of(text, "never") == text
    assert code_of("z = 3") == "z = 3" and code_of("z = 3", "required") is None
    assert code_of("~~~\na\n~~~") == "a\n"


def test_syntax_reward():
    prompt = "def f(x):\n"
    assert one(SyntaxReward(), "    return x\n", prompt=prompt) == 1.0
    assert one(SyntaxReward(), "return x\n", prompt=prompt) == 0.0
    assert one(SyntaxReward(with_prompt=False), "    return x\n", prompt=prompt) == 0.0
    for empty in ("", "\n \n", "    # nothing\n"):
        assert one(SyntaxReward(), empty, prompt=prompt) == 0.0
    half = "    y = x\n    return (y\n"
    assert one(SyntaxReward(), half, prompt=prompt) == 0.0
    assert one(SyntaxReward(measure="kept_lines"), half, prompt=prompt) == 0.5
    assert one(SyntaxReward(fenced="auto", with_prompt=False), "Sure!\n```python\nx = 1\n```") == 1.0
    for hostile in ("(" * 100_000, "\0", "\ud800", "-" * 200_000 + "1", "x = " + "[" * 300 + "]" * 300):
        assert one(SyntaxReward(), hostile) == 0.0


@pytest.mark.oracle
def test_instructions_equal_the_authors_verdicts(goldens):
    golden = json.loads((goldens / "instruction_checks.json").read_text())
    reward = InstructionsReward(credit="all")
    wrong = []
    for case in golden["cases"]:
        meta = {"instructions": [{"id": case["id"], **case["arguments"]}]}
        said = reward([Sample("", response=text, meta=meta) for text in golden["responses"]])
        wrong += [(case["id"], text) for text, s, g in zip(golden["responses"], said, case["follows"]) if s != float(g)]
    assert wrong == []
    assert len(golden["cases"]) * len(golden["responses"]) > 3500
    assert len({case["id"] for case in golden["cases"]}) == 23


def test_every_prompt_of_ifeval_has_a_verdict(shared_data):
    lines = (shared_data / "ifeval" / "en_input_data.jsonl").read_text().splitlines()
    samples = [Sample(row["prompt"], response="A short answer.", meta=row) for row in map(json.loads, lines)]
    share, whole = InstructionsReward()(samples), InstructionsReward(credit="all")(samples)
    undecided = [sample for sample, value in zip(samples, share) if value is None]
    assert all("en:language:response_language" in sample.meta["instruction_id_list"] for sample in undecided)
    assert 0 <= len(undecided) < 20 and len(samples) == 541
    assert sum(v for v in whole if v is not None) <= sum(v for v in share if v is not None)


def test_instructions_that_need_a_rule_of_ours():
    def follows(name, text, **arguments):
        return one(InstructionsReward(), text, meta={"instructions": [{"id": name, **arguments}]})

    sentences = "length_constraints:number_sentences"
    text = "Dr. Smith came at 3.5 p.m. on Monday. He left! Did he? Yes"
    assert follows(sentences, text, relation="at least", num_sentences=4) == 1.0
    assert follows(sentences, "One. Two. Three.", relation="less than", num_sentences=4) == 1.0
    assert follows(sentences, "一。二！三？", relation="at least", num_sentences=4) == 0.0
    language = "language:response_language"
    assert follows(language, "这是一个回答。", language="zh") == 1.0
    assert follows(language, "これは答えです。", language="zh") == 0.0
    assert follows(language, "これは答えです。", language="ja") == 1.0
    assert follows(language, "이것은 답입니다", language="ko") == 1.0
    assert follows(language, "This is English", language="ko") == 0.0
    assert follows(language, "Cela, c'est du français", language="fr") is None  # Latin: whose, nobody here knows
    assert follows(language, "По-русски", language="fr") == 0.0


def test_loose_verdicts_and_shares():
    meta = {"instructions": [{"id": "punctuation:no_comma"}, {"id": "startend:quotation"}]}
    assert one(InstructionsReward(), 'Sure, here.\n"all right"', meta=meta) == 0.0
    assert one(InstructionsReward(loose=True), 'Sure, here.\n"all right"', meta=meta) == 1.0
    assert one(InstructionsReward(), "no commas", meta=meta) == 0.5
    assert one(InstructionsReward(credit="all"), "no commas", meta=meta) == 0.0
    assert one(InstructionsReward(), "", meta=meta) == 0.0
    assert one(InstructionsReward(), "x", meta={}) is None


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({"instructions": [{"id": "punctuation:no_coma"}]}, "did you mean punctuation:no_comma"),
        ({"instructions": [{"id": "length_constraints:number_words", "num_words": 3}]}, "relation"),
        (
            {"instructions": [{"id": "length_constraints:number_words", "num_words": 3, "relation": "about"}]},
            "at least",
        ),
        ({"instructions": [{"id": "keywords:existence", "keywords": "word"}]}, "list of words"),
        ({"instructions": "no"}, "list"),
        ({"instruction_id_list": ["a", "b"], "kwargs": [{}]}, "as long as"),
    ],
)
def test_instructions_that_are_wrong(meta, words):
    with pytest.raises(RewardError, match=words):
        one(InstructionsReward(), "text", meta=meta)


def test_model_reward():
    asked = []

    def score(samples):
        asked.append(len(samples))
        return [float(len(sample.response)) for sample in samples]

    reward = ModelReward(score=score, bounds=(0.0, 4.0), empty=-1.0)
    assert reward([Sample("", response=text) for text in ("ab", "", "abcdef", "  ")]) == [2.0, -1.0, 4.0, -1.0]
    assert asked == [2]
    assert ModelReward(score=score)([Sample("")]) == [0.0]
    broken = ModelReward(score=lambda samples: [float("nan")] * len(samples), bounds=(0.0, 1.0))
    with pytest.raises(RewardError, match="no finite number"):
        one(broken, "x")
