"""do: reinforce. Learning from rewards: PPO, or a method of the GRPO family, with rewards that rules or models give."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dacheng.align.reinforce.settings import ReinforceConfig
from dacheng.errors import UsageError
from dacheng.recipes import part_of
from dacheng.records import Artifact, Drops
from dacheng.stages import learning, named
from dacheng.stages.base import Input, StageContext

if TYPE_CHECKING:
    from dacheng.align.reinforce.held_out import Measured
    from dacheng.align.reinforce.prompts import Prompt
    from dacheng.align.reinforce.training import PolicyResult
    from dacheng.align.rewards.base import RewardMix
    from dacheng.data.batches import PackedSource
    from dacheng.formats.model_directory import LoadedModel

VERSION = 1
KIND = "model"
INPUTS = {"model": Input("model", required=False), "reward": Input("reward", required=False)}
_FREE: dict[str, Any] = {"free": True}
BEFORE, AFTER = "before.json", "after.json"


@dataclass(frozen=True, kw_only=True)
class Config(ReinforceConfig):
    """Everything of ReinforceConfig (method, group, prompts_per_step, lr, steps, minutes, kl_coef, max_tokens…), and:

    model: a model directory; null for the one of `from:`. prompts: JSON lines of {"prompt" | "messages", "meta"}.
    held_out: such lines that are not learnt from, for the rewards before and after (held_out_answers to each, at most
    held_out_prompts). rewards: mappings of align.rewards, {kind: exact, weight: 1}. reference: a model directory that
    the KL is measured from; null for the model itself as it comes in. A reward model of `from:` counts beside the
    rewards. text: conversations that are learnt beside (ptx_coef), text_rows of a step.
    """

    model: str | None = None
    prompts: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    rewards: tuple[dict[str, Any], ...] = ()
    reference: str | None = None
    text: tuple[str, ...] = ()
    text_rows: int = 4
    held_out_prompts: int = field(default=64, metadata=_FREE)
    held_out_answers: int = field(default=1, metadata=_FREE)
    threads: int | None = field(default=None, metadata=_FREE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prompts:
            raise UsageError("nothing to answer", field="prompts", value=[],
                             remedy='prompts: [prompts.jsonl], lines of {"prompt": "…", "meta": {…}}')  # fmt: skip

    def settings(self) -> ReinforceConfig:
        """What the training takes."""
        return part_of(ReinforceConfig, self)


def externals(config: Config) -> dict[str, Any]:
    """Weights, prompts and texts. Raises DachengError for a file that is not there."""
    return named.hashes(
        named.files("prompts", config.prompts), named.files("held_out", config.held_out),
        named.files("text", config.text), named.weights("model", config.model),
        named.weights("reference", config.reference),
    )  # fmt: skip


def run(config: Config, inputs: dict[str, Artifact], out: Path, context: StageContext) -> Artifact:
    """Leaves model/ (a model directory; of an adapter, merged, with adapter/ beside it), training/ (train.jsonl,
    sets.jsonl, rollouts/, checkpoints), before.json and after.json (answers to held_out), report.html; goes on from
    what an interrupted run left, to the same weights. Raises what train_policy raises."""
    from dacheng.align.reinforce.report import write_report
    from dacheng.align.reinforce.training import train_policy
    from dacheng.align.rewards.registry import mix_from_config
    from dacheng.formats.model_directory import load_model
    from dacheng.train.progress import Progress

    if config.threads is not None:
        from dacheng.machine import set_threads

        set_threads(config.threads)
    if config.tools is not None:
        config.tools.turns()  # what is no tool: before the model is read
    base, reward = named.base_of(config.model, inputs), mix_from_config(_rewards(config, inputs))
    loaded = learning.open_policy(base)
    prompts = _prompts(config, config.prompts, loaded, context)
    held_out = _prompts(config, config.held_out, loaded, context)[: config.held_out_prompts]
    before = _measured(config, loaded, held_out, reward, out / BEFORE)
    reference = None if config.reference is None else load_model(config.reference, dtype="float32").model
    made = train_policy(
        loaded.model, loaded.tokenizer, prompts, reward, out / "training", config.settings(), [Progress()],
        reference=reference, text=_text(config, loaded), ledger=context.ledger,
    )  # fmt: skip
    after = _measured(config, loaded, held_out, reward, out / AFTER)
    metrics = made.to_dict() | _compared(before, after)
    for warning in made.warnings:
        context.reporter.note(warning)
    _save(config, loaded, made, base, out, context, metrics)
    report = write_report(out, title=f"{config.method}: {base}")
    context.reporter.note(_sentence(metrics, report))
    return Artifact(KIND, out / "model", metrics=metrics)


def _rewards(config: Config, inputs: dict[str, Artifact]) -> list[dict[str, Any]]:
    """The sections of the recipe, and the reward model that an earlier stage left. UsageError for neither."""
    found = list(config.rewards)
    if "reward" in inputs:
        found.append({"kind": "model", "model": str(inputs["reward"].path)})
    if not found:
        raise UsageError("nothing says what is good", field="rewards", value=[], remedy="rewards: [{kind: exact}]")
    return found


def _prompts(config: Config, paths: tuple[str, ...], loaded: LoadedModel, context: StageContext) -> list[Prompt]:
    from dacheng.align.reinforce.prompts import read_prompts
    from dacheng.text import ChatRenderer

    if not paths:
        return []
    assert loaded.tokenizer is not None
    renderer = ChatRenderer(loaded.tokenizer) if loaded.tokenizer.config.get("chat_template") else None
    drops = Drops()
    longest = loaded.model.traits.longest_text - config.max_tokens - 1
    found = read_prompts(paths, loaded.tokenizer, renderer=renderer, longest=longest, drops=drops)
    learning.tell_drops("prompts", context, drops)
    return found


def _text(config: Config, loaded: LoadedModel) -> PackedSource | None:
    if not config.text:
        return None
    from dacheng.data.chats import chat_source
    from dacheng.text import ChatRenderer

    assert loaded.tokenizer is not None
    length = min(512, loaded.model.traits.longest_text)
    source, _ = chat_source(
        config.text, ChatRenderer(loaded.tokenizer), context_length=length, batch_rows=config.text_rows,
        seed=config.seed,
    )  # fmt: skip
    return source


def _measured(
    config: Config, loaded: LoadedModel, prompts: list[Prompt], reward: RewardMix, path: Path
) -> Measured | None:
    """Answers to what is held out, once: a resumed run finds them."""
    from dacheng.align.reinforce.held_out import Measured, measure

    if not prompts:
        return None
    found = Measured.load(path)
    if found is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        found = measure(
            loaded.model, loaded.tokenizer, prompts, reward, config.sampling, answers=config.held_out_answers,
            seed=config.seed, continuation=None if config.tools is None else config.tools.turns(),
        )  # fmt: skip
        found.save(path)
    return found


def _compared(before: Measured | None, after: Measured | None) -> dict[str, Any]:
    from dacheng.align.reinforce.held_out import win_rate

    if before is None or after is None or len(before.rewards) < 2:  # one prompt has no interval
        return {}
    return {
        "reward_before": before.mean_reward().to_dict(),
        "reward_after": after.mean_reward().to_dict(),
        "win_rate": win_rate(after, before).to_dict(),
    }


def _save(
    config: Config, loaded: LoadedModel, made: PolicyResult, base: Path, out: Path, context: StageContext,
    metrics: dict[str, Any],
) -> None:  # fmt: skip
    from dacheng.adapt.merge import merge_into
    from dacheng.formats.model_directory import save_model
    from dacheng.formats.peft import write_adapter

    if made.adapter is not None:
        write_adapter(out / "adapter", made.adapter, made.model, base=str(base))
        merge_into(made.model)
    provenance = learning.provenance(base, context, config.seed, metrics=metrics)
    save_model(out / "model", made.model, loaded.tokenizer, generation=loaded.generation, provenance=provenance)


def _sentence(metrics: dict[str, Any], report: Path) -> str:
    if "reward_before" not in metrics:
        return f"{metrics['steps']} steps over {metrics['sets']} sets of rollouts; see {report}"
    before, after = metrics["reward_before"], metrics["reward_after"]
    interval = f"{after['low']:.3f} to {after['high']:.3f}"
    return (
        f"reward on what was held out: {before['estimate']:.3f} before, {after['estimate']:.3f} after ({interval}); "
        f"see {report}"
    )
