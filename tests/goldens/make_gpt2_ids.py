"""Makes tests/goldens/gpt2_ids.json: GPT-2's token ids for a few hard texts, by tiktoken.

    python tests/goldens/make_gpt2_ids.py MERGES_TXT [OUT]        # made with tiktoken 0.14.0

MERGES_TXT is GPT-2's own merges file, plain or gzipped. tiktoken shares no code with the tokenizers library.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import tiktoken

PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TEXTS = [
    "Hello, world! It's 2024, and they'll've been re-reading I'M 'S 're'd''s.",
    "   leading,  double   spaces\tand\t\ttabs \n\n\n newlines \r\n trailing   ",
    "def f(x):\n    if x != 0:\n        return {'a': [1, 2.5e-10], \"b\": x ** 2}  # done\n",
    "春眠不觉晓,处处闻啼鸟。夜来风雨声,花落知多少。 第12章 a中文b",
    "日本語のテキスト、ひらがなとカタカナ。한국어 텍스트. Русский текст. نص عربي. हिन्दी पाठ",
    "👩‍👩‍👧 👍🏽 ❤️ 🇨🇳 ☃ ‼️ emoji",
    "naïve café nai\u0308ve cafe\u0301 straße ﬁne Ⅷ ½ ² ๓ 一二三",
    "\u00a0no-break\u2003em\u3000ideographic\u2028line\u0085next\u200bzero\ufeffbom",
    "\x00\x01\x1c\x1f\x7f\x80 control \x0b\x0c",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa ----------- ======== ........ !!!!!!!!?!?!?",
    "pneumonoultramicroscopicsilicovolcanoconiosis SolidGoldMagikarp  petertodd",
    "𝒜𝓃 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𠀀𠁀 \U0010fffd \ue000 \ud7ff",
    "<|endoftext|> and <|endoftext",
    "",
]


def byte_of_char() -> dict[str, int]:
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def main(merges_file: Path, out: Path) -> None:
    raw = merges_file.read_bytes()
    lines = (gzip.decompress(raw) if merges_file.suffix == ".gz" else raw).decode("utf-8").split("\n")
    table = byte_of_char()
    ranks = {bytes([byte]): rank for rank, byte in enumerate(table.values())}
    for line in lines:
        if line and not line.startswith("#version"):
            left, right = (bytes(table[char] for char in half) for half in line.split(" "))
            ranks[left + right] = len(ranks)
    gpt2 = tiktoken.Encoding("gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256})
    rows = [json.dumps({"text": text, "ids": gpt2.encode_ordinary(text)}) for text in TEXTS]
    out.write_text("[\n" + ",\n".join(rows) + "\n]\n")


if __name__ == "__main__":
    here = Path(__file__).parent / "gpt2_ids.json"
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else here)
