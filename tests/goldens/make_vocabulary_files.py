"""Makes tests/goldens/vocabularies: small vocabularies in foreign formats, and the ids that their own libraries give.

    python tests/goldens/make_vocabulary_files.py [OUT]      # made with sentencepiece 0.2.3 and tiktoken 0.14.0

*.model: SentencePiece models, trained here. ranks.tiktoken: byte pairs of tiktoken's own (educational) trainer.
expected.json: for each model and each cutting rule the ids of TEXTS.
"""

from __future__ import annotations

import base64
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import sentencepiece
import tiktoken
from tiktoken._educational import bpe_train

ENGLISH = [
    "The quick brown fox jumps over the lazy dog. The dog sleeps; the fox doesn't.",
    "She sells sea shells by the sea shore, and the shells she sells are sea shells for sure.",
    "def add(left, right):\n    return left + right\n\n\nprint(add(1, 2))",
    "It's 3.14159, or 2,718,281 of 10000000; they'll say THAT'S LOST, we'd rather they've said so in 1999.",
]
CHINESE = [
    "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。",
    "话说天下大势，分久必合，合久必分。滚滚长江东逝水，浪花淘尽英雄。是非成败转头空，青山依旧在，几度夕阳红。",
]
TEXTS = [
    *ENGLISH,
    *CHINESE,
    "",
    " ",
    "   leading and trailing   ",
    "tabs\tand\r\nlines\n\n\n\nand" + " " * 40 + "spaces",
    "a[REF]b [REF] c<table><td>[INST] <s></s><unk><pad>",
    "▁ is a space ▁▁ and <0x41> is no A",
    "ＦＵＬＬ ｗｉｄｔｈ ﬁne ½ Ⅷ café cafe\u0301 \u3000 zero\u200bwidth",
    "👍 👍🏽 👩‍👩‍👧 ❤️ 🇨🇳🇫🇷 हिन्दी ไทย 한국어 العربية 𠀀𪚥",
    "x" * 100 + "-" * 79 + "=" * 31 + "中文English混排123数字 1234567",
    "\0 \x01 \x7f \ufeff \U0010ffff",
]
# One rule a line: code points, a tab, code points. SentencePiece's own nmt_nfkc is 240 kB compiled.
RULES = {
    "Ａ": "A", "Ｌ": "L", "ｗ": "w", "ﬁ": "fi", "½": "1/2", "e\u0301": "é", "\t": " ", "\n": " ", "\r": " ",
    "\u3000": " ", "\u200b": "", "ＦＵ": "FU", "Ⅷ": "VIII",
}  # fmt: skip
LETTERS = [r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"]
CASED = [rf"[^\r\n\p{{L}}\p{{N}}]?{LETTERS[0]}*{LETTERS[1]}+", rf"[^\r\n\p{{L}}\p{{N}}]?{LETTERS[0]}+{LETTERS[1]}*"]
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = [r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"]
WORD, MARKS = r"[^\r\n\p{L}\p{N}]?\p{L}+", r" ?[^\s\p{L}\p{N}]+"
GPT2 = ["'s|'t|'re|'ve|'m|'ll|'d", r" ?\p{L}+", r" ?\p{N}+", MARKS, r"\s+(?!\S)", r"\s+"]
SPLITS = {
    name: "|".join(parts)
    for name, parts in {
        "gpt-2": GPT2,
        # Digits stand alone first, so the last space before one is not left to it.
        "smollm": [*GPT2[:2], r"\p{N}", MARKS, r"\s+(?=\p{N})", *GPT2[4:]],
        "dbrx": [  # cl100k_base, as tiktoken has it now
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+",
            r"\s++$|\s*[\r\n]|\s+(?!\S)|\s",
        ],
        "stablelm2": [SHORT, WORD, r"\p{N}", MARKS + r"[\r\n]*", *SPACES],
        "gpt-4o": [CASED[0] + SHORT + "?", CASED[1] + SHORT + "?", r"\p{N}{1,3}", MARKS + r"[\r\n/]*", *SPACES],
        "tekken": [*CASED, r"\p{N}", MARKS + r"[\r\n/]*", *SPACES],
    }.items()
}


def train(out: Path, name: str, **options: Any) -> dict[str, Any]:
    with contextlib.chdir(out):  # the model keeps the names of its files
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter((ENGLISH + CHINESE) * 3), model_prefix=name, hard_vocab_limit=False, minloglevel=2,
            **options,
        )  # fmt: skip
    (out / f"{name}.vocab").unlink()
    processor = sentencepiece.SentencePieceProcessor(model_file=str(out / f"{name}.model"))
    return {"size": processor.get_piece_size(), "ids": [processor.encode(text) for text in TEXTS]}


def models(out: Path) -> dict[str, Any]:
    common = {"character_coverage": 1.0, "num_threads": 1}
    rules = out / "rules.tsv"
    rules.write_text(
        "".join(
            "\t".join(" ".join(f"{ord(char):X}" for char in text) for text in (source, target)) + "\n"
            for source, target in RULES.items()
        ),
        encoding="utf-8",
    )
    try:
        return {
            "llama": train(  # a space before the text, bytes for what is unknown, names that are always pieces
                out, "llama", model_type="bpe", vocab_size=720, byte_fallback=True, split_digits=True,
                normalization_rule_name="identity", remove_extra_whitespaces=False, user_defined_symbols=["[REF]"],
                control_symbols=["[INST]"], allow_whitespace_only_pieces=True, **common,
            ),
            "gemma": train(  # no space before it, rows of spaces and lines as pieces
                out, "gemma", model_type="bpe", vocab_size=740, byte_fallback=True, add_dummy_prefix=False,
                normalization_rule_name="identity", remove_extra_whitespaces=False, pad_id=0, eos_id=1, bos_id=2,
                unk_id=3, user_defined_symbols=["▁▁", "▁▁▁", "▁▁▁▁", "\n", "\n\n", "\n\n\n", "<table>", "<td>"],
                **common,
            ),
            "unigram": train(
                out, "unigram", model_type="unigram", vocab_size=300, normalization_rule_tsv=rules.name,
                user_defined_symbols=["[REF]", "("], control_symbols=["[INST]"], **common,
            ),
            "unigram_bytes": train(
                out, "unigram_bytes", model_type="unigram", vocab_size=560, byte_fallback=True,
                normalization_rule_name="identity", remove_extra_whitespaces=False, split_by_whitespace=False, **common,
            ),
        }  # fmt: skip
    finally:
        rules.unlink()


def ranks(out: Path) -> dict[str, Any]:
    pairs = bpe_train("\n".join((ENGLISH + CHINESE) * 3) + " " * 30, 480, SPLITS["dbrx"], visualise=None)
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in pairs.items()]
    (out / "ranks.tiktoken").write_text("".join(lines))
    found = {}
    for name, pattern in SPLITS.items():
        encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=pairs, special_tokens={})
        found[name] = [encoding.encode_ordinary(text) for text in TEXTS]
    return found


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    expected = {"texts": TEXTS, "models": models(out), "splits": ranks(out)}
    (out / "expected.json").write_text(json.dumps(expected, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "vocabularies"))
