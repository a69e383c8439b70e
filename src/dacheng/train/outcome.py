"""What a training leaves, as the rooms that train say it: where the result lies, and how the run went."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dacheng.formats.json_files import write_json
from dacheng.train.report import TrainResult

if TYPE_CHECKING:
    from dacheng.records import Drops

MODEL, TRAINING, RESULT = "model", "training", "result.json"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """path: what was made, a directory. seconds: of the steps, over all resumes. drops: what was not learnt from, as
    Drops.to_dict has it. steps, tokens, resumed_from, budget, warnings: see TrainResult."""

    path: Path
    steps: int
    tokens: int
    seconds: float
    resumed_from: int | None
    budget: list[str]
    drops: dict[str, Any]
    warnings: list[str]

    @staticmethod
    def told(path: Path, done: TrainResult, drops: Drops) -> dict[str, Any]:
        """The fields that are here, for a subclass to add its own to."""
        return {
            "path": path, "steps": done.steps, "tokens": done.tokens, "seconds": done.seconds,
            "resumed_from": done.resumed_from, "budget": done.budget, "drops": drops.to_dict(),
            "warnings": done.warnings,
        }  # fmt: skip

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "path": str(self.path), "tokens_per_s": self.tokens_per_s}

    def figures(self) -> dict[str, Any]:
        """The same for an artifact, which says itself where it lies."""
        return {name: value for name, value in self.to_dict().items() if name != "path"}

    def write(self, path: Path) -> None:
        write_json(path, self.to_dict())
