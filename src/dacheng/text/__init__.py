"""Text to token ids and back: tokenizers, their training, and a byte-level BPE that can be read.

Names are imported when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dacheng.lazy import exports

if TYPE_CHECKING:
    from dacheng.text.byte_bpe import ByteBPE, train_byte_bpe
    from dacheng.text.streaming import StreamDecoder
    from dacheng.text.tokenizer import Tokenizer
    from dacheng.text.training import train_tokenizer

__all__ = ["ByteBPE", "StreamDecoder", "Tokenizer", "train_byte_bpe", "train_tokenizer"]

__getattr__ = exports(
    __name__,
    {
        "byte_bpe": ("ByteBPE", "train_byte_bpe"),
        "streaming": ("StreamDecoder",),
        "tokenizer": ("Tokenizer",),
        "training": ("train_tokenizer",),
    },
)
