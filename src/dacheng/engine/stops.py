"""From token ids to text that may be shown: whole characters only, and never a part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class StreamDecoder(Protocol):
    """Bytes to text, a token at a time: dacheng.text's `Tokenizer.stream_decoder()`."""

    def push(self, token_id: int) -> str:
        """The characters that are complete now; never half a UTF-8 character."""
        ...

    def finish(self) -> str:
        """What is left: U+FFFD where the bytes end inside a character."""
        ...


class StopMatcher:
    """Cuts a stream of text at the first stop string, and holds back whatever could yet become one.

    The stop that *ends* first wins; of two that end together, the longer. That is the reading of a stream character by
    character, so the result does not depend on how the text is split into pieces, and no released text ever contains a
    stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.stopped = False
        self._held = ""

    def push(self, piece: str) -> str:
        """Text that may be shown now. Sets `stopped` when a stop string is complete: everything after is ignored."""
        if self.stopped:
            return ""
        if not self.stops:
            return piece
        window = self._held + piece
        found = [(start + len(stop), start) for stop in self.stops if (start := window.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return window[: min(found)[1]]
        kept = self._possible_start(window)
        self._held = window[len(window) - kept :]
        return window[: len(window) - kept]

    def release(self) -> str:
        """The end of the stream: what was held back is ordinary text after all."""
        held, self._held = self._held, ""
        return held

    def _possible_start(self, window: str) -> int:
        """Length of the longest end of `window` with which a stop string begins."""
        longest = max(len(stop) for stop in self.stops) - 1
        for length in range(min(longest, len(window)), 0, -1):
            end = window[-length:]
            if any(stop.startswith(end) for stop in self.stops):
                return length
        return 0


class OutputText:
    """The text of one request so far, as the pieces that were released.

    `prompt`: the ids before it. The decoder reads them first: a space after them is a space, not the start of a text,
    and a character that began in them is whole.
    """

    def __init__(self, decoder: StreamDecoder, stops: Sequence[str] = (), prompt: Sequence[int] = ()) -> None:
        self.pieces: list[str] = []
        self._decoder, self._matcher = decoder, StopMatcher(stops)
        self._finished = False
        for token_id in prompt:
            decoder.push(token_id)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def stopped(self) -> bool:
        """A stop string is complete."""
        return self._matcher.stopped

    def push(self, token_id: int, *, may_stop: bool = True) -> str:
        """may_stop: False shows the text as it is, whatever is in it."""
        piece = self._decoder.push(token_id)
        return self._release(self._matcher.push(piece) if may_stop else piece)

    def finish(self) -> str:
        """Ends the text and returns its last piece. Ending it again returns ""."""
        if self._finished:
            return ""
        self._finished = True
        return self._release(self._matcher.push(self._decoder.finish()) + self._matcher.release())

    def _release(self, piece: str) -> str:
        if piece:
            self.pieces.append(piece)
        return piece
