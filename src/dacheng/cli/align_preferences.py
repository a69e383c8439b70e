"""dacheng align pairs, prefer, reward, score: from a file of preferences to a policy or a reward model."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cyclopts import Parameter

from dacheng.cli.one_stage import carry_out_stage, model_path, said
from dacheng.errors import UsageError

Loss = Literal["dpo", "ipo", "hinge", "robust", "conservative", "kto", "orpo", "simpo", "cpo"]


def pairs(files: list[Path], /, *, json: bool = False) -> int:
    """What files of preferences are like: how many, how far people agree, whether length alone decides.

    Example: dacheng align pairs recipes/align/pairs.jsonl

    Parameters
    ----------
    files
        JSON, JSON lines or parquet, also packed: pairs (prompt, chosen, rejected; messages; Alpaca; HH transcripts;
        LLaMA-Factory's) or marked replies (messages or prompt and completion, with label true or false).
    json
        One JSON document on stdout.
    """
    from dacheng.align.preferences.report import describe, lines
    from dacheng.cli.console import print_json
    from dacheng.data.preferences import read_preferences
    from dacheng.records import Drops

    if not files:
        raise UsageError("no file is named", field="FILES", remedy="dacheng align pairs recipes/align/pairs.jsonl")
    drops = Drops()
    found = describe(read_preferences(files, drops))
    if json:
        print_json({**found, "drops": drops.to_dict()})
        return 0
    print("\n".join(lines(found)))
    for reason, count in (drops.dropped + drops.altered).items():
        print(f"{count} x {reason}, first: {drops.examples.get(reason, '')}")
    return 0


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """What training a policy and training a reward model on preferences are both told.

    Parameters
    ----------
    model
        What it begins as: a directory, a GGUF file, or a name from history.
    data
        Files of preferences, see dacheng align pairs.
    out
        Where everything goes; the same command goes on from what an interrupted one left.
    held_out
        Files that are not learnt from; a tenth of the prompts when left out.
    rank
        Of the LoRA adapter; 0 trains the weights themselves.
    lr
        3e-4 for an adapter and 5e-6 for the weights when left out.
    minutes
        Of training; at most `epochs` (one when neither is named).
    epochs
        Passes over the preferences.
    max_tokens
        Longer pairs are dropped and counted.
    seed
        Of the adapter and the order.
    json
        One JSON document on stdout.
    """

    model: str
    data: list[Path]
    out: Path
    held_out: list[Path] | None = None
    rank: int = 16
    lr: float | None = None
    minutes: float | None = None
    epochs: float | None = None
    max_tokens: int = 512
    seed: int = 1
    json: bool = False

    def carry_out(self, do: str, **more: Any) -> int:
        """Runs the stage `do`; more: options of its own."""
        section = {
            "model": model_path(self.model), "data": [str(path) for path in self.data], "rank": self.rank,
            "seed": self.seed, "lr": self.lr if self.lr is not None else 3e-4 if self.rank else 5e-6,
            "max_tokens": self.max_tokens,
        }  # fmt: skip
        section |= said(
            held_out=[str(path) for path in self.held_out] if self.held_out else None,
            seconds=None if self.minutes is None else 60 * self.minutes,
            epochs=1.0 if self.epochs is None and self.minutes is None else self.epochs,
            **more,
        )
        return carry_out_stage(do, section, self.out, self.json)


def prefer(*, options: PairOptions, loss: Loss = "dpo", beta: float | None = None, reference: str | None = None) -> int:
    """Trains a model on preferences. More knobs: dacheng train recipes/align/prefer.yaml prefer.KEY=VALUE.

    Example: dacheng align prefer --model models/smollm2 --data recipes/align/pairs.jsonl --out runs/prefer --minutes 2

    Parameters
    ----------
    loss
        What is made small; kto also learns from single marked replies.
    beta
        How near the policy stays to the reference; the loss's own when left out.
    reference
        The model to stay near: a directory, a GGUF file, or a name from history; the model as it is when left out.
    """
    near = None if reference is None else model_path(reference)
    return options.carry_out("prefer", loss=loss, beta=beta, reference=near)


def reward(*, options: PairOptions) -> int:
    """Trains a reward model on comparisons, and says how well it ranks those held out, beside length alone.

    Example: dacheng align reward --model models/smollm2 --data recipes/align/pairs.jsonl --out runs/reward --minutes 2
    """
    return options.carry_out("reward")


def score(
    file: Path,
    /,
    *,
    reward_model: Path,
    base: str | None = None,
    json: bool = False,
) -> int:
    """Scores conversations by a reward model, best first.

    Example: dacheng align score recipes/align/instructions.jsonl --reward-model runs/reward/stages/reward/reward

    Parameters
    ----------
    file
        Conversations in any layout of docs/guide/alignment/sft.md, each ending with the reply that is judged.
    reward_model
        The directory that align reward left.
    base
        Where the adapter's base lies, if it has moved.
    json
        One JSON document on stdout.
    """
    from dacheng.align.preferences.reward_model import RewardModel
    from dacheng.cli.console import print_json, use_threads
    from dacheng.cli.models import find_model
    from dacheng.data.chats import read_chats
    from dacheng.records import Drops

    use_threads()
    drops = Drops()
    records = [record for record in read_chats([file], drops) if record.messages]
    judge = RewardModel.load(reward_model, None if base is None else find_model(base))
    values = judge.scores([record.messages or [] for record in records])
    ranked = sorted(zip(values, records), key=lambda pair: -pair[0])
    if json:
        print_json({"scores": [{"id": r.id, "score": v} for v, r in ranked], "drops": drops.to_dict()})
        return 0
    for value, record in ranked:
        said = str((record.messages or [{}])[-1].get("content", ""))
        print(f"{value:+.3f}  {record.id}  {' '.join(said.split())[:100]}")
    for reason, count in drops.dropped.items():
        print(f"{count} x {reason}, first: {drops.examples.get(reason, '')}", file=sys.stderr)
    return 0
