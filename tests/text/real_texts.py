"""About a megabyte each of English, Chinese, code, emoji and rare scripts, for comparing tokenizers.

English, Chinese and the emoji's names are real data; code is Python's own library; rare scripts have no corpus at hand,
so they are words of random letters, marks and digits of every script that Unicode has, from a fixed seed.
"""

from __future__ import annotations

import gzip
import json
import random
import sysconfig
import unicodedata
from pathlib import Path

KINDS = ("english", "chinese", "code", "emoji", "scripts")
MEGABYTE = 1_000_000


def real_texts(kind: str, data: Path, size: int = MEGABYTE) -> list[str]:
    """Texts of a few lines each, together at least `size` bytes."""
    lines = {"english": english, "chinese": chinese, "code": code, "emoji": emoji, "scripts": scripts}[kind]
    texts: list[str] = []
    total = 0
    while total < size:  # a corpus that is smaller is read again, cut in other places
        source = lines(data)
        width = 5 + 2 * bool(texts)
        for start in range(0, len(source), width):
            texts.append("".join(source[start : start + width]))
            total += len(texts[-1].encode())
            if total >= size:
                break
    return texts


def english(data: Path) -> list[str]:
    return _lines(sorted((data / "wikitext2").iterdir()))


def chinese(data: Path) -> list[str]:
    return _lines(sorted((data / "zh_classics").iterdir()))


def code(data: Path) -> list[str]:
    return _lines(sorted(Path(sysconfig.get_path("stdlib")).glob("a*/*.py")))


def emoji(data: Path) -> list[str]:
    """The sequences and their names in a shuffled crowd: modifiers, flags and joiners meet as they do in chats."""
    rows = [json.loads(line) for line in (data / "noto_emoji32" / "captions.jsonl").open(encoding="utf-8")]
    words = [row["char"] for row in rows] * 3 + [row["caption"] for row in rows]
    draw = random.Random(0)
    between = ["", " ", "  ", "\u200d", "\ufe0f", "!", "\n"]
    return ["".join(draw.choice(words) + draw.choice(between) for _ in range(8)) for _ in range(10_000)]


def scripts(data: Path) -> list[str]:
    letters: dict[str, list[str]] = {}
    for point in range(0xA1, 0x30000):
        char = chr(point)
        if unicodedata.category(char)[0] in "LMN" and not 0x4E00 <= point < 0xA000 and not 0xAC00 <= point < 0xD7A4:
            letters.setdefault(unicodedata.name(char, "?").split()[0], []).append(char)
    draw = random.Random(0)
    names = sorted(letters)
    return [
        " ".join("".join(draw.choices(letters[name], k=draw.randint(1, 9))) for _ in range(6))
        + draw.choice(["\n", ". "])
        for name in draw.choices(names, k=12_000)
    ]


def _lines(paths: list[Path]) -> list[str]:
    read = [(path, path.read_bytes()) for path in paths]
    texts = [(gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8", "replace") for path, raw in read]
    return [line for text in texts for line in text.splitlines(keepends=True)]
