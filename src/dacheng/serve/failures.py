"""What is logged of a failure."""

from __future__ import annotations

import logging
import traceback

log = logging.getLogger("dacheng.serve")


def log_failure(error: BaseException, request_id: str) -> None:
    """Where it happened, without the message: it may hold what was asked."""
    places = "".join(traceback.format_tb(error.__traceback__))
    log.error("request %s failed with %s\n%s", request_id, type(error).__name__, places)
