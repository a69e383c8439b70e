"""What the linear maps of a model see: one pass over some text, layer by layer, for every method that needs statistics.

Each layer's inputs are the outputs of the layer before it, which are kept in place of the whole computation: memory for
one layer and one hidden state a token, however deep the model is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dacheng.errors import DachengError, UsageError
from dacheng.nn.contexts import Context, PackedDocuments
from dacheng.nn.linear import Dense

_STRIP = 192  # rows of a Hessian that are summed at a time
WANTS = ("hessian", "absmax", "absmean", "sqnorm", "mean")


@dataclass(slots=True)
class InputStats:
    """Of the inputs x (in,) of one linear map, over `tokens` tokens: hessian (in, in), the mean of x xᵀ; absmax (in,)
    and absmean (in,) of |x|; sqnorm (in,), the sum of x² (so that its root is Wanda's ‖X_j‖₂); mean (in,) of x. All
    float32; None is what nobody asked for."""

    tokens: int = 0
    hessian: Tensor | None = None
    absmax: Tensor | None = None
    absmean: Tensor | None = None
    sqnorm: Tensor | None = None
    mean: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """To be stored; see `from_tensors`."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "tokens"}
        present = {name: value for name, value in found.items() if value is not None}
        return present | {"tokens": torch.tensor(self.tokens)}

    @classmethod
    def from_tensors(cls, values: dict[str, Tensor]) -> InputStats:
        rest = {name: value for name, value in values.items() if name in WANTS}
        return cls(int(values["tokens"]), **rest)


Stats = dict[str, InputStats]
"""By the name of the linear map, "blocks.0.attention.q". Maps that read one tensor (q, k, v) share one InputStats."""


@dataclass(slots=True)
class CalibrationBatch:
    """tokens (B, T) int64. context: what attention sees (None: each row one text from its first token). counted (B, T)
    bool: the tokens that statistics are of (None: all), so that padding isn't."""

    tokens: Tensor
    context: Context | None = None
    counted: Tensor | None = None

    @property
    def positions(self) -> Tensor:
        return torch.arange(self.tokens.shape[1], device=self.tokens.device).expand_as(self.tokens)

    @classmethod
    def of(cls, value: Any) -> CalibrationBatch:
        """Of token ids (B, T), or of a batch with `tokens` and perhaps `document_ids`."""
        if isinstance(value, cls):
            return value
        if isinstance(value, Tensor):
            return cls(value)
        ids = getattr(value, "document_ids", None)
        return cls(value.tokens, None if ids is None else PackedDocuments(ids))


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    want: Iterable[str] = ("hessian", "absmax", "absmean", "sqnorm", "mean"),
    *,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Stats:
    """Statistics of the inputs of every Dense in the blocks of a decoder or encoder, and of its head ("lm_head", or
    "embed" where it is tied).

    batches: CalibrationBatch, token ids (B, T) or TokenBatch. want: of WANTS. folder: keeps hidden states and finished
    layers there in place of in memory, so that a call that was stopped goes on (a folder of another model, text or want
    is begun anew). progress(layers done, layers). Hessians of all layers are large (in² a map): a method that needs one
    layer at a time goes through `dacheng.compress.walk.LayerWalk` itself.
    Raises UsageError for an unknown statistic and no text, DachengError naming the map and the batch for an input that
    is not finite.
    """
    from dacheng.compress.walk import LayerWalk

    wanted = check_want(want)
    walk = LayerWalk(model, batches, folder=folder, purpose="calibrate " + " ".join(sorted(wanted)))
    found: Stats = {}
    for kept in walk.kept():
        found |= _unpacked(kept)
    for layer in walk:
        stats = layer.collect(wanted)
        if folder is not None:
            layer.keep(_packed(stats))
        found |= stats
        if progress is not None:
            progress(layer.index + 1, len(walk))
    return found


def check_want(want: Iterable[str]) -> frozenset[str]:
    wanted = frozenset(want)
    for name in sorted(wanted - set(WANTS)):
        raise UsageError("there is no such statistic", field="want", value=name, remedy="any of " + ", ".join(WANTS))
    return wanted


def calibration_batches(
    ids: Sequence[int], *, rows: int = 32, length: int = 512, batch: int = 4, seed: int = 0
) -> list[Tensor]:
    """`rows` stretches of `length` tokens at random places of a text, `batch` at a time (B, T).

    Raises UsageError, saying how many there would be, where the text is shorter than one stretch for each row: places
    that overlap would count the same words twice.
    """
    if min(rows, length, batch) < 1:
        raise UsageError("must be at least 1", field="rows", value=[rows, length, batch], remedy="32 rows of 512")
    whole = len(ids) // length
    if whole < rows:
        raise UsageError(
            "the calibration text is too short", field="calibration", value=f"{len(ids)} tokens",
            remedy=f"give {rows * length} tokens or more, or ask for {whole} rows of {length}" if whole
            else f"give {rows * length} tokens or more, or shorter rows",
        )  # fmt: skip
    chosen = torch.randperm(whole, generator=torch.Generator().manual_seed(seed))[:rows]
    table = torch.tensor(ids[: whole * length], dtype=torch.int64).view(whole, length)
    return list(table[chosen].split(batch))


# --- one layer --------------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class _Site:
    """Maps that read the same tensor."""

    names: list[str] = field(default_factory=list)
    stats: InputStats = field(default_factory=InputStats)


class EverythingSeen(Exception):
    """All that is wanted of this forward has been seen: the rest of it may be left out."""


class Collector:
    """Sums over the inputs of the Dense maps in `modules` while it is attached (a context manager). A forward whose
    first batch called each of them once ends, from the second batch on, in EverythingSeen before the last one computes:
    the output of `down` is a quarter of a block, and nobody reads it."""

    def __init__(self, modules: dict[str, nn.Module], want: frozenset[str]) -> None:
        self.modules = {name: module for name, module in modules.items() if isinstance(module, Dense)}
        self.want = want
        self.counted: Tensor | None = None  # of the batch that is running
        self.batch = 0
        self._sites: dict[str, _Site] = {}
        self._alive: dict[Any, tuple[Tensor, _Site]] = {}  # by address and shape; kept, so that none is given out again
        self._hooks: list[Any] = []
        self._called: list[str] = []  # in this forward
        self._ends = False

    def __enter__(self) -> Collector:
        for name, module in self.modules.items():
            self._hooks.append(module.register_forward_pre_hook(self._hook(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def next_batch(self, counted: Tensor | None) -> None:
        if self.batch == 1:
            self._ends = bool(self.modules) and sorted(self._called) == sorted(self.modules)
        self._called.clear()
        self._alive.clear()
        self.counted = counted
        self.batch += 1

    def stats(self) -> Stats:
        """A map that no token went through has tokens 0 and no sums."""
        found: Stats = {}
        for site in {id(site): site for site in self._sites.values()}.values():
            made = site.stats
            if made.hessian is not None:
                made.hessian = made.hessian.triu() + made.hessian.triu(1).t()
            for name in ("hessian", "absmean", "mean"):
                if (total := getattr(made, name)) is not None:
                    setattr(made, name, (total / max(1, made.tokens)).float())
            found |= dict.fromkeys(site.names, made)
        return found

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def before(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            self._see(name, given[0])
            self._called.append(name)
            if self._ends and len(self._called) == len(self.modules):
                raise EverythingSeen

        return before

    def _see(self, name: str, x: Tensor) -> None:
        place = (x.data_ptr(), tuple(x.shape))
        known = self._alive.get(place)
        if known is not None:
            site = known[1]  # seen in this forward: another map of the same tensor
            if name not in self._sites:
                site.names.append(name)
                self._sites[name] = site
            if self._sites[name] is site:
                return
        site = self._sites.setdefault(name, _Site([name]))
        self._alive[place] = (x, site)
        self._add(name, site.stats, x)

    def _add(self, name: str, stats: InputStats, x: Tensor) -> None:
        x_NI = x.detach().reshape(-1, x.shape[-1]).float()
        if self.counted is not None and self.counted.numel() == len(x_NI):
            x_NI = x_NI[self.counted.reshape(-1)]
        if not bool(x_NI.sum().isfinite()) and (bad := int((~x_NI.isfinite()).sum())):
            raise DachengError(
                f"the inputs of {name} are not finite in batch {self.batch}", field=name, value=f"{bad} values",
                remedy="the model computes NaN on this text: check its weights, or calibrate in float32",
            )  # fmt: skip
        if not len(x_NI):
            return
        stats.tokens += len(x_NI)
        if "hessian" in self.want:
            stats.hessian = _add_gram(stats.hessian, x_NI)
        parts = {
            "absmean": lambda: x_NI.abs().sum(0, dtype=torch.float64),
            "sqnorm": lambda: x_NI.square().sum(0),
            "mean": lambda: x_NI.sum(0, dtype=torch.float64),
        }
        for part, made in parts.items():
            if part in self.want:
                before = getattr(stats, part)
                setattr(stats, part, made() if before is None else before + made())
        if "absmax" in self.want:
            largest = x_NI.abs().amax(0)
            stats.absmax = largest if stats.absmax is None else torch.maximum(stats.absmax, largest)


def _add_gram(total: Tensor | None, x_NI: Tensor) -> Tensor:
    """total + Σ x xᵀ, of which only the upper triangle is right: the lower one is its mirror, and takes no time."""
    width = x_NI.shape[1]
    if total is None:
        total = x_NI.new_zeros(width, width)
    for i in range(0, width, _STRIP):
        total[i : i + _STRIP, i:].addmm_(x_NI[:, i : i + _STRIP].t(), x_NI[:, i:])
    return total


def _packed(stats: Stats) -> dict[str, Tensor]:
    """Under one name for all that share; "a|b.hessian"."""
    shared: dict[int, list[str]] = {}
    for name, value in stats.items():
        shared.setdefault(id(value), []).append(name)
    return {
        f"{'|'.join(names)}/{part}": tensor
        for names in shared.values()
        for part, tensor in stats[names[0]].tensors().items()
    }


def _unpacked(tensors: dict[str, Tensor]) -> Stats:
    grouped: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        names, _, part = key.rpartition("/")
        grouped.setdefault(names, {})[part] = tensor
    found: Stats = {}
    for names, parts in grouped.items():
        found |= dict.fromkeys(names.split("|"), InputStats.from_tensors(parts))
    return found
