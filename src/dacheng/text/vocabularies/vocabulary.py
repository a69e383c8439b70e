"""What every reader here makes of a foreign vocabulary: a core of the tokenizers library, and its tokens' roles."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from dacheng.errors import DachengError, DamagedFile

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Core

    from dacheng.text.tokenizer import Tokenizer

T = TypeVar("T")
MAX_BYTES = 256 * 2**20  # the largest vocabularies known are a tenth of this
_AGAIN = "copy the file from its source again"


class Vocabulary(NamedTuple):
    """config: what tokenizer_config.json would say: eos_token and its kin, add_bos_token, chat_template."""

    core: Core
    config: dict[str, Any]

    def tokenizer(self, **tokens: str | None) -> Tokenizer:
        """tokens: eos_token, bos_token, pad_token, unk_token where the file names none, or another is wanted.

        Raises DachengError when there is no EOS, DamagedFile when one is not in the vocabulary.
        """
        from dacheng.text.tokenizer import Tokenizer

        config = self.config | {role: token for role, token in tokens.items() if token is not None}
        surround(self.core, config)
        return Tokenizer(self.core, config=config)


def roles(**tokens: str | None) -> dict[str, Any]:
    """The configuration of tokens that there are."""
    config: dict[str, Any] = {"clean_up_tokenization_spaces": False}
    return config | {role: token for role, token in tokens.items() if token is not None}


def read_bytes(path: Path) -> bytes:
    """Raises DachengError when the file cannot be opened, DamagedFile when it is too large for any vocabulary."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DamagedFile(f"{path} is too large for a vocabulary", field="bytes", value=size, remedy=_AGAIN)
        return path.read_bytes()
    except OSError as error:
        raise DachengError(
            f"cannot open {path}: {error.strerror}", field="path", value=str(path), remedy="check the path"
        ) from None


def read_text(path: Path) -> str:
    """UTF-8. Raises what read_bytes raises, and DamagedFile."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DamagedFile(f"{path} is no UTF-8: {error}", field="file", value=path.name, remedy=_AGAIN) from None


def read_json(path: Path) -> Any:
    """Raises what read_text raises, and DamagedFile."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is no JSON: {error}", field="file", value=path.name, remedy=_AGAIN) from None


def from_base64(token: str | bytes, field: str) -> bytes:
    """Raises DamagedFile naming the field."""
    try:
        return base64.b64decode(token, validate=True)
    except (binascii.Error, ValueError):
        raise DamagedFile("a token is no base64", field=field, value=token, remedy=_AGAIN) from None


def check_ids(vocab: Mapping[str, int], count: int, field: str) -> None:
    """Raises DamagedFile unless `count` tokens have become as many, each with an id of its own that is no giant."""
    if len(vocab) != count:
        raise DamagedFile("a token is there twice", field=field, value=count - len(vocab), remedy=_AGAIN)
    ids = vocab.values()
    if len(set(ids)) != count:
        raise DamagedFile("two tokens share one id", field=field, value=count - len(set(ids)), remedy=_AGAIN)
    if ids and (min(ids) < 0 or max(ids) > 4 * count + (1 << 16)):  # Tokenizer makes tables for every id below
        raise DamagedFile("an id is out of range", field=field, value=max(ids), remedy=_AGAIN)


def build(make: Callable[[], T], field: str) -> T:
    """`make()`, with what the tokenizers library refuses (bare Exception; a panic is not even that) as DamagedFile."""
    try:
        return make()
    except (KeyboardInterrupt, SystemExit, MemoryError, DachengError):
        raise
    except BaseException as error:
        raise DamagedFile(f"no tokenizer can be made of this: {error}", field=field, remedy=_AGAIN) from error


def add_tokens(core: Core, special: Iterable[str], plain: Collection[str] = (), normalized: bool = False) -> None:
    """Tokens that are found in the text before all else; they must be in the vocabulary, and keep their ids.

    special: stand for no text. normalized: plain ones are looked for in what the normalizer leaves.
    All at once, after the normalizer is set: for each call the library builds its search tree anew.
    """
    from tokenizers import AddedToken

    tokens = [AddedToken(name, normalized=False, special=True) for name in dict.fromkeys(special)]
    tokens += [AddedToken(name, normalized=normalized, special=False) for name in plain]
    core.add_tokens(tokens)


def surround(core: Core, config: Mapping[str, Any]) -> None:
    """Makes add_special_tokens put BOS before and EOS behind a text, as add_bos_token and add_eos_token say.

    Raises DamagedFile when such a token is wanted and not there.
    """
    from tokenizers import processors

    names: dict[str, int] = {}
    around: list[list[str]] = []
    for switch, role in (("add_bos_token", "bos_token"), ("add_eos_token", "eos_token")):
        token = config.get(role)
        name = token.get("content") if isinstance(token, Mapping) else token
        if not config.get(switch):
            around.append([])
            continue
        found = core.token_to_id(name) if isinstance(name, str) else None
        if found is None or not isinstance(name, str):
            raise DamagedFile(
                f"{switch} asks for a {role}, which the vocabulary lacks", field=role, value=name, remedy=_AGAIN
            )
        names[name] = found
        around.append([name])
    if not names:
        return
    if any(":" in name or name.startswith("$") for name in names):  # the template's own syntax
        raise DachengError(
            "a token with this name cannot be put around texts",
            field="special token", value=list(names), remedy="set add_bos_token and add_eos_token to false",
        )  # fmt: skip
    one, two = ([*around[0], part, *around[1]] for part in ("$A:0", "$B:1"))
    core.post_processor = processors.TemplateProcessing(single=one, pair=one + two, special_tokens=list(names.items()))
