"""The real model of the tests, where its package is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from dacheng.formats.packages import MODELS, package_file


def smollm2_path() -> Path:
    path = package_file(*MODELS["smollm2"].parts[0])
    if path is None:
        pytest.skip(f"the model is absent: {MODELS['smollm2'].command}")
    return path
