"""The page on which pairs are labelled: which pair is next, what is said of it, what was taken back, agreement."""

from __future__ import annotations

import asyncio
from typing import Any

from dacheng.align.labelling.agreement import agreement_report
from dacheng.align.labelling.labels import LONGEST_NOTE, check_annotator
from dacheng.align.labelling.pairs import spoken
from dacheng.align.labelling.session import SAID, Session, Shown
from dacheng.errors import UsageError
from dacheng.serve.api_error import APIError
from dacheng.serve.endpoint import Handler
from dacheng.serve.exchange import Exchange
from dacheng.serve.fields import Fields

MOST_SECONDS = 86400.0  # of one label: a page that was left open says nothing of the time it took


def label_handlers(session: Session) -> list[tuple[str, str, Handler]]:
    """(method, path, handler) of each route."""

    async def following(exchange: Exchange) -> Any:
        """{"annotator"} -> the pair that they see next, or none, and how far they are."""
        name = _annotator(exchange.body)
        exchange.body.done()
        return await asyncio.to_thread(_next, session, name)

    async def say(exchange: Exchange) -> Any:
        """{"annotator", "pair", "said", "seconds"?, "note"?} -> the next pair. said: one of session.SAID."""
        body, name = exchange.body, _annotator(exchange.body)
        pair = body.demand("pair", body.text("pair", longest=64))
        said = body.demand("said", body.text("said", choices=tuple(SAID)))
        seconds, note = body.number("seconds", low=0), body.text("note", "", longest=LONGEST_NOTE)
        body.done()
        took = None if seconds is None or seconds > MOST_SECONDS else round(seconds, 2)

        def work() -> dict[str, Any]:
            session.say(name, pair, said, took, note)
            return _next(session, name)

        return await _checked(work)

    async def undo(exchange: Exchange) -> Any:
        """{"annotator"} -> the pair whose label was taken back; {"undone": false} where there is none."""
        name = _annotator(exchange.body)
        exchange.body.done()

        def work() -> dict[str, Any]:
            undone = session.undo(name)
            return {"undone": undone is not None, **_next(session, name)}

        return await _checked(work)

    async def agreement(exchange: Exchange) -> Any:
        def work() -> dict[str, Any]:
            labels, damaged = session.store.read()
            return agreement_report(labels, list(session.pairs.values()), damaged)

        return await asyncio.to_thread(work)

    return [
        ("POST", "/label/next", following),
        ("POST", "/label/say", say),
        ("POST", "/label/undo", undo),
        ("GET", "/label/agreement", agreement),
    ]


def _annotator(body: Fields) -> str:
    name = body.demand("annotator", body.text("annotator"))
    try:
        return check_annotator(name)
    except UsageError as error:
        problem = f"{error.problem}: {error.remedy}"
        raise APIError(400, problem, param="annotator", code="invalid_value") from None


async def _checked(work: Any) -> Any:
    try:
        return await asyncio.to_thread(work)
    except UsageError as error:
        raise APIError(400, f"{error.problem}: {error.remedy}", param=error.field, code="invalid_value") from None


def _next(session: Session, annotator: str) -> dict[str, Any]:
    shown = session.next(annotator)
    if shown is None:
        return {"pair": None, "done": session.count(annotator), "total": len(session.pairs)}
    return {"pair": _as_plain(shown), "done": shown.done, "total": shown.total}


def _as_plain(shown: Shown) -> dict[str, Any]:
    """Without which reply is a and which is b, and what the file says of them."""
    prompt = [{"role": str(m.get("role")), "text": spoken([m])} for m in shown.pair.prompt]
    first, second = (spoken(shown.pair.reply(name)) for name in shown.replies)
    return {"id": shown.pair.id, "prompt": prompt, "first": first, "second": second}
