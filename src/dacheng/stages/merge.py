"""do: merge. One model of several that were tuned from one base, or a mixture of experts of one; beside the first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dacheng.errors import DachengError, UsageError
from dacheng.records import Artifact
from dacheng.stages import named
from dacheng.stages.base import Input, StageContext
from dacheng.stages.compressing import check_judge_text, finish, open_model

VERSION = 1
KIND = "model"
INPUTS: dict[str, Input] = {"model": Input("model", required=False)}


@dataclass(frozen=True, kw_only=True)
class Config:
    """models: directories or GGUF files, after the one of `from:` where there is one. base: what they were tuned from,
    for task_arithmetic, ties and dare. method, weights, t, density, scale, seed: see compress.merge.models.MergeConfig;
    upcycle makes `experts` experts of the one model, of which a token goes through `per_token`. dtype: of what is
    stored. judge, judge_text, speed: the table beside the first model, as in prune."""

    models: tuple[str, ...] = ()
    base: str | None = None
    method: Literal["linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties", "upcycle"] = "linear"
    weights: tuple[float, ...] | None = None
    t: float = 0.5
    density: float = 0.5
    scale: float = 1.0
    experts: int = 8
    per_token: int = 2
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    seed: int = 1
    judge: bool = True
    judge_text: Path | None = None
    speed: bool = False


def externals(config: Config) -> dict[str, Any]:
    """All weights. Raises DachengError for what is no model."""
    check_judge_text(config)
    return named.hashes(
        *(named.weights("models", model) for model in config.models), named.weights("base", config.base)
    )


def run(config: Config, inputs: dict[str, Artifact], out: Path, context: StageContext) -> Artifact:
    """Leaves model/ and merge.json. Raises DachengError for models of different shapes or tokenizers."""
    from dacheng.compress.merge.methods import NEEDS_BASE
    from dacheng.compress.merge.models import MergeConfig, merge_models
    from dacheng.compress.upcycle import upcycle

    paths = [*([inputs["model"].path] if "model" in inputs else []), *map(Path, config.models)]
    if not paths:
        raise UsageError("there is nothing to merge", field="models", value=[], remedy="name the models")
    everyone = [open_model(path, context.reporter) for path in paths]
    first = everyone[0]
    for path, other in zip(paths[1:], everyone[1:]):
        if other.tokenizer.fingerprint != first.tokenizer.fingerprint:
            raise DachengError(f"{paths[0]} and {path} cut texts differently", field="models", value=str(path),
                               remedy="merge models of one tokenizer")  # fmt: skip
    needed = config.method in NEEDS_BASE
    if config.base is not None and not needed:
        context.reporter.note(f"{config.method} has no use for a base: {config.base} is left aside")
    if config.method == "upcycle":
        if len(paths) != 1:
            raise UsageError("experts are made of one model", field="models", value=len(paths), remedy="name one")
        first.model = upcycle(first.model, config.experts, config.per_token, seed=config.seed)
    else:
        settings = MergeConfig(method=config.method, weights=config.weights, t=config.t, density=config.density,
                               scale=config.scale, seed=config.seed)  # fmt: skip
        base = open_model(Path(config.base), context.reporter).model if config.base and needed else None
        first.model = merge_models([one.model for one in everyone], settings, base)
    report = {
        "method": config.method,
        "models": [str(path) for path in paths],
        "parameters": first.model.params()["total"],
    }
    return finish(paths[0], first, out, context, report, {}, config, "merge")
