"""The layouts of conversations: real files as they are published, each oddity, and what is counted."""

from __future__ import annotations

import json

import pytest

from dacheng.data.chat_layouts import NoChat, read_chat
from dacheng.data.chats import ChatSpec, chat_shards, learnt_mask, read_chats
from dacheng.records import Drops
from dacheng.text import ChatRenderer, train_tokenizer

CALL = '{"name": "add", "arguments": {"a": 1, "b": 2}}'
CALLED = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
TOOL = {"name": "add", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture(scope="module")
def renderer():
    special = ["<|im_start|>", "<|im_end|>"]
    texts = ["user assistant system what is the answer", "yes no 1 2 3", "你好 世界"]
    return ChatRenderer(train_tokenizer(texts, vocab_size=300, special_tokens=special, split="gpt-2"), "chatml")


@pytest.mark.parametrize(
    ("name", "kept", "roles"),
    [
        ("llamafactory_demo/alpaca_en_demo.json.gz", 999, {"user", "assistant"}),
        ("llamafactory_demo/alpaca_zh_demo.json.gz", 1000, {"user", "assistant"}),
        ("llamafactory_demo/identity.json", 91, {"user", "assistant"}),
        ("llamafactory_demo/glaive_toolcall_en_demo.json.gz", 300, {"user", "assistant", "tool"}),
        ("llamafactory_demo/glaive_toolcall_zh_demo.json.gz", 300, {"user", "assistant", "tool"}),
        ("llamafactory_demo/reason_tool_use_demo_50.jsonl", 50, {"system", "user", "assistant", "tool"}),
        ("seed_tasks_en/seed_tasks.jsonl", 175, {"user", "assistant"}),
        ("seed_tasks_zh/zh_seed_tasks.json", 175, {"user", "assistant"}),
        ("rasbt_instruct/instruction-data.json", 1100, {"user", "assistant"}),
    ],
)
def test_published_files_are_read_whole(shared_data, name, kept, roles):
    drops = Drops()
    records = list(read_chats([shared_data / name], drops))
    assert (len(records), sum(drops.dropped.values())) == (kept, 0)
    assert {m["role"] for r in records for m in r.messages} == roles
    for record in records:
        for message in record.messages:
            assert isinstance(message.get("content", ""), str) and set(message) <= {
                "role", "content", "tool_calls", "reasoning_content"}  # fmt: skip
            for call in message.get("tool_calls", []):
                assert isinstance(call["function"]["arguments"], dict)
        for tool in record.meta.get("tools", []):
            assert isinstance(tool["function"]["name"], str)


def test_tool_calls_of_real_files_are_rendered_and_learnt(shared_data, renderer):
    """Calls and thoughts are the assistant's words; the tool's reply is not."""
    template = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.reasoning_content or '' }}{{ m.content or '' }}{% for c in m.tool_calls or [] %}CALL {{ c.function | tojson }}{% endfor %}<|im_end|>
{% endfor %}{{ tools | length }}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""  # noqa: E501
    chat = ChatRenderer(renderer.tokenizer, template.replace("{{ tools | length }}", "{% if tools %}{% endif %}"),
                        strict=False)  # fmt: skip
    (record, *_) = read_chats([shared_data / "llamafactory_demo/glaive_toolcall_en_demo.json.gz"], Drops())
    done = chat.render(record.messages, record.meta["tools"])
    learnt = renderer.tokenizer.decode([i for i, m in zip(done.token_ids, done.mask) if m], skip_special_tokens=False)
    assert 'CALL {"name": "search_recipes"' in learnt
    assert "Chicken and Rice Casserole" not in learnt.split("<|im_end|>")[1]
    assert record.messages[4]["role"] == "tool" and record.messages[4]["content"][:40] not in learnt


def test_images_are_counted_not_learnt_without(shared_data):
    drops = Drops()
    with pytest.raises(Exception, match="has_images_or_sound: 6"):
        list(read_chats([shared_data / "llamafactory_demo/mllm_demo.json"], drops))


CASES = [
    ({"instruction": "a", "input": "", "output": "b"}, [("user", "a"), ("assistant", "b")]),
    ({"instruction": "a", "input": "x", "output": "b"}, [("user", "a\n\nx"), ("assistant", "b")]),
    ({"instruction": "", "input": "x", "output": "b"}, [("user", "x"), ("assistant", "b")]),
    (
        {"instruction": "a", "output": "b", "system": "s", "history": [["q", "r"]]},
        [("system", "s"), ("user", "q"), ("assistant", "r"), ("user", "a"), ("assistant", "b")],
    ),
    (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"},
        [("system", "s"), ("user", "a"), ("assistant", "b")],
    ),
    ({"prompt": "a", "completion": "b"}, [("user", "a"), ("assistant", "b")]),
    (
        {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
        [("user", "a"), ("assistant", "b")],
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "c"}]}]},
        [("user", "ac")],
    ),
]


@pytest.mark.parametrize(("value", "expected"), CASES)
def test_each_layout_becomes_messages(value, expected):
    ((messages, tools), *_), _ = read_chat(value)
    assert [(m["role"], m["content"]) for m in messages] == expected and tools is None


def test_an_instance_of_a_seed_task_is_a_conversation():
    instances = [{"input": "1", "output": "one"}, {"input": "2", "output": "two"}]
    chats, used = read_chat({"id": 7, "instruction": "name it", "instances": instances})
    assert [c.messages[0]["content"] for c in chats] == ["name it\n\n1", "name it\n\n2"]
    assert "id" not in used


