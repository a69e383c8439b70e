"""Thoughts apart from the answer: <think>…</think>, in pieces of any size."""

from __future__ import annotations

from typing import Any

from dacheng.serve.markers import possible_start, trailing_space

OPEN, CLOSE = "<think>", "</think>"


def thinking_variables(template: str, effort: str | None, reasons: bool) -> dict[str, Any] | None:
    """For the template: how much the model is to think. None where it cannot be told so. effort: OpenAI's, "none" for
    not at all; None: nothing is asked. reasons: whether the model thinks unless it is told not to."""
    if effort is None:
        return {}
    if effort == "none" and (not reasons or "enable_thinking" in template):
        return {"enable_thinking": False} if reasons else {}
    return {"reasoning_effort": effort} if "reasoning_effort" in template else None


class ReasoningSplitter:
    """Turns text into (is_thought, text) pieces. A thought stands only at the beginning (after white space); what it is
    does not depend on how the text is split, and white space next to the markers belongs to them.

    inside: the prompt has already opened the thought.
    """

    def __init__(self, inside: bool = False) -> None:
        self._held, self._state = "", "thought" if inside else "start"
        self._begun = False  # a character of this part has been given out

    @property
    def thinking(self) -> bool:
        """A thought is open."""
        return self._state == "thought"

    def push(self, piece: str) -> list[tuple[bool, str]]:
        if self._state == "answer" and self._begun:
            return [(False, piece)] if piece else []
        self._held += piece
        return self._advance(final=False)

    def finish(self) -> list[tuple[bool, str]]:
        return self._advance(final=True)

    def _advance(self, final: bool) -> list[tuple[bool, str]]:
        out: list[tuple[bool, str]] = []
        if self._state == "start":
            rest = self._held.lstrip()
            if rest.startswith(OPEN):
                self._held, self._state = rest[len(OPEN) :], "thought"
            elif final or not OPEN.startswith(rest):
                self._state, self._begun = "answer", True  # no thought: the white space is the answer's own
            else:
                return out
        if self._state == "thought":
            out += self._thought(final)
        if self._state == "answer" and self._held:
            text = self._held if self._begun else self._held.lstrip()
            if text:
                self._begun, self._held = True, ""
                out.append((False, text))
        return out

    def _thought(self, final: bool) -> list[tuple[bool, str]]:
        if not self._begun:
            self._held = self._held.lstrip()
        thought, closed, answer = self._held.partition(CLOSE)
        if closed:
            self._held, self._state, self._begun = answer, "answer", False
            thought = thought.rstrip()
            return [(True, thought)] if thought else []
        kept = 0 if final else possible_start(thought, [CLOSE])
        kept += trailing_space(thought[: len(thought) - kept])
        if final:
            kept = trailing_space(thought)
        shown, self._held = thought[: len(thought) - kept], thought[len(thought) - kept :]
        if final:
            self._held = ""
        self._begun = self._begun or bool(shown)
        return [(True, shown)] if shown else []
