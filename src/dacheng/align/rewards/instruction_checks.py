"""A function for each of IFEval's instructions: check(response, arguments) -> bool, or None where it can't be told."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

Arguments = Mapping[str, Any]
Check = Callable[[str, Arguments], bool | None]

_CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
# by their script alone; Latin, Cyrillic, Arabic and Devanagari are each written by many languages
_SCRIPTS = {
    "ko": "HANGUL", "th": "THAI", "el": "GREEK", "he": "HEBREW", "ta": "TAMIL", "te": "TELUGU", "kn": "KANNADA",
    "ml": "MALAYALAM", "gu": "GUJARATI", "pa": "GURMUKHI", "bn": "BENGALI", "zh": "CJK", "zh-cn": "CJK", "zh-tw": "CJK",
}  # fmt: skip
_SHARED = {
    "ru": "CYRILLIC", "uk": "CYRILLIC", "bg": "CYRILLIC", "mk": "CYRILLIC", "ar": "ARABIC", "fa": "ARABIC",
    "ur": "ARABIC", "hi": "DEVANAGARI", "mr": "DEVANAGARI", "ne": "DEVANAGARI",
}  # fmt: skip
_SENTENCE_END = re.compile(r"[.!?。！？]+[\"'”’)\]]*(?=\s|$)|[。！？]")
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|etc|No|Inc|Ltd|Co|e\.g|i\.e|U\.S|[A-Z])\.(?=\s+\S)")
_WORD = re.compile(r"\w+(?:[-.]\w+)*")  # U.S.A and WELL-KNOWN are one word each


def _compared(count: int, relation: str, bound: int) -> bool:
    if relation == "less than":
        return count < bound
    if relation == "at least":
        return count >= bound
    raise ValueError(f"relation {relation!r}: less than, at least")


def _words(text: str, a: Arguments) -> bool:
    return _compared(len(re.findall(r"\w+", text)), a["relation"], a["num_words"])


def _sentences(text: str, a: Arguments) -> bool:
    return _compared(count_sentences(text), a["relation"], a["num_sentences"])


def count_sentences(text: str) -> int:
    """Ends of sentences, abbreviations aside; a last one without its stop counts too."""
    text = _ABBREVIATION.sub(lambda match: match[0].replace(".", ""), text.strip())
    ends = list(_SENTENCE_END.finditer(text))
    return len(ends) + bool(text[ends[-1].end() if ends else 0 :].strip())


def _paragraphs(text: str, a: Arguments) -> bool:
    """Separated by ***; none of them empty but the first and the last."""
    parts = re.split(r"\s?\*\*\*\s?", text)
    inner = parts[1:-1]
    if any(not part.strip() for part in inner):
        return False
    return sum(bool(part.strip()) for part in parts) == a["num_paragraphs"]


def _nth_paragraph(text: str, a: Arguments) -> bool:
    parts = text.split("\n\n")
    count = sum(bool(part.strip()) for part in parts)
    nth = a["nth_paragraph"]
    if nth > count or not parts[nth - 1].strip():
        return False
    word = parts[nth - 1].split()[0].lstrip("'").lstrip('"')
    first = re.split(r"[.,?!'\"]", word)[0].lower()
    return count == a["num_paragraphs"] and first == a["first_word"].lower()


def _placeholders(text: str, a: Arguments) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= a["num_placeholders"]


def _bullets(text: str, a: Arguments) -> bool:
    starred = re.findall(r"^\s*\*[^\*].*$", text, re.MULTILINE)
    return len(starred) + len(re.findall(r"^\s*-.*$", text, re.MULTILINE)) == a["num_bullets"]


def _highlights(text: str, a: Arguments) -> bool:
    single = [found for found in re.findall(r"\*[^\n\*]*\*", text) if found.strip("*").strip()]
    double = [found for found in re.findall(r"\*\*[^\n\*]*\*\*", text) if found[2:-2].strip()]
    return len(single) + len(double) >= a["num_highlights"]


def _sections(text: str, a: Arguments) -> bool:
    splitter = re.escape(a["section_spliter"].strip())
    return len(re.split(r"\s?" + splitter + r"\s?\d+\s?", text)) - 1 >= a["num_sections"]


def _title(text: str, a: Arguments) -> bool:
    return any(found.lstrip("<").rstrip(">").strip() for found in re.findall(r"<<[^\n]+>>", text))


def _json(text: str, a: Arguments) -> bool:
    text = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _postscript(text: str, a: Arguments) -> bool:
    marker = a["postscript_marker"].strip()
    patterns = {"P.P.S": r"\s*p\.\s?p\.\s?s.*$", "P.S.": r"\s*p\.\s?s\..*$"}
    pattern = patterns.get(marker, r"\s*" + re.escape(marker.lower()) + r".*$")
    return bool(re.search(pattern, text.lower(), re.MULTILINE))


def _keywords(text: str, a: Arguments) -> bool:
    return all(re.search(re.escape(word.strip()), text, re.IGNORECASE) for word in _texts(a["keywords"]))


def _forbidden(text: str, a: Arguments) -> bool:
    return not any(
        re.search(r"\b" + re.escape(word) + r"\b", text, re.IGNORECASE) for word in _texts(a["forbidden_words"])
    )


def _texts(words: Any) -> list[str]:
    if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
        raise TypeError("no list of words")
    return list(words)


def _frequency(text: str, a: Arguments) -> bool:
    count = len(re.findall(re.escape(a["keyword"].strip()), text, re.IGNORECASE))
    return _compared(count, a["relation"], a["frequency"])


def _letters(text: str, a: Arguments) -> bool:
    return _compared(Counter(text.lower())[a["letter"].lower()], a["let_relation"], a["let_frequency"])


def _capitals(text: str, a: Arguments) -> bool:
    count = sum(word.isupper() for word in _WORD.findall(text))
    return _compared(count, a["capital_relation"], a["capital_frequency"])


def _two_responses(text: str, a: Arguments) -> bool:
    parts = text.split("******")
    if any(not part.strip() for part in parts[1:-1]):
        return False
    said = [part.strip() for part in parts if part.strip()]
    return len(said) == 2 and said[0] != said[1]


def _language(text: str, a: Arguments) -> bool | None:
    wanted = a["language"].lower()
    letters = Counter(unicodedata.name(c, "").split(" ")[0] for c in text if c.isalpha())
    total = sum(letters.values())
    if not total:
        return True  # as the authors do: nothing to tell it by
    kana = letters["HIRAGANA"] + letters["KATAKANA"]
    if wanted == "ja":
        return kana > 0 and (kana + letters["CJK"]) > total / 2
    if wanted in _SCRIPTS:
        return letters[_SCRIPTS[wanted]] > total / 2 and kana <= total / 20
    script = _SHARED.get(wanted, "LATIN")
    return None if letters[script] > total / 2 else False  # the script fits: which of its languages, nobody here knows


def _english(text: str) -> bool:
    """Whether it may be: Latin letters for the most part."""
    letters = [c for c in text if c.isalpha()]
    return 2 * sum(unicodedata.name(c, "").startswith("LATIN") for c in letters) > len(letters)


CHECKS: dict[str, Check] = {
    "keywords:existence": _keywords,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letters,
    "language:response_language": _language,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_words": _words,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": lambda text, a: any(option in text for option in _CONSTRAINED),
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": lambda text, a: text.strip().lower().startswith(a["prompt_to_repeat"].strip().lower()),
    "startend:end_checker": lambda text, a: text.strip().strip('"').lower().endswith(a["end_phrase"].strip().lower()),
    "startend:quotation": lambda text, a: len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"',
    "change_case:capital_word_frequency": _capitals,
    "change_case:english_capital": lambda text, a: text.isupper() and _english(text),
    "change_case:english_lowercase": lambda text, a: text.islower() and _english(text),
    "punctuation:no_comma": lambda text, a: "," not in text,
}
