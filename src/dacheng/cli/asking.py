"""One answer from a run's directory, or from a folder of documents."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from dacheng.errors import UsageError


def answer_once(store: Path, question: str, mode: str | None, model: str) -> dict[str, Any]:
    """The answer as plain data. Raises UsageError for a directory with nothing to answer from, or a mode it lacks."""
    from dacheng.formats.json_files import read_json
    from dacheng.stages.adapting.run import RECIPE, RESULT

    if not store.is_dir():
        raise UsageError("there is no such directory", field="STORE", value=str(store),
                         remedy="name the directory of dacheng adapt, or a folder of documents")  # fmt: skip
    if not (store / RECIPE).exists():
        return _from(str(store), _cache(store), mode or "quote", model, question)
    recipe = read_json(store / RECIPE)
    if mode is None:
        result = store / RESULT
        mode = str(read_json(result)["verdict"]["winner"]) if result.exists() else "quote"
    if mode == "adapted" and not (store / "adapter" / "adapter_config.json").exists():
        raise UsageError("this run has no adapter (yet)", field="--mode", value=mode, remedy="--mode sources, or quote")
    return _from(recipe["source"], store, mode, recipe["model"] or model, question)


def _from(source: str, out: Path, mode: str, model: str, question: str) -> dict[str, Any]:
    from dacheng.cli.adapt import _model
    from dacheng.stages.adapting.kitchen import Kitchen

    room, remote = _model(model, None) if mode != "quote" else (None, None)
    kitchen = Kitchen(source, out, room, remote=remote)
    try:
        kitchen.open_or_read()
        if mode == "adapted":
            kitchen.use_adapter(out / "adapter")
        return kitchen.show(kitchen.answer(question, mode))
    finally:
        kitchen.close()


def _cache(folder: Path) -> Path:
    """Where the index of a folder is kept between questions."""
    from dacheng.machine import cache_dir

    name = hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return cache_dir() / "documents" / name
