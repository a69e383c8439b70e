"""What a run says while it goes and when it is done: each stage's status, where everything is, what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dacheng.cli.console import amount, duration
from dacheng.life.run import LifeResult, StageResult
from dacheng.stages.base import Reporter

_HEADLINES = (
    ("model", "loss", "loss {:.4f}"),
    ("model", "valid_bits_per_byte", "{:.4f} bits per byte"),
    ("model", "parse_before", "{:.0%} of functions parsed before"),
    ("model", "parse_after", "{:.0%} after"),
    ("tokenizer", "bytes_per_token", "{:.2f} bytes a token"),
    ("evaluation", "bits_per_byte", "{:.4f} bits per byte"),
)


def stage_line(reporter: Reporter, width: int) -> Any:
    """A function for run_life's on_stage: one line a stage."""

    def show(stage: StageResult) -> None:
        took = "" if stage.status == "cached" else f"  {duration(stage.seconds)}"
        figures = "".join(f"  {figure}" for figure in _figures(stage))
        reporter.note(f"{stage.name:<{width}}  {stage.status}{took}{figures}")

    return show


def _figures(stage: StageResult) -> list[str]:
    if stage.artifact is None:
        return []
    found = [
        (layout, stage.artifact.metrics.get(key)) for kind, key, layout in _HEADLINES if kind == stage.artifact.kind
    ]
    return [layout.format(value) for layout, value in found if isinstance(value, (int, float))]


def final_lines(result: LifeResult) -> list[str]:
    """Where everything is and what it cost."""
    lines = [f"{result.name} is done: {result.out}"]
    lines += [
        f"  {stage.artifact.kind:<10}  {stage.artifact.path}" for stage in result.stages if stage.artifact is not None
    ]
    lines.append(cost_line(result.totals))
    return lines + [f"try it: {command}" for command in _to_try(result)]


def _to_try(result: LifeResult) -> list[str]:
    """A command for what was made last: a model that has a chat template is talked with."""
    model, reward = result.artifact("model"), result.artifact("reward")
    if model is not None:
        return [f"dacheng chat --model {model.path}" if _chats(model.path)
                else f'dacheng generate --model {model.path} --prompt "def main("']  # fmt: skip
    return [] if reward is None else [f"dacheng align score FILE --reward-model {reward.path}"]


def _chats(path: Path) -> bool:
    from dacheng.formats.json_files import read_json

    settings = path / "tokenizer_config.json"
    kept = settings.is_file() and read_json(settings).get("chat_template") is not None
    return kept or (path / "chat_template.jinja").is_file()


def cost_line(totals: Mapping[str, Any]) -> str:
    """The ledger's totals of a whole life in one line, with what is measured, estimated or assumed."""
    parts = [f"{duration(totals['wall_s'])} wall (measured)", f"{duration(totals['cpu_s'])} CPU (measured)"]
    parts.append(f"{amount(totals['joules'], 'J')} ({totals['joules_kind']})")
    money, currency = totals.get("money"), totals.get("currency")
    if money:
        mark = "assumed prices" if totals.get("assumed") else "your prices"
        parts.append(f"{money['total']:.4f} {currency} ({mark})")
    parts.append(f"{amount(totals['flops'], 'FLOP')} (estimated)")
    return "it cost " + ", ".join(parts)
