"""Prompts that a template refuses, or that are none, are counted: they do not end a run."""

from __future__ import annotations

import json

import pytest
from reinforce_toys import tokenizer

from dacheng.align.reinforce.prompts import read_prompts
from dacheng.errors import DachengError
from dacheng.records import Drops
from dacheng.text import ChatRenderer


def test_one_bad_conversation_is_left_aside(tmp_path):
    file, drops = tmp_path / "prompts.jsonl", Drops()
    good = {"messages": [{"role": "user", "content": "hi"}]}
    bad = [{"messages": ["hi"]}, {"messages": [{"content": "hi"}]}, {"messages": [{"role": "user", "content": [3]}]}]
    file.write_text("".join(json.dumps(line) + "\n" for line in [*bad, good]))
    (found,) = read_prompts([file], tokenizer(), renderer=ChatRenderer(tokenizer(), "chatml"), drops=drops)
    assert found.text == "hi" and drops.dropped["not_messages:messages"] == 2
    assert sum(count for reason, count in drops.dropped.items() if reason.startswith("refused:")) == 1
    with pytest.raises(DachengError, match="need a chat template"):
        read_prompts([file], tokenizer())
