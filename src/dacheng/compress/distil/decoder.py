"""A decoder distilled into a smaller one: on texts and conversations, or on what the student writes itself."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dacheng.align.rollouts.ask import Sampling
from dacheng.checks import at_least_one
from dacheng.compress.distil.on_policy import Exchange, OnPolicySource
from dacheng.compress.distil.stored import StoredTeacher, WithTeacher, store_top_tokens
from dacheng.compress.distil.student import pick_layers
from dacheng.compress.measure import read_text
from dacheng.data.batches import PackedSource, Source, TokenBatch, every_row
from dacheng.data.chats import read_chats, rendered_chats, shards_of
from dacheng.data.packing import pack
from dacheng.errors import DachengError, UsageError
from dacheng.formats.model_directory import LoadedModel, load_model, save_model
from dacheng.formats.provenance import weights_hash
from dacheng.formats.safetensors_header import read_header
from dacheng.formats.safetensors_io import sha256_file
from dacheng.models.decoder import Decoder
from dacheng.objectives.base import StepContext
from dacheng.objectives.distil_tokens import NEXT, DistilTokens
from dacheng.objectives.distil_weights import DistilWeights
from dacheng.objectives.next_token import NextToken
from dacheng.recipes import part_of
from dacheng.records import Drops
from dacheng.train.callbacks import Callback
from dacheng.train.config import TrainConfig
from dacheng.train.outcome import MODEL, RESULT, TRAINING, Outcome
from dacheng.train.phases import Phase
from dacheng.train.rng import derive_seed
from dacheng.train.trainer import Trainer

if TYPE_CHECKING:
    from dacheng.ledger import Ledger
    from dacheng.text import Tokenizer

STORED = "teacher_tokens.safetensors"
_ROWS_AT_ONCE = 8
_FREE: dict[str, Any] = {"free": True}


@dataclass(frozen=True, kw_only=True)
class DistilDecoderConfig(TrainConfig):
    """Everything of TrainConfig (steps, optimizer, schedule…), and:

    layers: how many of the teacher's the student has, evenly spread, or which; null for half. weights, beta: what is
    learnt, see objectives.distil_tokens; null for the teacher's distributions, with the data's own tokens at one half
    where the data writes all answers. top_k: store so many likeliest tokens of the teacher first, and train without it;
    null keeps it at hand. share: of the steps on the student's own answers (on-policy GKD), 0 for none; max_tokens and
    temperature are of these. context_length, batch_rows, micro_batches: of a step; whole documents are packed into
    rows. chunk: tokens whose logits are held at once.
    """

    layers: int | tuple[int, ...] | None = None
    weights: DistilWeights | None = None
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
        if self.share and self.learnt.hard:
            raise UsageError("what the student wrote itself is no target", field="weights.hard",
                             value=self.learnt.hard, remedy="hard: 0, or share: 0")  # fmt: skip
        if self.top_k is not None and (self.beta or self.learnt.states or self.learnt.attention):
            raise UsageError("a teacher's likeliest tokens teach KL(teacher ‖ student) and no more", field="top_k",
                             value=self.top_k, remedy="top_k: null keeps the teacher at hand")  # fmt: skip
        at_least_one(self, "max_tokens", "context_length", "batch_rows", "micro_batches", "chunk")

    @property
    def learnt(self) -> DistilWeights:
        """The weights, or what null stands for."""
        return self.weights or DistilWeights(soft=1.0, hard=0.0 if self.share else 0.5, temperature=1.0)


@dataclass(frozen=True, kw_only=True)
class DistilResult(Outcome):
    """path: the student's directory. loss_before, loss_after: nats a target on rows of the data, of the student before
    and after; loss_teacher: of the teacher. kept: the mean share of probability that a stored teacher has."""

    loss_before: float
    loss_after: float
    loss_teacher: float
    parameters: int
    teacher_parameters: int
    written: int
    kept: float | None


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

    data: JSON lines of {"messages": […]}, of which the assistant's words are learnt, or plain texts (.txt, .md, also
    .gz), of which all is. The student is stored in the dtype of the model that it began as. Raises UsageError for a
    student with another vocabulary, and for own answers without conversations.
    """
    out, teacher, loaded = Path(out), Path(teacher), load_model(teacher)
    if loaded.tokenizer is None:
        raise DachengError("the teacher has no tokenizer", field="teacher", value=str(teacher), remedy="add its files")
    tokenizer, begun = loaded.tokenizer, loaded if student is None else load_model(student)
    stored, master = begun.model.embed.weight.dtype, loaded.model.float().eval().requires_grad_(False)
    model = pick_layers(master, config.layers) if student is None else _checked(begun, master, tokenizer)
    model.requires_grad_(True)
    drops = Drops()
    documents = _documents(data, tokenizer, config.context_length, drops)
    source: Source
    packed = _packed(documents, config)
    rows = _some_rows(packed)
    name, kept, used = weights_hash(teacher) if teacher.is_dir() else sha256_file(teacher), None, master
    if config.share:
        source = _on_policy(documents, tokenizer, config)
    else:
        source = packed
        if config.top_k is not None:
            out.mkdir(parents=True, exist_ok=True)
            told = _stored(master, packed, out / STORED, config, name)
            source, used, kept = WithTeacher(packed, told), None, told.kept  # type: ignore[assignment]
    before, best = mean_nats(model, rows), mean_nats(master, rows)
    objective = DistilTokens(used, config.learnt, config.beta, name, config.chunk)
    settings = part_of(TrainConfig, config)
    trainer = Trainer(model, [Phase(objective)], source, list(callbacks), settings, out / TRAINING, ledger=ledger)
    done = trainer.fit()
    model.eval()
    recipe = {"do": "distil", "layers": config.layers or model.traits.layers}
    path = save_model(
        out / MODEL, model, tokenizer, generation=begun.generation, dtype=stored,
        provenance={"parent": name, "recipe": recipe},
    )  # fmt: skip
    result = DistilResult(
        **Outcome.told(path, done, drops), loss_before=before, loss_after=mean_nats(model, rows), loss_teacher=best,
        parameters=model.params()["total"], teacher_parameters=master.params()["total"],
        written=getattr(source, "written", 0), kept=kept,
    )  # fmt: skip
    result.write(out / RESULT)
    return result


