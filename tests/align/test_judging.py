"""Models as judges: what is asked, how the word is read, and what becomes of a judge that says nothing."""

from __future__ import annotations

import json

import pytest

from dacheng.align.judging import (
    PRINCIPLES,
    Asker,
    Pair,
    Principle,
    RememberedModel,
    Verdict,
    compare,
    figures,
    fill,
    preference_records,
    read_principles,
    revise,
    write_records,
)
from dacheng.align.rewards import JudgeReward, RewardMix, Sample, reward_from_config
from dacheng.data.pair_layouts import Comparison, read_preference
from dacheng.errors import DachengError, UsageError
from dacheng.protocols import Completion, SamplingParams, ScriptedModel


class Answers:
    """A LanguageModel of a function: prompt -> text."""

    def __init__(self, function):
        self.function, self.prompts = function, []

    def generate(self, prompts, params):
        self.prompts += prompts
        return [Completion([], text=self.function(prompt), finish_reason="stop") for prompt in prompts]


def user(text):
    return [{"role": "user", "content": text}]


def test_values_do_not_fill_one_another():
    assert fill("{a} and {b}", {"a": "{b}", "b": "2 {c}"}) == "{b} and 2 {c}"
    with pytest.raises(UsageError, match=r"known: \{a\}"):
        fill("{b}", {"a": "1"})


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("Good. Rating: [[7]]", 6 / 9), ("[[1]]", 0.0), ("[[10]]", 1.0), ("first [[3]], no, [[ 5.5 ]]", 4.5 / 9),
        ("Rating: 7", None), ("[[11]]", None), ("[[0]]", None), ("[[x]]", None), ("", None),
    ],
)  # fmt: skip
def test_a_rating_is_read_or_is_none(answer, value):
    reward = JudgeReward(asker=Asker(model=ScriptedModel([answer])), mode="rating")
    assert reward([Sample("Q?", response="A.")]) == [pytest.approx(value) if value is not None else None]


def test_the_question_holds_everything_and_nothing_is_filled_twice():
    model = ScriptedModel(["[[5]]"])
    reward = JudgeReward(asker=Asker(model=model), mode="rating", criteria="Be brief.", low=0, high=10)
    reward([Sample("What is {response}?", response="It is {prompt}. Rating: [[10]]")])
    [question] = model.prompts
    assert (
        "What is {response}?" in question and "It is {prompt}. Rating: [[10]]" in question and "Be brief." in question
    )
    talk = JudgeReward(asker=Asker(model=ScriptedModel(["yes"])))
    assert talk(
        [Sample("", messages=[*user("hi"), {"role": "assistant", "content": "hey"}, *user("bye")], response="x")]
    ) == [1.0]


def test_an_empty_response_is_not_asked_about():
    model = ScriptedModel(["No"])
    assert JudgeReward(asker=Asker(model=model))([Sample("Q", response=" "), Sample("Q", response="A")]) == [0.0, 0.0]
    assert len(model.prompts) == 1
    assert JudgeReward(asker=Asker(model=ScriptedModel(["maybe"])))([Sample("Q", response="A")]) == [None]


def test_a_judge_of_a_recipe():
    opened = []

    def open_model(name):
        opened.append(name)
        return ScriptedModel(["Yes"])

    reward = reward_from_config({"kind": "judge", "model": "m", "criteria": "Short?"}, open_model=open_model)
    assert RewardMix([(reward, 2.0)])([Sample("Q", response="A")])[0].total == 2.0 and opened == ["m"]
    with pytest.raises(UsageError, match="rating or choice"):
        reward_from_config({"kind": "judge", "model": "m", "mode": "guess"}, open_model=open_model)
    with pytest.raises(UsageError, match="known"):
        reward_from_config({"kind": "judge", "model": "m", "template": "{answer}"}, open_model=open_model)
    with pytest.raises(UsageError, match="goes up"):
        reward_from_config({"kind": "judge", "model": "m", "low": 5, "high": 5}, open_model=open_model)


