"""Tools that a model may call while it writes, and rollouts of several turns with them."""

from __future__ import annotations

from dacheng.align.tools.calculator import Calculator, NotArithmetic, calculate, shown
from dacheng.align.tools.config import ToolsConfig
from dacheng.align.tools.turns import ToolTurns, calculator_turns

__all__ = ["Calculator", "NotArithmetic", "ToolTurns", "ToolsConfig", "calculate", "calculator_turns", "shown"]
