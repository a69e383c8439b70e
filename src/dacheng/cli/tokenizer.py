"""dacheng tokenizer: train one, or look into one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

if TYPE_CHECKING:
    from dacheng.text import Tokenizer

app = App(name="tokenizer", help="Train a tokenizer, or look into one.")


@app.command
def train(
    *overrides: str,
    source: str,
    out: Path,
    vocab_size: int = 4096,
    kind: Literal["bpe", "unigram", "wordpiece"] = "bpe",
    json: bool = False,
) -> int:
    """Learns a vocabulary from a corpus, which is cleaned and split first; OUT is then a tokenizer directory.

    Example: dacheng tokenizer train --source python-stdlib --out tok/ --vocab-size 4096

    Parameters
    ----------
    overrides
        section.key=value (data.cleaning.profile=web, tokenizer.digits=1), as often as you like.
    source
        A file (.txt, .jsonl, .json, .parquet), a folder, or python-stdlib.
    out
        Where everything goes.
    vocab_size
        Tokens, special ones included.
    kind
        The model: byte-level BPE, Unigram or WordPiece.
    json
        One JSON document on stdout.
    """
    from dacheng.cli.run import carry_out
    from dacheng.life.expand import load_recipe

    section = {"kind": kind, "vocab_size": vocab_size}
    values = {"do": "tokenizer", "name": "tokenizer", "data": {"source": source}, "tokenizer": section}
    code = carry_out(load_recipe(values, overrides, do="tokenizer"), out, None, json)
    from dacheng.text import Tokenizer

    Tokenizer.load(out / "stages" / "tokenizer" / "tokenizer").save(out)
    return code


@app.command
def encode(text: Annotated[str, Parameter(allow_leading_hyphen=True)], *, tokenizer: str, json: bool = False) -> int:
    """Shows the tokens of a text: their ids and the bytes that each stands for.

    Example: dacheng tokenizer encode "def main(): pass" --tokenizer tok/

    Parameters
    ----------
    text
        The text; "-" reads it from standard input.
    tokenizer
        A tokenizer or model: a directory or the name of a run.
    json
        One JSON document on stdout.
    """
    from dacheng.cli.console import print_json

    loaded = _load(tokenizer)
    content = sys.stdin.read() if text == "-" else text
    ids = loaded.encode(content)
    n_bytes = len(content.encode("utf-8", "surrogatepass"))
    if json:
        print_json({"ids": ids, "tokens": [_shown(loaded.token_bytes(i)) for i in ids], "bytes": n_bytes})
        return 0
    for token_id, piece in ((i, _quoted(loaded.token_bytes(i))) for i in ids):
        print(f"{token_id:>7}  {piece}")
    ratio = f", {n_bytes / len(ids):.2f} bytes a token" if ids else ""
    print(f"{len(ids)} tokens, {n_bytes} bytes{ratio}")
    return 0


@app.command
def inspect(tokenizer: str, *, file: Path | None = None, json: bool = False) -> int:
    """Shows what a tokenizer has: its size, special tokens, longest tokens, and how well it packs a text.

    Example: dacheng tokenizer inspect tok/ --file README.md

    Parameters
    ----------
    tokenizer
        A tokenizer or model: a directory or the name of a run.
    file
        A text to measure it on.
    json
        One JSON document on stdout.
    """
    from dacheng.cli.console import print_json

    found = _examine(_load(tokenizer), file)
    if json:
        print_json(found)
        return 0
    for name, value in found.items():
        print(f"{name.replace('_', ' '):<16} {value}")
    return 0


def _examine(tokenizer: Tokenizer, file: Path | None) -> dict[str, Any]:
    longest = sorted(range(tokenizer.vocab_size), key=lambda i: -len(tokenizer.token_bytes(i)))[:10]
    found: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        "special_tokens": dict(tokenizer.special_tokens),
        "longest_tokens": [_shown(tokenizer.token_bytes(i)) for i in longest],
        "fingerprint": tokenizer.fingerprint,
    }
    if file is not None:
        data = file.read_bytes()
        ids = tokenizer.encode(data.decode("utf-8", "replace"))
        found |= {"bytes": len(data), "tokens": len(ids), "bytes_per_token": round(len(data) / max(1, len(ids)), 3)}
    return found


def _load(name: str) -> Tokenizer:
    from dacheng.cli.models import find_tokenizer
    from dacheng.text import Tokenizer

    return Tokenizer.load(find_tokenizer(name))


def _quoted(piece: bytes) -> str:
    """'text', or b'bytes' where it is a part of a character."""
    try:
        return repr(piece.decode("utf-8"))
    except UnicodeDecodeError:
        return repr(piece)


def _shown(piece: bytes) -> str:
    """Text where it is text; \\x escapes for parts of characters."""
    return piece.decode("utf-8", "backslashreplace")
