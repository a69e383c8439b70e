"""Text from token ids as they come, in whole characters."""

from __future__ import annotations

import codecs
from collections.abc import Callable


class StreamDecoder:
    """Turns token ids into text one at a time: all that `push` and `finish` return is `Tokenizer.decode` of the ids.

    A token may end inside a UTF-8 character; its bytes are held back until the character is complete. U+FFFD comes out
    only where no continuation could make a character: after a byte that does not fit, or at `finish`.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], *, drop_first_space: bool = False) -> None:
        """token_bytes: the bytes of an id. drop_first_space: the text begins with a space that is not the text's own
        (SentencePiece puts one before the first word)."""
        self._token_bytes, self._drop_first_space = token_bytes, drop_first_space
        self._begin()

    def push(self, token_id: int) -> str:
        """The characters that `token_id` completes, often none. Raises UsageError on an id that is no token."""
        return self._from_start(self._utf8.decode(self._token_bytes(token_id)))

    def finish(self) -> str:
        """What is left: U+FFFD if the bytes end inside a character. The next `push` begins a new text."""
        text = self._from_start(self._utf8.decode(b"", final=True))
        self._begin()
        return text

    def _begin(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = True

    def _from_start(self, text: str) -> str:
        if self._at_start and text:
            self._at_start = False
            return text.removeprefix(" ") if self._drop_first_space else text
        return text
