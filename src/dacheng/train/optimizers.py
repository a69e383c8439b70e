"""Which optimizer moves which parameter: matrices by Muon or AdamW, everything else by AdamW, behind one object."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from dacheng.errors import DachengError, UsageError
from dacheng.train.muon import Method, Muon, Scale

Kind = Literal["adamw", "muon"]
NamedParameters = Sequence[tuple[str, nn.Parameter]]


@dataclass(frozen=True)
class OptimizerConfig:
    """What moves the weights. Raises UsageError for values that make no optimizer.

    kind: "adamw" for all, or "muon" for the matrices of hidden layers and adamw for the rest.

    lr: AdamW's, per step at the peak of the schedule. matrix_lr: of the matrices (None: 0.02 with muon, lr with adamw).
    embedding_lr, head_lr, scalar_lr: None means lr. weight_decay: of matrices and head, decoupled; never of embeddings
    (OLMo 2, section 3.3), norms, biases and scalars. cautious: decay only along the update (Muon only). muon_scale:
    "spectral" or "rms", see muon.update_scale.
    """

    kind: Kind = "adamw"
    lr: float = 3e-4
    matrix_lr: float | None = None
    embedding_lr: float | None = None
    head_lr: float | None = None
    scalar_lr: float | None = None
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    momentum: float = 0.95
    cautious: bool = False
    muon_scale: Scale = "spectral"
    orthogonalisation: Method = "polar_express"

    def __post_init__(self) -> None:
        for name, known in (("kind", Kind), ("muon_scale", Scale), ("orthogonalisation", Method)):
            if getattr(self, name) not in get_args(known):
                raise UsageError(
                    "unknown choice",
                    field=name,
                    value=getattr(self, name),
                    remedy="one of " + ", ".join(get_args(known)),
                )
        if self.cautious and self.kind != "muon":
            raise UsageError(
                "cautious weight decay is Muon's here",
                field="cautious",
                value=True,
                remedy="kind: muon, or leave it out",
            )
        for name in ("lr", "matrix_lr", "embedding_lr", "head_lr", "scalar_lr", "weight_decay", "eps"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UsageError("must be 0 or more", field=name, value=value, remedy="a small positive number")
        for name, values in (("betas", self.betas), ("momentum", (self.momentum,))):
            if not all(0 <= value < 1 for value in values):
                raise UsageError("must lie in [0, 1)", field=name, value=getattr(self, name), remedy="0.9 or 0.95")

    def rate(self, group: str) -> float:
        """The peak learning rate of "matrix", "embedding", "head" or "scalar"."""
        own: float | None = getattr(self, f"{group}_lr")
        if own is not None:
            return own
        return 0.02 if group == "matrix" and self.kind == "muon" and self.muon_scale == "spectral" else self.lr


def group_of(name: str, parameter: Tensor) -> str:
    """The group of a standard name: embedding, head, scalar (norms, biases, gains: below two dimensions) or matrix."""
    if parameter.ndim < 2:
        return "scalar"
    parts = name.split(".")
    if "lm_head" in parts or "classifier" in parts:
        return "head"
    if any(part == "embed" or part.endswith(("embeddings", "embedding")) for part in parts):
        return "embedding"
    return "matrix"


def build_optimizers(model: nn.Module | NamedParameters, config: OptimizerConfig) -> OptimizerSet:
    """The optimizers of a model's trainable parameters (or of these named ones), grouped by group_of.

    With kind "muon", matrices of 2 or 3 dimensions go to Muon; those of more (convolutions) stay with AdamW. Raises
    UsageError for a bad config or when there is nothing to train.
    """
    pairs = model.named_parameters() if isinstance(model, nn.Module) else model
    named = [(name, p) for name, p in pairs if p.requires_grad]
    if not named:
        raise UsageError("no parameter is trainable", field="parameters", remedy="set requires_grad on some")
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {}
    for name, p in named:
        group = group_of(name, p)
        use_muon = config.kind == "muon" and group == "matrix" and p.ndim <= 3
        groups.setdefault("muon" if use_muon else group, []).append((name, p))
    optimizers: list[torch.optim.Optimizer] = []
    matrices = groups.pop("muon", [])
    if matrices:
        optimizers.append(_muon(matrices, config))
    if groups:
        optimizers.append(_adamw(groups, config))
    return OptimizerSet(optimizers, named)


def _muon(matrices: NamedParameters, config: OptimizerConfig) -> Muon:
    return Muon(
        [{"params": [p for _, p in matrices], "name": "matrix"}],
        lr=config.rate("matrix"),
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        cautious=config.cautious,
        method=config.orthogonalisation,
        scale=config.muon_scale,
    )


def _adamw(groups: Mapping[str, NamedParameters], config: OptimizerConfig) -> torch.optim.AdamW:
    """Loshchilov & Hutter 2019, algorithm 2. The fused kernel needs floating parameters on one of its devices."""
    parameters = [p for group in groups.values() for _, p in group]
    fused = all(p.device.type in ("cpu", "cuda", "mps") and p.is_floating_point() for p in parameters)
    return torch.optim.AdamW(
        [
            {
                "params": [p for _, p in group],
                "name": name,
                "lr": config.rate(name),
                "weight_decay": config.weight_decay if name in ("matrix", "head") else 0.0,
            }
            for name, group in groups.items()
        ],
        betas=config.betas,
        eps=config.eps,
        fused=fused,
    )


class OptimizerSet:
    """Several torch optimizers as one. Every parameter belongs to exactly one of them.

    Learning rates are the peaks given at construction times a factor; nothing else of a group ever changes, so a
    checkpoint holds only the tensors of the parameters' state, by the parameters' names.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], named: NamedParameters) -> None:
        """Raises UsageError when a parameter of an optimizer has no name here, or is in two."""
        self.optimizers = list(optimizers)
        self.names = {id(p): name for name, p in named}
        seen: set[int] = set()
        for group in self.param_groups:
            group.setdefault("peak_lr", float(group["lr"]))
            for p in group["params"]:
                if id(p) not in self.names or id(p) in seen:
                    raise UsageError(
                        "a parameter is in two groups" if id(p) in seen else "a parameter is not one of the phase's",
                        field="optimizer",
                        value=self.names.get(id(p), tuple(p.shape)),
                        remedy="give each parameter of the phase to one optimizer",
                    )
                seen.add(id(p))

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.param_groups for p in group["params"]]

    def set_factor(self, factor: float) -> None:
        """Sets every learning rate to its peak times `factor`."""
        for group in self.param_groups:
            group["lr"] = group["peak_lr"] * factor

    def learning_rates(self) -> dict[str, float]:
        """Group name -> learning rate now."""
        return {group.get("name", f"group{i}"): float(group["lr"]) for i, group in enumerate(self.param_groups)}

    def zero_grad(self) -> None:
        for p in self.parameters:
            p.grad = None

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors by "<parameter>/<entry>". Raises DachengError when an optimizer keeps anything but tensors there."""
        tensors: dict[str, Tensor] = {}
        for optimizer in self.optimizers:
            for p, state in optimizer.state.items():
                for entry, value in state.items():
                    key = f"{self.names[id(p)]}/{entry}"
                    if not isinstance(value, Tensor):
                        raise DachengError(
                            f"{type(optimizer).__name__} keeps something else than tensors: it cannot be saved",
                            field=key,
                            value=value,
                            remedy="use an optimizer whose state is tensors",
                        )
                    tensors[key] = value
        return tensors

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Replaces the whole state. Raises DachengError for a tensor of an unknown parameter or of another shape."""
        parameters = {self.names[id(p)]: (p, optimizer) for optimizer in self.optimizers for p in _of(optimizer)}
        for optimizer in self.optimizers:
            optimizer.state.clear()
        for key, saved in tensors.items():
            name, _, entry = key.rpartition("/")
            if name not in parameters:
                raise DachengError(
                    "the saved optimizer has a parameter that this one has not",
                    field=name,
                    remedy="resume with the same recipe",
                )
            p, optimizer = parameters[name]
            if saved.ndim and saved.shape != p.shape and saved.ndim == p.ndim:
                raise DachengError(
                    f"the saved optimizer state has another shape than {tuple(p.shape)}",
                    field=key,
                    value=tuple(saved.shape),
                )
            # Moments lie where the weight does; a step counter on the CPU, unless a fused kernel reads it.
            on_device = saved.ndim > 0 or optimizer.defaults.get("fused") or optimizer.defaults.get("capturable")
            optimizer.state[p][entry] = saved.clone().to(p.device if on_device else "cpu")


def _of(optimizer: torch.optim.Optimizer) -> Iterable[nn.Parameter]:
    return (p for group in optimizer.param_groups for p in group["params"])
