"""Cleaning: filters from an iterator of records to an iterator of records. Each reports what it removes or alters."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from dacheng.data.streams import note
from dacheng.errors import MissingExtra, UsageError
from dacheng.records import Drops, Record

# C0 but tab, newline and form feed (a page break that source files carry); DEL; C1; the two non-characters.
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ufffe\uffff]")
_LINE_END = re.compile("\r\n?")
_BULLETS = ("•", "‣", "▶", "◀", "■", "□", "▪", "▫", "–", "*", "-", "·", "●")

PROFILES: dict[str, dict[str, Any]] = {
    # Code means something to the last space: line ends and stray control characters only.
    "code": {"unicode_form": "none", "control_characters": "remove"},
    "prose": {"unicode_form": "NFC", "control_characters": "remove"},
    # Gopher's thresholds (Rae et al. 2021, table A1): repeated lines, symbols per word, bullet and ellipsis lines.
    "web": {
        "unicode_form": "NFC",
        "control_characters": "remove",
        "mojibake": True,
        "min_chars": 50,
        "max_duplicate_lines": 0.3,
        "max_duplicate_line_chars": 0.2,
        "max_symbol_ratio": 0.1,
        "max_bullet_lines": 0.9,
        "max_ellipsis_lines": 0.3,
        "min_letters": 0.5,
    },
    "none": {"newlines": False, "unicode_form": "none", "control_characters": "keep", "min_chars": 0},
}
_OTHERWISE = {
    "newlines": True, "mojibake": False, "min_chars": 1, "max_chars": 0, "max_duplicate_lines": 1.0,
    "max_duplicate_line_chars": 1.0, "max_symbol_ratio": 1.0, "max_bullet_lines": 1.0, "max_ellipsis_lines": 1.0,
    "min_letters": 0.0,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CleaningConfig:
    """What is cleaned. A field left out (None) is as the profile says.

    profile: "code" (the most careful), "prose", "web" (with quality filters) or "none".
    newlines: \\r\\n and \\r become \\n. unicode_form: Unicode normalisation. mojibake: ftfy mends text that was decoded
        wrongly (extra `data`). control_characters: "remove" them, "drop" the record, or "keep".
    min_chars, max_chars: length without outer white space (0: no limit).
    max_duplicate_lines, max_duplicate_line_chars: fraction of non-empty lines, or of their characters, that repeat an
        earlier line. max_symbol_ratio: "#" and ellipses per word. max_bullet_lines, max_ellipsis_lines: fraction of
        lines that begin, or end, so. min_letters: fraction of visible characters that are letters or digits of any
        script (Gopher counts words with a letter, which says nothing of scripts written without spaces).
    """

    profile: Literal["code", "prose", "web", "none"] = "code"
    newlines: bool | None = None
    unicode_form: Literal["none", "NFC", "NFKC"] | None = None
    control_characters: Literal["keep", "remove", "drop"] | None = None
    mojibake: bool | None = None
    min_chars: int | None = None
    max_chars: int | None = None
    max_duplicate_lines: float | None = None
    max_duplicate_line_chars: float | None = None
    max_symbol_ratio: float | None = None
    max_bullet_lines: float | None = None
    max_ellipsis_lines: float | None = None
    min_letters: float | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and value < 0:
                raise UsageError("must not be negative", field=field.name, value=value, remedy="0 or more")

    def resolved(self) -> CleaningConfig:
        """The same with every field filled in."""
        known = {**_OTHERWISE, **PROFILES[self.profile]}
        return dataclasses.replace(
            self, **{name: value for name, value in known.items() if getattr(self, name) is None}
        )


def clean(records: Iterator[Record], config: CleaningConfig, drops: Drops) -> Iterator[Record]:
    """The filters that `config` asks for, one after another. Records without text pass through."""
    c = config.resolved()
    for name, alter in _alterations(c).items():
        records = alter_text(records, drops, name, alter)
    if c.control_characters == "drop":
        records = drop_control_characters(records, drops)
    if c.min_chars or c.max_chars:
        records = bound_length(records, drops, min_chars=c.min_chars or 0, max_chars=c.max_chars or 0)
    limits = {name: getattr(c, name) for name in STATISTICS}
    if any(limit < 1.0 for limit in limits.values()) or c.min_letters:
        records = quality(records, drops, limits, c.min_letters or 0.0)
    return records


# --- alterations ------------------------------------------------------------------------------------------------------
def _alterations(c: CleaningConfig) -> dict[str, Callable[[str], str]]:
    """Reason -> function, in the order that matters: mojibake holds C1 controls, so it is mended before they go."""
    steps: dict[str, Callable[[str], str]] = {}
    if c.newlines:
        steps["newlines_normalised"] = normalise_newlines
    if c.mojibake:
        steps["mojibake_mended"] = _mender()
    if c.unicode_form != "none":
        form: Any = c.unicode_form
        steps["unicode_normalised"] = lambda text: unicodedata.normalize(form, text)
    if c.control_characters == "remove":
        steps["control_characters_removed"] = remove_control_characters
    return steps


def alter_text(records: Iterator[Record], drops: Drops, reason: str, alter: Callable[[str], str]) -> Iterator[Record]:
    """Each record's text through `alter`; those that it changed are counted under `reason`."""
    for record in records:
        if record.text is not None:
            text = alter(record.text)
            if text != record.text:
                note(drops, reason, record.id)
                record = dataclasses.replace(record, text=text)
        yield record


