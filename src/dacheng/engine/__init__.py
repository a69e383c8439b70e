"""Inference: one engine for generation, scoring and embedding."""

from dacheng.engine.async_engine import AsyncEngine, QueueFull
from dacheng.engine.engine import Engine, StepOutput
from dacheng.engine.request import Request

__all__ = ["AsyncEngine", "Engine", "QueueFull", "Request", "StepOutput"]
