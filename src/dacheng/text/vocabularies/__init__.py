"""Foreign vocabularies into Tokenizer: GPT-2's files, SentencePiece, tiktoken, tekken, WordPiece.

Each file has one reader, `tokenizer_from_…(path)`. What it gives is saved as tokenizer.json from then on. GGUF's
metadata has its own page, dacheng.text.gguf_vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dacheng.lazy import exports

if TYPE_CHECKING:
    from dacheng.text.vocabularies.byte_level import tokenizer_from_gpt2
    from dacheng.text.vocabularies.sentencepiece import tokenizer_from_sentencepiece
    from dacheng.text.vocabularies.tekken import tokenizer_from_tekken
    from dacheng.text.vocabularies.tiktoken import tokenizer_from_tiktoken
    from dacheng.text.vocabularies.wordpiece import tokenizer_from_wordpiece

__all__ = [
    "tokenizer_from_gpt2",
    "tokenizer_from_sentencepiece",
    "tokenizer_from_tekken",
    "tokenizer_from_tiktoken",
    "tokenizer_from_wordpiece",
]

__getattr__ = exports(
    __name__,
    {
        "byte_level": ("tokenizer_from_gpt2",),
        "sentencepiece": ("tokenizer_from_sentencepiece",),
        "tekken": ("tokenizer_from_tekken",),
        "tiktoken": ("tokenizer_from_tiktoken",),
        "wordpiece": ("tokenizer_from_wordpiece",),
    },
)
