"""JSON text inside a template that still knows which characters came from whom."""

from __future__ import annotations

import json
import re
import secrets
from typing import Any

from dacheng.text.chat.tracked import Tracked, join_pieces, runs_of

# One per process and unknown to any template or text, so that nothing can look like a place.
_NONCE = secrets.token_hex(16)
_PLACE = re.compile(rf'"{_NONCE}(\d+)"')


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """json.dumps with the defaults of transformers' `tojson` filter: Jinja's own escapes HTML characters."""
    texts: list[Tracked] = []
    holed = _with_places(value, texts, sort_keys)
    layout = json.dumps(holed, ensure_ascii=ensure_ascii, indent=indent, separators=separators)
    pieces: list[str] = []
    for i, part in enumerate(_PLACE.split(layout)):
        pieces += [part] if i % 2 == 0 else ['"', _escaped(texts[int(part)], ensure_ascii), '"']
    return join_pieces(pieces)


def _with_places(value: Any, texts: list[Tracked], sort_keys: bool) -> Any:
    """A copy with a numbered place for every tracked string; keys are put in order here, while they can be read."""
    if isinstance(value, Tracked):
        texts.append(value)
        return f"{_NONCE}{len(texts) - 1}"
    if isinstance(value, dict):
        items = sorted(value.items()) if sort_keys else value.items()
        return {_with_places(key, texts, sort_keys): _with_places(item, texts, sort_keys) for key, item in items}
    if isinstance(value, list | tuple):
        return [_with_places(item, texts, sort_keys) for item in value]
    return value


def _escaped(text: Tracked, ensure_ascii: bool) -> str:
    """JSON escapes each character by itself, so the stretches of one source can be escaped one after another."""
    if len(runs_of(text)) == 1:
        return Tracked(json.dumps(text, ensure_ascii=ensure_ascii)[1:-1], runs_of(text)[0][1])
    pieces, position = [], 0
    plain = str.__str__(text)
    for length, code in runs_of(text):
        inner = json.dumps(plain[position : position + length], ensure_ascii=ensure_ascii)[1:-1]
        pieces.append(Tracked(inner, code))
        position += length
    return join_pieces(pieces)
