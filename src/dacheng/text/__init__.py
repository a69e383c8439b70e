"""Text to token ids and back: tokenizers, their training, and a byte-level BPE that can be read.

Names are imported when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dacheng.text.byte_bpe import ByteBPE, train_byte_bpe
    from dacheng.text.streaming import StreamDecoder
    from dacheng.text.tokenizer import Tokenizer
    from dacheng.text.training import train_tokenizer

__all__ = ["ByteBPE", "StreamDecoder", "Tokenizer", "train_byte_bpe", "train_tokenizer"]

_HOME = {
    "ByteBPE": "byte_bpe",
    "StreamDecoder": "streaming",
    "Tokenizer": "tokenizer",
    "train_byte_bpe": "byte_bpe",
    "train_tokenizer": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
