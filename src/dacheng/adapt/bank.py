"""Several adapters on one base, by name: loaded and let go while others are in use."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

from dacheng.adapt.attach import attach, detach, rows_of
from dacheng.errors import DachengError, UsageError
from dacheng.formats.peft import read_adapter
from dacheng.models.decoder import Decoder
from dacheng.nn.lora import BASE, AdapterRows
from dacheng.nn.lora_config import Adapter

MAX_ADAPTERS = 64


class AdapterBank:
    """The adapters of one model.

    The model is changed by `install`, `unload` and `release`: while an engine steps, only its thread calls them
    (AsyncEngine.load_adapter does). `read` may run anywhere. Each load gets a number that is never used again, so what
    was computed with one is never taken for another's.
    """

    def __init__(self, model: Decoder, *, max_adapters: int = MAX_ADAPTERS) -> None:
        self.model, self.max_adapters = model, max_adapters
        self._numbers: dict[str, int] = {}
        self._held: Counter[int] = Counter()  # requests, by the number of their adapter
        self._leaving: set[int] = set()  # unloaded, and still in use
        self._last = max(rows_of(model, make=True).known, default=BASE)
        self._lock = threading.RLock()

    @property
    def rows(self) -> AdapterRows:
        return rows_of(self.model)

    @property
    def names(self) -> list[str]:
        with self._lock:
            return list(self._numbers)

    def read(self, path: Path | str) -> Adapter:
        """Raises DachengError; the model is not touched."""
        return read_adapter(path, self.model)

    def load(self, name: str, path: Path | str) -> Adapter:
        """Reads a PEFT directory and puts it on the model. Raises DachengError; nothing has changed then."""
        adapter = self.read(path)
        self.install(name, adapter)
        return adapter

    def install(self, name: str, adapter: Adapter) -> None:
        """Raises UsageError for a name that is taken or empty, or when there are too many."""
        with self._lock:
            if not name or name in self._numbers:
                raise UsageError("an adapter has this name" if name else "an adapter needs a name", field="adapter",
                                 value=name, remedy="unload it first, or choose another name")  # fmt: skip
            if len(self._numbers) + len(self._leaving) >= self.max_adapters:
                raise UsageError("there are as many adapters as may be", field="max_adapters",
                                 value=self.max_adapters, remedy="unload one first")  # fmt: skip
            for part in adapter.parts.values():
                part.requires_grad_(False)
            attach(self.model, adapter, self._last + 1)
            self._last += 1
            self._numbers[name] = self._last

    def unload(self, name: str) -> bool:
        """No request gets it from now on; its weights go when the last that has it ends. Returns whether they are gone
        already. Raises DachengError where there is none of this name."""
        with self._lock:
            number = self._number(name)
            del self._numbers[name]
            self._leaving.add(number)
            return self._let_go(number)

    def acquire(self, name: str) -> int:
        """Its number, for a request; "" is the base. Raises DachengError where there is none of this name."""
        with self._lock:
            number = self._number(name)
            self._held[number] += number != BASE
            return number

    def release(self, number: int) -> None:
        """A request that acquired it has ended."""
        with self._lock:
            self._held[number] -= number != BASE
            self._let_go(number)

    def check(self, name: str) -> None:
        with self._lock:
            self._number(name)

    def _number(self, name: str) -> int:
        if name and name not in self._numbers:
            raise DachengError("there is no adapter of this name", field="adapter", value=name,
                               remedy="there is " + (", ".join(self._numbers) or "none"))  # fmt: skip
        return self._numbers[name] if name else BASE

    def _let_go(self, number: int) -> bool:
        if number not in self._leaving or self._held[number] > 0:
            return False
        self._leaving.discard(number)
        del self._held[number]
        detach(self.model, number)
        return True
