"""Inference: one engine for generation, scoring and embedding."""

from dacheng.engine.engine import Engine, StepOutput
from dacheng.engine.request import Request

__all__ = ["Engine", "Request", "StepOutput"]
