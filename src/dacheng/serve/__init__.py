"""One model served over HTTP with the field's APIs: OpenAI's, Anthropic's, tokens, metrics, and a chat page.

Names are imported when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dacheng.lazy import exports

if TYPE_CHECKING:
    from dacheng.serve.app import make_app
    from dacheng.serve.keys import Keys
    from dacheng.serve.limits import Limits
    from dacheng.serve.served_model import Models, ServedModel
    from dacheng.serve.server import serve

__all__ = ["Keys", "Limits", "Models", "ServedModel", "make_app", "serve"]

__getattr__ = exports(
    __name__,
    {
        "app": ("make_app",),
        "keys": ("Keys",),
        "limits": ("Limits",),
        "served_model": ("Models", "ServedModel"),
        "server": ("serve",),
    },
)
