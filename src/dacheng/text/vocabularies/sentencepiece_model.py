"""SentencePiece's model files (tokenizer.model, spiece.model): the fields that decide ids, read from the protobuf.

Source: google/sentencepiece, src/sentencepiece_model.proto. Fields of training and of self tests are passed over; they
decide nothing here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum

from dacheng.errors import DachengError, DamagedFile
from dacheng.text.vocabularies.protobuf import bytes_of, fields, float_of, int_of, text_of


class Kind(IntEnum):
    """What a piece is; GGUF's tokenizer.ggml.token_type has the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3  # stands for no text: <s>
    USER_DEFINED = 4  # always a piece of its own where it occurs in the text
    UNUSED = 5
    BYTE = 6  # <0x0A>, for what no piece spells


UNIGRAM, BPE = 1, 2
_MODEL_TYPES = {UNIGRAM: "unigram", BPE: "bpe", 3: "word", 4: "char"}


@dataclass(slots=True)
class SentencePieceModel:
    """Pieces by id, and how texts are prepared for them. Names as in the .proto, defaults too."""

    pieces: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    model_type: int = UNIGRAM
    byte_fallback: bool = False
    treat_whitespace_as_suffix: bool = False
    unk_piece: str = "<unk>"
    bos_piece: str = "<s>"
    eos_piece: str = "</s>"
    pad_piece: str = "<pad>"
    precompiled_charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True
    denormalizer_charsmap: bytes = b""

    def of_kind(self, *kinds: int) -> list[str]:
        return [piece for piece, kind in zip(self.pieces, self.kinds) if kind in kinds]

    def check(self) -> SentencePieceModel:
        """Raises DamagedFile on what no model has, DachengError on what has no counterpart in tokenizer.json."""
        if not self.pieces:
            raise _damaged("it has no pieces", "pieces", 0)
        if len(set(self.pieces)) != len(self.pieces) or "" in self.pieces:
            raise _damaged("a piece is empty or there twice", "pieces", len(self.pieces))
        for i, (score, kind) in enumerate(zip(self.scores, self.kinds)):
            if not math.isfinite(score):
                raise _damaged("a score is no number", f"pieces[{i}].score", score)
            if not 1 <= kind <= 6:
                raise _damaged("no such type of piece", f"pieces[{i}].type", kind)
        if self.kinds.count(Kind.UNKNOWN) != 1:
            raise _damaged("one piece must be the unknown one", "pieces", self.kinds.count(Kind.UNKNOWN))
        bytes_there = {f"<0x{byte:02X}>" for byte in range(256)}
        if self.byte_fallback and not bytes_there <= set(self.of_kind(Kind.BYTE)):
            raise _damaged("byte fallback needs a piece for each byte", "byte_fallback", len(self.of_kind(Kind.BYTE)))
        self._check_supported()
        return self

    def _check_supported(self) -> None:
        if self.model_type not in (UNIGRAM, BPE):
            name = _MODEL_TYPES.get(self.model_type, self.model_type)
            raise _unsupported("only unigram and bpe models have a counterpart", "trainer_spec.model_type", name)
        if self.treat_whitespace_as_suffix:
            raise _unsupported("spaces behind words have no counterpart", "trainer_spec.treat_whitespace_as_suffix", 1)
        if not self.escape_whitespaces:
            raise _unsupported("pieces with plain spaces have no counterpart", "normalizer_spec.escape_whitespaces", 0)
        if self.denormalizer_charsmap:
            size = len(self.denormalizer_charsmap)
            raise _unsupported("rewritten output has no counterpart", "denormalizer_spec.precompiled_charsmap", size)


def parse_model(data: bytes) -> SentencePieceModel:
    """The model in a file's bytes; nothing is allocated beyond them. Raises DamagedFile, or what `check` raises."""
    model = SentencePieceModel()
    for number, kind, value in fields(memoryview(data), "the model"):
        if number in (1, 2, 3, 5) and kind != 2:
            raise _damaged("a part of the model is no message", f"field {number}", value)
        if isinstance(value, int):
            continue
        if number == 1:
            _read_piece(model, value)
        elif number == 2:
            _read_trainer(model, value)
        elif number == 3:
            _read_normalizer(model, value)
        elif number == 5:
            for inner, _, content in fields(value, "denormalizer_spec"):
                if inner == 2:
                    model.denormalizer_charsmap = bytes_of(content, "denormalizer_spec.precompiled_charsmap")
    return model.check()


def _read_piece(model: SentencePieceModel, message: memoryview) -> None:
    piece, score, kind = "", 0.0, int(Kind.NORMAL)
    where = f"pieces[{len(model.pieces)}]"
    for number, _, value in fields(message, where):
        if number == 1:
            piece = text_of(value, where + ".piece")
        elif number == 2:
            score = float_of(value, where + ".score")
        elif number == 3:
            kind = int_of(value, where + ".type")
    model.pieces.append(piece)
    model.scores.append(score)
    model.kinds.append(kind)


_TRAINER_TEXTS = {45: "unk_piece", 46: "bos_piece", 47: "eos_piece", 48: "pad_piece"}


def _read_trainer(model: SentencePieceModel, message: memoryview) -> None:
    for number, _, value in fields(message, "trainer_spec"):
        if number == 3:
            model.model_type = int_of(value, "trainer_spec.model_type")
        elif number == 24:
            model.treat_whitespace_as_suffix = bool(int_of(value, "trainer_spec.treat_whitespace_as_suffix"))
        elif number == 35:
            model.byte_fallback = bool(int_of(value, "trainer_spec.byte_fallback"))
        elif number in _TRAINER_TEXTS:
            name = _TRAINER_TEXTS[number]
            setattr(model, name, text_of(value, f"trainer_spec.{name}"))


_NORMALIZER_SWITCHES = {3: "add_dummy_prefix", 4: "remove_extra_whitespaces", 5: "escape_whitespaces"}


def _read_normalizer(model: SentencePieceModel, message: memoryview) -> None:
    for number, _, value in fields(message, "normalizer_spec"):
        if number == 2:
            model.precompiled_charsmap = bytes_of(value, "normalizer_spec.precompiled_charsmap")
        elif number in _NORMALIZER_SWITCHES:
            name = _NORMALIZER_SWITCHES[number]
            setattr(model, name, bool(int_of(value, f"normalizer_spec.{name}")))


def _damaged(problem: str, field_name: str, value: object) -> DamagedFile:
    return DamagedFile(
        f"this is no SentencePiece model: {problem}", field=field_name, value=value,
        remedy="copy the file from its source again",
    )  # fmt: skip


def _unsupported(problem: str, field_name: str, value: object) -> DachengError:
    return DachengError(
        f"this SentencePiece model cannot be turned into a tokenizer.json: {problem}", field=field_name, value=value,
        remedy="use a tokenizer.json that the model's authors made",
    )  # fmt: skip
