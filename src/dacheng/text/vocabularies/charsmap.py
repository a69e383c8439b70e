"""SentencePiece's precompiled character map: what it replaces, and whether it can be walked without a fall.

Layout (google/sentencepiece, src/normalizer.cc, Builder::DecompressPrecompiledCharsMap): four bytes, the size of the
trie; the trie, a darts-clone double array of 32-bit units (github.com/s-yata/darts-clone); and the replacements, each
ended by a zero byte. A unit has a label (bits 0 to 7, and 31), a flag "a value hangs here" (8), and the way to its
children (9, and 10 up).
"""

from __future__ import annotations

import struct

from dacheng.errors import DamagedFile

_FIELD = "normalizer_spec.precompiled_charsmap"


def check_charsmap(charsmap: bytes) -> None:
    """Raises DamagedFile unless every way through the trie ends inside it, and every value is the start of a string.

    The tokenizers library walks it unchecked: a damaged one would stop the process in the middle of a text.
    """
    if len(charsmap) < 8:
        raise _damaged("it is too short", len(charsmap))
    (size,) = struct.unpack_from("<I", charsmap)
    if size % 1024 or not 0 < size <= len(charsmap) - 4:  # blocks of 256 units
        raise _damaged("the trie's size is wrong", size)
    units = struct.unpack_from(f"<{size // 4}I", charsmap, 4)
    texts = charsmap[4 + size :]
    try:
        texts.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _damaged("replacements are no UTF-8", error.start) from None
    if not texts.endswith(b"\0"):
        raise _damaged("the last replacement does not end", texts[-8:])
    count = len(units)
    for place, unit in enumerate(units):
        if unit >> 31:  # a value, or free
            continue
        children = place ^ (unit >> 10 << ((unit & 512) >> 6))
        if children | 255 >= count:
            raise _damaged("the trie leads out of itself", place)
        if unit & 256:
            start = units[children] & 0x7FFFFFFF
            if start >= len(texts) or texts[start] & 0xC0 == 0x80:
                raise _damaged("a value is no start of a replacement", start)


def _damaged(problem: str, value: object) -> DamagedFile:
    return DamagedFile(
        f"this SentencePiece model's character map is damaged: {problem}", field=_FIELD, value=value,
        remedy="copy the file from its source again",
    )  # fmt: skip
