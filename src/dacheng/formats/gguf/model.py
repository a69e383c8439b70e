"""A model out of a GGUF file, as a Hugging Face directory would have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dacheng.errors import DachengError
from dacheng.formats.gguf.architecture import HEAD, Value
from dacheng.formats.gguf.architectures import architecture_named
from dacheng.formats.gguf.file import GGUFFile
from dacheng.formats.gguf.keys import Keys
from dacheng.ops.qtensor import QTensor

if TYPE_CHECKING:
    from dacheng.text import Tokenizer


@dataclass(frozen=True, slots=True)
class GGUFModel:
    """`config`: what config.json would say. `tensors`: under the family's names. `tokenizer_metadata`: the keys
    tokenizer.*. `notes`: things to show the user. `file`: where packed tensors lie."""

    config: dict[str, Any]
    tensors: dict[str, Tensor | QTensor]
    tokenizer_metadata: dict[str, Any]
    notes: list[str]
    file: GGUFFile

    @property
    def chat_template(self) -> str | None:
        found = self.tokenizer_metadata.get("tokenizer.chat_template")
        return found if isinstance(found, str) else None

    def tokenizer(self) -> Tokenizer | None:
        """None where the file has none. Raises DachengError for a kind that is not supported."""
        if self.tokenizer_metadata.get("tokenizer.ggml.model") in (None, "none", "no_vocab"):
            return None
        from dacheng.text import tokenizer_from_gguf

        return tokenizer_from_gguf(self.tokenizer_metadata)


def gguf_model(path: Path | str, packed: bool = False, dtype: torch.dtype | None = None) -> GGUFModel:
    """Reads the whole of a model.

    packed: matrices in blocks stay so (QTensor, views of the mapped file), where the family takes them as they are;
    a note says where it does not. Otherwise all are dequantised, one at a time, to `dtype` (float32). Matrices that the
    file has as plain floats keep their dtype unless `dtype` is given; vectors are float32 in most files.
    Raises DamagedFile and DachengError, naming the key or the tensor: no key that may change the computation is
    ignored.
    """
    file = GGUFFile(path)
    _refuse_parts(file)
    keys = Keys(file.metadata, file.path)
    architecture = architecture_named(keys.architecture, file.path)
    config = architecture.config(keys, file)
    notes = keys.finish()
    tensors: dict[str, Tensor | QTensor] = {}
    expanded = []
    for name, value in architecture.tensors(file, config):
        if name in tensors:
            raise DachengError(f"{file.path}: two tensors are the family's {name}", field=name, value=list(value.shape))
        if packed and _is_packed(value):
            if architecture.stays_packed(name):
                tensors[name] = value
                continue
            expanded.append(name)
        tensors[name] = _as_floats(value, dtype)
    if config["tie_word_embeddings"] and HEAD in file.tensors:
        tensors.pop(architecture.translated(HEAD, file))  # equal to the byte: see is_tied
    if expanded:
        notes.append(
            f"{file.path.name}: {len(expanded)} matrices are dequantised, {expanded[0]} among them:"
            f" {config['model_type']} takes them fused, stacked or transposed"
        )
    tokenizer = {key: value for key, value in file.metadata.items() if key.startswith("tokenizer.")}
    return GGUFModel(config, tensors, tokenizer, notes, file)


def _is_packed(value: Value) -> bool:
    return isinstance(value, QTensor) and value.ndim == 2 and not value.format.is_float


def _as_floats(value: Value, dtype: torch.dtype | None) -> Tensor:
    if isinstance(value, QTensor):
        return value.dequantize(dtype or value.format.dtype or torch.float32)
    return value if dtype is None else value.to(dtype)


def _refuse_parts(file: GGUFFile) -> None:
    """Files that hold no whole model."""
    metadata: Mapping[str, Any] = file.metadata
    if metadata.get("general.type", "model") != "model":
        raise DachengError(
            f"{file.path} holds no model", field="general.type", value=metadata["general.type"],
            remedy="name the file of the model itself",
        )  # fmt: skip
    if metadata.get("split.count", 1) not in (0, 1):
        raise DachengError(
            f"{file.path} is one of several parts", field="split.count", value=metadata["split.count"],
            remedy="join them first: llama-gguf-split --merge FIRST OUT",
        )  # fmt: skip
