"""A decoder distilled into a smaller one: on texts and conversations, or on what the student writes itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dacheng.align.rollouts.ask import Sampling
from dacheng.checks import at_least_one
from dacheng.compress.distil.on_policy import Exchange, OnPolicySource
from dacheng.compress.distil.stored import StoredTeacher, WithTeacher, store_top_tokens
from dacheng.compress.distil.student import pick_layers
from dacheng.data.batches import PackedSource, Source, TokenBatch, every_row
from dacheng.data.chats import read_chats, rendered_chats, shards_of
from dacheng.data.packing import pack
from dacheng.errors import DachengError, UsageError
from dacheng.formats.json_files import write_json
from dacheng.formats.model_directory import load_model, save_model
from dacheng.formats.provenance import weights_hash
from dacheng.models.decoder import Decoder
from dacheng.objectives.base import StepContext
from dacheng.objectives.distil_tokens import NEXT, DistilTokens
from dacheng.objectives.distil_weights import DistilWeights
from dacheng.objectives.next_token import NextToken
from dacheng.records import Drops
from dacheng.train.callbacks import Callback
from dacheng.train.config import TrainConfig
from dacheng.train.phases import Phase
from dacheng.train.rng import derive_seed
from dacheng.train.trainer import Trainer

if TYPE_CHECKING:
    from dacheng.ledger import Ledger
    from dacheng.text import Tokenizer

MODEL, TRAINING, RESULT, STORED = "model", "training", "result.json", "teacher_tokens.safetensors"
_ROWS_AT_ONCE = 8
_FREE: dict[str, Any] = {"free": True}


@dataclass(frozen=True, kw_only=True)
class DistilDecoderConfig(TrainConfig):
    """Everything of TrainConfig (steps, optimizer, schedule…), and:

    layers: how many of the teacher's the student has, evenly spread, or which. weights, beta: what is learnt, see
    objectives.distil_tokens. top_k: store so many likeliest tokens of the teacher first, and train without it; null
    keeps it at hand. share: of the steps on the student's own answers (on-policy GKD), 0 for none; max_tokens and
    temperature are of these. context_length, batch_rows, micro_batches: of a step; whole documents are packed into
    rows. chunk: tokens whose logits are held at once.
    """

    layers: int | tuple[int, ...] = 15
    weights: DistilWeights = field(default_factory=lambda: DistilWeights(soft=1.0, hard=0.5, temperature=1.0))
    beta: float = 0.0
    top_k: int | None = None
    share: float = 0.0
    max_tokens: int = 64
    temperature: float = 0.9
    context_length: int = 256
    batch_rows: int = 4
    micro_batches: int = 1
    chunk: int = field(default=256, metadata=_FREE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share and self.top_k is not None:
            raise UsageError("what the student will write cannot be stored before", field="top_k", value=self.top_k,
                             remedy="top_k: null, or share: 0")  # fmt: skip
        at_least_one(self, "max_tokens", "context_length", "batch_rows", "micro_batches", "chunk")


@dataclass(frozen=True, slots=True)
class DistilResult:
    """path: the student's directory. loss_before, loss_after: nats a target on rows of the data, of the student before
    and after; loss_teacher: of the teacher. kept: the mean share of probability that a stored teacher has."""

    path: Path
    steps: int
    tokens: int
    seconds: float
    loss_before: float
    loss_after: float
    loss_teacher: float
    parameters: int
    teacher_parameters: int
    written: int
    kept: float | None
    drops: dict[str, Any]
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path)}


def distil_decoder(
    teacher: Path | str,
    data: Sequence[str],
    out: Path | str,
    config: DistilDecoderConfig,
    callbacks: Sequence[Callback] = (),
    *,
    student: Path | str | None = None,
    ledger: Ledger | None = None,
) -> DistilResult:
    """Trains a student of the model in `teacher` and writes out/model, out/training and result.json; goes on from an
    interrupted run. student: a directory to begin with, in place of the teacher's own layers.

    data: JSON lines of {"messages": […]}, of which the assistant's words are learnt, or plain texts (.txt, .md), of
    which all is. Raises UsageError for a student with another vocabulary, and for own answers without conversations.
    """
    out, loaded = Path(out), load_model(teacher, dtype="float32")
    if loaded.tokenizer is None:
        raise DachengError("the teacher has no tokenizer", field="teacher", value=str(teacher), remedy="add its files")
    master, tokenizer = loaded.model.eval().requires_grad_(False), loaded.tokenizer
    model = _student(master, tokenizer, student, config)
    drops = Drops()
    documents = _documents(data, tokenizer, config.context_length, drops)
    source: Source
    packed = _packed(documents, config)
    rows = _some_rows(packed)
    name, kept, used = weights_hash(Path(teacher)), None, master
    if config.share:
        source = _on_policy(documents, tokenizer, config)
    else:
        source = packed
        if config.top_k is not None:
            out.mkdir(parents=True, exist_ok=True)
            stored, kept = _stored(master, packed, out / STORED, config)
            source, used = WithTeacher(packed, stored), None  # type: ignore[assignment]
    before, best = mean_nats(model, rows), mean_nats(master, rows)
    objective = DistilTokens(used, config.weights, config.beta, name, config.chunk)
    settings = TrainConfig(**{f.name: getattr(config, f.name) for f in fields(TrainConfig)})
    trainer = Trainer(model, [Phase(objective)], source, list(callbacks), settings, out / TRAINING, ledger=ledger)
    done = trainer.fit()
    model.eval()
    recipe = {"do": "distil", "layers": config.layers}
    path = save_model(out / MODEL, model, tokenizer, provenance={"parent": name, "recipe": recipe})
    result = DistilResult(
        path, done.steps, done.tokens, done.seconds, before, mean_nats(model, rows), best, model.params()["total"],
        master.params()["total"], getattr(source, "written", 0), kept, drops.to_dict(), done.warnings,
    )  # fmt: skip
    write_json(out / RESULT, result.to_dict())
    return result


def _student(master: Decoder, tokenizer: Tokenizer, student: Path | str | None, config: DistilDecoderConfig) -> Decoder:
    if student is None:
        return pick_layers(master, config.layers).requires_grad_(True)
    loaded = load_model(student, dtype="float32")
    same = loaded.model.traits.vocab_size == master.traits.vocab_size
    if loaded.tokenizer is None or loaded.tokenizer.fingerprint != tokenizer.fingerprint or not same:
        raise UsageError(
            "teacher and student read text differently: their vocabularies are not the same", field="student",
            value=[master.traits.vocab_size, loaded.model.traits.vocab_size],
            remedy="take a student with the teacher's tokenizer, or let the teacher write the data",
        )  # fmt: skip
    return loaded.model.requires_grad_(True)


def _documents(
    data: Sequence[str], tokenizer: Tokenizer, longest: int, drops: Drops
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids, which are learnt) of each conversation, and of each stretch of a plain text."""
    found: list[tuple[np.ndarray, np.ndarray]] = []
    chats = [path for path in data if Path(path).suffix not in (".txt", ".md")]
    if chats:
        from dacheng.text import ChatRenderer

        found += rendered_chats(read_chats(chats, drops), ChatRenderer(tokenizer), longest, drops)
    for path in data:
        if path in chats:
            continue
        ids = np.array(tokenizer.encode(Path(path).read_text(encoding="utf-8")), np.int32)
        for start in range(0, len(ids), longest):
            part = ids[start : start + longest]
            if len(part) > 1:
                found.append((part, np.ones(len(part), np.bool_)))
                drops.keep(len(part))
    if not found:
        raise DachengError("there is nothing to learn from", field="data", value=list(data), remedy="name a file")
    return found


