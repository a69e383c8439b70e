"""Preferences: every layout, splits without leaking, rows of which only the reply is learnt, batches that resume."""

from __future__ import annotations

import json
import random
import string

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.align.preferences.report import describe
from dacheng.data.batches import IGNORED
from dacheng.data.chat_layouts import NoChat
from dacheng.data.pair_layouts import Comparison, MarkedReply, read_preference
from dacheng.data.pairs import PairRows, PairSource, Row, collate_pairs
from dacheng.data.pooled_order import PooledOrder
from dacheng.data.preferences import (
    Preference,
    marked_rows,
    pair_rows,
    read_preferences,
    split_preferences,
    without_prompts,
)  # fmt: skip
from dacheng.errors import DachengError, UsageError
from dacheng.records import Drops
from dacheng.text import ChatRenderer, train_tokenizer

USER, GOOD, BAD = ({"role": r, "content": c} for r, c in (("user", "2+2?"), ("assistant", "4"), ("assistant", "5")))
PAIR = Comparison([USER], [GOOD], [BAD])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"prompt": "2+2?", "chosen": "4", "rejected": "5"}, PAIR),
        ({"question": "2+2?", "chosen": "4", "rejected": "5"}, PAIR),
        ({"instruction": "2+2?", "input": "", "output": "x", "chosen": "4", "rejected": "5"}, PAIR),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, PAIR),
        ({"prompt": "2+2?", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, PAIR),
        ({"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]}, PAIR),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, PAIR),
        ({"messages": [USER], "chosen": GOOD, "rejected": BAD}, PAIR),
        ({"conversations": [{"from": "human", "value": "2+2?"}], "chosen": {"from": "gpt", "value": "4"},
          "rejected": {"from": "gpt", "value": "5"}}, PAIR),
        ({"chosen": "\n\nHuman: 2+2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2+2?\n\nAssistant: 5"}, PAIR),
        ({"prompt": "2+2?", "chosen": "4", "rejected": "5", "margin": 2}, PAIR._replace(margin=2.0)),
        ({"prompt": "2+2?", "chosen": "4", "rejected": "5", "score_chosen": 9, "score_rejected": 6.5},
         PAIR._replace(margin=2.5)),
        ({"messages": [USER, BAD], "label": False}, MarkedReply([USER], [BAD], False)),
        ({"prompt": "2+2?", "completion": "4", "label": True}, MarkedReply([USER], [GOOD], True)),
        ({"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}], "kto_tag": True},
         MarkedReply([USER], [GOOD], True)),
    ],
)  # fmt: skip
def test_every_layout(value, expected):
    found, used = read_preference(value)
    assert found == expected
    assert set(value) - used <= {"output"}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"prompt": "a", "chosen": "x", "rejected": "x"}, "both_replies_are_the_same"),
        ({"prompt": "a", "chosen": "x", "rejected": ["x"]}, "replies_of_two_kinds"),
        ({"prompt": "a", "chosen": "x", "rejected": " "}, "empty_reply"),
        ({"chosen": "x", "rejected": "y"}, "missing_field:prompt"),
        ({"prompt": "a", "chosen": "x"}, "missing_field:chosen"),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD, USER, BAD]}, "one_reply_begins_the_other"),
        ({"chosen": [USER, GOOD], "rejected": [{"role": "user", "content": "1+1?"}, BAD]}, "the_prompts_differ"),
        ({"prompt": "a", "chosen": "x", "rejected": "y", "margin": "much"}, "field_not_a_number:margin"),
        ({"prompt": "a", "chosen": "x", "rejected": "y", "margin": float("nan")}, "field_not_a_number:margin"),
        ({"messages": [USER, GOOD], "label": "yes"}, "field_not_true_or_false:label"),
        ({"prompt": "a", "chosen": 3, "rejected": 4}, "not_messages:prompt"),
        ({"prompt": "a", "chosen": [3], "rejected": [4]}, "not_messages:messages"),
        ({"messages": "a", "chosen": GOOD, "rejected": BAD}, "not_messages:messages"),
    ],
)
def test_what_is_no_preference_says_why(value, reason):
    with pytest.raises(NoChat) as caught:
        read_preference(value)
    assert caught.value.reason == reason


FIELDS = ("prompt", "chosen", "rejected", "messages", "conversations", "instruction", "label", "margin", "system",
          "tools", "input", "completion")  # fmt: skip
