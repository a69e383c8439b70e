"""What the stages that train share: the model they open, what they tell of their data, what their result comes from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dacheng.errors import DachengError
from dacheng.records import Drops

if TYPE_CHECKING:
    from dacheng.formats.model_directory import LoadedModel
    from dacheng.stages.base import StageContext


def open_policy(base: Path) -> LoadedModel:
    """In float32, to be trained. Raises DachengError for a model without a tokenizer."""
    from dacheng.formats.model_directory import load_model

    loaded = load_model(base, dtype="float32")
    if loaded.tokenizer is None:
        raise DachengError("the model has no tokenizer", field="model", value=str(base), remedy="add its files")
    return loaded


def provenance(base: Path, context: StageContext, seed: int, **more: Any) -> dict[str, Any]:
    """For formats.save_model: the model that this one was made of, and by which stage."""
    from dacheng.formats.provenance import weights_hash

    return {"parent": weights_hash(base) if base.is_dir() else None, "recipe": context.recipe(seed), **more}


def tell_drops(what: str, context: StageContext, *counted: Drops | Mapping[str, Any]) -> None:
    """On the reporter and in the ledger: what was not learnt from, and why. counted: by each that had to do with it."""
    total = Drops()
    for one in counted:
        total.merge(one if isinstance(one, Drops) else Drops.from_dict(one))
    for reason, count in total.dropped.items():
        context.reporter.note(f"{count} {what} were left aside: {reason}")
    context.entry.add(drops=total.to_dict())
