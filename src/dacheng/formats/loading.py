"""Reading a model: a directory in Hugging Face layout, or a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from dacheng.errors import DachengError
from dacheng.formats import provenance as origin
from dacheng.formats.dtypes import as_dtype
from dacheng.formats.huggingface.families import family_of_config
from dacheng.formats.huggingface.family import Layout
from dacheng.formats.json_files import read_json
from dacheng.formats.meta import on_meta
from dacheng.formats.packed import FIELD as QUANTIZATION
from dacheng.formats.packed import unpacked_tensors
from dacheng.formats.shards import WEIGHTS, read_weights
from dacheng.formats.tensors import check_tensors
from dacheng.machine import capabilities
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.nn.packed import keep_only_panels, make_panels_once, pack_weights
from dacheng.ops.low_rank import LowRankTensor
from dacheng.ops.qtensor import QTensor
from dacheng.text.directory import holds_tokenizer

if TYPE_CHECKING:
    from dacheng.text import Tokenizer

WEIGHTS_MEMORY = ("fast", "small")
CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer.json"
_AGAIN = "copy config.json and the weights again, from one source"


@dataclass(slots=True)
class LoadedModel:
    """What was read. `notes` are things to show the user: fields taken as off, tensors left aside."""

    model: Decoder
    tokenizer: Tokenizer | None
    provenance: dict[str, Any]
    generation: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def load_model(
    path: Path | str,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    check_hash: bool = True,
    packed: bool = False,
    weights_memory: str = "fast",
) -> LoadedModel:
    """Reads a directory of any family in `huggingface.families`, or a .gguf file, in evaluation mode.

    Weights keep their stored dtype unless `dtype` is given ("fast": float32 where this CPU would only emulate a smaller
    one, fifty times slower); those in GGUF's blocks, or quantised (dacheng.formats.packed), become float32, or with
    `packed` stay as they are where the family allows it (a note says where not). `weights_memory` of packed ones:
    "fast" keeps the file's pages beside the copy in the order of the kernels; "small" makes that copy at once and gives
    the pages back, so that each weight is there once (an embedding's rows, and whatever asks for the blocks, come from
    the file again); of a quantised directory's, which are no pages of a file, it keeps that copy alone. On the CPU,
    uncast weights stay mapped: the model takes no more memory than its file, and several processes share it.
    `check_hash` compares the
    weights with the hash in dacheng.json, where there is one (about a second for half a gigabyte). Raises DamagedFile
    on damaged files and DachengError naming the field or the tensor, what was expected and what was found.
    """
    chosen = fast_dtype(torch.device(device)) if dtype == "fast" else as_dtype(dtype)
    if weights_memory not in WEIGHTS_MEMORY:
        raise DachengError("no such choice", field="weights_memory", value=weights_memory,
                           remedy="one of " + ", ".join(WEIGHTS_MEMORY))  # fmt: skip
    if Path(path).suffix == ".gguf":
        return _load_gguf(Path(path), chosen, torch.device(device), packed, weights_memory == "small")
    directory = existing_directory(path)
    config = read_json(directory / CONFIG)
    quantization = config.pop(QUANTIZATION, None)
    family = family_of_config(config, directory / CONFIG)
    traits, notes = family.read(config, directory / CONFIG)
    provenance = origin.read(directory)
    if check_hash:
        origin.check_weights(directory, provenance)
    if quantization is None:
        if packed:
            notes.append(f"{directory} has no packed weights: they are loaded as floats")
        found: dict[str, Tensor | QTensor | LowRankTensor] = dict(
            family.stored_tensors(read_weights(directory), traits)
        )
    else:
        found = unpacked_tensors(read_weights(directory), quantization, family, packed, directory, notes)
    model: Decoder = assembled(found, family, traits, chosen, torch.device(device), str(directory), notes)
    if quantization is not None and packed and weights_memory == "small":
        keep_only_panels(model)
    tokenizer = load_tokenizer(directory) if holds_tokenizer(directory) else None
    _note_tokenizer(tokenizer, traits, str(directory), notes)
    return LoadedModel(model, tokenizer, provenance, _read_generation(directory, config), notes)


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """float32 on a CPU without instructions for bfloat16, else None: as stored."""
    emulated = device.type == "cpu" and not {"amx_bf16", "avx512_bf16", "bf16"} & set(capabilities())
    return torch.float32 if emulated else None


def _load_gguf(path: Path, dtype: torch.dtype | None, device: torch.device, packed: bool, small: bool) -> LoadedModel:
    from dacheng.formats.gguf.model import gguf_model

    source = gguf_model(path, packed, dtype)
    where = Path(f"{path}: its metadata")
    family = family_of_config(source.config, where)
    traits, notes = family.read(source.config, where)
    notes = [*source.notes, *notes]
    model: Decoder = assembled(source.tensors, family, traits, dtype, device, str(path), notes)
    if small and packed:
        for _ in make_panels_once(model, tied=traits.tied_head):
            source.file.release()
    tokenizer = source.tokenizer()
    _note_tokenizer(tokenizer, traits, str(path), notes)
    ids = {} if tokenizer is None else {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    generation = {name: value for name, value in ids.items() if value is not None}
    return LoadedModel(model, tokenizer, {}, generation, notes)


def _note_tokenizer(tokenizer: Tokenizer | None, traits: DecoderTraits, where: str, notes: list[str]) -> None:
    if tokenizer is None:
        notes.append(f"{where} has no {TOKENIZER}: the model takes token ids only")
    elif tokenizer.vocab_size > traits.vocab_size:
        notes.append(f"the tokenizer has {tokenizer.vocab_size} tokens, the model takes only {traits.vocab_size}")


def load_tokenizer(path: Path | str) -> Tokenizer:
    """The tokenizer of a directory, which need not hold a model beside it, or of a .gguf file. Raises DachengError when
    there is none."""
    directory = Path(path)
    if directory.suffix == ".gguf":
        return _gguf_tokenizer(directory)
    if not holds_tokenizer(directory):
        raise DachengError(
            f"{directory} has no tokenizer", field="file", value=TOKENIZER, remedy="copy the tokenizer's files there"
        )
    from dacheng.text import Tokenizer

    return Tokenizer.load(directory)


def existing_directory(directory: Path | str) -> Path:
    """`directory` as a path. Raises DachengError when it is none, or holds no model."""
    directory = Path(directory)
    if (directory / CONFIG).is_file():
        return directory
    problem = (
        "holds no model" if directory.is_dir() else "is not a directory" if directory.exists() else "does not exist"
    )
    raise DachengError(
        f"{directory} {problem}",
        field="model",
        value=str(directory),
        remedy=f"name a directory with {CONFIG}, {WEIGHTS} and {TOKENIZER}",
    )


def _gguf_tokenizer(path: Path) -> Tokenizer:
    from dacheng.formats.gguf.file import GGUFFile
    from dacheng.text import tokenizer_from_gguf

    return tokenizer_from_gguf({k: v for k, v in GGUFFile(path).metadata.items() if k.startswith("tokenizer.")})


def without_memory(family: Layout, traits: Any) -> Any:
    """The model without memory for its weights."""
    with on_meta():
        return family.build(traits)


def assembled(
    found: dict[str, Any],
    family: Layout,
    traits: Any,
    dtype: torch.dtype | None,
    device: torch.device,
    where: str,
    notes: list[str],
) -> Any:
    """The model with the weights `found` under the family's names. Empties `found` on the way: where weights are cast
    or rearranged, the whole is never there twice."""
    model = without_memory(family, traits)
    model.family = family.model_type
    expected = family.export_tensors(model.state_dict(), traits)
    for name in sorted(found.keys() - expected.keys()):
        if reason := family.redundant(name, cast(Mapping[str, Tensor], found), traits):
            notes.append(f"{name} was left aside: {reason}")
            del found[name]
    check_tensors(expected, cast(Mapping[str, Tensor], found), where, _AGAIN)
    state: dict[str, Any] = dict(family.import_tensors(cast(Mapping[str, Tensor], found), traits))
    found.clear()
    for name in state:
        state[name] = _moved(state[name], dtype, device)
    model.load_state_dict(pack_weights(model, state), strict=True, assign=True)
    for module in model.modules():
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            cast(Any, module).rebuild(device)  # tables that follow from the traits are not stored
    return model.to(device).eval()


def _moved(value: Tensor | QTensor, dtype: torch.dtype | None, device: torch.device) -> Tensor | QTensor:
    return value.to(device=device) if isinstance(value, QTensor) else value.to(device=device, dtype=dtype)


def _read_generation(directory: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """generation_config.json; without one, the special ids that older writers put into config.json."""
    if (directory / GENERATION).exists():
        return read_json(directory / GENERATION)
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: config[name] for name in names if config.get(name) is not None}
