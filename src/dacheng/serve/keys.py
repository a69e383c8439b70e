"""API keys: read from a file or the environment, compared in constant time, never shown."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from dacheng.errors import UsageError

VARIABLE = "DACHENG_API_KEY"
SHORTEST = 8


class Keys:
    """The keys that are let in; none at all lets everyone in. Only their hashes are kept."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        """Raises UsageError, without the key, for one that is too short or holds white space."""
        self._digests = []
        for i, key in enumerate(keys):
            if len(key) < SHORTEST or key.split() != [key] or not key.isascii():
                raise UsageError(
                    f"key {i + 1} is no key", field="api_key", remedy=f"at least {SHORTEST} ASCII characters, no spaces"
                )
            self._digests.append(hashlib.sha256(key.encode()).digest())

    @classmethod
    def read(cls, file: Path | None, environment: Mapping[str, str] = os.environ) -> Keys:
        """One key a line (empty lines and lines with # are left out), or those of DACHENG_API_KEY, split at commas.

        Raises UsageError when a file was named and holds no key.
        """
        if file is not None:
            lines = file.read_text(encoding="utf-8").splitlines()
            keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
            if not keys:
                raise UsageError("there is no key in this file", field="api_key_file", value=str(file),
                                 remedy="write one key a line")  # fmt: skip
            return cls(keys)
        return cls(key.strip() for key in environment.get(VARIABLE, "").split(",") if key.strip())

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admit(self, headers: Mapping[str, str]) -> bool:
        """Whether `Authorization: Bearer KEY` or `X-Api-Key: KEY` (headers by lower-case name) is one of the keys."""
        return self.tenant(headers) is not None

    def tenant(self, headers: Mapping[str, str]) -> str | None:
        """A name for whoever has the key, the same for each key (and "" where no key is needed); None: not let in."""
        if not self._digests:
            return ""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        digest = hashlib.sha256(given.encode("utf-8", "replace")).digest()
        found = False
        for known in self._digests:  # all of them, always: the time tells nothing
            found |= hmac.compare_digest(digest, known)
        return hashlib.sha256(b"tenant" + digest).hexdigest()[:16] if found else None
