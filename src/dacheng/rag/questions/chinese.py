"""Questions about Chinese prose: 谁, 什么, 多少 by simple patterns, blanks, and which section says it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dacheng.rag.questions.prose import ask, where_question
from dacheng.rag.questions.question import Question
from dacheng.rag.questions.rarity import Rarity
from dacheng.rag.sentences import one_line, sentences
from dacheng.text.analyzer import analyze

if TYPE_CHECKING:
    from dacheng.rag.passages import Passage

_HAN = r"[\u3400-\u4dbf\u4e00-\u9fff]"
_DIGITS = r"(?:\d[\d,.]*|[零〇一二三四五六七八九十百千万亿两]{2,})"
_MEASURE = "[个人名位年月日岁回章卷种条座家次项篇首里尺米元斤吨倍层所部集届省市县票场]|公里|千米|平方公里"
_COUNT = re.compile(rf"(?<![\d.第])(?P<n>{_DIGITS})(?:余|多)?(?={_MEASURE})")
_ABOUT = re.compile(r"[一二两三四五六七八九]{2}")  # "two or three": no number to ask for
_BY = re.compile(
    rf"由(?P<who>{_HAN}{{2,6}}?)"
    r"(?P<did>(?:所)?(?:著|写|撰|创立|创办|创建|建立|发明|提出|设计|执导|主演|编写|创作|建造|主持))"
)
_CALLED = re.compile(
    rf"(?P<before>{_HAN}{{1,12}}?(?:名叫|叫做|叫作|称为|又称|又名|别名|字|号|姓))"
    rf"(?P<name>{_HAN}{{1,6}})(?=[，。、；,])"
)
_IS = re.compile(
    r"^(?P<what>[^，。；：“”]{2,16}?)是"
    r"(?P<said>(?:一[个种座部位本项条家所]|指|[^，。；]{0,20}的)[^，。；：]{2,40})"
)
_TITLE = re.compile(r"《(?P<title>[^》]{1,20})》")
_YEAR = re.compile(r"(?P<year>\d{3,4})年")
_PRONOUN = re.compile(r"^(?:[这那他她它其此我你您该而但又就不也可只都正便却因若如所]|原来|于是|无非|莫非)")
_SAID = re.compile(
    rf"(?:^|[，。！？；”])(?P<who>(?![^，。]{{0,2}}[便又忙只听见因却都就])(?:{_HAN}){{2,3}}?)"
    r"(?:忙|又|便|冷|大|微|含|陪)?[笑喝叫哭叹骂问答]?(?:道|说道|曰|说)[：:]“(?P<words>[^”]{8,60})”"
)
_NO_NAME = re.compile(r"[笑问哭道说拍手着了的是听见那这他她我你不来去众]|面$")
_NO_TOPIC = re.compile(
    r"[不定都过乃便就还也只正并非若底][^，]?$|[他她我你这那谁]|^(?:到底|要说|说要|原来|虽|想|一个个|前日|谁知|可巧|今)"
)
_LATIN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z][A-Za-z0-9.+-]{2,20}(?![A-Za-z0-9])")
_CLAUSE = re.compile(r"[，；：,;:“”「」]")


def chinese_questions(passage: Passage, rarity: Rarity) -> Iterator[Question]:
    """Each template's questions of one passage in Chinese."""
    said = [s.text for s in sentences(passage.text) if not s.is_example]
    for quoted in _SAID.finditer(one_line(passage.text)):
        if not _PRONOUN.match(quoted["who"]) and not _NO_NAME.search(quoted["who"]):
            text = f"“{quoted['words']}”这句话是谁说的？"
            yield ask(passage, "which", text, (quoted["who"],), f"是{quoted['who']}说的。")
    for sentence in said:
        yield from _who(passage, sentence)
        yield from _count(passage, sentence)
        match = _IS.match(sentence)
        if match and not _PRONOUN.match(match["what"]) and not _NO_TOPIC.search(match["what"]):
            what, told = match.groups()
            yield ask(passage, "definition", f"{what}是什么？", (told,), f"{what}是{told}。")
    yield from _blank(passage, said, rarity)
    yield from where_question(passage, said, rarity)


def _who(passage: Passage, sentence: str) -> Iterator[Question]:
    if match := _BY.search(sentence):
        clause = _around(sentence, match.start(), match.end())
        asked = clause.replace(f"由{match['who']}{match['did']}", f"由谁{match['did']}", 1)
        if 6 <= len(asked) <= 60 and not _PRONOUN.match(asked):
            yield ask(passage, "which", f"{asked}？", (match["who"],), f"由{match['who']}{match['did']}。")
    match = _CALLED.search(sentence)
    if match and len(match["before"]) >= 3 and not _PRONOUN.match(match["before"]):
        before, name = match.groups()
        yield ask(passage, "which", f"{before}什么？", (name,), f"{before}{name}。")


def _count(passage: Passage, sentence: str) -> Iterator[Question]:
    """A number in front of its measure word becomes 多少; a year 哪一年."""
    for pattern, put in ((_YEAR, "哪一年"), (_COUNT, "多少")):
        match = pattern.search(sentence)
        if match is None or _ABOUT.fullmatch(match[0]):
            continue
        clause = _around(sentence, match.start(), match.end())
        number = match[0] if pattern is _YEAR else match["n"]
        asked = clause.replace(match[0], put, 1)
        if 8 <= len(clause) <= 50 and not _PRONOUN.match(clause) and clause.count(number) == 1:
            yield ask(passage, "which", f"{asked}？", (number,), f"{clause}。")
            return


def _blank(passage: Passage, said: list[str], rarity: Rarity) -> Iterator[Question]:
    """A sentence without its title, number or foreign name. (A pair of characters cut anywhere is no word.)"""
    best: tuple[float, str, str] | None = None
    for sentence in said:
        if not 12 <= len(sentence) <= 120:
            continue
        candidates = [m["title"] for m in _TITLE.finditer(sentence)] or [
            m["n"] for m in _COUNT.finditer(sentence) if not _ABOUT.fullmatch(m["n"])
        ]
        candidates += _LATIN.findall(sentence)
        for candidate in dict.fromkeys(candidates):
            weight = max((rarity.idf(term) for term in analyze(candidate)), default=0.0)
            if sentence.count(candidate) == 1 and (best is None or (weight, candidate) > best[:2]):
                best = (weight, candidate, sentence)
    if best is not None:
        _, answer, sentence = best
        blank = sentence.replace(answer, "____", 1).rstrip("。")
        yield ask(passage, "cloze", f"空白处应填什么：“{blank}”？", (answer,), f"应填“{answer}”。")


def _around(sentence: str, start: int, end: int) -> str:
    """The clause that holds [start, end)."""
    left = max((m.end() for m in _CLAUSE.finditer(sentence, 0, start)), default=0)
    right = next((m.start() for m in _CLAUSE.finditer(sentence, end)), len(sentence))
    return sentence[left:right].strip(" 。！？；，")