_json = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), inner)
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), _json))
def test_nothing_else_than_a_reason_is_raised(value):
    try:
        found, _ = read_preference(value)
    except NoChat:
        return
    assert found.prompt


def test_files_of_the_world(shared_data):
    counts = {
        "rasbt_instruct/instruction-data-with-preference.json": (1094, {"both_replies_are_the_same": 6}),
        "hh_rlhf_harmless_test/test.jsonl.gz": (2308, {"empty_reply": 4}),
        "llamafactory_demo/dpo_en_demo.json.gz": (300, {}),
        "llamafactory_demo/dpo_zh_demo.json.gz": (300, {}),
        "llamafactory_demo/kto_en_demo.json.gz": (300, {}),
    }
    for name, (kept, dropped) in counts.items():
        drops = Drops()
        found = read_preferences([shared_data / name], drops)
        assert (len(found), dict(drops.dropped)) == (kept, dropped), name
        train, held_out = split_preferences(found, 0.2)
        assert len(train) + len(held_out) == len(found) and 0.1 < len(held_out) / len(found) < 0.3
        assert not {p.opening_key for p in train} & {p.opening_key for p in held_out}
    hh = describe(read_preferences([shared_data / "hh_rlhf_harmless_test/test.jsonl.gz"], Drops()))
    assert hh["comparisons"] == 2308 and hh["agreement"]["repeated"] == 0
    assert abs(hh["length"]["chosen_is_longer"]["estimate"] - 0.5) < 0.06


def preferences(n):
    return [Preference(str(i), Comparison([{"role": "user", "content": f"q{i % 7}"}], [GOOD], [BAD])) for i in range(n)]


def test_a_prompt_is_on_one_side_whatever_else_is_there():
    few, many = preferences(14), preferences(70)
    held = {p.prompt_key for p in split_preferences(many, 0.4)[1]}
    assert 0 < len(held) < 7
    assert {p.prompt_key for p in split_preferences(reversed(few), 0.4)[1]} == held
    drops = Drops()
    train = without_prompts(many, split_preferences(many, 0.4)[1], drops)
    assert len(train) + drops.dropped["prompt_is_held_out"] == 70 and not {p.prompt_key for p in train} & held
    with pytest.raises(UsageError):
        split_preferences(many, 1.0)


def test_the_report_counts_who_contradicts_whom():
    flipped = Preference("x", Comparison([{"role": "user", "content": "q0"}], [BAD], [GOOD]))
    found = describe([*preferences(14), flipped])
    assert (found["comparisons"], found["prompts"]) == (15, 7)
    assert (found["agreement"]["repeated"], found["agreement"]["contradicted"]) == (7, 1)
    assert found["agreement"]["with_majority"]["estimate"] == pytest.approx(14 / 15)
    assert found["length"]["equal"] == 15 and found["length"]["chosen_is_longer"] is None


# --- rows -------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def renderer():
    texts = [f"user assistant q{i} {c} is the answer to it" for i in range(9) for c in string.ascii_lowercase]
    special = ["<|im_start|>", "<|im_end|>"]
    return ChatRenderer(train_tokenizer(texts, vocab_size=300, special_tokens=special, split="gpt-2"), "chatml")


def test_only_the_reply_is_learnt(renderer):
    before = [USER, {"role": "assistant", "content": "said before"}, {"role": "user", "content": "and now?"}]
    (rows,) = pair_rows([Preference("1", Comparison(before, [GOOD], [BAD], margin=1.5))], renderer, 128, Drops())
    for row, text in ((rows.first, "4"), (rows.second, "5")):
        learnt = renderer.tokenizer.decode(row.ids[row.learnt].tolist(), skip_special_tokens=False)
        assert learnt.rstrip("\n") == f"{text}<|im_end|>" and rows.margin == 1.5
    assert np.array_equal(rows.first.ids[~rows.first.learnt], rows.second.ids[~rows.second.learnt])
    assert rows.first.key != rows.second.key
    batch = collate_pairs([rows], 0, torch.tensor([[-1.0, -2.0]]))
    assert batch.reference.tolist() == [-1.0, -2.0] and batch.margin.tolist() == [1.5] and batch.desirable is None
    for b, row in enumerate((rows.first, rows.second)):
        where = (batch.targets[b] != IGNORED).nonzero().flatten()
        assert batch.targets[b, where].tolist() == row.ids[row.learnt].tolist()
        assert batch.tokens[b, where + 1].tolist() == row.ids[row.learnt].tolist()
        assert batch.lengths[b] == len(row.ids)
    assert batch.to("cpu").tokens_in_loss == batch.tokens_in_loss == sum(int(row.learnt.sum()) for row in rows[:2])


