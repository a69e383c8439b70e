"""do: quantize. A model's matrices in fewer bits, saved so that the engine runs them packed, and what that cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dacheng.errors import UsageError
from dacheng.records import Artifact
from dacheng.stages import named
from dacheng.stages.base import Input, StageContext
from dacheng.stages.compressing import check_judge_text
from dacheng.stages.named import base_of

if TYPE_CHECKING:
    from dacheng.compress.quantize.config import QuantizeConfig
    from dacheng.compress.quantize.model import Quantized
    from dacheng.stages.compressing import Opened

VERSION = 1
KIND = "model"
INPUTS = {"model": Input("model", required=False)}
METHODS = Literal["rtn", "gptq", "awq", "smoothquant", "nf4", "fp8"]
MADE = "made.json"  # until the table is there, too
LAYOUTS = Literal["dacheng", "compressed-tensors", "gguf"]
_GROUPS = (128, 64, 32)


@dataclass(frozen=True, kw_only=True)
class Config:
    """model: a directory or a GGUF file; null for the one of `from:`. method: rtn, gptq, awq, smoothquant, nf4, fp8.
    bits: 2 to 8. group: columns that share a scale, or channel, tensor; auto for the widest of 128, 64 and 32 that
    divides every map. symmetric: no zero point. embedding: the format of embedding and head ("8g32"), or keep.
    budget_mb: megabytes of all quantised maps together: bits from 2 to 8, map by map, where the loss feels them least.
    calibration: a text (UTF-8 or .gz) of the kind that the model is for; null for Python's own documentation. rows,
    length: stretches of it. act_order, clip, alpha: of gptq, awq, smoothquant. layout: dacheng, compressed-tensors or
    gguf. dtype: of what stays floats. again: also a model that is compressed already. judge_text: for perplexity before
    and after, null for the end of the calibration text; task: a file of questions; judge: false for no table; speed:
    measure that too.
    """

    model: str | None = None
    method: METHODS = "gptq"
    bits: int = 4
    group: int | str = "auto"
    symmetric: bool = True
    embedding: str = "8g32"
    budget_mb: float | None = None
    calibration: Path | None = None
    rows: int = 32
    length: int = 512
    act_order: bool = True
    clip: bool = True
    alpha: float = 0.5
    layout: LAYOUTS = "dacheng"
    dtype: str = "float16"
    again: bool = False
    seed: int = 0
    judge: bool = True
    judge_text: Path | None = None
    judge_tokens: int = 8192
    task: Path | None = None
    speed: bool = True

    def __post_init__(self) -> None:
        if self.embedding != "keep" and self.layout == "compressed-tensors":
            raise UsageError("compressed-tensors has no quantised embedding", field="embedding", value=self.embedding,
                             remedy="embedding: keep")  # fmt: skip
        if self.budget_mb is not None and self.method not in ("rtn", "gptq", "awq"):
            raise UsageError(f"{self.method} has one format for all maps", field="budget_mb", value=self.budget_mb,
                             remedy="method: gptq")  # fmt: skip
        if self.layout == "gguf" and self.method in ("nf4", "fp8"):
            raise UsageError(f"GGUF has no {self.method}", field="layout", value=self.layout, remedy="layout: dacheng")


def externals(config: Config) -> dict[str, Any]:
    """The weights and the text. Raises DachengError for a file that is not there, UsageError for no number format."""
    _formats_asked(config)
    check_judge_text(config)
    text = [] if config.calibration is None else [config.calibration]
    return named.hashes(named.weights("model", config.model), named.files("calibration", text))


def run(config: Config, inputs: dict[str, Artifact], out: Path, context: StageContext) -> Artifact:
    """Leaves model/ (or model.gguf) and quantize.json: formats, errors of the maps on the calibration text, notes, the
    comparison. A stopped calibration goes on, and what was made is not made again for the table. Raises what the
    methods raise."""
    import shutil

    from dacheng.formats.json_files import read_json, write_json

    base = base_of(config.model, inputs)
    if not config.again:
        refuse_compressed(base)
    made = out / MADE
    if made.exists():  # stopped while it was judged
        report, path = read_json(made)["report"], out / read_json(made)["name"]
        context.reporter.note(f"{path} is made already")
    else:
        report, path = quantize(config, base, out, context)
        write_json(made, {"report": report, "name": path.name})
        shutil.rmtree(out / "state", ignore_errors=True)
    if config.judge:
        report["comparison"] = _judged(config, base, path, out, context)
    write_json(out / "quantize.json", report)
    made.unlink()
    return Artifact(KIND, path, metrics=report)


def refuse_compressed(base: Path) -> None:
    """Raises UsageError for a directory whose weights are quantised: the errors of both would add up unseen."""
    from dacheng.formats.packed import is_packed

    if base.suffix != ".gguf" and is_packed(base):
        raise UsageError("this model is compressed already", field="model", value=str(base),
                         remedy="give the model that it was made from, or say again: true (--again)")  # fmt: skip


def quantize(config: Config, base: Path, out: Path, context: StageContext) -> tuple[dict[str, Any], Path]:
    """What was done, and where the model is."""
    from dacheng.compress.quantize.model import quantize_model
    from dacheng.stages.compressing import open_model

    opened = open_model(base, context.reporter)
    batches = _batches(config, opened)
    settings = _settings(config, opened, batches, context)
    with context.reporter.task(f"quantising by {config.method}") as task:
        done = quantize_model(
            opened.model, settings, batches if settings.calibrated else (), folder=out / "state",
            progress=lambda done, of: task.update(done, total=of, text=_step(settings, done, of)),
        )  # fmt: skip
    for note in done.notes:
        context.reporter.note(note)
    path = _saved(config, settings, opened, done, base, out, context)
    worst = sorted(done.errors.items(), key=lambda item: -item[1])
    report = {
        **settings.to_dict(), "formats": _formats(done), "packed_bytes": done.nbytes, "notes": done.notes,
        "errors": done.errors, "worst": dict(worst[:5]),
    }  # fmt: skip
    return report, path


def _step(settings: QuantizeConfig, done: float, of: int) -> str:
    return f"{'layer' if settings.calibrated else 'matrix'} {min(int(done) + 1, of)} of {of}"


def _settings(config: Config, opened: Opened, batches: list[Any], context: StageContext) -> QuantizeConfig:
    """With a budget: bits of each map by what the loss is expected to feel."""
    from dacheng.compress.quantize.config import QuantizeConfig
    from dacheng.compress.quantize.sensitivity import allocate, sensitivities
    from dacheng.ops.integers import QSpec

    group = _group(config, opened)
    spec = QSpec(config.bits if config.method != "smoothquant" else 8, group, config.symmetric)
    embedding = None if config.embedding == "keep" else QSpec.parse(config.embedding)
    settings = QuantizeConfig(
        config.method, spec, embedding, act_order=config.act_order, clip=config.clip, alpha=config.alpha
    )
    if config.budget_mb is None:
        return settings
    from dataclasses import replace

    options = [QSpec(bits, group, config.symmetric) for bits in (2, 3, 4, 5, 6, 8)]
    with context.reporter.task("measuring how much the loss feels each map"):
        table = sensitivities(opened.model, settings, options, batches)
    chosen = allocate(table, int(config.budget_mb * 1e6))
    return replace(settings, specs=tuple(sorted(chosen.items())))


def _formats_asked(config: Config) -> None:
    """Raises UsageError for bits, groups or an embedding's format that don't exist: before a model is read."""
    from dacheng.ops.integers import QSpec

    QSpec(config.bits, _GROUPS[0] if config.group == "auto" else _number(config.group))
    if config.embedding != "keep":
        QSpec.parse(config.embedding)


def _number(group: int | str) -> int | str:
    """A group that came as text, such as "64"."""
    text = str(group)
    return int(text) if text.isdecimal() else text


def _group(config: Config, opened: Opened) -> int | str:
    """The one that was asked for, or the widest that divides all maps."""
    from dacheng.nn.linear import Dense

    if config.group != "auto":
        return _number(config.group)
    if config.method == "smoothquant":
        return "channel"
    widths = {m.in_features for name, m in opened.model.named_modules()
              if isinstance(m, Dense) and name.startswith("blocks.")}  # fmt: skip
    return next((size for size in _GROUPS if all(width % size == 0 for width in widths)), "channel")


def _batches(config: Config, opened: Opened) -> list[Any]:
    from dacheng.compress.calibrate import calibration_batches

    if config.method in ("rtn", "nf4", "fp8") and config.budget_mb is None:
        return []
    length = min(config.length, opened.model.traits.longest_text)
    ids = opened.tokenizer.encode(_texts(config)[0])
    return calibration_batches(ids, rows=config.rows, length=length, seed=config.seed)


def _texts(config: Config) -> tuple[str, str]:
    """What calibrates, and what is held out of it: the last tenth."""
    from dacheng.compress.measure import read_text
    from dacheng.compress.texts import python_topics

    whole = python_topics() if config.calibration is None else read_text(config.calibration)
    if config.judge_text is not None:
        return whole, ""
    cut = len(whole) * 9 // 10
    return whole[:cut], whole[cut:]


def _formats(done: Quantized) -> dict[str, int]:
    """How many matrices are in each."""
    counts: dict[str, int] = {}
    for weight in done.weights.values():
        name = str(getattr(weight, "spec", type(weight).__name__.removesuffix("Tensor").lower()))
        counts[name] = counts.get(name, 0) + 1
    return counts


def _saved(
    config: Config, settings: QuantizeConfig, opened: Opened, done: Quantized, base: Path, out: Path,
    context: StageContext,
) -> Path:  # fmt: skip
    from dacheng.formats.json_files import plain
    from dacheng.formats.model_directory import save_model
    from dacheng.formats.provenance import weights_hash

    if config.layout == "gguf":
        from dacheng.formats.export import export_packed_gguf

        notes = export_packed_gguf(opened.model, opened.tokenizer, done.weights, out / "model.gguf", name=base.stem)
        for note in notes:
            context.reporter.note(note)
        return out / "model.gguf"
    told = {key: value for key, value in plain(asdict(config)).items() if not key.startswith("judge")}
    provenance = {
        "parent": weights_hash(base) if base.is_dir() else None, "recipe": {"do": "quantize", "quantize": told},
        "ledger": context.ledger.totals(),
    }  # fmt: skip
    return save_model(
        out / "model", opened.model, opened.tokenizer, generation=opened.generation, provenance=provenance,
        dtype=config.dtype, packed=done.weights, layout=config.layout, quantization=settings.to_dict(),
    )  # fmt: skip


def _judged(config: Config, base: Path, path: Path, out: Path, context: StageContext) -> dict[str, Any]:
    from dacheng.compress.judge import judge

    text = config.judge_text
    if text is None:
        text = out / "held_out.txt"
        text.write_text(_texts(config)[1], encoding="utf-8")
        context.reporter.note("perplexity is of the last tenth of the calibration text, which calibrated nothing")
    with context.reporter.task("judging before and after") as task:
        found = judge(base, path, text=text, task=config.task, speed=config.speed, ledger=context.ledger,
                      tokens=config.judge_tokens, progress=task.update)  # fmt: skip
    context.reporter.note(found.table())
    context.reporter.note(found.sentence())
    return found.to_dict()
