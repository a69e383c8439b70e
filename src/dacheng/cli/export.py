"""dacheng export: a model for other programs, as a GGUF file or a Hugging Face directory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from dacheng.errors import UsageError

if TYPE_CHECKING:
    from dacheng.formats.loading import LoadedModel

_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def export(
    model: str,
    *,
    out: Path,
    gguf: str | None = None,
    dtype: str | None = None,
    max_shard_size: str | None = None,
    adapter: Path | None = None,
    json: bool = False,
) -> int:
    """Writes a model as a GGUF file (llama.cpp and its kin) or as a directory that transformers loads.

    Example: dacheng export models/smollm2 --gguf q8_0 --out smollm2.gguf

    Parameters
    ----------
    model
        A model directory, a .gguf file, the directory of a run, or the name of a run (dacheng history).
    out
        The .gguf file with --gguf, else the directory.
    gguf
        The format of the matrices: f32, f16, bf16, q8_0, q4_0 or q4_1.
    dtype
        float32, bfloat16, float16: of a directory's weights; as they are when left out.
    max_shard_size
        Weights of a directory that take more go into several files: 2GB, 500MB, 1.5GiB.
    adapter
        A PEFT directory of a LoRA adapter, which is merged into the weights.
    json
        One JSON document on stdout.
    """
    if gguf is not None and (dtype is not None or max_shard_size is not None):
        raise UsageError("--dtype and --max-shard-size are for directories", field="--gguf", value=gguf,
                         remedy="leave out one or the other")  # fmt: skip
    if gguf is None and out.suffix == ".gguf":
        raise UsageError("in which format?", field="--gguf", value=None, remedy="--gguf q8_0, or f16, bf16, q4_0 …")
    most = None if max_shard_size is None else size_in_bytes(max_shard_size)

    from dacheng.cli.models import find_model

    directory = find_model(model)
    from dacheng.cli.console import amount, print_json, reporter, use_threads

    use_threads()
    face = reporter()
    loaded = _merged(directory, adapter, dtype)
    if gguf is not None:
        notes = _export_gguf(directory, out, gguf, loaded)
    else:
        notes = _export_directory(directory, out, dtype, most, loaded)
    for note in notes:
        face.note(note)
    size = sum(file.stat().st_size for file in ([out] if out.is_file() else out.iterdir()) if file.is_file())
    if json:
        print_json({"model": str(directory), "out": str(out), "bytes": size, "notes": notes})
    else:
        print(f"{out}: {amount(size, 'B')}")
    return 0


def size_in_bytes(text: str) -> int:
    """ "2GB" -> 2,000,000,000; "1.5GiB", "300 MB", "4096". Raises UsageError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if found is None or found[2] not in _UNITS or float(found[1]) * _UNITS[found[2]] < 1:
        raise UsageError("not a size", field="--max-shard-size", value=text, remedy="write 2GB, 500MB or 1.5GiB")
    return int(float(found[1]) * _UNITS[found[2]])


def _merged(directory: Path, adapter: Path | None, dtype: str | None) -> LoadedModel | None:
    """The model with an adapter in its weights; None without one."""
    if adapter is None:
        return None
    from dacheng.adapt.attach import attach
    from dacheng.adapt.merge import merge_into
    from dacheng.formats.model_directory import load_model
    from dacheng.formats.peft import read_adapter

    loaded = load_model(directory, dtype=dtype)
    merged = merge_into(loaded.model, attach(loaded.model, read_adapter(adapter, loaded.model)))
    measured = f"logits differ by up to {merged.error:.1e}, of {merged.scale:.1f}, from those beside the weights"
    loaded.notes += [f"the adapter is merged: {measured}", *merged.notes]
    return loaded


def _export_gguf(directory: Path, out: Path, format: str, loaded: LoadedModel | None) -> list[str]:
    from dacheng.formats.export import export_gguf

    return list(export_gguf(directory, out, format, loaded=loaded))


def _export_directory(
    directory: Path, out: Path, dtype: str | None, max_shard_bytes: int | None, loaded: LoadedModel | None
) -> list[str]:
    from dacheng.formats.model_directory import load_model, save_model
    from dacheng.formats.provenance import weights_hash

    if out.resolve() == directory.resolve():
        raise UsageError("a model is not exported onto itself", field="--out", value=str(out), remedy="choose another")
    loaded = load_model(directory, dtype=dtype) if loaded is None else loaded
    kept = {
        key: value
        for key, value in loaded.provenance.items()
        if key in ("recipe", "data", "metrics", "ledger", "source")
    }
    parent = weights_hash(directory) if directory.is_dir() else None
    save_model(
        out,
        loaded.model,
        loaded.tokenizer,
        generation=loaded.generation,
        provenance=kept | {"parent": parent},
        dtype=dtype,
        max_shard_bytes=max_shard_bytes,
    )
    return loaded.notes