def test_kto_pairs_each_answer_with_one_to_another_prompt(renderer):
    said = [Preference(str(i), Comparison([{"role": "user", "content": f"q{i}"}],
                                          [{"role": "assistant", "content": f"a{i}"}],
                                          [{"role": "assistant", "content": f"b{i}"}])) for i in range(6)]  # fmt: skip
    rows = marked_rows(said, renderer, 64, Drops(), seed=3)
    assert [row.desirable for row in rows] == [True, False] * 6
    for number, row in enumerate(rows):
        own, other = (
            renderer.tokenizer.decode(part.ids.tolist(), skip_special_tokens=True) for part in (row.first, row.second)
        )
        assert f"q{number // 2}" in own and f"q{number // 2}" in other
        assert f"a{number // 2}" not in other and f"b{number // 2}" not in other
    assert collate_pairs(rows[:3], 0).desirable.tolist() == [True, False, True]
    with pytest.raises(UsageError, match="other prompts"):
        marked_rows(said[:1], renderer, 64, Drops())
    with pytest.raises(UsageError, match="mark"):
        collate_pairs([rows[0], rows[1]._replace(desirable=None)], 0)


def test_what_does_not_fit_is_counted(renderer):
    drops = Drops()
    long = Preference("long", Comparison([USER], [{"role": "assistant", "content": "word " * 99}], [BAD]))
    marked = Preference("marked", MarkedReply([USER], [GOOD], True))
    assert len(pair_rows([*preferences(3), long, marked], renderer, 40, drops)) == 3
    assert drops.dropped == {"longer_than_max_tokens": 1, "a_marked_reply_is_no_pair": 1} and drops.kept == 3
    with pytest.raises(DachengError, match="no preference is left"):
        pair_rows([long], renderer, 40, Drops())


# --- batches ----------------------------------------------------------------------------------------------------------
def rows_of(lengths):
    return [
        PairRows(*(Row(np.arange(2, n + 2, dtype=np.int32), np.arange(n) > n // 2) for _ in range(2))) for n in lengths
    ]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 3))
def test_an_epoch_has_each_row_once(count, size, seed):
    order = PooledOrder([random.Random(i).randrange(3, 30) for i in range(count)], size, seed)
    drawn = order.rows(np.arange(3 * count))
    for epoch in range(3):
        assert sorted(drawn[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert PooledOrder([9] * count, size, seed).rows(np.arange(count, 2 * count)) is not None


def test_the_source_is_a_function_of_the_step():
    pairs = rows_of([5 + i % 9 for i in range(23)])
    reference = -torch.arange(46.0).view(23, 2)
    source = PairSource(pairs, 4, seed=2, reference=reference)
    whole = [source.next(step)[0] for step in range(12)]
    again = PairSource(pairs, 4, seed=2, reference=reference)
    again.load_state_dict(json.loads(json.dumps(source.state_dict())))
    assert torch.equal(again.next(7)[0].tokens, whole[7].tokens)
    assert torch.equal(again.next(7)[0].reference, whole[7].reference)
    parts = PairSource(pairs, 4, micro_batches=2, seed=2, reference=reference).next(7)
    together = sorted(value for part in parts for value in part.reference.tolist())
    assert together == sorted(whole[7].reference.tolist())
    ranks = [PairSource(pairs, 4, seed=2, rank=r, world=2, reference=reference).next(7)[0] for r in range(2)]
    assert sorted(v for part in ranks for v in part.reference.tolist()) == together
    with pytest.raises(DachengError, match="other data"):
        PairSource(pairs, 4, seed=3).load_state_dict(source.state_dict())
    spread = [int(b.lengths.max() - b.lengths.min()) for b in whole]
    assert sum(spread) / len(spread) < 3  # of 0 to 8: a batch is of about one length
    for bad in (lambda: PairSource([], 4), lambda: PairSource(pairs, 4, reference=reference[:3])):
        with pytest.raises(UsageError):
            bad()