def _packed(documents: Sequence[tuple[np.ndarray, np.ndarray]], config: DistilDecoderConfig) -> PackedSource:
    shards = shards_of(documents)
    return PackedSource(
        shards, pack(shards, config.context_length), config.batch_rows, config.micro_batches,
        derive_seed(config.seed, "data"),
    )  # fmt: skip


def _on_policy(
    documents: Sequence[tuple[np.ndarray, np.ndarray]], tokenizer: Tokenizer, config: DistilDecoderConfig
) -> OnPolicySource:
    exchanges = []
    for ids, learnt in documents:
        if learnt.all():
            raise UsageError("a plain text has no questions that a student could answer", field="share",
                             value=config.share, remedy="give conversations, or share: 0")  # fmt: skip
        first = int(learnt.argmax())
        last = first + int((~learnt[first:]).argmax()) if not learnt[first:].all() else len(ids)
        exchanges.append(Exchange(tuple(ids[:first].tolist()), tuple(ids[first:last].tolist())))
    sampling = Sampling(max_tokens=config.max_tokens, temperature=config.temperature)
    return OnPolicySource(
        exchanges, tokenizer, sampling, batch_rows=config.batch_rows, share=config.share,
        seed=derive_seed(config.seed, "data"),
    )  # fmt: skip


def _stored(
    master: Decoder, source: PackedSource, path: Path, config: DistilDecoderConfig
) -> tuple[StoredTeacher, float | None]:
    """Of a run that was stopped, what it has stored."""
    kept = None
    if not path.is_file():
        rows = every_row(source.shards, source.packing, _ROWS_AT_ONCE)
        kept = store_top_tokens(master, rows, path, k=config.top_k or 1, temperature=config.weights.temperature)["kept"]
    return StoredTeacher(path), kept


def _some_rows(source: PackedSource) -> list[TokenBatch]:
    rows = min(source.packing.rows, 4 * _ROWS_AT_ONCE)
    return [source.read(list(range(i, min(i + _ROWS_AT_ONCE, rows)))) for i in range(0, rows, _ROWS_AT_ONCE)]


@torch.no_grad()
def mean_nats(model: Decoder, batches: Sequence[TokenBatch]) -> float:
    """Nats a target over all batches."""
    training, objective = model.training, NextToken(routed=model.traits.moe is not None)
    model.eval()
    total = sum(float(objective(model, batch, StepContext(training=False))[0][NEXT].sum) for batch in batches)
    model.train(training)
    return total / max(1.0, sum(objective.counts(batch)[NEXT] for batch in batches))
