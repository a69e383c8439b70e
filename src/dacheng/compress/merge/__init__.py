"""Several models, or adapters, of one base made into one."""

from dacheng.compress.merge.adapters import merge_adapters
from dacheng.compress.merge.models import MergeConfig, merge_models

__all__ = ["MergeConfig", "merge_adapters", "merge_models"]
