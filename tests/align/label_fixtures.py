"""A few pairs to compare, some of them hostile."""

from __future__ import annotations

import json
from pathlib import Path

from dacheng.align.labelling.labels import LabelStore
from dacheng.align.labelling.pairs import read_pairs
from dacheng.align.labelling.session import Session
from dacheng.records import Drops

HOSTILE = "<img src=x onerror=\"document.title='broken'\"> \x1b[31mred\x1b[0m \u202eback"
LINES = [
    {"prompt": "What is 1 + 1?", "responses": ["2", "Three, I think."]},
    {"prompt": f"Say it: {HOSTILE}", "responses": [HOSTILE, "no"]},
    {"prompt": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "天气好吗？"}],
     "a": "好", "b": "不知道，请您自己看看窗外。"},
    {"instruction": "Name a colour", "input": "", "chosen": "Blue.", "rejected": "I could name blue, or red."},
]  # fmt: skip


def write_pairs(folder: Path) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in LINES), encoding="utf-8")
    return path


def session(folder: Path, seed: int = 0) -> Session:
    return Session(read_pairs([write_pairs(folder)], Drops()), LabelStore(folder / "labels.jsonl"), seed)
