"""Conversations for the chat tests: a few by hand, and hundreds made of real data (tools, many turns, thoughts)."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

Chat = dict[str, Any]  # {"messages": […], "tools": […] | None}

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city, today.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": 'like "Paris"'}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}


def call(name: str, arguments: dict[str, Any] | str, call_id: str = "call00001") -> dict[str, Any]:
    return {"type": "function", "id": call_id, "function": {"name": name, "arguments": arguments}}


def turn(role: str, content: str | None = "", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content} | more


BY_HAND: dict[str, Chat] = {
    "one question": {"messages": [turn("user", "Who are you?")], "tools": None},
    "one answer": {"messages": [turn("user", "2 + 2?"), turn("assistant", "4")], "tools": None},
    "white space": {
        "messages": [turn("user", "  \n hi \n"), turn("assistant", "\n\n hello there  \n"), turn("user", " and? ")],
        "tools": None,
    },
    "turns and system": {
        "messages": [
            turn("system", "Answer in one word."),
            turn("user", "春眠不觉晓，下一句是什么？"),
            turn("assistant", "处处闻啼鸟。👩‍👩‍👧"),
            turn("user", "And the fox?"),
            turn("assistant", "Jumps."),
            turn("user", "Why {{ not }} {% raw %}?"),
            turn("assistant", 'Because "quoted" \\ and <b>bold</b> & é.'),
        ],
        "tools": None,
    },
    "thoughts": {
        "messages": [
            turn("user", "1 + 1?"),
            turn("assistant", "<think>\none and one\n</think>\n\n2"),
            turn("user", "and 2 + 2?"),
            turn("assistant", "<think>\ntwo and two\n</think>\n\n4"),
        ],
        "tools": None,
    },
    "thoughts apart": {
        "messages": [
            turn("user", "1 + 1?"),
            turn("assistant", "2", reasoning_content="one and one"),
            turn("user", "and 2 + 2?"),
            turn("assistant", "4", reasoning_content="two and two"),
        ],
        "tools": None,
    },
    "a tool": {
        "messages": [
            turn("system", "You may look things up."),
            turn("user", "Weather in Paris?"),
            turn("assistant", "", tool_calls=[call("get_weather", {"city": "Paris", "days": 2})]),
            turn("tool", '{"sky": "clear", "t": 21.5}', name="get_weather", tool_call_id="call00001"),
            turn("assistant", "Clear, 21.5 degrees."),
            turn("user", "Thanks!"),
            turn("assistant", "You are welcome."),
        ],
        "tools": [WEATHER],
    },
    "two calls at once": {
        "messages": [
            turn("user", "Weather in Paris and 北京?"),
            turn(
                "assistant",
                "I look.",
                tool_calls=[call("get_weather", {"city": "Paris"}), call("get_weather", {"city": "北京"}, "call00002")],
            ),
            turn("tool", "clear", name="get_weather", tool_call_id="call00001"),
            turn("tool", "晴", name="get_weather", tool_call_id="call00002"),
            turn("assistant", "Clear in both."),
        ],
        "tools": [WEATHER],
    },
    "a call and no answer": {
        "messages": [turn("user", "Weather?"), turn("assistant", "", tool_calls=[call("get_weather", {"city": ""})])],
        "tools": [WEATHER],
    },
    "tools unused": {"messages": [turn("user", "Hi."), turn("assistant", "Hello.")], "tools": [WEATHER]},
}


def real(data: Path, each: int = 30) -> list[Chat]:
    """`each` conversations of each source in the data pack."""
    sources = (_alpaca, _identity, _preference, _kto, _glaive, _reasoning, _bfcl, _mt_bench)
    return [chat for source in sources for chat in source(data, each)]


def _read(path: Path) -> Any:
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return [json.loads(line) for line in text.splitlines()] if ".jsonl" in path.name else json.loads(text)


def _alpaca(data: Path, each: int) -> list[Chat]:
    chats = []
    for language in ("en", "zh"):
        rows = _read(data / f"llamafactory_demo/alpaca_{language}_demo.json.gz")
        for i, row in enumerate(rows[:each]):
            question = "\n".join(part for part in (row["instruction"], row["input"]) if part)
            head = [turn("system", "You are a helpful assistant.")] if i % 2 else []
            chats.append({"messages": [*head, turn("user", question), turn("assistant", row["output"])], "tools": None})
    return chats


def _identity(data: Path, each: int) -> list[Chat]:
    """Several questions in one conversation."""
    rows = _read(data / "llamafactory_demo/identity.json")
    chats = []
    for i in range(0, min(len(rows) - 4, 3 * each), 3):
        messages = [
            m for row in rows[i : i + 3] for m in (turn("user", row["instruction"]), turn("assistant", row["output"]))
        ]
        chats.append({"messages": messages, "tools": None})
    return chats


def _from_sharegpt(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    numbers = itertools.count(1)
    for row in rows:
        kind, value = row["from"], row["value"]
        if kind == "function_call":
            made = json.loads(value)
            made = made if isinstance(made, list) else [made]
            calls = [call(one["name"], one["arguments"], f"call{next(numbers):05d}") for one in made]
            messages.append(turn("assistant", "", tool_calls=calls))
        elif kind == "observation":
            last = next((m["tool_calls"][0] for m in reversed(messages) if "tool_calls" in m), None)
            messages.append(turn("tool", value, name=last["function"]["name"], tool_call_id=last["id"]))
        else:
            messages.append(turn({"human": "user", "gpt": "assistant", "system": "system"}[kind], value))
    return messages


def _preference(data: Path, each: int) -> list[Chat]:
    rows = _read(data / "llamafactory_demo/dpo_en_demo.json.gz")[:each]
    return [{"messages": _from_sharegpt([*row["conversations"], row["chosen"]]), "tools": None} for row in rows]


def _kto(data: Path, each: int) -> list[Chat]:
    return [
        {"messages": [turn(m["role"], m["content"]) for m in row["messages"]], "tools": None}
        for row in _read(data / "llamafactory_demo/kto_en_demo.json.gz")[:each]
    ]


def _glaive(data: Path, each: int) -> list[Chat]:
    chats = []
    for language in ("en", "zh"):
        rows = _read(data / f"llamafactory_demo/glaive_toolcall_{language}_demo.json.gz")
        for row in rows[: 2 * each]:
            tools = [{"type": "function", "function": tool} for tool in json.loads(row["tools"] or "[]")]
            chats.append({"messages": _from_sharegpt(row["conversations"]), "tools": tools or None})
    return chats


def _reasoning(data: Path, each: int) -> list[Chat]:
    chats = []
    for row in _read(data / "llamafactory_demo/reason_tool_use_demo_50.jsonl")[:each]:
        messages: list[dict[str, Any]] = []
        for message in row["messages"]:
            made: dict[str, Any] = {"role": message["role"], "content": ""}
            for part in message["content"]:
                if part["type"] == "reasoning":
                    made["reasoning_content"] = part["value"]
                elif part["type"] == "tool_call":
                    one = json.loads(part["value"])
                    calls = made.setdefault("tool_calls", [])
                    calls.append(call(one["name"], one["arguments"], f"call{len(messages):02d}{len(calls):03d}"))
                else:
                    made["content"] += part["value"]
            messages.append(made)
        tools = row["tools"] if isinstance(row["tools"], list) else json.loads(row["tools"] or "[]")
        wrapped = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
        chats.append({"messages": messages, "tools": wrapped or None})
    return chats


def _bfcl(data: Path, each: int) -> list[Chat]:
    chats = []
    answers = _read(data / "bfcl_v4/possible_answer/parallel.jsonl")
    for row, gold in list(zip(_read(data / "bfcl_v4/parallel.jsonl"), answers))[:each]:
        calls = []
        for i, one in enumerate(gold["ground_truth"]):
            ((name, arguments),) = one.items()
            first = {key: values[0] for key, values in arguments.items() if values}
            calls.append(call(name, first, f"call{i:05d}"))
        results = [turn("tool", f"result {i}", name=c["function"]["name"], tool_call_id=c["id"])
                   for i, c in enumerate(calls)]  # fmt: skip
        messages = [*row["question"][0], turn("assistant", "", tool_calls=calls), *results, turn("assistant", "Done.")]
        chats.append({"messages": messages, "tools": [{"type": "function", "function": f} for f in row["function"]]})
    return chats


def _mt_bench(data: Path, each: int) -> list[Chat]:
    """Two turns, the second of them still to be answered."""
    chats = []
    for language in ("en", "zh"):
        for row in _read(data / f"mt_bench/question_{language}.jsonl")[: each // 2]:
            messages = [m for text in row["turns"] for m in (turn("user", text), turn("assistant", text[::-1]))]
            chats.append({"messages": messages[:-1], "tools": None})
    return chats
