"""The files of a tokenizer in a Hugging Face model directory: tokenizer.json, tokenizer_config.json and their kin."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dacheng.errors import DachengError, DamagedFile

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Core

TOKENIZER, CONFIG, SPECIAL_MAP = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
TEMPLATE, MORE_TEMPLATES = "chat_template.jinja", "additional_chat_templates"
ROLES = ("eos_token", "bos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
# What is read where there is no tokenizer.json: see text.vocabularies.files.
VOCABULARIES = ("*tekken*.json", "*.tiktoken", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
# What is not read here, to say so when only that is there.
_OTHER_FORMATS = ("*.model", "vocab.json", "merges.txt", "*.gguf")


def holds_tokenizer(directory: Path) -> bool:
    """Whether there is one to read, in tokenizer.json or in another form."""
    return any(next(directory.glob(pattern), None) is not None for pattern in (TOKENIZER, *VOCABULARIES))


def read(directory: Path) -> tuple[Core, dict[str, Any]]:
    """tokenizer.json, or another vocabulary where there is none, and the configuration of its tokens.

    Raises DachengError when there is no tokenizer, DamagedFile when a file cannot be read.
    """
    config = read_config(directory)
    if not (directory / TOKENIZER).is_file():
        from dacheng.text.vocabularies.files import read_vocabulary

        if (found := read_vocabulary(directory, config)) is not None:
            return found
    return read_core(directory), config


def read_core(directory: Path) -> Core:
    """tokenizer.json. Truncation and padding that it may switch on are switched off: nothing is cut unasked.

    Raises DachengError when it is absent, DamagedFile when it cannot be read.
    """
    from tokenizers import Tokenizer as Core

    path = directory / TOKENIZER
    if not path.is_file():
        found = sorted(file.name for pattern in _OTHER_FORMATS for file in directory.glob(pattern))
        raise DachengError(
            f"{directory} has no {TOKENIZER}" + (f", only {', '.join(found)}" if found else ""),
            field="tokenizer", value=str(directory),
            remedy="transformers writes it: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)" if found
            else "name the directory of a model or of a trained tokenizer",
        )  # fmt: skip
    try:
        core = Core.from_str(path.read_text(encoding="utf-8"))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exception, and a panic in it is not even that
        raise _damaged(path, error) from error
    core.no_truncation()
    core.no_padding()
    return core


def read_config(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json, completed from special_tokens_map.json; the chat template's own file comes before it.

    Raises DamagedFile naming the file.
    """
    config = _read_object(directory / CONFIG)
    for role, token in _read_object(directory / SPECIAL_MAP).items():
        if config.get(role) is None:
            config[role] = token
    templates = {"default": directory / TEMPLATE} if (directory / TEMPLATE).is_file() else {}
    templates |= {path.stem: path for path in sorted((directory / MORE_TEMPLATES).glob("*.jinja"))}
    if templates:
        texts = {name: _read_text(path) for name, path in templates.items()}
        named = [{"name": name, "template": text} for name, text in texts.items()]
        config["chat_template"] = texts["default"] if list(texts) == ["default"] else named
    return config


def token_name(config: Mapping[str, Any], role: str) -> str | None:
    """The token that plays `role`, if any does. Raises DamagedFile when what is there is no token."""
    value = config.get(role)
    return None if value is None else _content(value, role)


def _content(value: object, field: str) -> str:
    """A token is written as a string, or as a dict with its "content"."""
    name = value.get("content") if isinstance(value, Mapping) else value
    if isinstance(name, str) and name:
        return name
    raise DamagedFile(f"{CONFIG}: {field} is no token", field=field, value=value, remedy="write the token's text")


def declared_tokens(config: Mapping[str, Any]) -> Iterator[tuple[str, int | None, bool]]:
    """Every token that the configuration names: its text, its id where it is given, and whether it is special.

    Raises DamagedFile naming the field.
    """
    for role in ROLES:
        if name := token_name(config, role):
            yield name, None, True
    for field in ("additional_special_tokens", "extra_special_tokens"):
        values = config.get(field) or []
        if not isinstance(values, Mapping | list):
            raise DamagedFile(
                f"{CONFIG}: {field} is no list", field=field, value=values, remedy="write a list of tokens"
            )
        for value in values.values() if isinstance(values, Mapping) else values:
            yield _content(value, field), None, True
    field = "added_tokens_decoder"
    tokens = config.get(field) or {}
    if not isinstance(tokens, Mapping):
        raise DamagedFile(f"{CONFIG}: {field} is no object", field=field, value=tokens, remedy="map ids to tokens")
    for key, value in tokens.items():
        if not key.isdecimal():
            raise DamagedFile(f"{CONFIG}: {field} has a key that is no id", field=field, value=key, remedy="use the id")
        yield _content(value, field), int(key), isinstance(value, Mapping) and bool(value.get("special"))


def model_eos_id(directory: Path) -> int | None:
    """The end of text as the model's own files name it: for families whose tokenizer files don't."""
    for name in ("generation_config.json", "config.json"):
        found = _read_object(directory / name).get("eos_token_id")
        found = found[0] if isinstance(found, list) and found else found
        if isinstance(found, int) and 0 <= found < 1 << 32:
            return found
    return None


def write_directory(directory: Path, core: Core, config: Mapping[str, Any]) -> None:
    """tokenizer.json and tokenizer_config.json, each written beside its place and put there in one step."""
    directory.mkdir(parents=True, exist_ok=True)
    _write(directory / TOKENIZER, core.to_str(pretty=True))
    _write(directory / CONFIG, json.dumps(config, ensure_ascii=False, indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty when there is no such file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    if not isinstance(found, dict):
        raise _damaged(path, "it holds no JSON object")
    return found


def _damaged(path: Path, reason: object) -> DamagedFile:
    return DamagedFile(
        f"cannot read {path}: {reason}", field="file", value=path.name, remedy="copy it again from its source"
    )
