"""What `--model` and `--tokenizer` name: a directory, a GGUF file, a finished life, or a run of the history."""

from __future__ import annotations

from pathlib import Path

from dacheng.errors import UsageError


def find_model(name: str) -> Path:
    """The model directory, or .gguf file, that `name` stands for. UsageError, with the nearest known name, when it
    stands for none.

    A directory with a config.json is taken as it is; a life's directory, or a stage's, for the last model made in it;
    smollm2 and gemma3-270m for those of the packages (DachengError with the command where they are not installed).
    """
    if name.startswith(("http://", "https://")):
        remedy = "give a directory, or the name of a run (dacheng history)"
        raise UsageError("models behind a URL are not supported yet", field="--model", value=name, remedy=remedy)
    path = Path(name)
    if path.suffix == ".gguf" and path.is_file():
        return path
    found = _in_directory(path) if path.is_dir() else None
    if found is not None:
        return found
    from dacheng.life.history import model_named, runs

    known = model_named(name)
    if known is not None:
        return known
    from dacheng.formats.packages import MODELS

    if name in MODELS:
        return _packaged(name)
    from dacheng.recipes import nearest

    names = list({run.name: None for run in runs()[0] if run.model is not None and run.model.is_dir()})
    near = nearest(name, names)
    if path.is_dir():
        problem, remedy = "there is no model in this directory", "it needs a config.json, or a finished train stage"
    else:
        problem = "there is neither such a directory nor such a run"
        listing = f"runs with a model: {', '.join(names)}" if names else "no run has made a model yet"
        remedy = f"did you mean {near}? ({listing})" if near else listing
    raise UsageError(problem, field="--model", value=name, remedy=remedy)


def _packaged(name: str) -> Path:
    """Of several parts, one file is made in the cache, once."""
    from dacheng.formats.packages import MODELS, gguf_of
    from dacheng.machine import cache_dir

    model, folder = MODELS[name], cache_dir() / "models"
    whole = folder / model.file
    if len(model.parts) > 1 and whole.is_file() and whole.stat().st_size == model.size:
        return whole
    folder.mkdir(parents=True, exist_ok=True)
    return gguf_of(model, folder)


def find_tokenizer(name: str) -> Path:
    """The directory of the tokenizer that `name` stands for: its own, or a model's. UsageError when there is none."""
    path = Path(name)
    return path if (path / "tokenizer.json").is_file() else find_model(name)


def _in_directory(path: Path) -> Path | None:
    if (path / "config.json").is_file():
        return path
    from dacheng.life.store import read_artifact

    folders = [path, *sorted((path / "stages").glob("*"), key=lambda folder: folder.stat().st_mtime)]
    made = [artifact for folder in folders if (artifact := read_artifact(folder)) is not None]
    models = [artifact.path for artifact in made if artifact.kind == "model"]
    return models[-1] if models else None
