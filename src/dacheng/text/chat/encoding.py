"""The ids of a rendered chat: special tokens where the template wrote them, plain text where a user did."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dacheng.errors import DachengError
from dacheng.text.byte_bpe import utf8
from dacheng.text.chat.tracked import GENERATED, TEMPLATE, runs_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Core

    from dacheng.text.tokenizer import Tokenizer

# A special token of our own, in a copy of the tokenizer only: put into a text it cuts it, and is taken out of the ids.
# Both characters are Unicode noncharacters, which no text interchanges.
_CUT = "\ufdd0\ufdd1"
Spans = list[tuple[int, int]]


class ChatEncoder:
    """Encodes a whole rendered chat at once, as transformers does, so that tokens merge across the seams between
    template and content in the same way. What it does differently: a name of a control token of which any character
    was written by a user is cut after its first character and so stays text.

    Control tokens are the special ones, and the added ones that `template_text` has ("<｜User｜>" of DeepSeek is not
    marked special). In what the assistant wrote only special ones are cut: "<think>" there is the token.
    """

    def __init__(self, tokenizer: Tokenizer, template_text: str) -> None:
        self._tokenizer = tokenizer
        self._core: Core = tokenizer._reading_special
        self._unk = tokenizer.unk_id
        self.special = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self.added = sorted(
            (token.content for token in self._core.get_added_tokens_decoder().values()), key=len, reverse=True
        )
        in_template = [name for name in self.added if name in template_text and not name.isspace()]
        self._controls = _starts(name for name in self.added if name in self.special or name in in_template)
        self._specials = _starts(self.special)

    def __call__(
        self, text: str, *, trusted: bool = False, by_assistant: Callable[[int], bool] = lambda code: False
    ) -> tuple[list[int], Spans]:
        """(ids, the characters of `text` that each covers). Characters that no token covers (white space that a
        special token takes with it, or that offsets leave out) count to the token behind them.

        trusted: names of special tokens become their ids wherever they stand. by_assistant(source): see above.
        Raises DachengError when a user's text would nevertheless become a special token.
        """
        utf8(text)  # half a surrogate pair is refused here, by name
        plain = str.__str__(text)
        if trusted:
            encoding = self._core.encode(plain, add_special_tokens=False)
            return encoding.ids, _without_gaps(encoding.offsets)
        users = _users(text, by_assistant)
        cuts = sorted(self._cuts(plain, users))
        ids, offsets = self._encode(plain, cuts)
        self._check(plain, ids, offsets, users)
        return ids, _without_gaps(offsets)

    def _encode(self, text: str, cuts: list[int]) -> tuple[list[int], Spans]:
        if not cuts:
            encoding = self._core.encode(text, add_special_tokens=False)
            return encoding.ids, encoding.offsets
        if _CUT in text:
            raise DachengError("the text has characters that are no characters (U+FDD0 U+FDD1)", field="messages",
                               remedy="remove them")  # fmt: skip
        parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
        core, cut_id = self._cutting
        encoding = core.encode(_CUT.join(parts), add_special_tokens=False)
        ids: list[int] = []
        offsets: Spans = []
        passed = 0
        for token_id, (start, end) in zip(encoding.ids, encoding.offsets):
            if token_id == cut_id:
                passed += len(_CUT)
            else:
                ids.append(token_id)
                offsets.append((start - passed, end - passed))
        return ids, offsets

    @cached_property
    def _cutting(self) -> tuple[Core, int]:
        from tokenizers import AddedToken
        from tokenizers import Tokenizer as Core

        core = Core.from_str(self._core.to_str())
        core.add_special_tokens([AddedToken(_CUT, normalized=False)])
        found = core.token_to_id(_CUT)
        assert found is not None
        return core, found

    def _cuts(self, text: str, users: list[tuple[int, int, bool]]) -> Iterator[int]:
        """Where to cut: behind the first character of every name that touches what a user wrote."""
        stretches = iter(users)
        stretch = next(stretches, None)
        for match in self._controls.finditer(text):
            start, end = match.start(), match.start() + len(match[1])
            while stretch is not None and stretch[1] <= start:
                stretch = next(stretches, None)
            if stretch is None:
                return
            if stretch[0] < end and (not stretch[2] or self._specials.match(text, start)):
                if end - start == 1:
                    raise self._refusal(match[1])
                yield start + 1

    def _check(self, text: str, ids: list[int], offsets: Spans, users: list[tuple[int, int, bool]]) -> None:
        """No special id may stand for what a user wrote: not by a normaliser that makes "<s>" out of "＜s＞" either."""
        marked = self._tokenizer.special_ids - {self._unk}
        at = 0
        for token_id, (start, end) in zip(ids, offsets):
            if token_id not in marked:
                continue
            while at < len(users) and users[at][1] <= start:
                at += 1
            for first, last, _ in users[at:]:
                if first >= end:
                    break
                if text[max(first, start) : min(last, end)].strip():  # white space beside it may be taken in
                    raise self._refusal(text[start:end])

    def _refusal(self, name: str) -> DachengError:
        return DachengError(
            "this tokenizer would read a part of the text as a special token", field="messages", value=name,
            remedy="remove it from the text, or render with trust_content=True",
        )  # fmt: skip


def _starts(names: Any) -> re.Pattern[str]:
    """Matches, without consuming it, the longest of `names` at a place; [1] is the name."""
    ordered = sorted(set(names), key=len, reverse=True)
    return re.compile("(?=(" + "|".join(map(re.escape, ordered)) + "))") if ordered else re.compile("(?!)")


def _users(text: str, by_assistant: Callable[[int], bool]) -> list[tuple[int, int, bool]]:
    """(start, end, whether the assistant wrote it) of each stretch that the template did not write."""
    found, position = [], 0
    for length, code in runs_of(text):
        source = code & ~GENERATED
        if source != TEMPLATE:
            found.append((position, position + length, by_assistant(source)))
        position += length
    return found


def _without_gaps(offsets: Spans) -> Spans:
    found, reached = [], 0
    for start, end in offsets:
        found.append((min(start, reached) if start > reached else start, end))
        reached = max(reached, end)
    return found
