"""The chat renderer: conversations to token ids, loss masks and spans, by the template stored with the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dacheng.lazy import exports

if TYPE_CHECKING:
    from dacheng.text.chat.builtin import TEMPLATES
    from dacheng.text.chat.renderer import ChatRenderer, Rendered, Span

__all__ = ["TEMPLATES", "ChatRenderer", "Rendered", "Span"]

__getattr__ = exports(__name__, {"builtin": ("TEMPLATES",), "renderer": ("ChatRenderer", "Rendered", "Span")})