@pytest.mark.parametrize(
    ("answer", "shares"),
    [("A", [1.0, 0.0]), ("b.", [0.0, 1.0]), ("As an AI, I prefer B", None), ("Both are fine", None), ("", None)],
)
def test_an_option_is_a_whole_word(answer, shares):
    assert Asker(model=ScriptedModel([answer])).choose([user("A or B?")], ["A", "B"]) == [shares]


PAIRS = [Pair(user("Q1"), "short", "a longer one"), Pair(user("Q2"), "good", "bad"), Pair(user("Q3"), "x", "y")]


def prefers(text):
    """Prefers "good" wherever it stands, else whatever stands first, and is silent about x and y."""
    if "\nx\n" in text:
        return "well"
    return "B" if text.index("Response B") < text.find("good") else "A"


def test_both_orders_are_asked_and_averaged():
    verdicts = compare(Asker(model=Answers(prefers)), PAIRS)
    assert [verdict.probability for verdict in verdicts] == [0.5, 1.0, None]
    assert [verdict.consistent for verdict in verdicts] == [False, True, None]
    found = figures(PAIRS, verdicts)
    assert (found.n, found.silent, found.ties, found.consistent) == (3, 1, 1, 0.5)
    assert found.first_share == 0.75  # A, A about Q1; A, B about Q2
    assert found.longer_share == 1.0
    assert "3 pairs, 1 without a verdict, 1 ties; same verdict in both orders 0.50" in found.sentence()
    [record] = preference_records(PAIRS, verdicts)
    assert (record["chosen"][0]["content"], record["rejected"][0]["content"]) == ("good", "bad")
    assert record["meta"] == {"judge_probability": 1.0}


def test_records_by_margin_and_agreement():
    verdicts = [Verdict(0.55, 0.9, 0.2), Verdict(0.9, 0.95, 0.85), Verdict(0.3, 0.2, 0.4)]
    assert len(preference_records(PAIRS, verdicts)) == 3
    assert len(preference_records(PAIRS, verdicts, margin=0.1)) == 2
    assert len(preference_records(PAIRS, verdicts, consistent_only=True)) == 2
    assert preference_records(PAIRS, verdicts)[2]["chosen"][0]["content"] == "y"
    with pytest.raises(UsageError, match="one verdict a pair"):
        figures(PAIRS, verdicts[:2])


def test_what_is_made_is_what_preferences_are_read_from(tmp_path):
    records = preference_records(PAIRS, compare(Asker(model=Answers(prefers)), PAIRS))
    assert write_records(tmp_path / "pairs.jsonl", records) == 1
    [line] = (tmp_path / "pairs.jsonl").read_text().splitlines()
    found, _ = read_preference(json.loads(line))
    assert isinstance(found, Comparison) and found.chosen == [{"role": "assistant", "content": "good"}]


def second_thoughts(text):
    """Drafts, criticises, revises; has nothing to say of Q2, and nothing to mend about Q3."""
    last = text.rpartition("User: ")[2]
    if last == "critic":
        return "" if "Q2" in text else "It is rude."
    if last.startswith("mend"):
        return "rude draft" if "Q3" in text else "A kind answer."
    return "rude draft" if text != "Q4" else ""


def test_critique_and_revision():
    principle = Principle(name="kind", critique="critic", revision="mend it.", comparison="is kinder?")
    prompts = [user(f"Q{n}") for n in range(1, 5)]
    made, drops = revise(Asker(model=Answers(second_thoughts)), prompts, principles=[principle])
    assert dict(drops.dropped) == {"empty_draft": 1, "empty_critique": 1, "nothing_revised": 1} and drops.kept == 1
    [one] = made
    assert (one.drafts, one.critiques, one.principles) == (["rude draft", "A kind answer."], ["It is rude."], ["kind"])
    assert one.sft_record()["messages"] == [*user("Q1"), {"role": "assistant", "content": "A kind answer."}]
    found, _ = read_preference(one.pair_record())
    assert (found.chosen[0]["content"], found.rejected[0]["content"]) == ("A kind answer.", "rude draft")
    given, _ = revise(Asker(model=Answers(second_thoughts)), prompts[:1], drafts=["mine"], principles=[principle])
    assert given[0].drafts[0] == "mine"


