"""The chat page, that of a run, and the one for labelling: static files that ask nothing of anyone but this server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SCRIPTS = ("chat.js", "column.js", "stream.js", "texts.js", "tokens.js")
_FILES = {
    "/": ("chat.html", "text/html"),
    "/chat.css": ("chat.css", "text/css"),
    **{f"/{name}": (name, "text/javascript") for name in _SCRIPTS},
}
_RUN_FILES = {
    "/run": ("run.html", "text/html"),
    "/run.css": ("run.css", "text/css"),
    **{f"/{name}": (name, "text/javascript") for name in ("run.js", "run_chat.js", "run_texts.js", "run_view.js")},
}
_LABEL_FILES = {
    "/label": ("label.html", "text/html"),
    "/label.css": ("label.css", "text/css"),
    **{f"/{name}": (name, "text/javascript") for name in ("label.js", "label_texts.js")},
}
PAGE_PATHS, RUN_PATHS, LABEL_PATHS = (
    tuple(_FILES),
    tuple(_RUN_FILES),
    tuple(_LABEL_FILES),
)  # without a key: what the pages ask for needs it


def page_routes(run: bool = False, label: bool = False) -> list[Route]:
    """run: the page of a run as well. label: the page for labelling as well."""
    found = _FILES | (_RUN_FILES if run else {}) | (_LABEL_FILES if label else {})
    return [Route(path, _static(name, kind), methods=["GET"]) for path, (name, kind) in found.items()]


def _static(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = (files("dacheng.serve") / "web" / name).read_bytes()
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}

    async def answer(request: Request) -> Response:
        return Response(content, media_type=kind, headers=headers)

    return answer
