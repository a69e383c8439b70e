"""Whether the tensors of a file are those that a model asks for."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from dacheng.errors import DachengError
from dacheng.formats.dtypes import FLOATS, dtype_name

_SHOWN = 5


def check_tensors(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str, remedy: str) -> None:
    """Raises DachengError naming the first tensor that is missing, of another shape or dtype, or not asked for.

    `expected` may be on the meta device; of its tensors only names and shapes count. `where` names the source,
    `remedy` ends the errors.
    """
    if missing := sorted(expected.keys() - found.keys()):
        raise DachengError(
            f"{where}: {len(missing)} of {len(expected)} tensors are missing: {_some(missing)}",
            field=missing[0],
            value=f"absent, expected shape {list(expected[missing[0]].shape)}",
            remedy=remedy,
        )
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise DachengError(
                f"{where}: {name} has shape {list(found[name].shape)}, the config asks for {list(tensor.shape)}",
                field=name,
                value=list(found[name].shape),
                remedy=remedy,
            )
        if found[name].dtype not in FLOATS.values():
            raise DachengError(
                f"{where}: {name} is {dtype_name(found[name].dtype)}, weights are one of {', '.join(FLOATS)}",
                field=name,
                value=dtype_name(found[name].dtype),
                remedy="quantised weights must be expanded by the program that wrote them",
            )
    if extra := sorted(found.keys() - expected.keys()):
        raise DachengError(
            f"{where}: {len(extra)} tensors have no place in the model: {_some(extra)}",
            field=extra[0],
            value=list(found[extra[0]].shape),
            remedy=remedy,
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
