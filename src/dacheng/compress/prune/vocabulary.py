"""A smaller vocabulary: the tokens that some texts use, and a tokenizer that cuts those texts as before."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Core

from dacheng.errors import DachengError, UsageError
from dacheng.text import Tokenizer

_BATCH = 256


def token_counts(tokenizer: Tokenizer, texts: Iterable[str]) -> np.ndarray:
    """(vocab_size,) int64: how often each token stands in the texts."""
    counts, held = np.zeros(tokenizer.vocab_size, dtype=np.int64), list[str]()

    def add() -> None:
        for ids in tokenizer.encode_batch(held):
            np.add.at(counts, np.asarray(ids, dtype=np.int64), 1)
        held.clear()

    for text in texts:
        held.append(text)
        if len(held) == _BATCH:
            add()
    add()
    return counts


def prune_vocabulary(tokenizer: Tokenizer, kept: Iterable[int]) -> tuple[Tokenizer, tuple[int, ...]]:
    """A tokenizer of these tokens and those that they cannot do without, and the old ids in the order of the new ones:
    `shrink(model, Keep(vocabulary=ids))` is its model.

    Special and added tokens stay, and every single character or byte, so that other texts can still be spelt. With BPE,
    whatever a kept token is merged from stays too; with all of these a text whose tokens are kept is cut in the same
    places (BPE and Unigram: the steps that cut it are still there, and none is new). WordPiece takes the longest piece
    there is, so that holds for it too. Raises UsageError for an id outside the vocabulary, DachengError for a kind of
    tokenizer that cannot be cut.
    """
    spec = json.loads(tokenizer._core.to_str())
    wanted = {int(i) for i in kept}
    if any(not 0 <= i < tokenizer.vocab_size for i in wanted):
        raise UsageError("no token has this id", field="kept", value=max(wanted), remedy="ids of this tokenizer")
    wanted |= {token["id"] for token in spec["added_tokens"]} | set(tokenizer.special_ids)
    wanted |= {i for i in (tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id, tokenizer.unk_id) if i is not None}
    model = spec["model"]
    names = {i: name for name, i in tokenizer._vocab.items()}
    kind = model.get("type")
    if kind not in ("BPE", "WordPiece", "Unigram", "WordLevel"):
        raise DachengError(
            "this kind of tokenizer cannot be cut", field="model.type", value=kind, remedy="keep it whole"
        )
    wanted |= {i for i, name in names.items() if _is_smallest(name, model)}
    if kind == "BPE":
        wanted |= _parts_of(wanted, names, model)
    ids = tuple(sorted(i for i in wanted if i in names))
    new = {old: place for place, old in enumerate(ids)}
    _cut_model(model, names, new)
    for token in spec["added_tokens"]:
        token["id"] = new[token["id"]]
    spec["post_processor"] = _renumbered(spec.get("post_processor"), new)
    config = dict(tokenizer.config)
    if isinstance(config.get("added_tokens_decoder"), dict):
        listed = config["added_tokens_decoder"].items()
        config["added_tokens_decoder"] = {str(new[int(i)]): told for i, told in listed if int(i) in new}
    return Tokenizer(Core.from_str(json.dumps(spec)), config=config), ids


def renumbered_settings(generation: dict[str, Any], ids: tuple[int, ...]) -> dict[str, Any]:
    """A generation_config with the new ids in the place of the old ones (eos_token_id: 2, or a list of them); those of
    tokens that are gone are left out."""
    new = {old: place for place, old in enumerate(ids)}
    found = {}
    for key, value in generation.items():
        if not key.endswith(("_token_id", "_tokens", "_token_ids")) or isinstance(value, bool):
            found[key] = value
        elif isinstance(value, list) and all(type(i) is int for i in value):
            found[key] = [new[i] for i in value if i in new]
        elif type(value) is not int or key.startswith(("max_", "min_")):
            found[key] = value
        elif value in new:
            found[key] = new[value]
    return found


def _is_smallest(name: str, model: dict[str, Any]) -> bool:
    """A character, with or without WordPiece's prefix, or one of the bytes that spell what is unknown (<0x0A>)."""
    prefix = model.get("continuing_subword_prefix") or ""
    bare = name.removeprefix(prefix) if prefix else name
    return len(bare) == 1 or (len(name) == 6 and name.startswith("<0x") and name.endswith(">"))


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    return [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]  # type: ignore[misc]


def _merged(left: str, right: str, model: dict[str, Any]) -> str:
    return left + right.removeprefix(model.get("continuing_subword_prefix") or "")


def _parts_of(wanted: set[int], names: dict[int, str], model: dict[str, Any]) -> set[int]:
    """Every token on a way to a wanted one."""
    numbers = {name: i for i, name in names.items()}
    ways: dict[str, list[tuple[str, str]]] = {}
    for left, right in _merges(model):
        ways.setdefault(_merged(left, right, model), []).append((left, right))
    found, waiting = set[int](), [names[i] for i in wanted if i in names]
    while waiting:
        for pair in ways.get(waiting.pop(), ()):
            for part in pair:
                number = numbers[part]
                if number not in found and number not in wanted:
                    found.add(number)
                    waiting.append(part)
    return found


def _cut_model(model: dict[str, Any], names: dict[int, str], new: dict[int, int]) -> None:
    """In place: vocabulary, merges and the number of the unknown token."""
    if model["type"] == "Unigram":
        vocab = model["vocab"]
        model["vocab"] = [vocab[old] for old in new if old < len(vocab)]
        if model.get("unk_id") is not None:
            model["unk_id"] = new[model["unk_id"]]
        return
    there = set(model["vocab"])
    model["vocab"] = {names[old]: place for old, place in new.items() if names[old] in there}
    if model["type"] == "BPE":
        kept = model["vocab"]
        model["merges"] = [
            [left, right] for left, right in _merges(model)
            if left in kept and right in kept and _merged(left, right, model) in kept
        ]  # fmt: skip


def _renumbered(value: Any, new: dict[int, int]) -> Any:
    """A post-processor with the new ids: {"ids": [101]} of a template, ["[SEP]", 102] of the older kinds."""
    if isinstance(value, list):
        if len(value) == 2 and isinstance(value[0], str) and type(value[1]) is int:
            return [value[0], new[value[1]]]
        return [_renumbered(item, new) for item in value]
    if isinstance(value, dict):
        return {
            key: [new[i] for i in item] if key == "ids" and isinstance(item, list) else _renumbered(item, new)
            for key, item in value.items()
        }
    return value
