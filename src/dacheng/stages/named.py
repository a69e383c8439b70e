"""What a stage's configuration names: models and files, found and hashed before anything runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dacheng.errors import UsageError
from dacheng.records import Artifact

Named = list[tuple[str, Path]]
"""(field, file): what an error says of a file that is not there."""


def base_of(model: str | None, inputs: dict[str, Artifact]) -> Path:
    """The model that a stage begins with: named by its configuration, or given by an earlier stage."""
    if (model is None) == ("model" not in inputs):
        problem = "which model?" if model is None else "the model is named twice"
        raise UsageError(problem, field="model", value=model, remedy="name it by model: or by from:, not both")
    return inputs["model"].path if model is None else Path(model)


def weights(field: str, model: Path | str | None) -> Named:
    """The weight files of a model directory, or the one GGUF file; none of None. Raises UsageError where the
    configuration names what is no model."""
    if model is None:
        return []
    path = Path(model)
    found = sorted(path.glob("*.safetensors")) if path.is_dir() else [path] if path.is_file() else []
    if not found:
        raise UsageError(f"{path} is no model", field=field, value=str(model),
                         remedy="dacheng import smollm2 --out models/smollm2")  # fmt: skip
    return [(field, one) for one in found]


def files(field: str, paths: Iterable[Path | str]) -> Named:
    """As they are named; of "file.json#split", the file."""
    whole = [(str(path), Path(path)) for path in paths]
    return [(field, path if path.is_file() else Path(name.partition("#")[0])) for name, path in whole]


def hashes(*named: Named) -> dict[str, Any]:
    """For a stage's `externals`: sha256 of weights and files. Raises UsageError for a file that is not there."""
    from dacheng.formats.safetensors_io import sha256_file

    for field, path in (one for part in named for one in part):
        if not path.is_file():
            remedy = "check the path" if path.is_absolute() else f"check the path: it is looked for in {Path.cwd()}"
            raise UsageError(f"{path} does not exist", field=field, value=str(path), remedy=remedy)
    return {"files": [sha256_file(path) for part in named for _, path in part]}
