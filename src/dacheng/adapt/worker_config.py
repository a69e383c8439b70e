"""What a training process reads: one JSON file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dacheng import recipes
from dacheng.adapt.settings import AdaptTrainConfig
from dacheng.formats.json_files import read_json, write_json

ERROR = "error.json"


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """base: a model directory or a GGUF file. examples, held_out: JSON lines of {"messages": […]}. out: as of
    train_adapter."""

    base: str
    examples: str
    out: str
    train: AdaptTrainConfig
    held_out: str | None = None

    @classmethod
    def read(cls, path: Path) -> WorkerConfig:
        """Raises UsageError naming the key that is wrong."""
        return recipes.build(cls, read_json(path))

    def write(self, path: Path | str) -> Path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(path), self.to_dict())
        return Path(path)

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = recipes.to_dict(self)
        return found