def test_principles_are_drawn_by_seed_prompt_and_round():
    asker = Asker(model=Answers(lambda text: str(len(text))))
    first, _ = revise(asker, [user("Q")] * 20, rounds=2, seed=1)
    again, _ = revise(asker, [user("Q")] * 20, rounds=2, seed=1)
    other, _ = revise(asker, [user("Q")] * 20, rounds=2, seed=2)
    assert [one.principles for one in first] == [one.principles for one in again]
    assert [one.principles for one in first] != [one.principles for one in other]
    assert len({name for one in first for name in one.principles}) == len(PRINCIPLES)
    assert all(len(one.drafts) == 3 and len(one.critiques) == 2 for one in first)


@pytest.mark.parametrize("wrong", [{"drafts": []}, {"principles": []}, {"rounds": 0}])
def test_revising_nothing(wrong):
    with pytest.raises(UsageError):
        revise(Asker(model=ScriptedModel([])), [user("Q")], **wrong)


def test_principles_of_a_file(tmp_path):
    path = tmp_path / "principles.json"
    entry = {"name": "n", "critique": "c", "revision": "r", "comparison": "p"}
    path.write_text(json.dumps({"principles": [entry]}))
    assert read_principles(path) == (Principle(**entry),)
    for wrong, field in (
        ({}, "principles"), ({"principles": []}, "principles"), ({"principles": [3]}, r"principles\[0\].name"),
        ({"principles": [entry, entry | {"revision": " "}]}, r"principles\[1\].revision"),
        ({"principles": [entry | {"more": "m"}]}, r"principles\[0\].more"),
    ):  # fmt: skip
        path.write_text(json.dumps(wrong))
        with pytest.raises(DachengError, match=field):
            read_principles(path)


def test_a_judge_on_the_engine_reads_the_next_word():
    """Probabilities of the options, from a small random model: they sum to 1 and repeat; marks in a text stay text."""
    import torch

    from dacheng.engine import Engine
    from dacheng.models.decoder import Decoder
    from dacheng.models.traits import DecoderTraits
    from dacheng.text import train_tokenizer

    tokenizer = train_tokenizer(["ab"], vocab_size=258, min_frequency=1 << 30)
    traits = DecoderTraits(vocab_size=258, width=16, layers=1, heads=2, max_positions=1024, mlp_width=16)
    model = Decoder(traits).init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.embed.weight[tokenizer.encode("A")[0]] *= 3
        model.embed.weight[tokenizer.encode("B")[0]] *= 3
    asker = Asker(model=Engine(model, tokenizer))
    shares = asker.choose([user(f"{n} A or B?") for n in range(6)], ["A", "B"])
    assert shares == asker.choose([user(f"{n} A or B?") for n in range(6)], ["A", "B"])
    said = [share for share in shares if share is not None]
    assert said and all(sum(share) == pytest.approx(1.0) for share in said)
    long = user("A or B? " * 200)
    assert asker.choose([user("0 A or B?"), long], ["A", "B"]) == [shares[0], None] and asker.ask([long]) == [""]
    with pytest.raises(UsageError, match="same token"):
        asker.choose([user("?")], ["Alpha", "Able"])


def test_a_judge_behind_a_url_is_not_opened_here():
    with pytest.raises(UsageError, match="URL"):
        Asker.open("http://127.0.0.1:1")


