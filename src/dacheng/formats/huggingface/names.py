"""Weight names, ours and a family's, from one table of templates read in both directions."""

from __future__ import annotations

import re
from collections.abc import Mapping


class NameTable:
    """`{i}` in a template stands for a layer number, the same on both sides.

    >>> table = NameTable({"blocks.{i}.attention.q.weight": "model.layers.{i}.self_attn.q_proj.weight"})
    >>> table.theirs("blocks.11.attention.q.weight")
    'model.layers.11.self_attn.q_proj.weight'
    >>> table.ours("model.layers.11.self_attn.q_proj.weight")
    'blocks.11.attention.q.weight'
    """

    def __init__(self, templates: Mapping[str, str]) -> None:
        """`templates` maps ours to theirs, one to one."""
        self._theirs = dict(templates)
        self._ours = {theirs: ours for ours, theirs in templates.items()}
        if len(self._ours) != len(self._theirs):
            raise ValueError("two of our names map to one of theirs")

    def theirs(self, name: str) -> str | None:
        """None: the family has no such weight."""
        return _translate(self._theirs, name)

    def ours(self, name: str) -> str | None:
        """None: the family does not know the name."""
        return _translate(self._ours, name)


_NUMBER = re.compile(r"(?<=\.)(0|[1-9][0-9]{0,5})(?=\.)")  # canonical: "01" is another name


def _translate(templates: Mapping[str, str], name: str) -> str | None:
    if name in templates and "{i}" not in name:
        return templates[name]
    for number in _NUMBER.finditer(name):  # which of several is the layer's, the table knows
        template = templates.get(name[: number.start()] + "{i}" + name[number.end() :])
        if template is not None:
            return template.replace("{i}", number.group())
    return None
