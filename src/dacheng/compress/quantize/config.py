"""What is quantised how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dacheng.compress.quantize.smoothquant import ALPHA
from dacheng.errors import UsageError
from dacheng.nn.linear import Dense
from dacheng.nn.packed import Packed, PackedEmbedding
from dacheng.ops.integers import QSpec
from dacheng.ops.nf4 import BLOCK

METHODS = ("rtn", "gptq", "awq", "smoothquant", "nf4", "fp8")
CALIBRATED = ("gptq", "awq", "smoothquant")
SMALLEST = 32  # outputs of a map below which nothing is won: gates, routers


@dataclass(frozen=True, slots=True)
class QuantizeConfig:
    """method: of METHODS. spec: of the integer ones. embedding: of the embedding and the head, None leaves them floats;
    these are always rounded to nearest. act_order, damp, block: of GPTQ. clip: of AWQ. alpha: of SmoothQuant; inner:
    it smooths inputs that another map makes as well (of `down`, of `o` where every head has its own values), which the
    paper leaves. double: of NF4's scales. specs: of single maps, in place of `spec` ("blocks.0.mlp.down")."""

    method: str = "gptq"
    spec: QSpec = field(default_factory=QSpec)
    embedding: QSpec | None = None
    act_order: bool = True
    damp: float = 0.01
    block: int = 128
    clip: bool = True
    alpha: float = ALPHA
    inner: bool = False
    double: bool = True
    specs: tuple[tuple[str, QSpec], ...] = ()

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError("there is no such method", field="method", value=self.method,
                             remedy="one of " + ", ".join(METHODS))  # fmt: skip
        if not 0 < self.damp < 1 or not 0 <= self.alpha <= 1 or self.block < 1:
            raise UsageError("out of range", field="damp", value=[self.damp, self.alpha, self.block],
                             remedy="damp 0.01, alpha 0.5, block 128")  # fmt: skip
        if self.method == "smoothquant" and self.spec.bits != 8:
            raise UsageError("SmoothQuant is for eight bits in weights and inputs", field="bits", value=self.spec.bits,
                             remedy="8, or another method")  # fmt: skip

    @property
    def calibrated(self) -> bool:
        return self.method in CALIBRATED

    @property
    def integer(self) -> bool:
        return self.method not in ("nf4", "fp8")

    def spec_of(self, name: str) -> QSpec:
        return dict(self.specs).get(name, self.spec)

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"method": self.method}
        if self.integer:
            found["spec"] = str(self.spec)
        if self.embedding is not None:
            found["embedding"] = str(self.embedding)
        own = {"gptq": ("act_order", "damp"), "awq": ("clip",), "smoothquant": ("alpha", "inner"), "nf4": ("double",)}
        return found | {name: getattr(self, name) for name in own.get(self.method, ())}


def chosen_maps(model: nn.Module, config: QuantizeConfig) -> tuple[dict[str, nn.Module], list[str]]:
    """The linear maps of the blocks that are quantised, by name, and notes on those that are not. Raises UsageError for
    a model that is packed already, and for a group that divides no map or not this one, before anything is done."""
    packed = [name for name, module in model.named_modules() if isinstance(module, Packed | PackedEmbedding)]
    if packed:
        raise UsageError("this model is packed already", field="model", value=packed[0],
                         remedy="load it as floats, or give the original")  # fmt: skip
    found: dict[str, nn.Module] = {}
    small, uneven = [], []
    for name, module in model.named_modules():
        if not name.startswith("blocks.") or not isinstance(module, Dense):
            continue
        if min(module.out_features, module.in_features) < SMALLEST:
            small.append(name)
        elif config.method == "nf4" and module.in_features % BLOCK:
            uneven.append(name)
        else:
            try:
                config.spec_of(name).columns(module.in_features)
            except UsageError as error:
                raise UsageError(f"{name}: {error.problem}", field="group", value=error.value,
                                 remedy=error.remedy) from None  # fmt: skip
            found[name] = module
    if not found:
        raise UsageError("there is nothing to quantise", field="model", value=type(model).__name__,
                         remedy="a decoder or encoder with linear maps of 32 outputs or more")  # fmt: skip
    notes = [f"{len(names)} maps stay floats, {names[0]} among them: {why}" for names, why in
             ((small, f"fewer than {SMALLEST} outputs or inputs"), (uneven, f"rows are no multiple of {BLOCK}"))
             if names]  # fmt: skip
    return found, notes
