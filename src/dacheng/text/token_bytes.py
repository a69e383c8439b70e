"""The bytes each token stands for, worked out from the decoder of a tokenizer.json."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dacheng.text.byte_bpe import from_printable

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Core

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class TokenBytes:
    """table[id]: the bytes of a token in the middle of a text, b"" for an id without token.

    exact: the bytes of any ids, joined, are their text (byte-level BPE, and SentencePiece's byte fallback). Otherwise
    the family's decoder looks at neighbours, and only it gives the text.
    drop_first_space: the family begins every text with a space that its decoder takes off again.
    """

    table: list[bytes]
    exact: bool
    drop_first_space: bool


def token_bytes(core: Core, size: int) -> TokenBytes:
    """Reads the decoder of `core` for the ids below `size`."""
    added = {token_id: token.content for token_id, token in core.get_added_tokens_decoder().items()}
    tokens = {token_id: token for token, token_id in core.get_vocab(with_added_tokens=True).items()} | added
    steps = _steps(None if core.decoder is None else json.loads(core.decoder.__getstate__()))
    if not all(_understood(step, last=i == len(steps) - 1) for i, step in enumerate(steps)) or not steps:
        return _by_example(core, tokens, size)
    table = [b""] * size
    for token_id, token in tokens.items():
        table[token_id] = _bytes_of(token, steps, is_added=token_id in added)
    return TokenBytes(table, exact=True, drop_first_space=any(map(_drops_first_space, steps)))


def _steps(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [step for part in decoder["decoders"] for step in _steps(part)]
    return [decoder]


def _understood(step: Mapping[str, Any], last: bool) -> bool:
    """Whether the step treats each token by itself, but for a space at the start of the text."""
    kind = step["type"]
    if kind == "ByteLevel":
        return last
    if kind == "Replace":
        return "String" in step["pattern"]
    if kind == "Strip":
        return step["content"] == " " and step["start"] <= 1 and step["stop"] == 0
    return kind in ("Metaspace", "ByteFallback", "Fuse")


def _drops_first_space(step: Mapping[str, Any]) -> bool:
    return (step["type"] == "Strip" and step["start"] == 1) or (
        step["type"] == "Metaspace" and step.get("prepend_scheme") != "never"
    )


def _bytes_of(token: str, steps: list[Mapping[str, Any]], is_added: bool) -> bytes:
    for step in steps:
        kind = step["type"]
        if kind == "ByteLevel" and not is_added:  # an added token is matched in the text itself
            try:
                return from_printable(token)
            except KeyError:  # the decoder, too, takes a token with any other character as it is written
                return token.encode("utf-8")
        if kind == "Replace":
            token = token.replace(step["pattern"]["String"], step["content"])
        elif kind == "Metaspace":
            token = token.replace(step["replacement"], " ")
        elif kind == "ByteFallback" and (byte := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(byte[1], 16)])
    return token.encode("utf-8")


def _by_example(core: Core, tokens: Mapping[int, str], size: int) -> TokenBytes:
    """For decoders that join with spaces (WordPiece, none at all): what a token adds between two plain words."""
    word = _plain_word(core, tokens)
    if word is None:
        texts = core.decode_batch([[i] for i in tokens], skip_special_tokens=False)
        pieces, drop_first_space = texts, False
    else:
        first, both = (core.decode([word] * n, skip_special_tokens=False) for n in (1, 2))
        start, end = len(first), len(both) - len(first)
        texts = core.decode_batch([[word, i, word] for i in tokens], skip_special_tokens=False)
        pieces, drop_first_space = [text[start : len(text) - end] for text in texts], both[start : start + 1] == " "
    table = [b""] * size
    for token_id, piece in zip(tokens, pieces):
        table[token_id] = piece.encode("utf-8")
    return TokenBytes(table, exact=False, drop_first_space=drop_first_space)


def _plain_word(core: Core, tokens: Mapping[int, str]) -> int | None:
    """A token of letters which stays what it is beside itself: the longest, so that clean-up rules leave it alone."""
    letters = [i for i, token in tokens.items() if token.isascii() and token.isalpha()]
    return max(letters, key=lambda i: (len(tokens[i]), -i), default=None)