def test_what_is_said_and_called_in_one_breath_is_one_message():
    turns = [
        {"from": "human", "value": "add"},
        {"from": "gpt", "value": "at once"},
        {"from": "function_call", "value": CALL},
        {"from": "function_call", "value": f"[{CALL}]"},
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "3"},
    ]
    ((messages, tools),), _ = read_chat({"conversations": turns, "tools": json.dumps([TOOL])})
    assert [m["role"] for m in messages] == ["user", "assistant", "tool", "assistant"]
    assert messages[1] == {"role": "assistant", "content": "at once", "tool_calls": [CALLED, CALLED]}
    assert tools == [{"type": "function", "function": TOOL}]


def test_the_older_function_call_is_a_tool_call():
    turns = [
        {"role": "user", "content": "add"},
        {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 1, "b": 2}'}},
        {"role": "function", "name": "add", "content": "3"},
    ]
    ((messages, tools),), used = read_chat({"messages": turns, "functions": [TOOL]})
    assert messages[1] == {"role": "assistant", "content": "", "tool_calls": [CALLED]}
    assert messages[2] == {"role": "tool", "name": "add", "content": "3"}
    assert tools == [{"type": "function", "function": TOOL}] and "functions" in used


BAD = [
    ({"messages": 3}, "not_messages:messages"),
    ({"messages": []}, "not_messages:messages"),
    ({"messages": [{"content": "a"}]}, "not_messages:messages"),
    ({"conversations": [{"from": "function_call", "value": "{add"}]}, "bad_tool_call"),
    ({"conversations": [{"from": "function_call", "value": "[1]"}]}, "bad_tool_call"),
    ({"conversations": [{"from": "human", "value": "a"}], "tools": "{"}, "bad_tools"),
    ({"conversations": [{"from": "human", "value": "a"}], "tools": [1]}, "bad_tools"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "not_text:image_url"),
    ({"messages": [{"role": "user", "content": [3]}]}, "not_text"),
    ({"instruction": "a", "output": " "}, "empty_reply"),
    ({"instruction": "a", "output": 3}, "field_not_text:output"),
    ({"instruction": "a", "output": "b", "history": [["q"]]}, "field_not_pairs:history"),
    ({"instruction": "a", "instances": 3}, "field_not_instances:instances"),
    ({"prompt": "a", "completion": ""}, "empty_reply"),
    ({"text": "a"}, "missing_field:messages"),
]


@pytest.mark.parametrize(("value", "reason"), BAD)
def test_what_is_no_conversation_says_why(value, reason, tmp_path):
    with pytest.raises(NoChat) as caught:
        read_chat(value)
    assert caught.value.reason == reason
    file = tmp_path / "x.jsonl"
    good = {"prompt": "a", "completion": "b", "extra": 1}
    file.write_text(json.dumps(value) + "\n[1]\n" + json.dumps(good) + "\n")
    drops = Drops()
    assert len(list(read_chats([file], drops))) == 1
    assert drops.dropped == {reason: 1, "not_an_object": 1} and drops.examples[reason] == "x.jsonl:1"
    assert drops.altered == {"field_ignored:extra": 1}


def test_a_named_layout_takes_nothing_else():
    with pytest.raises(NoChat):
        read_chat({"messages": [{"role": "user", "content": "a"}]}, "alpaca")


def test_parquet_too(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = [{"conversations": [{"from": "human", "value": "你好"}, {"from": "gpt", "value": "b"}], "id": "7"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    drops = Drops()
    (record,) = read_chats([tmp_path / "x.parquet"], drops)
    assert record.messages[0] == {"role": "user", "content": "你好"} and drops.altered == {"field_ignored:id": 1}


def test_half_a_surrogate_is_replaced_and_counted(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"prompt": "a \\ud83d", "completion": "b"}')
    drops = Drops()
    (record,) = read_chats([ChatSpec(path=str(tmp_path / "x.jsonl")).path], drops)
    assert record.messages[0]["content"] == "a �" and drops.altered == {"lone_surrogates_replaced": 1}


# --- what is learnt ---------------------------------------------------------------------------------------------------
TURNS = [
    {"role": "user", "content": "what is 1"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "what is 2"},
    {"role": "assistant", "content": "no"},
]


def said(renderer, turns, learn="all"):
    done = renderer.render(turns)
    mask = learnt_mask(done, turns, learn)
    return renderer.tokenizer.decode([i for i, m in zip(done.token_ids, mask) if m], skip_special_tokens=False)


def test_all_turns_or_the_last(renderer):
    both = said(renderer, TURNS)
    assert both.count("<|im_end|>") == 2 and "yes" in both and "no" in both and "what" not in both
    last = said(renderer, TURNS, "last")
    assert last.count("<|im_end|>") == 1 and "no" in last and "yes" not in last
    assert both.endswith(last)


def test_a_turn_of_no_weight_is_not_learnt(renderer):
    first = [TURNS[0], TURNS[1] | {"weight": 0}, *TURNS[2:]]
    assert said(renderer, first) == said(renderer, TURNS, "last")
    none = [TURNS[0], TURNS[1], TURNS[2], TURNS[3] | {"weight": 0}]
    assert said(renderer, none, "last") == ""
    drops = Drops()
    from dacheng.records import Record

    records = [Record("a", messages=none), Record("b", messages=TURNS)]
    assert chat_shards(records, renderer, context_length=99, drops=drops, learn="last").documents == 1
    assert drops.dropped == {"assistant_says_nothing": 1}
