"""How byte-level families cut a text into words before their merges, by the names llama.cpp has for them.

A split is a row of patterns. Each cuts what the one before left: its matches, and the text between them, become pieces.
The patterns are those of the families' own tokenizer.json or tiktoken files; the names are `tokenizer.ggml.pre` of GGUF
(ggml-org/llama.cpp, src/llama-vocab.cpp, and convert_hf_to_gguf.py, get_vocab_base_pre).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dacheng.errors import DachengError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Core
    from tokenizers.pre_tokenizers import PreTokenizer

# openai/gpt-2, src/encoder.py; the tokenizers library has it built in.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGIT = r"\p{N}"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
CL100K = _CONTRACTIONS + "|" + _WORDS % r"\p{N}{1,3}"  # openai/tiktoken, tiktoken_ext/openai_public.py
QWEN2 = _CONTRACTIONS + "|" + _WORDS % r"\p{N}"  # QwenLM/Qwen, tokenization_qwen.py
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
    rf"|%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
O200K = _CASED % (_CONTRACTIONS + "?", _CONTRACTIONS + "?", r"\p{N}{1,3}")
TEKKEN = _CASED % ("", "", r"\p{N}")
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
)
_DEEPSEEK_LETTERS = (  # cased letters; escaped where a character's normal form is another one
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbe"
    "ῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ"
    "𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_DEEPSEEK_HAN = "[一-龥ࠀ-一가-\ud7ff]+"
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_DEEPSEEK_LETTERS}]+",
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    _DEEPSEEK_HAN,
    r"\p{N}+",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_HAN, DIGIT)
_FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]")
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")
_BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
)
_SEED_CODER = (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",)


@dataclass(frozen=True, slots=True)
class Split:
    """patterns: in the order they are applied. whole_words: a piece that is a token is not built from merges (tiktoken
    looks it up first). nfc: the family composes characters first. bos: it begins a text with BOS unless told."""

    patterns: tuple[str, ...]
    whole_words: bool = False
    nfc: bool = False
    bos: bool = False

    def pre_tokenizer(self, add_prefix_space: bool = False) -> PreTokenizer:
        """For the tokenizers library; ends with the bytes' printable stand-ins."""
        from tokenizers import Regex, pre_tokenizers

        *before, last = self.patterns
        inside = last == GPT2  # the library's own is faster
        steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True) if p == DIGIT else
                            pre_tokenizers.Split(Regex(p), "isolated")
                            for p in (before if inside else self.patterns)]  # fmt: skip
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=inside))
        return steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)


# The first name of equal splits is the one that is written.
SPLITS: dict[str, Split] = {
    "gpt-2": Split((GPT2,)),
    "smollm": Split((DIGIT, GPT2)),
    "llama-bpe": Split((CL100K,), whole_words=True, bos=True),
    "dbrx": Split((CL100K,)),
    "qwen2": Split((QWEN2,), nfc=True),
    "stablelm2": Split((QWEN2,)),
    "qwen35": Split((_QWEN35,), nfc=True),
    "gpt-4o": Split((O200K,)),
    "tekken": Split((TEKKEN,), whole_words=True, bos=True),
    "deepseek-llm": Split(_DEEPSEEK_LLM),
    "deepseek-coder": Split(_DEEPSEEK_CODER),
    "deepseek-v3": Split(_DEEPSEEK3),
    "falcon": Split(_FALCON),
    "default": Split(_DEFAULT),
    "bailingmoe": Split(_BAILING),
    "seed-coder": Split(_SEED_CODER),
}
_SAME = {
    "gpt-2": "phi-2 mpt jais trillion granite-docling exaone4 gigachat mellum modern-bert a.x-4.0 jina-es jina-de "
    "jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe",
    "smollm": "starcoder refact codeshell exaone minerva-7b mellum2",
    "llama-bpe": "llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
    "dbrx": "smaug-bpe glm4 chatglm-bpe",
    "qwen2": "megrez",
    "stablelm2": "deepseek-r1-qwen hunyuan grok-2 solar-open",
    "gpt-4o": "llama4 kanana2 minimax-m2",
    "deepseek-v3": "hunyuan-dense joyai-llm",
    "bailingmoe": "bailingmoe2 llada-moe",
}
SPLITS |= {name: SPLITS[first] for first, names in _SAME.items() for name in names.split()}
SPLITS |= {  # these compose characters first, as their tokenizer.json says; llama.cpp doesn't
    "olmo": replace(SPLITS["gpt-2"], nfc=True),
    "command-r": replace(SPLITS["smollm"], nfc=True),
}


def split_named(name: str) -> Split:
    """Raises DachengError naming the splits there are."""
    found = SPLITS.get(name) if isinstance(name, str) else None
    if found is None:
        raise DachengError(
            "this way to cut a text into words is not known here, so the ids would be wrong",
            field="tokenizer.ggml.pre", value=name,
            remedy=f"use the model's tokenizer.json; known are {', '.join(sorted(SPLITS))}",
        )  # fmt: skip
    return found


def split_name(core: Core) -> str | None:
    """The name of the split that `core` uses; None when it has none."""
    if core.pre_tokenizer is None:
        return None
    patterns = tuple(_spelled_out(pattern) for pattern in _patterns(json.loads(core.pre_tokenizer.__getstate__())))
    nfc = core.normalizer is not None and '"NFC"' in core.normalizer.__getstate__().decode()
    whole_words = bool(getattr(core.model, "ignore_merges", False))
    same = [name for name, split in SPLITS.items() if tuple(map(_spelled_out, split.patterns)) == patterns]
    same.sort(key=lambda name: (SPLITS[name].nfc != nfc, SPLITS[name].whole_words != whole_words))
    return same[0] if same else None


def _patterns(step: Any) -> list[str]:
    """The patterns of a pre-tokenizer as tokenizer.json has it; one that nothing equals where it has others."""
    kind = step["type"]
    if kind == "Sequence":
        return [pattern for part in step["pretokenizers"] for pattern in _patterns(part)]
    if kind == "ByteLevel" and not step["add_prefix_space"]:
        return [GPT2] if step["use_regex"] else []
    if kind == "Digits":
        return [DIGIT if step["individual_digits"] else r"\p{N}+"]
    if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"] and "Regex" in step["pattern"]:
        return [step["pattern"]["Regex"]]
    return [kind]


def _spelled_out(pattern: str) -> str:
    """One of the ways to write a pattern: the families' own files, tiktoken and llama.cpp differ in nothing else."""
    for written, same in (
        ("\r", r"\r"),
        ("\n", r"\n"),
        (r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", _CONTRACTIONS),
        (r"'(?i:[sdmt]|ll|ve|re)", _CONTRACTIONS),
        (r"\p{N}{1}|", r"\p{N}|"),
        (r"[^\r\n\p{L}\p{N}]?+\p{L}++", r"[^\r\n\p{L}\p{N}]?\p{L}+"),
        (r"[^\r\n\p{L}\p{N}]?+\p{L}+", r"[^\r\n\p{L}\p{N}]?\p{L}+"),
        (r"[^\s\p{L}\p{N}]++", r"[^\s\p{L}\p{N}]+"),
    ):
        pattern = pattern.replace(written, same)
    return pattern
