"""What each quantizer costs in perplexity: SmolLM2-135M on WikiText-2, one line of JSON a variant.

    python benchmarks/quantizers.py --text wikitext2/valid.txt.gz [--gguf model.gguf] [--only gptq4 …] [--tokens 16384]

The first `tokens` tokens are scored in stretches of 512; calibration takes 32 x 512 tokens from the last half of the
text, other articles, at places that follow from --seed. The base is the GGUF file's Q4_1, decoded to float32: four bits
with a zero point for each 32 columns are its own grid and lose nothing, so that the variants here are coarser ones. The
embedding stays as it is. `ratio`: perplexity over the base's, `to_rtn`: over that of RTN with the same format, with 95%
intervals of the paired differences over stretches (1000 bootstrap draws). W8A8 rounds the inputs of every map token by
token.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

VARIANTS: dict[str, tuple[str, str]] = {
    "rtn4": ("rtn", "4"), "gptq4": ("gptq", "4"), "awq4": ("awq", "4"),
    "rtn3g64": ("rtn", "3g64"), "gptq3g64": ("gptq", "3g64"), "awq3g64": ("awq", "3g64"),
    "rtn3": ("rtn", "3"), "gptq3": ("gptq", "3"), "awq3": ("awq", "3"),
    "w8a8-rtn": ("rtn", "8"), "w8a8-smooth": ("smoothquant", "8"),
    "rtn4g64": ("rtn", "4g64"), "rtn4a": ("rtn", "4-channel-asym"), "nf4": ("nf4", "4"), "fp8": ("fp8", "8"),
    "rtn8": ("rtn", "8"), "gptq4-no-order": ("gptq", "4"), "awq4-no-clip": ("awq", "4"),
    "gptq4a": ("gptq", "4-channel-asym"), "awq4a": ("awq", "4-channel-asym"),
}  # fmt: skip


def variant(name: str, path: Path, args: argparse.Namespace, text: str) -> dict[str, Any]:
    from dacheng.compress.calibrate import calibration_batches
    from dacheng.compress.measure import window_nats
    from dacheng.compress.quantize.config import QuantizeConfig
    from dacheng.compress.quantize.model import quantize_model
    from dacheng.compress.quantize.smoothquant import round_inputs
    from dacheng.formats.loading import load_model
    from dacheng.ops.integers import QSpec

    loaded = load_model(path, dtype="float32")
    model, found = loaded.model, {}
    started = time.perf_counter()
    if name != "base":
        method, spec = VARIANTS[name]
        config = QuantizeConfig(method, QSpec.parse(spec), act_order=not name.endswith("no-order"),
                                clip=not name.endswith("no-clip"))  # fmt: skip
        ids = loaded.tokenizer.encode(text[len(text) // 2 :])
        batches = calibration_batches(ids, rows=args.rows, length=512, seed=args.seed) if config.calibrated else []
        done = quantize_model(model, config, batches)
        found = {
            "megabytes": round(done.nbytes / 1e6, 2),
            "notes": done.notes,
            "seconds": round(time.perf_counter() - started),
        }
    if name.startswith("w8a8"):
        round_inputs(model)
    return found | {"windows": window_nats(model, loaded.tokenizer, text, args.tokens)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    args = parser.parse_args()
    from dacheng.compress.measure import read_text
    from dacheng.evaluate.intervals import bootstrap_ratio, paired_difference

    text = read_text(args.text)
    if args.gguf is None:
        from dacheng.formats.packages import MODELS, gguf_of

        args.gguf = gguf_of(MODELS["smollm2"], Path(tempfile.gettempdir()))
    windows: dict[str, Any] = {}
    for name in ["base", *args.only]:
        result = variant(name, args.gguf, args, text)
        one = windows[name] = result.pop("windows")
        line: dict[str, Any] = {"variant": name, "seed": args.seed, **result}
        plain = bootstrap_ratio(one["nats"], one["tokens"])
        line["perplexity"] = [round(math.exp(value), 3) for value in (plain.estimate, plain.low, plain.high)]
        rtn = "rtn" + name.removeprefix("gptq").removeprefix("awq").split("-")[0]
        for key, other in (("ratio", "base"), ("to_rtn", "w8a8-rtn" if name == "w8a8-smooth" else rtn)):
            if other in windows and other != name:
                pair = paired_difference(one["nats"], windows[other]["nats"], one["tokens"])
                line[key] = [round(math.exp(value), 4) for value in (pair.estimate, pair.low, pair.high)]
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