def normalise_newlines(text: str) -> str:
    return _LINE_END.sub("\n", text) if "\r" in text else text


def remove_control_characters(text: str) -> str:
    return _CONTROL.sub("", text)


def _mender() -> Callable[[str], str]:
    try:
        import ftfy
    except ImportError:
        raise MissingExtra("ftfy", "data") from None
    return ftfy.fix_encoding


# --- drops ------------------------------------------------------------------------------------------------------------
def drop_control_characters(records: Iterator[Record], drops: Drops) -> Iterator[Record]:
    for record in records:
        if record.text is not None and _CONTROL.search(record.text):
            drop(drops, "control_characters", record)
        else:
            yield record


def bound_length(records: Iterator[Record], drops: Drops, *, min_chars: int, max_chars: int) -> Iterator[Record]:
    """Drops records whose text, without outer white space, is shorter or longer than allowed; max_chars 0: no limit."""
    for record in records:
        length = None if record.text is None else len(record.text.strip())
        if length is not None and length < min_chars:
            drop(drops, "too_short" if length else "empty", record)
        elif length is not None and max_chars and length > max_chars:
            drop(drops, "too_long", record)
        else:
            yield record


def quality(
    records: Iterator[Record], drops: Drops, limits: dict[str, float], min_letters: float = 0.0
) -> Iterator[Record]:
    """Drops records over a limit of STATISTICS (1 or more: off), or with too few letters; the reason is the first."""
    for record in records:
        if record.text is None:
            yield record
            continue
        lines = [line.strip() for line in record.text.split("\n") if line.strip()]
        over = (n for n, limit in limits.items() if limit < 1.0 and STATISTICS[n](record.text, lines) > limit)
        reason = next(over, None)
        if reason is None and min_letters and letter_fraction(record.text) < min_letters:
            reason = "min_letters"
        if reason is None:
            yield record
        else:
            drop(drops, reason, record)


def drop(drops: Drops, reason: str, record: Record) -> None:
    drops.drop(reason, len((record.text or "").encode("utf-8", "surrogatepass")), record.id)


# --- statistics of a text ---------------------------------------------------------------------------------------------
def duplicate_line_fraction(text: str, lines: list[str]) -> float:
    """Non-empty lines that repeat an earlier one, of all non-empty lines."""
    return 1 - len(set(lines)) / len(lines) if lines else 0.0


def duplicate_line_char_fraction(text: str, lines: list[str]) -> float:
    """Characters in lines that repeat an earlier one, of the characters in non-empty lines."""
    repeated = sum(len(line) * (count - 1) for line, count in Counter(lines).items())
    return repeated / sum(map(len, lines)) if lines else 0.0


def symbol_ratio(text: str, lines: list[str]) -> float:
    """The more frequent of "#" and ellipsis, per word."""
    return max(text.count("#"), text.count("...") + text.count("…")) / max(len(text.split()), 1)


def bullet_line_fraction(text: str, lines: list[str]) -> float:
    return sum(line.startswith(_BULLETS) for line in lines) / len(lines) if lines else 0.0


def ellipsis_line_fraction(text: str, lines: list[str]) -> float:
    return sum(line.endswith(("...", "…")) for line in lines) / len(lines) if lines else 0.0


def letter_fraction(text: str) -> float:
    """Letters and digits of any script, of the characters that are not white space."""
    visible = "".join(text.split())
    return sum(map(str.isalnum, visible)) / len(visible) if visible else 0.0


STATISTICS: dict[str, Callable[[str, list[str]], float]] = {
    "max_duplicate_lines": duplicate_line_fraction,
    "max_duplicate_line_chars": duplicate_line_char_fraction,
    "max_symbol_ratio": symbol_ratio,
    "max_bullet_lines": bullet_line_fraction,
    "max_ellipsis_lines": ellipsis_line_fraction,
}
