"""do: plan. A budget -> the size of the model and the number of tokens, with the formula that led there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dacheng.records import Artifact
from dacheng.stages.base import Input, StageContext
from dacheng.train.budget import Budget

VERSION = 1
KIND = "plan"
INPUTS = {"machine": Input("machine"), "tokens": Input("tokens")}


@dataclass(frozen=True, kw_only=True)
class Config:
    """budget: what may be spent; the smallest limit decides. max_epochs: how often a text may be seen.
    tokens_per_parameter: 20 is Chinchilla's. optimizer: what memory must hold. dtype: of compute, null for what this
    machine is fast at. traits: choices of the model that are not left to the plan (activation, qk_norm… or a whole
    shape: width and layers)."""

    budget: Budget = field(default_factory=lambda: Budget(minutes=8.0))
    max_epochs: float = 4.0
    tokens_per_parameter: float = 20.0
    optimizer: Literal["adamw", "muon", "sgd"] = "adamw"
    dtype: Literal["float32", "bfloat16"] | None = None
    traits: dict[str, Any] = field(default_factory=dict)


def run(config: Config, inputs: dict[str, Artifact], out: Path, context: StageContext) -> Artifact:
    """Leaves plan.json. Raises UsageError when the budget pays for nothing that makes sense, naming what would."""
    from dacheng.data.corpus import TokenizedCorpus
    from dacheng.formats.json_files import read_json, write_json
    from dacheng.machine import Machine
    from dacheng.plan.budget import plan_decoder

    corpus = TokenizedCorpus.open(inputs["tokens"].path)
    plan = plan_decoder(
        config.budget,
        Machine(**read_json(inputs["machine"].path)),
        corpus.manifest["vocab_size"],
        corpus.context_length,
        unique_tokens=corpus.entry("train")["tokens"],
        max_epochs=config.max_epochs,
        tokens_per_parameter=config.tokens_per_parameter,
        optimizer=config.optimizer,
        dtype=config.dtype,
        traits=config.traits,
        prices=context.ledger.prices,
    )
    for line in plan.formula:
        context.reporter.note(f"  {line}")
    write_json(out / "plan.json", plan.to_dict() | {"budget": config.budget})
    return Artifact(KIND, out / "plan.json", metrics=plan.to_dict())
