"""A smaller vocabulary: the tokens that some texts use, and a tokenizer that cuts those texts as before."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
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


def tokens_of_chats(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer's chat template puts around messages ("user", line breaks, a system prompt of its own): a text
    that is no conversation does not have these. Empty without a template."""
    if tokenizer.chat_template is None:
        return []
    from dacheng.text import ChatRenderer

    found = list[int]()
    turns = [{"role": role, "content": "."} for role in ("system", "user", "assistant", "user")]
    for chat in (turns, turns[1:]):
        with suppress(DachengError):  # a template without system messages refuses the first
            found += ChatRenderer(tokenizer).render(chat, add_generation_prompt=True).token_ids
    return found


def words_to_keep(tokenizer: Tokenizer, texts: Iterable[str], size: int | None = None) -> tuple[int, ...]:
    """Ids that must stay for `texts` to be read as before, as `prune_vocabulary` has it. size: filled up to so many in
    the order of the ids, which in BERT's vocabularies is about that of frequency.

    Raises UsageError where `size` is less than what must stay.
    """
    _, least = prune_vocabulary(tokenizer, token_counts(tokenizer, texts).nonzero()[0].tolist())
    if size is not None and size < len(least):
        raise UsageError(f"the texts need {len(least)} tokens", field="vocabulary", value=size,
                         remedy=f"{len(least)} or more")  # fmt: skip
    others = sorted(set(tokenizer._vocab.values()) - set(least))
    return tuple(sorted([*least, *others[: 0 if size is None else size - len(least)]]))


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
    if wrong := [i for i in wanted if not 0 <= i < tokenizer.vocab_size]:
        raise UsageError("no token has this id", field="kept", value=wrong[0], remedy="ids of this tokenizer")
    wanted |= {token["id"] for token in spec["added_tokens"]} | set(tokenizer.special_ids)
    wanted |= {i for i in (tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id, tokenizer.unk_id) if i is not None}
    wanted |= {i for part in tokenizer._around for i in part}
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
    tokens that are gone are left out, and words of bad_words_ids that had one."""
    new = {old: place for place, old in enumerate(ids)}
    found: dict[str, Any] = {}
    for key, value in generation.items():
        if key == "bad_words_ids" and isinstance(value, list):
            found[key] = [[new[i] for i in word] for word in value if all(i in new for i in word)]
        elif key.endswith(("_token_id", "_tokens", "_token_ids")) and _all_ids(value):
            found[key] = [new[i] for i in value if i in new]
        elif not key.endswith("_token_id") or type(value) is not int:
            found[key] = value  # max_new_tokens and num_assistant_tokens are numbers of tokens
        elif value in new:
            found[key] = new[value]
    return found


def _all_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(i) is int for i in value)


def _is_smallest(name: str, model: dict[str, Any]) -> bool:
    """A character, with or without WordPiece's prefix or the mark of a word's end (CLIP's "a</w>"), or one of the bytes
    that spell what is unknown (<0x0A>)."""
    bare = name.removeprefix(model.get("continuing_subword_prefix") or "")
    bare = bare.removesuffix(model.get("end_of_word_suffix") or "")
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
