"""Texts with a label: read from files, and put into batches of about one length in a seeded, resumable order."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dacheng.data.batches import IGNORED, Geometry, check_fingerprint
from dacheng.data.folders import inner_suffix
from dacheng.data.pooled_order import PooledOrder
from dacheng.data.sources import SourceSpec, open_source
from dacheng.data.streams import decode, open_bytes
from dacheng.data.text_rows import padded, token_rows
from dacheng.errors import DachengError, DamagedFile, UsageError
from dacheng.records import Drops

if TYPE_CHECKING:
    from dacheng.text import Tokenizer

MAX_BYTES = 256 << 20  # of a file that is held whole


@dataclass(frozen=True, slots=True)
class LabelledTexts:
    """texts and the names of their labels, in the order of the files. A label of None says that nobody knows it: a
    teacher may."""

    texts: tuple[str, ...]
    labels: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def names(self) -> tuple[str, ...]:
        """Each label once, sorted."""
        return tuple(sorted({label for label in self.labels if label is not None}))

    def numbers(self, names: Sequence[str]) -> Tensor:
        """(N,) int64 by the order of `names`, -100 where the label is not known. Raises DachengError for a label that
        is not among them."""
        number = {name: i for i, name in enumerate(names)}
        for label in self.labels:
            if label is not None and label not in number:
                raise DachengError("a label that the model does not have", field="label", value=label,
                                   remedy="train on data that has all labels, or remove these texts")  # fmt: skip
        return torch.tensor([IGNORED if label is None else number[label] for label in self.labels])

    def __add__(self, other: LabelledTexts) -> LabelledTexts:
        return LabelledTexts(self.texts + other.texts, self.labels + other.labels)


def read_labelled(
    sources: Sequence[str | Path], drops: Drops, *, text_field: str = "text", label_field: str = "label",
    unlabelled: bool = False,
) -> LabelledTexts:  # fmt: skip
    """Of JSON lines, parquet, CSV and TSV with a header, and JSON objects of splits.

    "file.json#train" is the split "train" of a file {"train": [[text, label], …], …}, as CLINC150 is published. All may
    be packed (.gz, .zst). Texts and labels are stripped; what has no text or no label, and a table's line with more
    fields than its header (a comma without quotes), is dropped and counted. unlabelled: texts without a label stay,
    with None, for a teacher to tell. Raises DachengError for a file that cannot be read, a split that is not there, and
    when nothing is left.
    """
    texts: list[str] = []
    labels: list[str | None] = []
    for source in sources:
        for where, text, label in _pairs(str(source), drops, text_field, label_field, unlabelled):
            if not isinstance(text, str) or not (text := text.strip()):
                drops.drop("no_text", example=where)
                continue
            label = None if label is None or isinstance(label, list | dict) else str(label).strip() or None
            if label is None and not unlabelled:
                drops.drop("no_label", len(text), where)
            else:
                texts.append(text)
                labels.append(label)
                drops.keep(len(text.encode("utf-8", "surrogatepass")))
    if not texts:
        raise DachengError("no labelled text is left", field="data", value=dict(drops.dropped) or None,
                           remedy='give JSON lines {"text": …, "label": …}')  # fmt: skip
    return LabelledTexts(tuple(texts), tuple(labels))


def _pairs(
    source: str, drops: Drops, text_field: str, label_field: str, unlabelled: bool
) -> Iterable[tuple[str, Any, Any]]:
    """(where, text, label)."""
    path, _, split = source.partition("#")
    if split:
        yield from _of_split(Path(path), split)
        return
    if inner_suffix(Path(path)) in (".csv", ".tsv"):
        yield from _of_table(Path(path), drops, text_field, label_field)
        return
    if unlabelled:  # a label field has to be there, a kept one need not
        spec = SourceSpec(path=path, text_field=text_field, keep_fields=(label_field,))
    else:
        spec = SourceSpec(path=path, text_field=text_field, label_field=label_field)
    for record in open_source([spec], drops):
        yield record.id, record.text, record.meta.get(label_field) if unlabelled else record.label


def _bytes(path: Path) -> bytes:
    try:
        with open_bytes(path) as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise DachengError(f"cannot read {path}: {error}", field="path", value=str(path),
                           remedy="check the path") from None  # fmt: skip
    if len(data) > MAX_BYTES:
        raise DachengError("the file is too large for this form", field="path", value=str(path),
                           remedy="convert it to JSON lines")  # fmt: skip
    return data


def _of_split(path: Path, split: str) -> Iterable[tuple[str, Any, Any]]:
    try:
        found = json.loads(_bytes(path).decode("utf-8"))
        rows = found[split]
        pairs = [(f"{path}#{split}:{i}", row[0], row[1]) for i, row in enumerate(rows)]
    except (KeyError, TypeError, IndexError):
        known = ", ".join(found) if isinstance(found, dict) else "no splits"
        raise DachengError(f"{path} has no split of pairs named {split}", field="split", value=split,
                           remedy=f"it has {known}") from None  # fmt: skip
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is not valid JSON: {error}", field="path", value=str(path),
                          remedy="copy the file again") from None  # fmt: skip
    return pairs


def _of_table(path: Path, drops: Drops, text_field: str, label_field: str) -> Iterable[tuple[str, Any, Any]]:
    text = decode(_bytes(path), str(path), encoding="utf-8", bad_bytes="replace", drops=drops) or ""
    lines = io.StringIO(text.removeprefix("\ufeff"), newline="")  # what Excel puts first
    rows = csv.DictReader(lines, delimiter="\t" if inner_suffix(path) == ".tsv" else ",")
    try:
        for name in (text_field, label_field):
            if name not in (rows.fieldnames or ()):
                raise DachengError(f"{path} has no column of this name", field=name, value=list(rows.fieldnames or ()),
                                   remedy="set text_field and label_field to the names in its first line")  # fmt: skip
        for i, row in enumerate(rows):
            if None in row:
                drops.drop("more_fields_than_columns", example=f"{path}:{i + 2}")
            else:
                yield f"{path}:{i + 2}", row[text_field], row[label_field]
    except csv.Error as error:
        raise DamagedFile(f"{path}: {error}", field="path", value=str(path), remedy="copy the file again") from None


@dataclass(slots=True)
class TextBatch:
    """One micro-batch. tokens (B, T) int64, padded behind lengths (B,); labels (B,) int64, -100 where nobody knows;
    teacher (B, C) float32: the logits of a teacher, or None."""

    tokens: Tensor
    lengths: Tensor
    labels: Tensor
    teacher: Tensor | None = None

    def to(self, device: torch.device | str) -> TextBatch:
        teacher = None if self.teacher is None else self.teacher.to(device)
        return TextBatch(self.tokens.to(device), self.lengths.to(device), self.labels.to(device), teacher)


class LabelledSource:
    """Batches of texts, a new permutation each epoch, no text left out or repeated within one.

    Rows of about one length come together (see PooledOrder). Everything follows from the seed and the step: a resume
    costs nothing. A batch goes over the end of an epoch.
    """

    def __init__(
        self,
        rows: Sequence[Sequence[int]],
        labels: Tensor,
        batch_rows: int,
        *,
        pad_id: int,
        micro_batches: int = 1,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        teacher: Tensor | None = None,
    ) -> None:
        """rows: ids of each text; labels (N,); teacher (N, C). Raises UsageError where the rows of a step cannot be
        shared out, or there are no rows."""
        if not rows or len(rows) != len(labels) or (teacher is not None and len(teacher) != len(rows)):
            raise UsageError("as many labels, and teacher's logits, as texts, and at least one", field="rows",
                             value=[len(rows), len(labels)], remedy="give texts with labels")  # fmt: skip
        self._rows, self._labels, self._teacher, self.pad_id, self.seed = rows, labels, teacher, pad_id, seed
        self.geometry = Geometry(batch_rows, micro_batches, rank, world)
        self._lengths = np.array([len(row) for row in rows], np.int64)
        digest = hashlib.sha256(f"{seed} {batch_rows} {pad_id}".encode())
        digest.update(np.concatenate([np.asarray(row, np.int64) for row in rows]).tobytes())
        digest.update(self._lengths.tobytes() + labels.numpy().tobytes())
        if teacher is not None:
            digest.update(teacher.numpy().tobytes())
        self.fingerprint = digest.hexdigest()
        self._next_step = 0
        self._order = PooledOrder(self._lengths, batch_rows, seed)

    @property
    def tokens_per_step(self) -> int:
        return round(self.geometry.batch_rows * float(self._lengths.mean()))

    @property
    def context_length(self) -> int:
        return max(1, round(float(self._lengths.mean())))

    @property
    def steps_per_epoch(self) -> float:
        return len(self._rows) / self.geometry.batch_rows

    def next(self, step: int, model: Any = None, weights_version: int = 0) -> list[TextBatch]:
        """This rank's micro-batches of a step."""
        self._next_step = step + 1
        return [self._batch(step * self.geometry.batch_rows + slots) for slots in self.geometry.slots()]

    def _batch(self, numbers: npt.NDArray[np.int64]) -> TextBatch:
        chosen = self._order.rows(numbers)
        tokens, lengths = padded([self._rows[i] for i in chosen], self.pad_id)
        index = torch.tensor(chosen)
        return TextBatch(
            tokens, lengths, self._labels[index], None if self._teacher is None else self._teacher[index]
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint, "next_step": self._next_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises DachengError if the state is of other data, another batch size or another seed."""
        check_fingerprint(state["fingerprint"], self.fingerprint)
        self._next_step = int(state["next_step"])


def labelled_rows(
    tokenizer: Tokenizer, texts: LabelledTexts, names: Sequence[str], longest: int, drops: Drops
) -> tuple[list[list[int]], Tensor]:
    """Ids of each text and the numbers of the labels; texts that were cut are counted in `drops.altered`."""
    rows, cut = token_rows(tokenizer, texts.texts, longest)
    if cut:
        drops.alter(f"cut at {longest} tokens", cut)
    return rows, texts.numbers(names)
