"""dacheng.json: where a model came from, what made it, and the hash of its weights."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dacheng import __version__
from dacheng.errors import DachengError, DamagedFile
from dacheng.formats.json_files import plain, read_json, write_json
from dacheng.formats.safetensors_io import sha256_file
from dacheng.formats.shards import weight_files

FILE = "dacheng.json"
SCHEMA = 1
# What a stage may say; all are there in the file, null when unsaid.
KEYS = ("parent", "recipe", "data", "metrics", "ledger")
_WRITTEN_HERE = ("schema", "versions", "weights", "tokenizer")


def checked(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """`provenance` as plain data. Raises DachengError on a key that this file keeps for itself, and on what JSON cannot
    hold.

    parent: hash of the weights it started from (`weights_hash`); recipe: the resolved recipe; data: fingerprints;
    metrics; ledger: totals. Other keys are kept too.
    """
    for key in _WRITTEN_HERE:
        if key in provenance:
            raise DachengError(
                f"{FILE} writes this key itself", field=key, value=provenance[key], remedy="leave it out, or rename it"
            )
    return dict.fromkeys(KEYS) | plain(provenance)


def write(directory: Path, record: Mapping[str, Any], *, weights: dict[str, Any], tokenizer: str | None) -> None:
    """Writes dacheng.json. `weights`: sha256, bytes, dtype; `tokenizer`: its fingerprint."""
    written = {"schema": SCHEMA, "versions": _versions(), "weights": weights, "tokenizer": tokenizer}
    write_json(directory / FILE, {**record, **written})


def read(directory: Path) -> dict[str, Any]:
    """The contents of dacheng.json; {} when there is none. Raises DachengError when a newer dacheng wrote it."""
    path = directory / FILE
    if not path.exists():
        return {}
    record = read_json(path)
    schema = record.get("schema")
    if type(schema) is not int or schema < 1:
        raise DamagedFile(f"{path} has no schema version", field="schema", value=schema, remedy="copy the file again")
    if schema > SCHEMA:
        raise DachengError(
            f"{path} was written by a newer dacheng", field="schema", value=schema, remedy="pip install -U dacheng"
        )
    return record


def weights_hash(directory: Path | str) -> str:
    """Hex SHA-256 that stands for the weights of any model directory: the one file's, or that of the list of the
    shards' hashes."""
    directory = Path(directory)
    hashes = {name: sha256_file(directory / name) for name in sorted(weight_files(directory))}
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in hashes.items()).encode()).hexdigest()


def check_weights(directory: Path, record: Mapping[str, Any]) -> None:
    """Raises DamagedFile when the weights are not those that `record` was written with."""
    weights = record.get("weights")
    expected = weights.get("sha256") if isinstance(weights, dict) else None
    if expected is None:
        return
    found = weights_hash(directory)
    if found != expected:
        raise DamagedFile(
            f"{directory}: the weights are not those that were saved: SHA-256 {found}, expected {expected}",
            field="weights.sha256",
            value=found,
            remedy=f"copy the directory again; if you changed the weights yourself, remove {FILE}",
        )


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"dacheng": __version__, "python": platform.python_version()}
    for package in ("torch", "safetensors", "tokenizers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
