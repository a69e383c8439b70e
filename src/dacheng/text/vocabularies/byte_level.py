"""Byte-level BPE from its parts, whichever file they came from."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dacheng.errors import DachengError, DamagedFile
from dacheng.text.byte_bpe import BYTE_TO_CHAR, CHAR_TO_BYTE
from dacheng.text.vocabularies.splits import SPLITS, Split, split_named
from dacheng.text.vocabularies.vocabulary import Vocabulary, add_tokens, build, check_ids, read_json, read_text, roles

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Core

    from dacheng.text.tokenizer import Tokenizer

_NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}
# The split of the families that keep vocab.json and merges.txt, by the class that tokenizer_config.json names.
_CLASSES = {
    "GPT2Tokenizer": "gpt-2", "CodeGenTokenizer": "gpt-2", "WhisperTokenizer": "gpt-2", "RobertaTokenizer": "gpt-2",
    "BartTokenizer": "gpt-2", "GPTNeoXTokenizer": "gpt-2", "Qwen2Tokenizer": "qwen2",
}  # fmt: skip


def byte_level_core(
    vocab: Mapping[str, int],
    merges: list[tuple[str, str]],
    split: Split,
    *,
    special: Iterable[str] = (),
    plain: Collection[str] = (),
    add_prefix_space: bool = False,
) -> Core:
    """vocab: tokens in printable stand-ins (Ġthe) and added ones as they are. special, plain: see `add_tokens`.

    Raises DamagedFile when the vocabulary is not byte-level, or lacks a part of a merge.
    """
    from tokenizers import Tokenizer as Core
    from tokenizers import decoders, models, normalizers

    _check_alphabet(vocab)
    for pair in merges:
        if pair[0] not in vocab or pair[1] not in vocab or pair[0] + pair[1] not in vocab:
            raise DamagedFile(
                "the vocabulary lacks a part of a merge, or what it makes",
                field="merges", value=" ".join(pair), remedy="take vocabulary and merges from the same model",
            )  # fmt: skip
    core = Core(build(lambda: models.BPE(vocab=dict(vocab), merges=merges, ignore_merges=split.whole_words), "merges"))
    if split.nfc:
        core.normalizer = normalizers.NFC()
    core.pre_tokenizer = build(lambda: split.pre_tokenizer(add_prefix_space), "pattern")
    core.decoder = decoders.ByteLevel()
    add_tokens(core, special, plain)
    return core


def _check_alphabet(vocab: Mapping[str, int]) -> None:
    """Families leave out bytes that their training never saw: SmolLM2 six control characters. Texts lose those, in the
    families' own tokenizers too. But without its ASCII letters a vocabulary is another kind, or not whole."""
    missing = sorted(byte for byte, char in BYTE_TO_CHAR.items() if char not in vocab)
    if any(chr(byte).isalnum() for byte in missing if byte < 128):
        raise DamagedFile(
            f"the vocabulary has no token for {len(missing)} of the 256 bytes: it is not byte-level, or not whole",
            field="vocab", value=bytes(missing[:8]), remedy="take a file of a byte-level family",
        )  # fmt: skip
    if lost := [byte for byte in missing if byte not in _NEVER_IN_UTF8]:
        logging.getLogger(__name__).warning(
            "the vocabulary has no token for the bytes %s: texts lose them, as in the family's own tokenizer",
            bytes(lost).hex(" "),
        )


def parse_merges(lines: Iterable[str], field: str) -> list[tuple[str, str]]:
    """Each line "left right". Raises DamagedFile naming the line."""
    merges = []
    for i, line in enumerate(lines):
        left, _, right = line.partition(" ") if isinstance(line, str) else ("", "", "")
        if not left or not right or " " in right:
            raise DamagedFile(
                f"merge {i} is not two tokens with a space between", field=field, value=line,
                remedy="copy the file from its source again",
            )  # fmt: skip
        merges.append((left, right))
    return merges


def read_gpt2(
    vocab: Path, merges: Path, split: str = "gpt-2", *, config: Mapping[str, Any] | None = None
) -> Vocabulary:
    """vocab.json and merges.txt (openai/gpt-2, src/encoder.py). See `tokenizer_from_gpt2`."""
    ids = read_json(vocab)
    if not isinstance(ids, dict) or not all(type(i) is int for i in ids.values()):
        raise DamagedFile(f"{vocab} maps no tokens to ids", field="vocab", value=type(ids).__name__,
                          remedy="copy the file from its source again")  # fmt: skip
    check_ids(ids, len(ids), "vocab")
    lines = read_text(merges).split("\n")
    if lines and lines[0].startswith("#version"):
        lines = lines[1:]
    pairs = parse_merges((line.removesuffix("\r") for line in lines if line.strip("\r")), "merges")
    config = config or {}
    made = {left + right for left, right in pairs}
    # A token that is neither a byte nor a merge's result can only have been added: "<|endoftext|>".
    special = [token for token in ids if token not in made and not (len(token) == 1 and token in CHAR_TO_BYTE)]
    added = config.get("added_tokens_decoder")
    added = added if isinstance(added, dict) else {}
    for key, token in added.items():
        if isinstance(token, dict) and isinstance(token.get("content"), str) and str(key).isdecimal():
            ids.setdefault(token["content"], int(key))
    check_ids(ids, len(ids), "added_tokens_decoder")
    plain = [t["content"] for t in added.values() if isinstance(t, dict) and t.get("special") is False]
    core = byte_level_core(
        ids, pairs, split_named(split), special=[name for name in special if name not in plain], plain=plain,
        add_prefix_space=bool(config.get("add_prefix_space", False)),
    )  # fmt: skip
    end = next((name for name in ("<|endoftext|>", "</s>") if name in ids), None)
    return Vocabulary(core, roles(eos_token=end))


def tokenizer_from_gpt2(
    vocab: Path | str, merges: Path | str, *, split: str = "gpt-2", **tokens: str | None
) -> Tokenizer:
    """A tokenizer of GPT-2's two files: vocab.json (token -> id) and merges.txt (one merge a line, the first first).

    split: how texts are cut into words, by llama.cpp's name ("gpt-2", "qwen2"; see vocabularies/splits.py).
    tokens: eos_token and its kin; EOS is "<|endoftext|>" or "</s>" unless given.
    Raises DamagedFile naming the field; DachengError on a file that cannot be opened or a split that is not known.
    """
    return read_gpt2(Path(vocab), Path(merges), split).tokenizer(**tokens)


def split_of_class(config: Mapping[str, Any]) -> str:
    """The split of the class that tokenizer_config.json names; GPT-2's where it names none.

    Raises DachengError on a class that is not known: its ids would be wrong.
    """
    name = config.get("tokenizer_class") or "GPT2Tokenizer"
    found = _CLASSES.get(str(name).removesuffix("Fast"))
    if found is None or found not in SPLITS:
        raise DachengError(
            "how this class cuts texts into words is not known here",
            field="tokenizer_class", value=name,
            remedy="load it with transformers and save it again as tokenizer.json, or call tokenizer_from_gpt2",
        )  # fmt: skip
    return found
