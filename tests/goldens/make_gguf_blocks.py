"""Makes tests/goldens/gguf_blocks.npz: random blocks of each GGUF type, and what the gguf package makes of them.

    python tests/goldens/make_gguf_blocks.py [OUT]        # made with gguf 0.19.0, numpy 2.4.6

For each type that is read: `{type}.raw` (rows, bytes) and `{type}.values` (rows, width) from gguf.quants.dequantize;
scales are drawn as finite half floats, all other bytes are free. For each type that is written: `{type}.packed`, from
gguf.quants.quantize of `floats` (ties, zeros, one value alone, huge and tiny ones among them).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize

READ = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL",
        "IQ4_XS", "MXFP4")  # fmt: skip
WRITTEN = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")
# Where the half-float scales lie in a block.
SCALES = {"Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
          "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,), "F16": (0,)}  # fmt: skip
ROWS, BLOCKS = 3, 4


def raw_rows(name: str, rng: np.random.Generator, rows: int = ROWS, blocks: int = BLOCKS) -> np.ndarray:
    """(rows, blocks · bytes) uint8 with finite scales."""
    _, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    if name in ("F32", "F16", "BF16"):
        blocks *= 16
    raw = rng.integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    for at in SCALES.get(name, ()):
        scales = rng.standard_normal((rows, blocks)) * 10.0 ** rng.uniform(-7, 3, (rows, blocks))
        raw[:, :, at : at + 2] = scales.astype(np.float16).view(np.uint8).reshape(rows, blocks, 2)
    if name in ("F32", "BF16"):
        floats = (rng.standard_normal((rows, blocks)) * 10.0 ** rng.uniform(-30, 30, (rows, blocks))).astype(np.float32)
        raw = np.ascontiguousarray(floats.view(np.uint8).reshape(rows, blocks, 4)[:, :, 4 - size :])
    return raw.reshape(rows, -1)


def hard_floats(rng: np.random.Generator, rows: int = 8) -> np.ndarray:
    """(rows, 128) float32 in blocks of 32: what rounding gets wrong first."""
    x = rng.standard_normal((rows, 4, 32)).astype(np.float32) * 10.0 ** rng.uniform(-4, 2, (rows, 4, 1))
    x = x.astype(np.float32)
    x[0, 0] = 0.0
    x[0, 1] = 2.5
    x[0, 2] = np.where(np.arange(32) % 2, 1.0, -1.0)  # two extremes: the first counts
    x[0, 3] = -x[0, 2]
    x[1, 0] = np.arange(32) / 2 - 8  # halves
    x[1, 1] = np.arange(32) * 4.0  # exact at 127
    x[1, 1, -1] = 127.0
    x[1, 2] = np.arange(-16, 16) + 0.5
    x[1, 3] = 1e-9 * np.arange(32)  # scales below the smallest half float
    x[2, 0, 1:] = 0.0
    x[2, 1] = -7.0
    return x.reshape(rows, 128)


def main(out: Path) -> None:
    rng = np.random.default_rng(20)
    arrays: dict[str, np.ndarray] = {}
    for name in READ:
        arrays[f"{name}.raw"] = raw_rows(name, rng)
        arrays[f"{name}.values"] = np.array(dequantize(arrays[f"{name}.raw"], GGMLQuantizationType[name]))
    arrays["floats"] = hard_floats(rng)
    for name in WRITTEN:
        arrays[f"{name}.packed"] = quantize(arrays["floats"], GGMLQuantizationType[name]).view(np.uint8)
    np.savez_compressed(out, **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "gguf_blocks.npz")
