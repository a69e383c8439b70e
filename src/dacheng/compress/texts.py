"""A text that is always there: what calibrates a model when nobody gives a better one."""

from __future__ import annotations


def python_topics() -> str:
    """The language reference that every Python carries (pydoc's topics): some 100,000 words of English and code."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))
