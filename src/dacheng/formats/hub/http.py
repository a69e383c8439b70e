"""Requests to the hub: proxies, redirects, retries, and errors that say what to do.

urllib reads HTTP_PROXY, HTTPS_PROXY and NO_PROXY, and SSL_CERT_FILE for a certificate authority of one's own.
"""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

from dacheng import __version__
from dacheng.errors import DachengError

TIMEOUT_S = 30.0
ATTEMPTS = 6
FIRST_PAUSE_S = 0.5  # doubles with each attempt: 15 s together
LONGEST_PAUSE_S = 60.0  # of what a server asks for in Retry-After
_PASSING = (408, 425, 429, 500, 502, 503, 504)
NETWORK = (OSError, http.client.HTTPException)  # refused, reset, timed out, cut short; URLError is an OSError

Found = TypeVar("Found")


class Interrupted(Exception):
    """A transfer that may succeed when it is tried again. `progress`: it brought something, so patience begins anew."""

    def __init__(self, reason: str, *, pause_s: float | None = None, progress: bool = False) -> None:
        super().__init__(reason)
        self.pause_s, self.progress = pause_s, progress


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to other servers without the token, and none from https to http."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme == "https" and new.scheme == "http"):
            raise _no_redirect(_shown(newurl))
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        secret = req.get_header("Authorization")
        same = (old.scheme, old.hostname, old.port) == (new.scheme, new.hostname, new.port)
        if following is not None and secret is not None and same:
            following.add_unredirected_header("Authorization", secret)
        return following


def open_url(url: str, token: str | None, start: int = 0) -> http.client.HTTPResponse:
    """The response, from byte `start` on where the server can. Raises Interrupted for what may pass, DachengError for
    what won't."""
    request = urllib.request.Request(
        url, headers={"User-Agent": f"dacheng/{__version__}", "Accept-Encoding": "identity"}
    )
    if token is not None:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    if start:
        request.add_header("Range", f"bytes={start}-")
    opener = urllib.request.build_opener(_Redirects)
    try:
        return opener.open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        with error:
            if error.code in _PASSING:
                raise Interrupted(f"HTTP {error.code}", pause_s=_retry_after(error.headers)) from None
            if error.code == 416:
                raise Interrupted("HTTP 416", pause_s=0.0) from None
            raise _refused(error, url, token is not None) from None
    except NETWORK as error:
        raise Interrupted(str(getattr(error, "reason", None) or error or type(error).__name__)) from None


def patiently(work: Callable[[], Found], what: str, note: Callable[[str], Any]) -> Found:
    """Runs `work` until it is not Interrupted, at most ATTEMPTS times without progress. Raises DachengError then."""
    failed = 0
    while True:
        try:
            return work()
        except Interrupted as error:
            failed = 1 if error.progress else failed + 1
            if failed >= ATTEMPTS:
                raise DachengError(
                    f"{what}: {error}, {failed} times", field="url",
                    remedy="try again later: what has been fetched is kept; behind a firewall set HTTPS_PROXY, or "
                    "HF_ENDPOINT to a mirror",
                ) from None  # fmt: skip
            pause = error.pause_s if error.pause_s is not None else FIRST_PAUSE_S * 2 ** (failed - 1)
            note(f"{what}: {error}; again in {pause:.1f} s")
            time.sleep(min(pause, LONGEST_PAUSE_S))


def _retry_after(headers: Message | None) -> float | None:
    value = str(headers["Retry-After"]) if headers is not None else ""
    return float(value) if value.isdecimal() else None


def _refused(error: urllib.error.HTTPError, url: str, with_token: bool) -> DachengError:
    shown = _shown(url)
    if error.code in (401, 403):
        remedy = "accept its terms on its page, and set HF_TOKEN to a token of yours that may read it"
        if with_token:
            remedy = "accept its terms on its page; HF_TOKEN is set, but may not read it"
        return DachengError(f"HTTP {error.code}: this repository is gated or private, or there is none", field="url",
                            value=shown, remedy=remedy)  # fmt: skip
    if error.code == 404:
        return DachengError("HTTP 404: there is no such repository, revision or file", field="url", value=shown,
                            remedy="check the name and the revision")  # fmt: skip
    if 300 <= error.code < 400:  # urllib's own refusal; its text has the whole address, signature included
        return _no_redirect(shown)
    return DachengError(f"HTTP {error.code}: {error.reason}", field="url", value=shown,
                        remedy="check HF_ENDPOINT and the proxy")  # fmt: skip


def _no_redirect(shown: str) -> DachengError:
    return DachengError("the hub redirects to an address that is not followed", field="url", value=shown,
                        remedy="check HF_ENDPOINT and the proxy")  # fmt: skip


def _shown(url: str) -> str:
    """Without a query, which in a redirect holds a signature."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
