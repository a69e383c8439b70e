"""do: distil. A smaller student of a classifier or a decoder: its layers picked, taught by the teacher."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dacheng.checks import says_how_long
from dacheng.errors import UsageError
from dacheng.objectives.distil_weights import DistilWeights
from dacheng.records import Artifact, Drops
from dacheng.stages import learning, named
from dacheng.stages.base import Input, StageContext

if TYPE_CHECKING:
    from dacheng.compress.distil.classifier import DistilClassifierConfig
    from dacheng.compress.distil.decoder import DistilDecoderConfig

VERSION = 1
KIND = "model"
INPUTS = {"model": Input("model", required=False), "classifier": Input("classifier", required=False)}
_FREE: dict[str, Any] = {"free": True}


@dataclass(frozen=True, kw_only=True)
class Config:
    """teacher: a model's or a classifier's directory; null for the one of `from:`. layers: how many of its layers the
    student has, evenly spread, or which; null for half. data, held_out: labelled texts for a classifier (also without
    labels, by the teacher alone); conversations or plain text for a decoder. weights: what is learnt from the teacher,
    see objectives.distil_weights. How long: the smallest of epochs (classifiers), steps and minutes. lr: null for 2e-4
    (classifiers) or 3e-4.

    Of classifiers: vocabulary: tokens kept in the end, those of the data among them; 0 for these alone, null for all.
    int8: pack the student. Of decoders: student: a directory to begin with in place of layers. beta: 0 for
    KL(teacher ‖ student), 1 for the reverse. top_k: store so many of the teacher's likeliest tokens first. share: of
    the steps on the student's own answers; max_tokens of these. judge_text: held-out text for the table.
    """

    teacher: str | None = None
    data: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    layers: int | tuple[int, ...] | None = None
    weights: DistilWeights | None = None
    lr: float | None = None
    epochs: float | None = None
    steps: int | None = None
    minutes: float | None = None
    batch_rows: int | None = None
    seed: int = 1
    vocabulary: int | None = None
    int8: bool = False
    student: str | None = None
    beta: float = 0.0
    top_k: int | None = None
    share: float = 0.0
    max_tokens: int = 64
    context_length: int = 256
    judge_text: str | None = None
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    save_every: int = field(default=200, metadata=_FREE)

    def __post_init__(self) -> None:
        if not self.data:
            raise UsageError("nothing to learn from", field="data", value=list(self.data), remedy="data: [texts.jsonl]")
        says_how_long(self, "steps", "epochs", "minutes")


def externals(config: Config) -> dict[str, Any]:
    """Weights and data. Raises DachengError for a file that is not there."""
    return named.hashes(
        named.weights("teacher", config.teacher), named.weights("student", config.student),
        named.files("data", config.data), named.files("held_out", config.held_out),
    )  # fmt: skip


def run(config: Config, inputs: dict[str, Artifact], out: Path, context: StageContext) -> Artifact:
    """Leaves model/ (the student's directory), and says what it costs and gains beside its teacher. Raises what
    distil_classifier and distil_decoder raise, and UsageError for a knob of the other kind."""
    from dacheng.formats.classifiers import is_classifier

    given = [artifact.path for artifact in inputs.values()]
    if (config.teacher is None) != (len(given) == 1):
        problem = "which teacher?" if config.teacher is None else "the teacher is named twice"
        raise UsageError(problem, field="teacher", value=config.teacher, remedy="by teacher: or by from:, not both")
    teacher = given[0] if config.teacher is None else Path(config.teacher)
    if is_classifier(teacher):
        return _classifier(config, teacher, out, context)
    return _decoder(config, teacher, out, context)


def _classifier(config: Config, teacher: Path, out: Path, context: StageContext) -> Artifact:
    from dacheng.compress.distil.classifier import distil_classifier
    from dacheng.compress.encoders import pack_classifier
    from dacheng.compress.judge_classifier import judge_classifiers
    from dacheng.data.labelled import read_labelled
    from dacheng.formats import provenance
    from dacheng.formats.classifiers import load_classifier, save_classifier
    from dacheng.train.progress import Progress

    _refuse(config, "a classifier", (
        "student", "beta", "top_k", "share", "max_tokens", "context_length", "precision", "judge_text",
    ))  # fmt: skip
    drops = Drops()
    texts = read_labelled(config.data, drops, unlabelled=True)
    made = distil_classifier(teacher, texts, out, classifier_settings(config), [Progress()], ledger=context.ledger)
    if config.int8:
        loaded = load_classifier(made.path)
        if not loaded.is_packed:  # by a run that was stopped after this
            said = {key: value for key, value in provenance.read(made.path).items() if key in provenance.KEYS}
            save_classifier(made.path, pack_classifier(loaded.model), loaded.tokenizer, provenance=said)
    learning.tell_drops("texts", context, drops)
    metrics = made.figures()
    if config.held_out:
        left = Drops()
        held_out = read_labelled(config.held_out, left)
        if left.dropped:
            context.reporter.note(f"left out of what is held out: {dict(left.dropped)}")
        found = judge_classifiers(teacher, made.path, held_out)
        context.reporter.note(found.table())
        context.reporter.note(found.sentence())
        metrics["comparison"] = found.to_dict()
    return Artifact("classifier", made.path, metrics=metrics)


def _decoder(config: Config, teacher: Path, out: Path, context: StageContext) -> Artifact:
    from dacheng.compress.distil.decoder import distil_decoder
    from dacheng.train.progress import Progress

    _refuse(config, "a decoder", ("vocabulary", "int8", "epochs", "held_out"))
    made = distil_decoder(
        teacher, config.data, out, decoder_settings(config), [Progress()], student=config.student,
        ledger=context.ledger,
    )  # fmt: skip
    learning.tell_drops("conversations", context, made.drops)
    context.reporter.note(
        f"nats a token: {made.loss_before:.3f} before, {made.loss_after:.3f} after, the teacher {made.loss_teacher:.3f}"
    )
    metrics = made.figures()
    if config.judge_text is not None:
        from dacheng.compress.judge import judge

        found = judge(teacher, made.path, text=Path(config.judge_text), ledger=context.ledger)
        context.reporter.note(found.table())
        context.reporter.note(found.sentence())
        metrics["comparison"] = found.to_dict()
    return Artifact(KIND, made.path, metrics=metrics)


def classifier_settings(config: Config) -> DistilClassifierConfig:
    from dacheng.compress.distil.classifier import DistilClassifierConfig

    return DistilClassifierConfig(
        layers=config.layers, vocabulary=config.vocabulary, epochs=config.epochs,
        weights=config.weights or DistilWeights(soft=1.0, hard=0.5), steps=config.steps, minutes=config.minutes,
        lr=config.lr or 2e-4, batch_rows=config.batch_rows or 32, seed=config.seed, save_every=config.save_every,
    )  # fmt: skip


def decoder_settings(config: Config) -> DistilDecoderConfig:
    from dacheng.compress.distil.decoder import DistilDecoderConfig
    from dacheng.train.budget import Budget
    from dacheng.train.optimizers import OptimizerConfig

    return DistilDecoderConfig(
        layers=config.layers, weights=config.weights, beta=config.beta, top_k=config.top_k, share=config.share,
        max_tokens=config.max_tokens, context_length=config.context_length,
        batch_rows=config.batch_rows or 4, steps=config.steps, seed=config.seed, precision=config.precision,
        budget=Budget() if config.minutes is None else Budget(minutes=config.minutes),
        optimizer=OptimizerConfig(lr=config.lr or 3e-4, weight_decay=0.0), save_every=config.save_every,
    )  # fmt: skip


def _refuse(config: Config, kind: str, names: tuple[str, ...]) -> None:
    unset = {f.name: f.default for f in fields(Config)}
    for name in names:
        value = getattr(config, name)
        if value != unset[name]:
            raise UsageError(f"{kind} has no such knob", field=name, value=value, remedy="leave it out")
