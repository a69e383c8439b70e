"""What the trainer asks of the other processes. With one process (or none initialised) everything is the identity.

Numbers travel as JSON, gradients as flat buffers; nothing is pickled. Tested on: gloo, CPU. Experimental: nccl.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dacheng.errors import DachengError

BUCKET_BYTES = 32 << 20  # of one all-reduce: large enough to hide latency, small enough not to double the memory


def initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if initialised() else 0


def world_size() -> int:
    return dist.get_world_size() if initialised() else 1


def gather(value: Any) -> list[Any]:
    """Every rank's `value` (plain JSON data; floats exactly, NaN too), in order of rank, on every rank."""
    if world_size() == 1:
        return [value]
    data = json.dumps(value).encode()
    sizes = _all_gather(torch.tensor([len(data)], dtype=torch.int64, device=_device()))
    lengths = [int(size) for size in sizes]
    padded = torch.zeros(max(lengths), dtype=torch.uint8, device=_device())
    padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    parts = _all_gather(padded)
    return [json.loads(bytes(part[:length].tolist())) for part, length in zip(parts, lengths)]


def from_first(value: Any) -> Any:
    """Rank 0's `value` on every rank."""
    return gather(value if rank() == 0 else None)[0]


def on_first(function: Callable[[], Any]) -> Any:
    """Calls `function` on rank 0 and gives its value to every rank. A DachengError there is raised on every rank: the
    others must not wait for a rank that has given up."""
    failure: DachengError | None = None
    value = None
    if rank() == 0:
        try:
            value = function()
        except DachengError as error:
            failure = error
    told = from_first({"value": value, "failure": failure.problem if failure else None})
    if failure is not None:
        raise failure
    if told["failure"] is not None:
        raise DachengError(f"rank 0 gave up: {told['failure']}", remedy="see the error of rank 0")
    return told["value"]


def sum_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Replaces each .grad with its sum over the ranks: never the average, the loss is divided by global counts already.

    A parameter that has no gradient on some ranks counts as zero there; one that has none anywhere keeps None.
    """
    if world_size() == 1:
        return
    present = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8, device=_device())
    dist.all_reduce(present, op=dist.ReduceOp.MAX)
    used = [p for p, here in zip(parameters, present.tolist()) if here]
    for parameter in used:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets([p.grad for p in used if p.grad is not None]):
        flat = torch.cat([grad.reshape(-1) for grad in bucket])
        dist.all_reduce(flat, op=dist.ReduceOp.SUM)
        for grad, total in zip(bucket, flat.split([grad.numel() for grad in bucket])):
            grad.copy_(total.view_as(grad))


def _buckets(grads: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of one dtype of at most BUCKET_BYTES (a larger tensor is alone in its own), in the same order everywhere."""
    bucket: list[Tensor] = []
    size = 0
    for grad in grads:
        nbytes = grad.numel() * grad.element_size()
        if bucket and (size + nbytes > BUCKET_BYTES or grad.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(grad)
        size += nbytes
    if bucket:
        yield bucket


def _all_gather(tensor: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor)
    return parts


def _device() -> torch.device:
    """Where the backend's tensors must live."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
