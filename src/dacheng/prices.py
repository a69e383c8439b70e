"""What power, hardware and labour cost: the user's price file, or defaults that are marked as assumed."""

from __future__ import annotations

import difflib
import math
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dacheng.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Prices in `currency`. `assumed` names the fields that nobody stated: figures made from them are guesses.

    power_per_kwh: of electricity. watts: drawn by the whole machine under load, used where no counter is readable.
    hardware_per_hour: rent, or price / hours of life. labour_per_hour: of the person who works on it.
    The defaults are those of a laptop: 60 W, 1,000 USD written off over 10,000 hours, household electricity.
    """

    power_per_kwh: float = 0.20
    watts: float = 60.0
    hardware_per_hour: float = 0.10
    labour_per_hour: float = 50.0
    currency: str = "USD"
    assumed: tuple[str, ...] = ("power_per_kwh", "watts", "hardware_per_hour", "labour_per_hour", "currency")

    @classmethod
    def load(cls, path: Path | str | None = None) -> Prices:
        """The YAML price file at `path`, or at $DACHENG_PRICES, or the assumed defaults where neither is given.

        The file maps field names to values; what it leaves out stays assumed. Raises UsageError for a missing or
        unreadable file, an unknown field, or a value that is no price.
        """
        if path is None:
            path = os.environ.get("DACHENG_PRICES") or None
        if path is None:
            return cls()
        import yaml

        try:
            stated = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UsageError(f"the price file cannot be read: {error}", field="prices", value=str(path)) from error
        names = [f.name for f in fields(cls) if f.name != "assumed"]
        if not isinstance(stated, dict):
            raise UsageError(
                "a price file maps names to values", field="prices", value=stated, remedy="for example watts: 45"
            )
        for name, value in stated.items():
            _check(name, value, names)
        return cls(**stated, assumed=tuple(name for name in names if name not in stated))

    def money(self, joules: float, wall_s: float, labour_hours: float) -> dict[str, float]:
        """Cost of `joules` of energy, `wall_s` seconds of the hardware and `labour_hours` of a person, each apart."""
        return {
            "power": joules / 3.6e6 * self.power_per_kwh,
            "hardware": wall_s / 3600 * self.hardware_per_hour,
            "labour": labour_hours * self.labour_per_hour,
        }


def _check(name: Any, value: Any, names: list[str]) -> None:
    if name not in names:
        near = difflib.get_close_matches(str(name), names, n=1)
        raise UsageError(
            "unknown price",
            field=str(name),
            value=value,
            remedy=f"did you mean {near[0]}?" if near else "one of " + ", ".join(names),
        )
    if name == "currency":
        if not isinstance(value, str) or not value:
            raise UsageError("a currency is a name", field=name, value=value, remedy="for example EUR")
    elif isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise UsageError("a price is a number, zero or more", field=name, value=value, remedy="for example 0.25")
