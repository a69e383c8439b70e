"""PEFT's adapter directories, read and written without it: adapter_config.json and adapter_model.safetensors."""

from dacheng.formats.peft.read import read_adapter
from dacheng.formats.peft.write import write_adapter

__all__ = ["read_adapter", "write_adapter"]
