"""do: align. Teaches a model of Python to complete functions so that they parse: `ast.parse` gives the reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dacheng.align.reinforce.settings import Method, ReinforceConfig
from dacheng.errors import DachengError, UsageError
from dacheng.records import Artifact
from dacheng.stages import learning
from dacheng.stages.base import Input, StageContext

if TYPE_CHECKING:
    from dacheng.align.reinforce.training import PolicyResult
    from dacheng.align.rewards.base import RewardMix
    from dacheng.data.documents import DocumentStore
    from dacheng.formats.model_directory import LoadedModel
    from dacheng.models.decoder import Decoder

VERSION = 1
KIND = "model"
INPUTS = {"model": Input("model"), "documents": Input("documents")}
FILE, PROMPTS = "alignment.json", "prompts.jsonl"
_SHOWN = 6  # completions before and after, for the report
_AT_ONCE = 16
_FREE: dict[str, Any] = {"free": True}


@dataclass(frozen=True, kw_only=True)
class Config:
    """prompts: headers of functions (def and docstring) from the training documents, which are completed and rewarded,
    at most so many. held_out: at most so many headers from the held-out documents, for the rates before and after, at
    held_out_temperature. parse_weight, lines_weight: of the two rewards, whether all of it parses, and the share of
    code lines in the longest beginning that does (without it, a group in which nothing parses whole teaches nothing).
    least_lines: a completion with fewer code lines gets only a share of both (else one line is the best answer).
    text_bytes: of the held-out documents that are scored before and after, 0 for none: what alignment costs elsewhere.
    method, group, prompts_per_step, lr, kl_coef, temperature, max_tokens, steps, minutes: see align.reinforce.settings.
    """

    prompts: int = 512
    held_out: int = 64
    held_out_temperature: float = 0.8
    parse_weight: float = 1.0
    lines_weight: float = 0.5
    least_lines: int = 3
    text_bytes: int = 60_000
    method: Method = "grpo"
    group: int = 8
    prompts_per_step: int = 8
    lr: float = 1e-3
    kl_coef: float = 0.02
    temperature: float = 0.8
    max_tokens: int = 64
    steps: int | None = None
    minutes: float | None = None
    seed: int = 0
    save_every: int = field(default=10, metadata=_FREE)

    def __post_init__(self) -> None:
        for name, least in (("prompts", 2), ("held_out", 2), ("least_lines", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"must be at least {least}", field=name, value=getattr(self, name), remedy="raise it")
        if self.parse_weight <= 0 or self.lines_weight < 0:
            name = "parse_weight" if self.parse_weight <= 0 else "lines_weight"
            raise UsageError(
                "no such weight", field=name, value=getattr(self, name), remedy="above 0; lines_weight: or 0"
            )
        self.settings()  # its own checks

    def settings(self) -> ReinforceConfig:
        """What the training takes."""
        names = ("method", "group", "prompts_per_step", "lr", "kl_coef", "temperature", "max_tokens", "steps",
                 "minutes", "seed", "save_every")  # fmt: skip
        return ReinforceConfig(**{name: getattr(self, name) for name in names})

    def reward(self) -> RewardMix:
        """Of completions that have least_lines code lines; those with fewer get a share."""
        from dacheng.align.long_enough import LongEnough
        from dacheng.align.rewards.base import Reward, RewardMix
        from dacheng.align.rewards.syntax import SyntaxReward

        parts: list[tuple[Reward, float]] = [(LongEnough(SyntaxReward(), self.least_lines), self.parse_weight)]
        if self.lines_weight:
            lines = SyntaxReward(name="lines", measure="kept_lines")
            parts.append((LongEnough(lines, self.least_lines), self.lines_weight))
        return RewardMix(parts)


def run(config: Config, inputs: dict[str, Artifact], out: Path, context: StageContext) -> Artifact:
    """Leaves model/, alignment.json (rates, costs and samples before and after) and training/ (train.jsonl, sets.jsonl,
    rollouts, checkpoints); goes on from what an interrupted run left.

    Raises DachengError where the model has no tokenizer, nothing is held out or there are no functions, and what
    train_policy raises.
    """
    from dacheng.align.reinforce.prompts import read_prompts
    from dacheng.align.reinforce.training import train_policy
    from dacheng.data.documents import DocumentStore
    from dacheng.formats.json_files import write_json
    from dacheng.train.progress import Progress

    store, base = DocumentStore.open(inputs["documents"].path), inputs["model"].path
    loaded = learning.open_policy(base)
    assert loaded.tokenizer is not None
    learnt, asked = _headers(config, store, loaded)
    out.mkdir(parents=True, exist_ok=True)
    _write_prompts(out / PROMPTS, learnt)
    prompts = read_prompts([out / PROMPTS], loaded.tokenizer)
    before = _state(config, loaded, loaded.model, asked, store, context, "before")
    made = train_policy(
        loaded.model, loaded.tokenizer, prompts, config.reward(), out / "training", config.settings(),
        [Progress()], ledger=context.ledger,
    )  # fmt: skip
    after = _state(config, loaded, made.model, asked, store, context, "after")
    found = compared(before, after, asked)
    write_json(out / FILE, {**found, "samples": _samples(asked, before, after), "warnings": made.warnings})
    for line in [*made.warnings, sentence(found)]:
        context.reporter.note(line)
    rates = {f"parse_{when}": found[when]["parse"] for when in ("before", "after")}
    metrics = made.to_dict() | rates | {"alignment": found}
    _save(out / "model", base, loaded, made, context, metrics, config)
    return Artifact(KIND, out / "model", metrics=metrics)


def _headers(config: Config, store: DocumentStore, loaded: LoadedModel) -> tuple[list[str], list[str]]:
    """(of the training documents, of the held-out ones). No header is in both."""
    import random

    from dacheng.evaluate.code import headers

    assert loaded.tokenizer is not None
    if "valid" not in store.splits or not store.documents("valid"):
        raise DachengError("there are no held-out documents", field="documents", value=store.splits,
                           remedy="raise split.valid_fraction in the data stage")  # fmt: skip
    room, encode = loaded.model.traits.longest_text - config.max_tokens - 1, loaded.tokenizer.encode

    def fits(prompt: str) -> bool:
        return len(encode(prompt)) <= room

    held_out = headers(store.texts("valid"), fits)
    known = set(held_out)
    learnt = headers(store.texts("train"), lambda p: p not in known and fits(p))
    for name, there in (("prompts", learnt), ("held_out", held_out)):
        if len(there) < 2:
            raise DachengError(f"the documents have {len(there)} functions that fit", field=name, value=len(there),
                               remedy="give it Python files, or lower max_tokens")  # fmt: skip
    draw = random.Random(config.seed)
    return tuple(draw.sample(there, min(n, len(there)))
                 for there, n in ((learnt, config.prompts), (held_out, config.held_out)))  # type: ignore[return-value]  # fmt: skip


def _write_prompts(path: Path, prompts: Sequence[str]) -> None:
    import json

    from dacheng.formats.atomic import replacing_file

    with replacing_file(path) as file:
        for prompt in prompts:
            file.write(json.dumps({"prompt": prompt}).encode() + b"\n")


def _state(
    config: Config, loaded: LoadedModel, model: Decoder, asked: Sequence[str], store: DocumentStore,
    context: StageContext, when: str,
) -> dict[str, Any]:  # fmt: skip
    """Completions of the held-out headers, each with a seed of its own, and the bits per byte of held-out text."""
    from dacheng.engine.engine import Engine
    from dacheng.protocols import SamplingParams

    params = [
        SamplingParams(max_tokens=config.max_tokens, temperature=config.held_out_temperature, seed=config.seed + i)
        for i in range(len(asked))
    ]
    engine, done = Engine(model, loaded.tokenizer), []
    with context.reporter.task(f"completing held-out functions, {when}", len(asked)) as task:
        for start in range(0, len(asked), _AT_ONCE):
            done += engine.generate(list(asked[start : start + _AT_ONCE]), params[start : start + _AT_ONCE])
            task.update(len(done))
    bits = _bits_per_byte(config, loaded, model, store) if config.text_bytes else None
    return {
        "texts": [one.text for one in done], "tokens": [len(one.token_ids) for one in done],
        "ended": [one.finish_reason != "length" for one in done], "bits_per_byte": bits,
    }  # fmt: skip


def _bits_per_byte(config: Config, loaded: LoadedModel, model: Decoder, store: DocumentStore) -> float:
    """Of the beginnings of held-out documents, text_bytes in all."""
    from dacheng.evaluate.perplexity import LONGEST_WINDOW, evaluate_text

    texts, left = [], config.text_bytes
    for text in store.texts("valid"):
        texts.append(text[: min(left, 8000)])
        left -= len(texts[-1].encode("utf-8", "surrogatepass"))
        if left <= 0:
            break
    window = min(model.traits.longest_text, LONGEST_WINDOW)
    return float(evaluate_text(model, loaded.tokenizer, texts, context_length=window, stride=window)["bits_per_byte"])


def compared(before: dict[str, Any], after: dict[str, Any], asked: Sequence[str]) -> dict[str, Any]:
    """Figures of both, and how far the rates are apart on the same headers and seeds (95% bootstrap over headers)."""
    from dacheng.evaluate.code import code_lines, parse_share, parses
    from dacheng.evaluate.intervals import paired_difference

    found: dict[str, Any] = {}
    right = {}
    for when, state in (("before", before), ("after", after)):
        texts, n = state["texts"], len(asked)
        right[when] = [float(parses(prompt, text)) for prompt, text in zip(asked, texts)]
        found[when] = parse_share(asked, texts) | {
            "tokens": sum(state["tokens"]) / n, "ended": sum(state["ended"]) / n,
            "code_lines": sum(map(code_lines, texts)) / n, "different": len(set(texts)) / n,
            "bits_per_byte": state["bits_per_byte"],
        }  # fmt: skip
    return found | {"difference": paired_difference(right["after"], right["before"]).to_dict()}


def _samples(asked: Sequence[str], before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, str]]:
    rows = zip(asked[:_SHOWN], before["texts"], after["texts"])
    return [{"prompt": prompt, "before": one, "after": other} for prompt, one, other in rows]


def sentence(found: dict[str, Any]) -> str:
    """The result in one line."""
    one, other = found["before"], found["after"]
    apart, low, high = (100 * found["difference"][name] for name in ("estimate", "low", "high"))
    return (
        f"{one['parse']:.1%} of held-out functions parsed before, {other['parse']:.1%} after "
        f"(difference {apart:+.1f} points, 95%: {low:+.1f} to {high:+.1f}); "
        f"{one['code_lines']:.1f} code lines a completion before, {other['code_lines']:.1f} after"
    )


def _save(
    path: Path, base: Path, loaded: LoadedModel, made: PolicyResult, context: StageContext, metrics: dict[str, Any],
    config: Config,
) -> None:  # fmt: skip
    from dacheng.formats.model_directory import save_model

    provenance = learning.provenance(base, context, config.seed, metrics=metrics)
    save_model(path, made.model, loaded.tokenizer, generation=loaded.generation, provenance=provenance)
