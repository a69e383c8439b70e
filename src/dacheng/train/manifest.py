"""The manifest of a checkpoint: size and sha256 of each of its files, and of itself. Written last, checked first."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dacheng.errors import DachengError, DamagedFile
from dacheng.formats.json_files import plain, read_json, write_json
from dacheng.formats.safetensors_io import sha256_file
from dacheng.recipes import fingerprint

NAME = "manifest.json"
SCHEMA = 1


def write(folder: Path, digests: Mapping[str, str], *, step: int, environment: Mapping[str, Any]) -> None:
    """Writes folder/manifest.json. digests: file name -> sha256 of what was meant to be written there."""
    manifest = plain(
        {
            "schema": SCHEMA,
            "step": step,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "environment": environment,
            "files": {
                name: {"bytes": (folder / name).stat().st_size, "sha256": digest} for name, digest in digests.items()
            },
        }
    )
    write_json(folder / NAME, {**manifest, "sha256": fingerprint(manifest)})


def verify(folder: Path) -> dict[str, Any]:
    """The manifest, once every file was found to be as written. Raises DamagedFile naming the first that is not."""
    path = folder / NAME
    try:
        manifest = read_json(path)
        own = manifest.pop("sha256", None)
        if own != fingerprint(manifest):
            raise _damaged(path, "altered: its own sha256 differs")
        if manifest["schema"] != SCHEMA:
            raise _damaged(path, f"of schema {manifest['schema']!r}, this version reads {SCHEMA}")
        for name, entry in manifest["files"].items():
            _verify_file(folder / name, entry["bytes"], entry["sha256"])
    except (DachengError, OSError) as error:
        if isinstance(error, DamagedFile) and error.problem.startswith("damaged checkpoint"):
            raise
        raise _damaged(path, f"unreadable: {getattr(error, 'problem', error)}") from error
    return manifest


def _verify_file(path: Path, size: int, digest: str) -> None:
    try:
        found = path.stat().st_size
        altered = found == size and sha256_file(path) != digest
    except OSError as error:
        raise _damaged(path, f"unreadable: {error}") from error
    if found != size:
        raise _damaged(path, f"{found} bytes long instead of {size}")
    if altered:
        raise _damaged(path, "altered: its sha256 differs")


def _damaged(path: Path, what: str) -> DamagedFile:
    return DamagedFile(
        f"damaged checkpoint: {path.parent.name}/{path.name} is {what}",
        field=str(path),
        remedy="remove that checkpoint; the one before it is used",
    )
