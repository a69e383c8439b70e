"""Tool calls and thoughts in a stream: what comes out does not depend on how the text was split."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.serve.reasoning import ReasoningSplitter
from dacheng.serve.tool_calls import Call, detect_format, tool_parser
from dacheng.text.chat.builtin import TEMPLATES


def parsed(kind: str, pieces: list[str], names=("f", "g")) -> list[str | Call]:
    """Text joined between calls."""
    parser, out = tool_parser(kind, names), []
    for found in [*(parser.push(piece) for piece in pieces), parser.finish()]:
        for item in found:
            if isinstance(item, str) and out and isinstance(out[-1], str):
                out[-1] += item
            else:
                out.append(item)
    return out


def cut(text: str, places: list[int]) -> list[str]:
    bounds = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in pairwise(bounds)]


F = Call("f", '{"x": 1}')
CASES = [
    ("hermes", "plain text", ["plain text"]),
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>', [F]),
    ("hermes", 'Let me see.\n\n<tool_call>{"name":"f","arguments":{"x":1}}</tool_call>\n', ["Let me see.", F]),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>\n<tool_call>{"name": "g"}</tool_call> done',
        [F, Call("g", "{}"), "done"],
    ),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"s": "</tool_call> \\" {"}}</tool_call>',
        [Call("f", '{"s": "</tool_call> \\" {"}')],
    ),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"x": 1}}', [F]),  # the turn ended before the marker
    ("hermes", 'a <tool_call>{"name": }</tool_call> b', ['a <tool_call>{"name": }</tool_call> b']),
    ("hermes", '<tool_call>{"name": "f", "argum', ['<tool_call>{"name": "f", "argum']),
    ("hermes", "a < b <tool b <tool_cal", ["a < b <tool b <tool_cal"]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>',
     ['<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>']),
    ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": "{}"}]',
     [F, Call("g", "{}")]),
    ("mistral", 'See: [TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]g[ARGS]{"s": "[TOOL_CALLS]"}',
     ["See:", F, Call("g", '{"s": "[TOOL_CALLS]"}')]),
    ("mistral", "[TOOL_CALLS][{bad", ["[TOOL_CALLS][{bad"]),
    ("mistral", "an array [TOOL_CAL", ["an array [TOOL_CAL"]),
    ("llama3", '{"name": "f", "parameters": {"x": 1}}', [F]),
    ("llama3", ' <|python_tag|>{"name": "h", "parameters": {}}; {"name": "f", "parameters": {"x": 1}}',
     [Call("h", "{}"), F]),
    ("llama3", '{"name": "unknown", "parameters": {}}', ['{"name": "unknown", "parameters": {}}']),
    ("llama3", '{"answer": 42}', ['{"answer": 42}']),
    ("llama3", " text {", [" text {"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "expected"), CASES)
def test_known_texts(kind, text, expected):
    assert parsed(kind, [text]) == expected
    assert parsed(kind, list(text)) == expected


PARTS = ["<tool_call>", "</tool_call>", '{"name": "f", "arguments": {"a": "b"}}', '{"name": "f"', '"', "\\", "[", "]",
         "{", "}", ",", ";", "\n", " ", "text", "<", "<tool", "[TOOL_CALLS]", "[ARGS]", "[TOOL", "f", "<|python_tag|>",
         "<think>", "</think>", "</th", "大"]  # fmt: skip


@pytest.mark.parametrize("kind", ["hermes", "mistral", "llama3"])
@settings(max_examples=300, deadline=None)
@given(parts=st.lists(st.sampled_from(PARTS), max_size=14), places=st.lists(st.integers(0, 400), max_size=12))
def test_every_split_gives_the_same(kind, parts, places):
    text = "".join(parts)
    whole = parsed(kind, [text])
    assert parsed(kind, cut(text, places)) == whole
    assert parsed(kind, list(text)) == whole


@settings(max_examples=200, deadline=None)
@given(
    arguments=st.dictionaries(
        st.text(max_size=6), st.recursive(st.none() | st.integers() | st.text(max_size=12), st.lists, max_leaves=4)
    ),
    places=st.lists(st.integers(0, 200), max_size=8),
)
def test_arguments_come_out_as_they_went_in(arguments, places):
    call = json.dumps({"name": "f", "arguments": arguments}, ensure_ascii=False)
    for kind, text in (
        ("hermes", f"x <tool_call>{call}</tool_call> y"),
        ("mistral", f"x [TOOL_CALLS][{call}]"),
        ("llama3", call),
    ):
        calls = [item for item in parsed(kind, cut(text, places)) if isinstance(item, Call)]
        assert [(found.name, json.loads(found.arguments)) for found in calls] == [("f", arguments)]


def split_thought(pieces: list[str], inside: bool) -> tuple[str, str]:
    splitter, thought, answer = ReasoningSplitter(inside), "", ""
    for found in [*(splitter.push(piece) for piece in pieces), splitter.finish()]:
        for is_thought, text in found:
            thought, answer = (thought + text, answer) if is_thought else (thought, answer + text)
    return thought, answer


@pytest.mark.parametrize(
    ("text", "inside", "expected"),
    [
        ("<think>\nhm\n</think>\n\nyes", False, ("hm", "yes")),
        ("hm\n</think>\n\nyes </think>", True, ("hm", "yes </think>")),
        ("<think></think>yes", False, ("", "yes")),
        ("\n <think>hm", False, ("hm", "")),
        (" yes <think>no</think>", False, ("", " yes <think>no</think>")),
        ("<thin", False, ("", "<thin")),
        ("hm </thi", True, ("hm </thi", "")),
    ],
)
def test_thoughts(text, inside, expected):
    assert split_thought([text], inside) == expected
    assert split_thought(list(text), inside) == expected


@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(st.sampled_from(PARTS), max_size=10),
    places=st.lists(st.integers(0, 300), max_size=10),
    inside=st.booleans(),
)
def test_thoughts_in_every_split(parts, places, inside):
    text = "".join(parts)
    assert split_thought(cut(text, places), inside) == split_thought([text], inside)


def test_the_format_is_what_the_template_teaches():
    assert detect_format(TEMPLATES["mistral"]) == "mistral"
    assert detect_format(TEMPLATES["qwen"]) == "hermes"
    assert detect_format(TEMPLATES["chatml"]) is None
    assert detect_format("{% if tools %}<|python_tag|>{% endif %}") == "llama3"
    assert detect_format(None) is None