def _checked(loaded: LoadedModel, master: Decoder, tokenizer: Tokenizer) -> Decoder:
    """The student of a directory, in float32."""
    same = loaded.model.traits.vocab_size == master.traits.vocab_size
    if loaded.tokenizer is None or loaded.tokenizer.fingerprint != tokenizer.fingerprint or not same:
        raise UsageError(
            "teacher and student read text differently: their vocabularies are not the same", field="student",
            value=[master.traits.vocab_size, loaded.model.traits.vocab_size],
            remedy="take a student with the teacher's tokenizer, or let the teacher write the data",
        )  # fmt: skip
    return loaded.model.float()


def _documents(
    data: Sequence[str], tokenizer: Tokenizer, longest: int, drops: Drops
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids, which are learnt) of each conversation, and of each stretch of a plain text."""
    found: list[tuple[np.ndarray, np.ndarray]] = []
    chats = [path for path in data if not path.removesuffix(".gz").endswith((".txt", ".md"))]
    if chats:
        from dacheng.text import ChatRenderer

        found += rendered_chats(read_chats(chats, drops), ChatRenderer(tokenizer), longest, drops)
    for path in data:
        if path in chats:
            continue
        ids = np.array(tokenizer.encode(read_text(Path(path))), np.int32)
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
        edges = np.flatnonzero(np.diff(learnt.astype(np.int8), prepend=0, append=0))
        for first, last in edges.reshape(-1, 2).tolist():  # each of the assistant's turns, with all before it
            exchanges.append(Exchange(tuple(ids[:first].tolist()), tuple(ids[first:last].tolist())))
    sampling = Sampling(max_tokens=config.max_tokens, temperature=config.temperature)
    return OnPolicySource(
        exchanges, tokenizer, sampling, batch_rows=config.batch_rows, share=config.share,
        seed=derive_seed(config.seed, "data"),
    )  # fmt: skip


def _stored(master: Decoder, source: PackedSource, path: Path, config: DistilDecoderConfig, name: str) -> StoredTeacher:
    """What a run that was stopped has stored, where it was the same teacher, on the same rows, at these settings."""
    k, temperature = config.top_k or 1, config.learnt.temperature
    key = hashlib.sha256(repr([name, source.fingerprint, k, temperature]).encode()).hexdigest()
    if not path.is_file() or read_header(path).metadata.get("key") != key:
        rows = every_row(source.shards, source.packing, _ROWS_AT_ONCE)
        store_top_tokens(master, rows, path, k=k, temperature=temperature, key=key)
    return StoredTeacher(path)


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
