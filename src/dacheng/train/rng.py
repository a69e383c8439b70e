"""Streams of random numbers, named by purpose, so that drawing more of one never shifts another."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from dacheng.errors import DamagedFile

PURPOSES = ("init", "data", "dropout", "sampling")
_PER_RANK = ("dropout", "sampling")  # init and data must agree on all ranks


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose: sha256 of both, so that neighbouring seeds share nothing."""
    text = json.dumps([seed, *purpose])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class RngStreams:
    """One generator per purpose, seeded from (seed, purpose) and, for dropout and sampling, the rank.

    "dropout" is the global generator of the device (that of torch.nn.functional.dropout); Python's and numpy's global
    generators are seeded too and saved with the rest, for objectives and sources that use them.
    """

    def __init__(self, seed: int, rank: int = 0, device: str = "cpu") -> None:
        self.seed, self.rank, self.device = seed, rank, torch.device(device)
        self._streams: dict[str, torch.Generator] = {}
        torch.manual_seed(derive_seed(seed, "dropout", rank))
        random.seed(derive_seed(seed, "python", rank))
        np.random.seed(derive_seed(seed, "numpy", rank) & 0xFFFFFFFF)

    def generator(self, purpose: str) -> torch.Generator:
        """The stream of `purpose`: one of PURPOSES or a name of your own. Made on first use; CPU, except "dropout"."""
        if purpose == "dropout":
            return _global_generator(self.device)
        if purpose not in self._streams:
            parts = (purpose, self.rank) if purpose in _PER_RANK else (purpose,)
            self._streams[purpose] = torch.Generator().manual_seed(derive_seed(self.seed, *parts))
        return self._streams[purpose]

    def state_dict(self) -> dict[str, Tensor]:
        """Everything as uint8 tensors: `global.*` and `stream.<purpose>`."""
        states = {f"stream.{name}": stream.get_state() for name, stream in self._streams.items()}
        return {**_global_states(), **states}

    def load_state_dict(self, states: Mapping[str, Tensor]) -> None:
        """Raises DamagedFile when a state is not one of this generator."""
        try:
            _set_global_states(states)
            for name, state in states.items():
                if name.startswith("stream."):
                    self.generator(name.removeprefix("stream.")).set_state(state)
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            raise DamagedFile("a saved random state cannot be restored", field="rng", value=str(error)) from error


@contextmanager
def isolated() -> Iterator[None]:
    """Restores the global generators afterwards: an evaluation must not change what training draws next."""
    saved = _global_states()
    try:
        yield
    finally:
        _set_global_states(saved)


def _global_generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0]
    if device.type == "mps":
        return torch.mps._get_default_mps_generator()
    return torch.default_generator


def _global_states() -> dict[str, Tensor]:
    states = {"global.torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["global.cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        states["global.mps"] = torch.mps.get_rng_state()
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    states["global.numpy"] = _to_bytes([kind, [int(key) for key in keys], position, has_gauss, gauss])
    states["global.python"] = _to_bytes(random.getstate())
    return states


def _set_global_states(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["global.torch"])
    if "global.cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["global.cuda"])
    if "global.mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["global.mps"])
    kind, keys, position, has_gauss, gauss = _from_bytes(states["global.numpy"])
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    version, numbers, gauss_next = _from_bytes(states["global.python"])
    random.setstate((version, tuple(numbers), gauss_next))


def _to_bytes(value: object) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _from_bytes(tensor: Tensor) -> list:
    return json.loads(bytes(tensor.tolist()))
