"""tiktoken's rank files: one token a line, in base64, with its rank (openai/tiktoken, tiktoken/load.py).

The rank is the token's id and its priority. The merges are worked out from it (see merges.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dacheng.errors import DachengError, DamagedFile, UsageError
from dacheng.text.byte_bpe import BYTE_TO_CHAR
from dacheng.text.vocabularies.byte_level import byte_level_core
from dacheng.text.vocabularies.merges import merges_of
from dacheng.text.vocabularies.splits import SPLITS, Split
from dacheng.text.vocabularies.vocabulary import Vocabulary, check_ids, from_base64, read_bytes, roles

if TYPE_CHECKING:
    from dacheng.text.tokenizer import Tokenizer

# tiktoken's own tokens are at most 128 bytes, rows of spaces. Splitting one takes len² steps.
_MAX_TOKEN = 1024


@dataclass(frozen=True, slots=True)
class Encoding:
    """What a rank file doesn't say. special: name -> id."""

    split: Split
    special: Mapping[str, int]
    eos: str
    bos: str | None = None
    pad: str | None = None
    ranks: int = 0  # how many tokens its file has: to tell files apart whose names don't


_CL100K = Split(SPLITS["dbrx"].patterns, whole_words=True)
_O200K = Split(SPLITS["gpt-4o"].patterns, whole_words=True)
_GPT2 = Split(SPLITS["gpt-2"].patterns, whole_words=True)
_QWEN = Split(SPLITS["qwen2"].patterns, whole_words=True, nfc=True)
_FIM = {"<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260}


def _qwen() -> dict[str, int]:  # QwenLM/Qwen, tokenization_qwen.py
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
    return {name: 151643 + i for i, name in enumerate(names)}


def _harmony() -> dict[str, int]:  # openai/tiktoken, tiktoken_ext/openai_public.py, o200k_harmony
    named = {
        199998: "<|startoftext|>", 199999: "<|endoftext|>", 200002: "<|return|>", 200003: "<|constrain|>",
        200005: "<|channel|>", 200006: "<|start|>", 200007: "<|end|>", 200008: "<|message|>", 200012: "<|call|>",
        200018: "<|endofprompt|>",
    }  # fmt: skip
    return {named.get(i, f"<|reserved_{i}|>"): i for i in range(199998, 201088)}


def _llama3() -> dict[str, int]:  # meta-llama/llama3, llama/tokenizer.py; 3.1 names some of the reserved ones
    names = ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_special_token_{i}|>" for i in range(4))]
    names += ["<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>", "<|eot_id|>"]
    names += [f"<|reserved_special_token_{i}|>" for i in range(5, 251)]
    return {name: 128000 + i for i, name in enumerate(names)}


_END = "<|endoftext|>"
ENCODINGS: dict[str, Encoding] = {
    "r50k_base": Encoding(_GPT2, {_END: 50256}, _END, ranks=50256),
    "p50k_base": Encoding(_GPT2, {_END: 50256}, _END, ranks=50280),
    "cl100k_base": Encoding(_CL100K, {_END: 100257, **_FIM, "<|endofprompt|>": 100276}, _END, ranks=100256),
    "o200k_base": Encoding(_O200K, {_END: 199999, "<|endofprompt|>": 200018}, _END, ranks=199998),
    "o200k_harmony": Encoding(_O200K, _harmony(), "<|return|>", bos="<|startoftext|>", pad=_END, ranks=199998),
    "qwen": Encoding(_QWEN, _qwen(), _END, ranks=151643),
    "llama3": Encoding(
        Split(_CL100K.patterns, whole_words=True, bos=True), _llama3(), "<|end_of_text|>", bos="<|begin_of_text|>",
        ranks=128000,
    ),
}  # fmt: skip


def read_ranks(path: Path) -> dict[bytes, int]:
    """token -> rank. Raises DamagedFile naming the line, DachengError when the file cannot be opened."""
    ranks: dict[bytes, int] = {}
    count = 0
    for number, line in enumerate(read_bytes(path).split(b"\n"), 1):
        if not line.strip():
            continue
        token, _, rank = line.strip().partition(b" ")
        if not rank.isdigit() or len(rank) > 9:
            raise _damaged(path, f"line {number} is not a token and its rank", line[:80])
        content = from_base64(token, f"line {number}")
        if not 0 < len(content) <= _MAX_TOKEN:
            raise _damaged(path, f"line {number} has a token of {len(content)} bytes", len(content))
        ranks[content] = int(rank)
        count += 1
    if len(ranks) != count:
        raise _damaged(path, "tokens are there twice", count - len(ranks))
    if not ranks:
        raise _damaged(path, "it has no tokens", path.name)
    return ranks


def vocab_and_merges(ranks: Mapping[bytes, int]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """In printable stand-ins. Raises DamagedFile when two tokens share a rank."""
    in_order = sorted(ranks.items(), key=lambda item: item[1])
    vocab = {token.decode("latin-1").translate(BYTE_TO_CHAR): rank for token, rank in in_order}
    check_ids(vocab, len(ranks), "rank")
    return vocab, merges_of(vocab, vocab, vocab)


def read_tiktoken(path: Path, encoding: str | None = None) -> Vocabulary:
    """See `tokenizer_from_tiktoken`."""
    ranks = read_ranks(path)
    chosen = ENCODINGS[encoding or _encoding_of(path, len(ranks))]
    vocab, merges = vocab_and_merges(ranks)
    for name, token_id in chosen.special.items():
        if name in vocab:
            raise _damaged(path, "a special token is an ordinary one too", name)
        vocab[name] = token_id
    check_ids(vocab, len(ranks) + len(chosen.special), "rank")
    core = byte_level_core(vocab, merges, chosen.split, special=chosen.special)
    config = roles(eos_token=chosen.eos, bos_token=chosen.bos, pad_token=chosen.pad)
    return Vocabulary(core, config | {"add_bos_token": chosen.split.bos})


def tokenizer_from_tiktoken(path: Path | str, encoding: str | None = None, **tokens: str | None) -> Tokenizer:
    """A tokenizer of a rank file (qwen.tiktoken, cl100k_base.tiktoken, o200k_base.tiktoken, Llama 3's tokenizer.model).

    encoding: whose it is, a key of ENCODINGS: how texts are cut into words and which special tokens there are, which
    the file doesn't say. Where it isn't given, the file's name and size must tell.
    tokens: another eos_token, bos_token, pad_token or unk_token than the encoding's.
    Raises DamagedFile naming the line; DachengError when the file cannot be opened or nothing tells its encoding.
    """
    if encoding is not None and encoding not in ENCODINGS:
        raise UsageError(
            "no such encoding", field="encoding", value=encoding, remedy=f"use one of {', '.join(ENCODINGS)}"
        )
    return read_tiktoken(Path(path), encoding).tokenizer(**tokens)


def is_rank_file(start: bytes) -> bool:
    """Whether a file that begins so can be one: Llama 3 calls its own tokenizer.model, as SentencePiece does."""
    token, space, rank = start.split(b"\n", 1)[0].strip().partition(b" ")
    return bool(space) and rank.isdigit() and bool(token) and token.isascii() and b"\0" not in token


def _encoding_of(path: Path, size: int) -> str:
    named = [name for name in ENCODINGS if path.name.startswith(name)]
    sized = [name for name, encoding in ENCODINGS.items() if encoding.ranks == size]
    if named:
        return named[-1]
    if len(sized) == 1:
        return sized[0]
    raise DachengError(
        f"nothing tells which encoding {path} belongs to ({size} tokens)",
        field="encoding", value=path.name,
        remedy=f"name it: tokenizer_from_tiktoken(path, encoding=…), one of {', '.join(ENCODINGS)}",
    )  # fmt: skip


def _damaged(path: Path, problem: str, value: object) -> DamagedFile:
    return DamagedFile(f"{path}: {problem}", field="tokens", value=value, remedy="copy the file from its source again")
