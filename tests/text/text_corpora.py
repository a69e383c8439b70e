"""Texts for the tests of this room: English, Chinese, code and emoji, and the hard cases of Unicode."""

from __future__ import annotations

import argparse
import inspect
import textwrap

from hypothesis import strategies as st

ENGLISH = """The tokenizer reads the text, and the text is read by the tokenizer. Whatever it can't read, it
doesn't keep: they'll say "that's lost", we'd rather they've said so in 1999 or 2024. Tokens, token,
tokenise, tokenisation. Lower and lowest, new and newest, wide and widest; slow, slower, slowest.
It's 3.14159, or 2,718,281 of 10000000.
"""
CHINESE = """滚滚长江东逝水，浪花淘尽英雄。是非成败转头空。青山依旧在，几度夕阳红。白发渔樵江渚上，惯看秋月春风。
一壶浊酒喜相逢。古今多少事，都付笑谈中。话说天下大势，分久必合，合久必分。GPT模型在2024年的token（词元）数量。
"""
EMOJI = "👍 👍🏽 👩‍👩‍👧 ❤️ 🇨🇳🇫🇷 ☃ ok 👍👍👍👍 — “quotes” … naïve café cafe\u0301 straße Ⅷ ½ हिन्दी ไทย 한국어 العربية\n"
CODE = inspect.getsource(textwrap) + inspect.getsource(argparse)[:40_000]
MIXED = [ENGLISH * 4, CHINESE * 4, EMOJI * 4, CODE, "    " * 40 + "\n" * 9 + "-" * 79 + "=" * 31 + "a" * 50]

HARD = [
    "",
    " ",
    "\0",
    "a\0b\0\0",
    "\r\n\r\n \n\t",
    "   leading and trailing   ",
    "<|endoftext|> is text, and so is <|pad|><|unk|></s>",
    "## ##a ⁀ ⁀b ▁ ▁▁c Ġd Ċ <0x41>",
    "\ufeff\u200b\u200d\u2028\u0085\xa0\u3000",
    "e\u0301e\u0300\u0316 n\u0303 \u0301",
    "\U0010ffff\ufffe\uffff\ue000\ud7ff\U000e0041",
    "👩‍👩‍👧‍👦🏳️‍🌈" * 3,
    "中文English混排123数字，标点。かな カナ 한국",
    "𠀀𠀁 𪚥",
    "x" * 5000,
    "\ufffd real replacement characters \ufffd\ufffd",
]

# Any text at all, and texts in which scripts, spaces, digits and marks meet more often than by chance.
any_text = st.text(max_size=60) | st.text(
    alphabet="ab Zé'stdl\u0301\n\r\t\0 0179½中文字，。👍\u200d🏽🇨🇳❤\ufe0f<|>#_▁Ġ⁀\u3000\x1c\x85अि", max_size=60
)
