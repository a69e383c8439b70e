"""Text to token ids and back: tokenizers, their training, and a byte-level BPE that can be read.

Names are imported when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dacheng.lazy import exports

if TYPE_CHECKING:
    from dacheng.text.byte_bpe import ByteBPE, train_byte_bpe
    from dacheng.text.chat.renderer import ChatRenderer, Rendered
    from dacheng.text.gguf_metadata import gguf_metadata_of
    from dacheng.text.gguf_vocabulary import tokenizer_from_gguf
    from dacheng.text.streaming import StreamDecoder
    from dacheng.text.tokenizer import Tokenizer
    from dacheng.text.training import train_tokenizer

__all__ = [
    "ByteBPE",
    "ChatRenderer",
    "Rendered",
    "StreamDecoder",
    "Tokenizer",
    "gguf_metadata_of",
    "tokenizer_from_gguf",
    "train_byte_bpe",
    "train_tokenizer",
]

__getattr__ = exports(
    __name__,
    {
        "byte_bpe": ("ByteBPE", "train_byte_bpe"),
        "chat.renderer": ("ChatRenderer", "Rendered"),
        "gguf_metadata": ("gguf_metadata_of",),
        "gguf_vocabulary": ("tokenizer_from_gguf",),
        "streaming": ("StreamDecoder",),
        "tokenizer": ("Tokenizer",),
        "training": ("train_tokenizer",),
    },
)