def test_the_command_line(tmp_path, monkeypatch, capsys):
    from dacheng.cli import align_judging
    from dacheng.cli.main import main

    monkeypatch.setattr(align_judging, "_asker", lambda *_, **__: Asker(model=Answers(prefers)))
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [{"prompt": p.prompt, "chosen": p.one, "rejected": p.other} for p in PAIRS]
    calls = {"role": "assistant", "content": "", "tool_calls": [{"name": "now", "arguments": {}}]}
    more = [{"messages": user("Q"), "label": True},
            {"prompt": "Q", "chosen": [calls], "rejected": [{**calls, "content": "?"}]},
            {"prompt": "Q", "chosen": "x", "rejected": "y", "tools": [{"name": "now"}]}]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *more]))
    assert main(["align", "judge", str(file), "--model", "m", "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["judge"]["n"] == 3 and found["written"] == 1 and found["agreement"]["n"] == 1
    assert found["drops"]["dropped"]["more_than_text"] == 2  # a judge would read nothing of a call
    assert len(out.read_text().splitlines()) == 1
    assert main(["align", "judge", str(file), "--model", "m", "--limit", "2"]) == 0
    assert "agrees with the file on 100% of 1" in capsys.readouterr().out
    file.write_text(json.dumps({"prompt": "Q", "responses": ["a", "b", "c"]}) + "\n")  # as align label takes them
    assert main(["align", "judge", str(file), "--model", "m", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["judge"]["n"] == 3 and found["agreement"] is None  # three pairs, and the file prefers none

    monkeypatch.setattr(align_judging, "_asker", lambda *_, **__: Asker(model=Answers(lambda text: str(len(text)))))
    file.write_text('{"prompt": "Q1"}\n{"messages": [{"role": "user", "content": "Q2"}]}\nnothing\n')
    assert main(["align", "revise", str(file), "--model", "m", "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["prompts"], found["written"]) == (2, 2) and sum(found["drops"]["dropped"].values()) == 1
    assert json.loads(out.read_text().splitlines()[1])["messages"][0] == {"role": "user", "content": "Q2"}


GREEDY = SamplingParams(max_tokens=4, temperature=0.0)


def test_what_was_answered_is_not_asked_again(tmp_path):
    class Killed(Answers):
        """Answers two batches and no more."""

        def generate(self, prompts, params):
            if len(self.prompts) >= 64:
                raise KeyboardInterrupt
            return super().generate(prompts, params)

    file, heard = tmp_path / "a" / "asked.jsonl", []
    questions = [f"question {i % 90}" for i in range(100)]  # ten of them twice
    first = Killed(str.upper)
    with pytest.raises(KeyboardInterrupt):
        RememberedModel(first, file, "m").generate(questions, GREEDY)
    with open(file, "ab") as torn:
        torn.write(b'{"asked": "')
    again = Answers(str.upper)
    model = RememberedModel(again, file, "m", lambda done, of: heard.append((done, of)))
    said = model.generate(questions, GREEDY)
    assert [one.text for one in said] == [question.upper() for question in questions]
    assert again.prompts == [f"question {i}" for i in range(64, 90)] and heard == [(74, 100), (100, 100)]
    assert len(RememberedModel(again, file, "m").generate(questions, GREEDY)) == 100 and len(again.prompts) == 26
    RememberedModel(again, file, "another").generate(questions[:3], GREEDY)
    RememberedModel(again, file, "m").generate(questions[:1], SamplingParams(max_tokens=5, temperature=0.0))
    assert again.prompts[26:] == ["question 0", "question 1", "question 2", "question 0"]  # other weights, other limit
    with pytest.raises(UsageError, match="drawn"):
        model.generate(["?"], SamplingParams(temperature=1.0))


def test_what_was_cut_short_is_asked_again(tmp_path):
    class Late(Answers):
        def generate(self, prompts, params):
            said = super().generate(prompts, params)
            said[1].finish_reason = "deadline"
            return said

    late, again = Late(str.upper), Answers(str.upper)
    assert len(RememberedModel(late, tmp_path / "asked.jsonl", "m").generate(["a", "b", "c"], GREEDY)) == 3
    RememberedModel(again, tmp_path / "asked.jsonl", "m").generate(["a", "b", "c"], GREEDY)
    assert again.prompts == ["b"]


def test_log_probabilities_are_remembered(tmp_path):
    class Sure(Answers):
        def generate(self, prompts, params):
            return [Completion([], text="A", finish_reason="stop", top_logprobs=[[(7, -0.25), (9, -1.5)]])]

    first = RememberedModel(Sure(None), tmp_path / "asked.jsonl", "m").generate([[1, 2]], GREEDY)
    assert RememberedModel(Answers(None), tmp_path / "asked.jsonl", "m").generate([[1, 2]], GREEDY) == first
    assert first[0].top_logprobs == [[(7, -0.25), (9, -1.5)]]
