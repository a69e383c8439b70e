"""Encoders with a classification head as directories: config.json with id2label, model.safetensors and the tokenizer's
files, as transformers' BertForSequenceClassification has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dacheng.errors import DachengError
from dacheng.formats import provenance as origin
from dacheng.formats.atomic import replacing_directory
from dacheng.formats.dtypes import as_dtype, dtype_name
from dacheng.formats.encoders import tokenizer_of
from dacheng.formats.huggingface.bert_classifier import BertClassifier, FirstTokenClassifier, MeanClassifier
from dacheng.formats.json_files import read_json, write_json
from dacheng.formats.loading import CONFIG, assembled, existing_directory
from dacheng.formats.model_directory import keep_others, kept_floats
from dacheng.formats.packed import FIELD as QUANTIZATION
from dacheng.formats.packed import Stored, packed_tensors, unpacked_tensors
from dacheng.formats.shards import read_weights, write_weights
from dacheng.models.classifier import Classifier
from dacheng.nn.packed import Packed, PackedEmbedding
from dacheng.ops.integers import IntTensor, QSpec
from dacheng.ops.qtensor import QTensor

if TYPE_CHECKING:
    from dacheng.text import Tokenizer

LAYOUTS = (BertClassifier(), MeanClassifier(), FirstTokenClassifier())


@dataclass(slots=True)
class LoadedClassifier:
    """What was read. `notes` are things to show the user."""

    model: Classifier
    tokenizer: Tokenizer
    notes: list[str] = field(default_factory=list)

    @property
    def is_packed(self) -> bool:
        return any(isinstance(module, Packed | PackedEmbedding) for module in self.model.modules())


def is_classifier(path: Path | str) -> bool:
    """Whether a directory's config.json names a network of this kind."""
    file = Path(path) / CONFIG
    return file.is_file() and any(layout.matches(read_json(file)) for layout in LAYOUTS)


def load_classifier(
    path: Path | str, *, dtype: str | torch.dtype | None = "float32", device: str | torch.device = "cpu"
) -> LoadedClassifier:
    """Reads the directory of a classifier, in evaluation mode; weights that are packed stay so. Raises DamagedFile on
    damaged files and DachengError naming the field or the tensor that is not understood."""
    directory = existing_directory(path)
    config = read_json(directory / CONFIG)
    quantization = config.pop(QUANTIZATION, None)
    layout = next((layout for layout in LAYOUTS if layout.matches(config)), None)
    if layout is None:
        known = ", ".join(layout.architecture for layout in LAYOUTS)
        raise DachengError(f"{directory} holds no classifier that is read here", field="architectures",
                           value=config.get("architectures"), remedy=f"supported: {known}")  # fmt: skip
    traits, notes = layout.read(config, directory / CONFIG)
    tokenizer = tokenizer_of(directory, traits.encoder.vocab_size)
    if quantization is None:
        tensors: dict[str, Any] = dict(layout.stored_tensors(read_weights(directory), traits))
    else:
        tensors = unpacked_tensors(read_weights(directory), quantization, layout, True, directory, notes)
    model: Classifier = assembled(tensors, layout, traits, as_dtype(dtype), torch.device(device), str(directory), notes)
    return LoadedClassifier(model, tokenizer, notes)


def save_classifier(
    directory: Path | str,
    model: Classifier,
    tokenizer: Tokenizer,
    *,
    provenance: Mapping[str, Any] | None = None,
    dtype: str | torch.dtype | None = None,
) -> Path:
    """Writes the whole directory beside its place and puts it there in one step; returns its path.

    transformers reads it where the head reads the pooler and no weight is packed; packed ones stay so, in the form of
    formats.packed. Raises DachengError when something cannot be stored, and leaves what was there.
    """
    directory, dtype, traits = Path(directory), as_dtype(dtype), model.traits
    layout = next(layout for layout in LAYOUTS if layout.pooling == traits.pooling)
    stored = dtype_name(dtype or model.classifier.weight.dtype)
    config = layout.from_traits(traits) | {"pad_token_id": tokenizer.pad_id, "dtype": stored}
    record = origin.checked(provenance or {})
    floats, packed = _parted(model)
    try:
        with replacing_directory(directory) as staging:
            tensors = layout.export_tensors(floats, traits)
            if packed:
                tensors = {name: kept_floats(name, value, dtype) for name, value in tensors.items()}
                named = {layout.names.theirs(name) or name: value for name, value in packed.items()}
                placed = tensors | {name: torch.empty(0) for name in named}
                tensors, config[QUANTIZATION] = packed_tensors(placed, named, "dacheng", {"method": "rtn"})
                dtype = None  # scales and codes are what they are
            digest, size = write_weights(staging, tensors, dtype=dtype)
            write_json(staging / CONFIG, config)
            tokenizer.save(staging)
            weights = {"sha256": digest, "bytes": size, "dtype": stored}
            origin.write(staging, record, weights=weights, tokenizer=tokenizer.fingerprint)
            keep_others(directory, staging)
    except OSError as error:
        raise DachengError(
            f"cannot write {directory}: {error.strerror or error}", field="directory", value=str(directory),
            remedy="free space there, or choose a folder on a disk that can be written",
        ) from error  # fmt: skip
    return directory


def _parted(model: Classifier) -> tuple[dict[str, Tensor], dict[str, Stored]]:
    """Weights that are floats, and those that are packed, by our names."""
    packed: dict[str, Stored] = {}
    buffers = set()
    for name, module in model.named_modules():
        if isinstance(module, Packed | PackedEmbedding):
            packed[f"{name}.weight"] = _integers(f"{name}.weight", module.qtensor)
            buffers.add(f"{name}.packed")
    return {name: tensor for name, tensor in model.state_dict().items() if name not in buffers}, packed


def _integers(name: str, weight: QTensor) -> IntTensor:
    """Blocks of eight bits as the whole numbers they are."""
    if weight.format.name != "Q8_0":
        raise DachengError("only eight-bit blocks are written", field=name, value=weight.format.name,
                           remedy="pack the model as Q8_0")  # fmt: skip
    blocks = weight.blocks().reshape(-1, weight.format.bytes)
    scale = blocks[:, :2].contiguous().view(torch.float16).reshape(weight.shape[0], -1)
    codes = blocks[:, 2:].contiguous().view(torch.int8).to(torch.int16) + 128
    return IntTensor(QSpec(8, weight.format.values), codes.to(torch.uint8).reshape(weight.shape), scale)
