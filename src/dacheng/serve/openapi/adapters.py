"""/v1/load_lora_adapter, /v1/unload_lora_adapter."""

from __future__ import annotations

from dacheng.serve.limits import Limits
from dacheng.serve.openapi.schema import Schema, asked, integer, text


def load_request(limits: Limits) -> Schema:
    """serve.adapters.load_lora_adapter."""
    fields = {"lora_name": text(200, 1), "lora_path": text(4096), "base_model_name": text()}
    return asked(fields, "lora_name", "lora_path")


def unload_request(limits: Limits) -> Schema:
    return asked({"lora_name": text(200), "lora_int_id": integer()}, "lora_name")
