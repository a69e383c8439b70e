"""What the stages that change a model's weights share: opening it, its calibration text, saving it, the table."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dacheng.errors import DachengError
from dacheng.records import Artifact

if TYPE_CHECKING:
    import torch

    from dacheng.models.decoder import Decoder
    from dacheng.stages.base import Reporter, StageContext
    from dacheng.text import Tokenizer


@dataclass(slots=True)
class Opened:
    """A model in float32 with what belongs to it; `stored`: the dtype that it had on disk."""

    model: Decoder
    tokenizer: Tokenizer
    stored: torch.dtype
    generation: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def cast(self, dtype: str | None) -> Opened:
        """In the dtype that it will be stored in: the named one, or the one it had."""
        from dacheng.formats.dtypes import as_dtype

        self.model = self.model.to(as_dtype(dtype) or self.stored)
        return self


def open_model(base: Path, reporter: Reporter) -> Opened:
    """Raises DachengError for a model without a tokenizer; notes what was dequantised."""
    from dacheng.formats.model_directory import load_model
    from dacheng.formats.packed import is_packed

    loaded = load_model(base)
    if loaded.tokenizer is None:
        raise DachengError("the model has no tokenizer", field="model", value=str(base), remedy="add its files")
    stored = loaded.model.embed.weight.dtype
    notes = list(loaded.notes)
    if is_packed(base):
        notes.append(f"{base.name} holds packed weights: what is made of it holds floats, and may well be larger")
    for note in notes:
        reporter.note(note)
    return Opened(loaded.model.float(), loaded.tokenizer, stored, loaded.generation, notes)


def check_judge_text(config: Any) -> None:
    """Before hours of work, not after them: raises DachengError where what the table is made of can't be read."""
    from dacheng.compress.judge import check_texts

    if config.judge:
        check_texts(config.judge_text, getattr(config, "task", None))


def text_batches(opened: Opened, path: Path | None, config: Any, *, targets: bool = False) -> list[Any]:
    """`config.rows` stretches of `config.length` tokens, 4 at a time; targets: as batches that a loss can be taken of.
    Raises UsageError where the text is too short."""
    import torch

    from dacheng.compress.calibrate import calibration_batches
    from dacheng.compress.measure import read_text
    from dacheng.data.batches import TokenBatch

    assert path is not None
    length = min(config.length, opened.model.traits.longest_text)
    ids = opened.tokenizer.encode(read_text(path))
    found = calibration_batches(ids, rows=config.rows, length=length, seed=config.seed)
    if not targets:
        return found
    positions = torch.arange(length - 1)
    return [TokenBatch(rows[:, :-1], rows[:, 1:], positions.expand(len(rows), -1)) for rows in found]


def _note_family(opened: Opened, context: StageContext) -> None:
    """Says where the architecture that a model came as cannot express what was made of it."""
    from dacheng.formats.huggingface.families import family_of_traits

    was, now = opened.model.family, family_of_traits(opened.model.traits, opened.model.family).model_type
    if was is not None and was != now:
        alone = ", which transformers does not read" if now == "dacheng" else ""
        context.reporter.note(f"{was} cannot say what this model has become: it is stored as {now}{alone}")


def finish(
    base: Path, opened: Opened, out: Path, context: StageContext, report: dict[str, Any], packed: dict[str, Any],
    config: Any, name: str,
) -> Artifact:  # fmt: skip
    """Saves out/model and out/NAME.json, judges, and clears what a stopped run would have needed."""
    from dacheng.formats.json_files import plain, write_json
    from dacheng.formats.model_directory import save_model
    from dacheng.formats.provenance import weights_hash

    opened.cast(config.dtype)
    _note_family(opened, context)
    told = {key: value for key, value in plain(asdict(config)).items() if key not in ("judge", "speed")}
    provenance = {
        "parent": weights_hash(base) if base.is_dir() else None, "recipe": {"do": name, name: told},
        "metrics": {k: v for k, v in report.items() if isinstance(v, int | float | str)},
        "ledger": context.ledger.totals(),
    }  # fmt: skip
    save_model(
        out / "model", opened.model, opened.tokenizer, generation=opened.generation, provenance=provenance,
        packed=packed or None, quantization={"method": report.get("method")} if packed else None,
    )  # fmt: skip
    metrics = dict(report)
    if config.judge:
        from dacheng.compress.judge import judge

        with context.reporter.task("judging before and after") as task:
            found = judge(base, out / "model", text=config.judge_text, speed=config.speed, ledger=context.ledger,
                          progress=task.update)  # fmt: skip
        context.reporter.note(found.table())
        context.reporter.note(found.sentence())
        metrics["comparison"] = found.to_dict()
    write_json(out / f"{name}.json", metrics)
    for needed_to_go_on in (out / "state", out / "healing" / "checkpoints"):
        shutil.rmtree(needed_to_go_on, ignore_errors=True)
    return Artifact("model", out / "model", metrics=metrics)
