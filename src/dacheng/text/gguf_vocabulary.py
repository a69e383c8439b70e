"""A tokenizer in GGUF's metadata (tokenizer.ggml.*), as llama.cpp reads and writes it.

Source: ggml-org/ggml, docs/gguf.md; ggml-org/llama.cpp, src/llama-vocab.cpp and convert_hf_to_gguf.py. Two kinds:
"gpt2", byte-level BPE with merges, cut into words by the rule named in `pre`; "llama", SentencePiece BPE with scores.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dacheng.errors import DachengError, DamagedFile
from dacheng.text.vocabularies.byte_level import byte_level_core, parse_merges
from dacheng.text.vocabularies.sentencepiece import SPACE, sentencepiece_core
from dacheng.text.vocabularies.sentencepiece_model import BPE, Kind, SentencePieceModel
from dacheng.text.vocabularies.splits import split_named
from dacheng.text.vocabularies.vocabulary import Vocabulary, check_ids, roles

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Core

    from dacheng.text.tokenizer import Tokenizer

PREFIX = "tokenizer.ggml."
TEMPLATE = "tokenizer.chat_template"
# Roles of tokens, by the names of GGUF and of tokenizer_config.json.
ROLES = {
    "bos_token_id": "bos_token", "eos_token_id": "eos_token", "unknown_token_id": "unk_token",
    "padding_token_id": "pad_token", "seperator_token_id": "sep_token", "cls_token_id": "cls_token",
    "mask_token_id": "mask_token",
}  # fmt: skip
_LLAMA_DEFAULTS = {"unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_REMEDY = "copy the file from its source again"


def tokenizer_from_gguf(metadata: Mapping[str, Any], **tokens: str | None) -> Tokenizer:
    """The tokenizer that a GGUF file carries.

    metadata: its key-value pairs; arrays may be lists or numpy's. tokens: another eos_token, bos_token, pad_token or
    unk_token than the file's. BOS and EOS are put around texts (with add_special_tokens) as add_bos_token and
    add_eos_token say, or llama.cpp's defaults for the kind. The chat template comes along.
    Raises DamagedFile naming the key where the metadata contradicts itself; DachengError for a kind of tokenizer or a
    `pre` that is not known here, and where there is no EOS.
    """
    reader = _Reader(metadata)
    kind = reader.get("model", str)
    names = reader.tokens()
    kinds = reader.numbers("token_type", len(names), default=[int(Kind.NORMAL)] * len(names))
    if kind == "gpt2":
        core, around = _byte_level(reader, names, kinds)
    elif kind == "llama":
        core, around = _sentencepiece(reader, names, kinds)
    else:
        raise DachengError(
            "a tokenizer of this kind in a GGUF file is not read here", field=PREFIX + "model", value=kind,
            remedy="use the model's tokenizer.json or SentencePiece file",
        )  # fmt: skip
    config = roles(**reader.roles(core, len(names), _LLAMA_DEFAULTS if kind == "llama" else {}))
    config["add_bos_token"] = reader.get("add_bos_token", bool, around)
    config["add_eos_token"] = reader.get("add_eos_token", bool, False)
    if (template := reader.get(TEMPLATE, str, None, prefix="")) is not None:
        config["chat_template"] = template
    return Vocabulary(core, config).tokenizer(**tokens)


def _byte_level(reader: _Reader, names: list[str], kinds: list[int]) -> tuple[Core, bool]:
    pre = reader.get("pre", str, None)
    if pre is None:
        pre = "default"
        logging.getLogger(__name__).warning(
            "the GGUF file does not say how its texts are cut into words (%spre): as llama.cpp, the default is taken, "
            "which may not be what the model was trained with", PREFIX,
        )  # fmt: skip
    split = split_named(pre)
    merges = parse_merges(reader.list_of("merges", str), PREFIX + "merges")
    vocab = {name: i for i, name in enumerate(names)}
    check_ids(vocab, len(names), PREFIX + "tokens")
    special = [name for name, kind in zip(names, kinds) if kind in (Kind.CONTROL, Kind.UNKNOWN)]
    plain = [name for name, kind in zip(names, kinds) if kind == Kind.USER_DEFINED]
    return byte_level_core(vocab, merges, split, special=special, plain=plain), split.bos


def _sentencepiece(reader: _Reader, names: list[str], kinds: list[int]) -> tuple[Core, bool]:
    """User-defined pieces are written with plain spaces (convert_hf_to_gguf.py); in tokenizer.json they have theirs."""
    pieces = [name.replace(" ", SPACE) if kind == Kind.USER_DEFINED else name for name, kind in zip(names, kinds)]
    unknown = reader.get("unknown_token_id", int, _LLAMA_DEFAULTS["unknown_token_id"])
    if not 0 <= unknown < len(pieces):
        raise DamagedFile("no token has this id", field=PREFIX + "unknown_token_id", value=unknown, remedy=_REMEDY)
    kinds = [int(Kind.CONTROL) if kind == Kind.UNKNOWN else kind for kind in kinds]
    kinds[unknown] = int(Kind.UNKNOWN)
    model = SentencePieceModel(
        pieces, reader.numbers("scores", len(names)), kinds, model_type=BPE,
        byte_fallback=Kind.BYTE in kinds,
        add_dummy_prefix=reader.get("add_space_prefix", bool, True),
        remove_extra_whitespaces=reader.get("remove_extra_whitespaces", bool, False),
    )  # fmt: skip
    return sentencepiece_core(model.check()), True


class _Reader:
    """Values by key, each of the type that it must have. Raises DamagedFile naming the key."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata

    def get(self, key: str, kind: type, default: Any = ..., *, prefix: str = PREFIX) -> Any:
        value = self._metadata.get(prefix + key, default)
        if value is ...:
            raise DamagedFile("the file lacks a key of its tokenizer", field=prefix + key, remedy=_REMEDY)
        if value is None and default is None:
            return None
        if kind is int and hasattr(value, "__index__") and not isinstance(value, bool):
            return int(value)  # numpy's too
        if kind is bool and type(value).__name__ in ("bool", "bool_"):
            return bool(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise DamagedFile(f"this is no {kind.__name__}", field=prefix + key, value=value, remedy=_REMEDY)
        return value

    def list_of(self, key: str, *kinds: type) -> list[Any]:
        value: Any = self._metadata.get(PREFIX + key)
        if hasattr(value, "tolist"):
            value = value.tolist()
        if not isinstance(value, list | tuple) or not set(map(type, value)) <= set(kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            shown = type(value).__name__ if value is not None else None
            raise DamagedFile(f"this is no list of {names}", field=PREFIX + key, value=shown, remedy=_REMEDY)
        return list(value)

    def tokens(self) -> list[str]:
        """An empty name gets llama.cpp's: no text has it."""
        names = [name or f"[EMPTY_{i}]" for i, name in enumerate(self.list_of("tokens", str))]
        if not names:
            raise DamagedFile("the vocabulary is empty", field=PREFIX + "tokens", value=0, remedy=_REMEDY)
        return names

    def numbers(self, key: str, count: int, default: list[Any] | None = None) -> list[Any]:
        if default is not None and self._metadata.get(PREFIX + key) is None:
            return default
        values = self.list_of(key, *((int,) if key == "token_type" else (int, float)))
        if len(values) != count:
            raise DamagedFile(f"{count} tokens have {len(values)} entries", field=PREFIX + key, value=len(values),
                              remedy=_REMEDY)  # fmt: skip
        if not all(map(math.isfinite, values)):
            raise DamagedFile("an entry is no number", field=PREFIX + key, value="nan or inf", remedy=_REMEDY)
        return values

    def roles(self, core: Core, count: int, defaults: Mapping[str, int]) -> dict[str, str | None]:
        found: dict[str, str | None] = {}
        for key, role in ROLES.items():
            token_id = self.get(key, int, defaults.get(key))
            if token_id is None:
                continue
            if not 0 <= token_id < count:
                if self._metadata.get(PREFIX + key) is None:  # a default that this vocabulary is too small for
                    continue
                raise DamagedFile("no token has this id", field=PREFIX + key, value=token_id, remedy=_REMEDY)
            found[role] = core.id_to_token(token_id)
        return found
