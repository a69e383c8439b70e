"""A tokenizer as GGUF's metadata, so that llama.cpp gives texts the same ids. The way back: gguf_vocabulary.py."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from dacheng.errors import DachengError
from dacheng.text.gguf_vocabulary import PREFIX, ROLES, TEMPLATE
from dacheng.text.vocabularies.sentencepiece import SPACE
from dacheng.text.vocabularies.sentencepiece_model import Kind
from dacheng.text.vocabularies.splits import split_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dacheng.text.tokenizer import Tokenizer

# llama.cpp joins any two pieces whose union is one; those that no merge makes come after all others.
_NOT_JOINED, _SPECIAL = 0.0, -1000.0


def gguf_metadata_of(tokenizer: Tokenizer, *, pre: str | None = None) -> dict[str, Any]:
    """The tokenizer.* keys, values plain Python (lists of str, float and int; scores are to be float32, types int32).

    Byte-level BPE becomes the kind "gpt2", SentencePiece BPE with byte fallback the kind "llama".
    pre: the name of the way texts are cut into words, for a tokenizer that cuts in a way that has no name there: then
    llama.cpp's ids are near, not equal.
    Raises DachengError naming the part that llama.cpp has no counterpart for.
    """
    core = tokenizer._core
    content = json.loads(core.to_str())
    model = content["model"]
    if model["type"] != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _no_counterpart("model", model["type"], "only BPE tokenizers can be exported")
    names, kinds = _tokens(tokenizer, content)
    out: dict[str, Any] = {}
    if model["byte_fallback"]:
        out[PREFIX + "model"], out[PREFIX + "pre"] = "llama", "default"
        out[PREFIX + "add_space_prefix"] = _space_prefix(content)
        out[PREFIX + "tokens"] = [
            name.replace(SPACE, " ") if kind == Kind.USER_DEFINED else name for name, kind in zip(names, kinds)
        ]
        out[PREFIX + "scores"] = _scores(names, kinds, model["merges"])
    else:
        out[PREFIX + "model"], out[PREFIX + "pre"] = "gpt2", pre or _split(tokenizer, content)
        out[PREFIX + "add_space_prefix"] = False
        out[PREFIX + "tokens"] = names
        out[PREFIX + "merges"] = [" ".join(_pair(merge)) for merge in model["merges"]]
    out[PREFIX + "token_type"] = kinds
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "unk_token": tokenizer.unk_id}
    for key, role in ROLES.items():
        name = tokenizer.config.get(role)
        name = name.get("content") if isinstance(name, dict) else name
        token_id = ids.get(role, tokenizer.token_to_id(name) if isinstance(name, str) else None)
        if token_id is not None:
            out[PREFIX + key] = token_id
    out[PREFIX + "add_bos_token"], out[PREFIX + "add_eos_token"] = _around(tokenizer)
    if tokenizer.chat_template is not None:
        out[TEMPLATE] = tokenizer.chat_template
    return out


def _tokens(tokenizer: Tokenizer, content: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """Names and types by id. An id without token gets a filler, as convert_hf_to_gguf.py does."""
    names = [f"[PAD{i}]" for i in range(tokenizer.vocab_size)]
    kinds = [int(Kind.UNUSED)] * tokenizer.vocab_size
    fallback = content["model"]["byte_fallback"]
    for name, token_id in content["model"]["vocab"].items():
        is_byte = fallback and len(name) == 6 and name.startswith("<0x") and name.endswith(">")
        names[token_id], kinds[token_id] = name, int(Kind.BYTE if is_byte else Kind.NORMAL)
    trimming = []
    for token in content["added_tokens"]:
        kind = Kind.CONTROL if token["special"] else Kind.USER_DEFINED
        names[token["id"]], kinds[token["id"]] = token["content"], int(kind)
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            trimming.append(token["content"])
    if fallback and tokenizer.unk_id is not None:
        kinds[tokenizer.unk_id] = int(Kind.UNKNOWN)
    if trimming:
        logging.getLogger(__name__).warning(
            "GGUF cannot say that these tokens take the spaces beside them, or stand as single words only: %s",
            ", ".join(trimming[:8]),
        )
    return names, kinds


def _scores(names: list[str], kinds: list[int], merges: list[Any]) -> list[float]:
    """The earlier a token is made, the higher its score. User-defined ones are found whole, never made."""
    whole = {name for name, kind in zip(names, kinds) if kind == Kind.USER_DEFINED}
    scores: dict[str, float] = {}
    for merge in merges:
        if (made := "".join(_pair(merge))) not in whole:
            scores.setdefault(made, -float(len(scores)))
    special = (Kind.CONTROL, Kind.UNKNOWN, Kind.USER_DEFINED, Kind.UNUSED)
    last = -float(len(scores))
    return [
        _SPECIAL if kind in special else _NOT_JOINED if kind == Kind.BYTE else scores.get(name, last - token_id)
        for token_id, (name, kind) in enumerate(zip(names, kinds))
    ]


def _pair(merge: Any) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else merge


def _split(tokenizer: Tokenizer, content: Mapping[str, Any]) -> str:
    if content["normalizer"] not in (None, {"type": "NFC"}, {"type": "Sequence", "normalizers": []}):
        raise _no_counterpart("normalizer", content["normalizer"], "byte-level texts are not changed by llama.cpp")
    found = split_name(tokenizer._core)
    if found is None:
        raise _no_counterpart(
            "pre_tokenizer", content["pre_tokenizer"],
            "its way to cut texts into words has no name there; with pre=… the nearest can be named",
        )  # fmt: skip
    return found


def _space_prefix(content: Mapping[str, Any]) -> bool:
    """Whether SentencePiece's space comes before the text. Refuses any other change of the text."""
    normalizer, pre = content["normalizer"] or {"type": "Sequence", "normalizers": []}, content["pre_tokenizer"]
    steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    prefix = False
    for step in steps:
        if _puts_prefix(step):
            prefix = True
        elif not (step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == SPACE):
            raise _no_counterpart("normalizer", step["type"], "llama.cpp only turns spaces into ▁")
    if pre is not None and pre["type"] == "Metaspace" and not pre["split"]:
        prefix = prefix or pre["prepend_scheme"] != "never"
    elif pre is not None and pre.get("pattern") != {"String": " "}:  # Gemma's, which finds no spaces any more
        raise _no_counterpart("pre_tokenizer", pre["type"], "llama.cpp doesn't cut SentencePiece's texts")
    return prefix


def _puts_prefix(step: Mapping[str, Any]) -> bool:
    """Prepend, or what vocabularies/sentencepiece.py has for it where pieces are looked for in the whole text."""
    if step["type"] == "Prepend":
        return step["prepend"] == SPACE
    starts = step["type"] == "Replace" and step["pattern"].get("Regex", "").startswith("\\A(?!")
    return starts and step["content"] == SPACE


def _around(tokenizer: Tokenizer) -> tuple[bool, bool]:
    """Whether BOS and EOS are put around a text."""
    inner, whole = (tokenizer.encode("a", add_special_tokens=around) for around in (False, True))
    bos, eos = [tokenizer.bos_id], [tokenizer.eos_id]
    for before, after in ((False, False), (True, False), (False, True), (True, True)):
        if whole == bos * before + inner + eos * after:
            return before, after
    raise _no_counterpart("post_processor", whole, "only BOS and EOS can be put around texts")


def _no_counterpart(part: str, value: object, why: str) -> DachengError:
    return DachengError(
        f"llama.cpp has no counterpart to this tokenizer's {part}: {why}", field=part, value=value,
        remedy="keep the model as a directory with tokenizer.json",
    )  # fmt: skip
