"""Mistral's tekken files: tiktoken's ranks in JSON, behind a block of special tokens.

Source: mistralai/mistral-common, tokens/tokenizers/tekken.py. Ids: the special tokens from 0, fillers up to
default_num_special_tokens, then the vocabulary by rank, of which only the first tokens are used.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dacheng.errors import DamagedFile
from dacheng.text.vocabularies.byte_level import byte_level_core
from dacheng.text.vocabularies.splits import Split
from dacheng.text.vocabularies.tiktoken import vocab_and_merges
from dacheng.text.vocabularies.vocabulary import Vocabulary, check_ids, from_base64, read_json, roles

if TYPE_CHECKING:
    from dacheng.text.tokenizer import Tokenizer

# Files up to version 7 don't list them.
_SPECIAL = [
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
]  # fmt: skip
_MAX_SPECIAL = 1 << 16


def read_tekken(path: Path) -> Vocabulary:
    """See `tokenizer_from_tekken`."""
    content = read_json(path)
    config = _get(content, "config", dict, "")
    pattern = _get(config, "pattern", str, "config.")
    size, specials = (
        _get(config, name, int, "config.") for name in ("default_vocab_size", "default_num_special_tokens")
    )
    entries = _get(content, "vocab", list, "")
    if not 0 < specials <= _MAX_SPECIAL or not specials < size <= specials + len(entries):
        raise _damaged("the sizes don't fit the vocabulary", "config.default_vocab_size", size)
    names = _special_names(content.get("special_tokens"), specials)
    ranks: dict[bytes, int] = {}
    for i, entry in enumerate(entries[: size - specials]):
        rank = _get(entry, "rank", int, f"vocab[{i}].")
        token = from_base64(_get(entry, "token_bytes", str, f"vocab[{i}]."), f"vocab[{i}].token_bytes")
        if rank != i or not 0 < len(token) <= 1024:
            raise _damaged("a token is not where its rank says, or has no length", f"vocab[{i}]", rank)
        ranks[token] = rank
    if len(ranks) != size - specials:
        raise _damaged("tokens are there twice", "vocab", size - specials - len(ranks))
    tokens, merges = vocab_and_merges(ranks)
    vocab = {name: i for i, name in enumerate(names)} | {token: specials + i for token, i in tokens.items()}
    check_ids(vocab, size, "special_tokens")
    core = byte_level_core(vocab, merges, Split((pattern,), whole_words=True), special=names)
    present = {role: token for role, token in _ROLES.items() if token in names}
    return Vocabulary(core, roles(**present) | {"add_bos_token": "bos_token" in present})


_ROLES = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def tokenizer_from_tekken(path: Path | str, **tokens: str | None) -> Tokenizer:
    """A tokenizer of a tekken file (tekken.json). tokens: another eos_token and its kin than </s>, <s>, <pad>, <unk>.

    Raises DamagedFile naming the field, DachengError when the file cannot be opened.
    """
    return read_tekken(Path(path)).tokenizer(**tokens)


def _special_names(entries: Any, count: int) -> list[str]:
    """Names by id; what the file doesn't name is <SPECIAL_i>."""
    named = dict(enumerate(_SPECIAL[:count]))
    if entries is not None:
        if not isinstance(entries, list):
            raise _damaged("special tokens are no list", "special_tokens", type(entries).__name__)
        named = {}
        for i, entry in enumerate(entries):
            field = f"special_tokens[{i}]."
            rank, name = _get(entry, "rank", int, field), _get(entry, "token_str", str, field)
            if not 0 <= rank < count or rank in named or not name:
                raise _damaged("a special token's rank is taken or out of range", field + "rank", rank)
            named[rank] = name
    names = [named.get(i, f"<SPECIAL_{i}>") for i in range(count)]
    if len(set(names)) != count:
        raise _damaged("special tokens are there twice", "special_tokens", count - len(set(names)))
    return names


def _get(content: Any, name: str, kind: type, where: str) -> Any:
    value = content.get(name) if isinstance(content, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _damaged(f"no {kind.__name__} in this place", where + name, value)
    return value


def _damaged(problem: str, field: str, value: object) -> DamagedFile:
    return DamagedFile(
        f"this is no tekken vocabulary: {problem}", field=field, value=value,
        remedy="copy the file from its source again",
    )  # fmt: skip
