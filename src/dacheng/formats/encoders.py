"""Encoders of texts as directories: config.json, model.safetensors and the tokenizer's files as transformers has them,
and how token states become a vector as sentence-transformers has it (modules.json, 1_Pooling/config.json,
sentence_bert_config.json)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dacheng.errors import DachengError
from dacheng.formats import provenance as origin
from dacheng.formats.atomic import replacing_directory
from dacheng.formats.dtypes import as_dtype, dtype_name
from dacheng.formats.huggingface.bert import Bert
from dacheng.formats.huggingface.fields import Fields
from dacheng.formats.json_files import MAX_BYTES, parse_json, read_json, write_json
from dacheng.formats.loading import CONFIG, assembled, existing_directory
from dacheng.formats.model_directory import keep_others
from dacheng.formats.shards import read_weights, write_weights
from dacheng.models.encoder import POOLINGS, Encoder, EncoderTraits
from dacheng.text.directory import holds_tokenizer

if TYPE_CHECKING:
    from dacheng.text import Tokenizer

LAYOUTS = (Bert(),)
MODULES, POOLING, SENTENCES = "modules.json", "1_Pooling/config.json", "sentence_bert_config.json"
_KINDS = ("Transformer", "Pooling", "Normalize")
_MODES = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}


@dataclass(slots=True)
class LoadedEncoder:
    """What was read. `notes` are things to show the user: fields taken as off, tensors left aside."""

    model: Encoder
    tokenizer: Tokenizer
    notes: list[str] = field(default_factory=list)


def load_encoder(
    path: Path | str, *, dtype: str | torch.dtype | None = "float32", device: str | torch.device = "cpu"
) -> LoadedEncoder:
    """Reads the directory of an encoder, in evaluation mode.

    Without modules.json texts become the normalised mean of their tokens' states, and a note says so. [SEP] counts as
    end of text where the tokenizer names none. Raises DamagedFile on damaged files and DachengError naming the field,
    the tensor, or the module that is not built here.
    """
    directory = existing_directory(path)
    config = read_json(directory / CONFIG)
    layout = next((layout for layout in LAYOUTS if layout.matches(config)), None)
    if layout is None:
        raise DachengError(
            f"{directory} holds no encoder that is read here", field="model_type", value=config.get("model_type"),
            remedy="supported: " + ", ".join(layout.model_type for layout in LAYOUTS),
        )  # fmt: skip
    traits, notes = layout.read(config, directory / CONFIG)
    named = tokenizer_of(directory, traits.vocab_size)
    tensors: dict[str, Any] = dict(layout.stored_tensors(read_weights(directory), traits))
    pooler = "pooler.dense.weight" in tensors
    traits = _read_modules(directory, replace(traits, pooler=pooler), notes).validate()
    model: Encoder = assembled(tensors, layout, traits, as_dtype(dtype), torch.device(device), str(directory), notes)
    return LoadedEncoder(model, named, notes)


def tokenizer_of(directory: Path, vocab_size: int) -> Tokenizer:
    """That of an encoder's directory. Raises DachengError where there is none, or it has tokens the model has not."""
    if not holds_tokenizer(directory):
        raise DachengError(
            f"{directory} has no tokenizer", field="file", value="tokenizer.json", remedy="copy the tokenizer's files"
        )
    from dacheng.text import Tokenizer

    found = Tokenizer.load(directory, eos_token="[SEP]")
    if found.vocab_size > vocab_size:
        raise DachengError(
            f"the tokenizer has {found.vocab_size} tokens and the model {vocab_size}",
            field="vocab_size", value=found.vocab_size, remedy="take both from one model",
        )  # fmt: skip
    return found


def save_encoder(
    directory: Path | str,
    model: Encoder,
    tokenizer: Tokenizer,
    *,
    provenance: Mapping[str, Any] | None = None,
    dtype: str | torch.dtype | None = None,
) -> Path:
    """Writes the whole directory beside its place and puts it there in one step; returns its path. transformers and
    sentence-transformers read it. Raises DachengError when something cannot be stored, and leaves what was there."""
    directory, dtype, traits = Path(directory), as_dtype(dtype), model.traits
    layout = LAYOUTS[0]
    stored = dtype_name(dtype or model.embed.weight.dtype)
    config = layout.from_traits(traits) | {"pad_token_id": tokenizer.pad_id, "dtype": stored}
    record = origin.checked(provenance or {})
    try:
        with replacing_directory(directory) as staging:
            digest, size = write_weights(staging, layout.export_tensors(model.state_dict(), traits), dtype=dtype)
            write_json(staging / CONFIG, config)
            tokenizer.save(staging)
            _write_modules(staging, traits)
            weights = {"sha256": digest, "bytes": size, "dtype": stored}
            origin.write(staging, record, weights=weights, tokenizer=tokenizer.fingerprint)
            keep_others(directory, staging)
    except OSError as error:
        raise DachengError(
            f"cannot write {directory}: {error.strerror or error}", field="directory", value=str(directory),
            remedy="free space there, or choose a folder on a disk that can be written",
        ) from error  # fmt: skip
    return directory


# --- how token states become a vector ---------------------------------------------------------------------------------
def _read_modules(directory: Path, traits: EncoderTraits, notes: list[str]) -> EncoderTraits:
    if (directory / SENTENCES).is_file():
        fields = Fields(read_json(directory / SENTENCES), directory / SENTENCES)
        fields.only("do_lower_case", (False,), "asks for lower case before the tokenizer, which is not done")
        longest = fields.integer("max_seq_length", None)
        traits = replace(traits, longest=None if longest is None else min(longest, traits.max_positions))
    if not (directory / MODULES).is_file():
        notes.append(f"{directory} has no {MODULES}: a text's vector is the normalised mean of its tokens' states")
        return traits
    try:
        with open(directory / MODULES, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError("it is too large for a list of modules")
        modules = parse_json(data)
        kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in modules]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DachengError(
            f"cannot read {directory / MODULES}: {error}", field="file", value=MODULES, remedy="copy it again"
        ) from None
    if kinds not in (list(_KINDS), list(_KINDS[:2])):
        raise DachengError(
            f"{directory / MODULES} asks for modules that are not built here", field="type", value=kinds,
            remedy="supported: " + ", ".join(_KINDS),
        )  # fmt: skip
    return replace(traits, pooling=_read_pooling(directory / POOLING), normalized=len(kinds) == len(_KINDS))


def _read_pooling(path: Path) -> str:
    fields = Fields(read_json(path), path)
    fields.understood({"word_embedding_dimension": "the width", "include_prompt": "of prompts, which are not put here"})
    chosen = [pooling for pooling in POOLINGS if fields.boolean(_MODES[pooling], False)]
    fields.finish()  # any other mode that is on is refused
    if len(chosen) != 1:
        raise fields.error("one of them has to be true", " or ".join(_MODES.values()), chosen)
    return chosen[0]


def _write_modules(staging: Path, traits: EncoderTraits) -> None:
    paths = ("", "1_Pooling", "2_Normalize")[: 3 if traits.normalized else 2]
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(zip(paths, _KINDS))
    ]
    (staging / MODULES).write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")  # a list, not an object
    (staging / POOLING).parent.mkdir()
    modes = {name: pooling == traits.pooling for pooling, name in _MODES.items()}
    off = dict.fromkeys(("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens"), False)
    write_json(staging / POOLING, {"word_embedding_dimension": traits.width} | modes | off)
    longest = {} if traits.longest is None else {"max_seq_length": traits.longest}
    write_json(staging / SENTENCES, longest | {"do_lower_case": False})
