"""Weights from the trainer to a process that writes rollouts: a group of two over gloo, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dacheng.errors import DachengError
from dacheng.formats.meta import on_meta
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits

TRAINER, WRITER = 0, 1
_CONNECT_S = 120.0


class WeightLink:
    """One end of it. Each process that writes has a link of its own, so that one that dies takes no other along.

    store: a file that both ends name, used once. Raises DachengError where the other end is gone.
    """

    def __init__(self, store: Path, rank: int, timeout_s: float = _CONNECT_S) -> None:
        gloo: Any = dist.ProcessGroupGloo  # a group of its own: the trainer's default one stays free
        options = gloo._Options()
        options._devices = [gloo.create_device(hostname="127.0.0.1")]
        options._timeout = timedelta(seconds=timeout_s)
        self.rank = rank
        try:
            self._group = gloo(dist.FileStore(str(store), 2), rank, 2, options)
        except RuntimeError as error:
            raise _lost(error) from None

    def send(self, tensors: Iterator[Tensor] | list[Tensor]) -> None:
        for tensor in tensors:
            try:
                self._group.send([tensor.contiguous()], WRITER, 0).wait()
            except RuntimeError as error:
                raise _lost(error) from None

    @torch.no_grad()
    def receive(self, tensors: Iterator[Tensor]) -> None:
        """Into these, in the sender's order."""
        for tensor in tensors:
            into = tensor if tensor.is_contiguous() else torch.empty_like(tensor).contiguous()
            try:
                self._group.recv([into], TRAINER, 0).wait()
            except RuntimeError as error:
                raise _lost(error) from None
            if into is not tensor:
                tensor.copy_(into)


def _lost(error: Exception) -> DachengError:
    reason = str(error).strip().splitlines()
    return DachengError(
        "the other end of the weights' link is gone", field="weights", value=reason[0] if reason else ""
    )


@torch.no_grad()
def plain_tensors(model: Decoder) -> list[Tensor]:
    """Copies of the weights of the plain decoder that this model is: an adapter that every row goes through is in
    them. In the order of names. Raises DachengError for a weight that is no float (packed)."""
    made = []
    for name in plain_names(model.traits):
        prefix, _, leaf = name.rpartition(".")
        found = getattr(model.get_submodule(prefix), leaf, None)
        if not isinstance(found, Tensor):
            raise DachengError("only float weights are sent to processes", field=name,
                               remedy="load the model unpacked, or workers: 0")  # fmt: skip
        made.append(found.detach().float().cpu().clone())
    return made


def plain_names(traits: DecoderTraits) -> list[str]:
    """Of the weights of a decoder of these traits, a tied one once."""
    with on_meta():
        return [name for name, _ in Decoder(traits).named_parameters()]
