"""JSON objects in layouts of their own: what reading conversations, preferences, pairs and prompts has in common."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dacheng.data.chat_layouts import NoChat
from dacheng.data.readers import MAX_NAMES, encodable
from dacheng.data.sources import SourceSpec
from dacheng.records import Drops, Record


@dataclass(frozen=True, kw_only=True)
class ObjectSpec(SourceSpec):
    """A subclass says what an object says, by `read`; what is none is dropped with its reason, and fields that nobody
    read are counted as ignored."""

    def read(
        self, value: Mapping[str, Any], where: str, size: int, meta: dict[str, Any], drops: Drops
    ) -> tuple[list[Record], set[str]]:
        """Records, and the names of the fields that were read. Raises NoChat with the reason for an object that says
        none."""
        raise NotImplementedError

    def records(
        self, value: Any, where: str, size: int, meta: dict[str, Any], drops: Drops, ignored: Counter[str]
    ) -> Iterator[Record]:
        if not isinstance(value, Mapping):
            drops.drop("not_an_object", size, where)
            return
        try:
            found, used = self.read(value, where, size, meta, drops)
        except NoChat as error:
            drops.drop(error.reason, size, where)
            return
        yield from found
        for name in value:
            if found and name not in used:
                ignored[name if name in ignored or len(ignored) < MAX_NAMES else "(others)"] += 1

    def columns(self) -> None:
        return None


def storable(value: Any, where: str, drops: Drops) -> Any:
    """JSON data whose texts can be written as UTF-8 (see readers.encodable); tuples become lists."""
    return json.loads(encodable(json.dumps(value, ensure_ascii=False), where, drops))
