"""hf:org/name@revision:file.gguf, and the addresses that it stands for."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from dacheng.errors import UsageError

PREFIX = "hf:"
DEFAULT_ENDPOINT = "https://huggingface.co"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_FORM = re.compile(
    rf"hf:(?P<repo>{_NAME}(?:/{_NAME})?)(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]*))?(?::(?P<file>[^:]+))?"
)


@dataclass(frozen=True, slots=True)
class HubReference:
    """A repository at a revision (a branch, a tag, a commit), and one file of it where a GGUF file is meant."""

    repo: str
    revision: str = "main"
    file: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubReference:
        """Raises UsageError with the form that is expected."""
        found = _FORM.fullmatch(text)
        if found is None or ".." in text or "//" in text:
            raise UsageError("this names no model of the hub", field="source", value=text,
                             remedy="write hf:org/name@revision, or hf:org/name@revision:file.gguf")  # fmt: skip
        file = found["file"]
        if file is not None and not file.endswith(".gguf"):
            raise UsageError("a single file is a .gguf file", field="source", value=file,
                             remedy="leave it out to take the whole model")  # fmt: skip
        return cls(found["repo"], found["revision"] or "main", file)

    def __str__(self) -> str:
        return f"{PREFIX}{self.repo}@{self.revision}" + (f":{self.file}" if self.file else "")

    def listing_url(self, endpoint: str) -> str:
        return f"{endpoint}/api/models/{quote(self.repo)}/revision/{quote(self.revision, safe='')}?blobs=true"

    def file_url(self, endpoint: str, commit: str, path: str) -> str:
        return f"{endpoint}/{quote(self.repo)}/resolve/{quote(commit, safe='')}/{quote(path)}"


def endpoint() -> str:
    """Where the hub is: HF_ENDPOINT (a mirror, say), else huggingface.co. UsageError when it is no address, or
    HF_HUB_OFFLINE says that nothing may be fetched."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise UsageError("the hub may not be used", field="HF_HUB_OFFLINE", value=os.environ["HF_HUB_OFFLINE"],
                         remedy="unset it, or import a local directory or file")  # fmt: skip
    found = os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
    parts = urlsplit(found)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise UsageError("HF_ENDPOINT is no address", field="HF_ENDPOINT", value=found,
                         remedy=f"unset it, or set it to one like {DEFAULT_ENDPOINT}")  # fmt: skip
    return found.rstrip("/")


def token() -> str | None:
    """HF_TOKEN, for repositories that ask who you are. It is sent to the endpoint only and never shown."""
    return (os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN") or "").strip() or None
