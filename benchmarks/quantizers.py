"""What each quantizer costs in perplexity: SmolLM2-135M on WikiText-2, one line of JSON a variant.

    python benchmarks/quantizers.py --text wikitext2/valid.txt.gz [--gguf model.gguf] [--only gptq4 …] [--tokens 16384]
        [--rows 32] [--seeds 0 1 2] [--scores scores.json]

The first `tokens` tokens are scored in stretches of 512; calibration takes rows x 512 tokens from the last half of the
text, other articles, at places that follow from the seed. The base is the GGUF file's Q4_1, decoded to float32: four
bits with a zero point for each 32 columns are its own grid and lose nothing, so that the variants here are coarser. The
embedding and the head stay floats. `ratio`: perplexity over the base's, `to_rtn`: over RTN's with the same format,
with 95% intervals of the paired differences over stretches (1000 bootstrap draws). A variant w8a8… rounds the inputs of
every map as well, to eight bits token by token as they come; its number is alpha, "inner" smooths the input of `down`,
too. --scores: a file that keeps what each variant scored, and gives it when it is asked for again, so that runs side by
side share their base.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

WINDOW = 512
INTEGERS = ("4", "3", "4g64", "3g64", "3g192", "4a", "3a", "3g64a")
VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    f"{method}{name}": (method, name, {})
    for name in INTEGERS for method in ("rtn", "gptq", "awq")
} | {
    "rtn8": ("rtn", "8", {}), "nf4": ("nf4", "4", {}), "fp8": ("fp8", "8", {}),
    "gptq4-no-order": ("gptq", "4", {"act_order": False}), "awq4-no-clip": ("awq", "4", {"clip": False}),
    "w8a8-rtn": ("rtn", "8", {}), "w8a8-smooth": ("smoothquant", "8", {}),
    "w8a8-smooth-0.65": ("smoothquant", "8", {"alpha": 0.65}), "w8a8-smooth-0.8": ("smoothquant", "8", {"alpha": 0.8}),
    "w8a8-inner": ("smoothquant", "8", {"inner": True}),
    "w8a8-inner-0.65": ("smoothquant", "8", {"inner": True, "alpha": 0.65}),
}  # fmt: skip


def variant(name: str, seed: int, args: argparse.Namespace, text: str) -> dict[str, Any]:
    """What was made (megabytes, notes, seconds, the largest errors), and the nats of each stretch."""
    from dacheng.compress.calibrate import calibration_batches
    from dacheng.compress.measure import first_tokens, window_nats
    from dacheng.compress.quantize.config import QuantizeConfig
    from dacheng.compress.quantize.model import quantize_model
    from dacheng.compress.quantize.smoothquant import round_inputs
    from dacheng.formats.loading import load_model
    from dacheng.ops.integers import QSpec

    loaded = load_model(args.gguf, dtype="float32")
    model, found = loaded.model, {}
    if name != "base":
        method, spec, options = VARIANTS[name]
        config = QuantizeConfig(method, QSpec.parse(spec), **options)
        ids = loaded.tokenizer.encode(text[len(text) // 2 :]) if config.calibrated else []
        batches = calibration_batches(ids, rows=args.rows, length=WINDOW, seed=seed) if config.calibrated else []
        started = time.perf_counter(), time.process_time()
        done = quantize_model(model, config, batches)
        found = {
            "megabytes": round(done.nbytes / 1e6, 2), "notes": done.notes,
            "seconds": round(time.perf_counter() - started[0], 1),
            "cpu_seconds": round(time.process_time() - started[1], 1),
        }  # fmt: skip
    if name.startswith("w8a8"):
        round_inputs(model)
    scored, _ = first_tokens(loaded.tokenizer, text, args.tokens)
    return found | {"windows": window_nats(model, loaded.tokenizer, scored, WINDOW)}


def looks_at_text(name: str) -> bool:
    return name != "base" and VARIANTS[name][0] in ("gptq", "awq", "smoothquant")


def scored(name: str, seed: int, args: argparse.Namespace, text: str) -> dict[str, Any]:
    """From the file of scores (its first stretches, where there are more), or made now and put there."""
    from dacheng.formats.json_files import write_json

    key = name + (f" calibrated by {args.rows} from {seed}" if looks_at_text(name) else "")
    known = json.loads(args.scores.read_text()) if args.scores is not None and args.scores.exists() else {}
    if key not in known or len(known[key]["windows"]["nats"]) * WINDOW < args.tokens:
        found = variant(name, seed, args, text)
        if args.scores is None:
            return found
        known = json.loads(args.scores.read_text()) if args.scores.exists() else {}
        known[key] = found
        write_json(args.scores, known)
    wanted = {of: values[: args.tokens // WINDOW] for of, values in known[key]["windows"].items()}
    return known[key] | {"windows": wanted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the calibration text's places")
    parser.add_argument("--scores", type=Path)
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    args = parser.parse_args()
    if args.tokens % WINDOW:
        parser.error(f"--tokens: whole stretches of {WINDOW}")
    from dacheng.compress.measure import read_text
    from dacheng.evaluate.intervals import bootstrap_ratio, paired_difference

    text = read_text(args.text)
    if args.gguf is None:
        from dacheng.formats.packages import MODELS, gguf_of

        args.gguf = gguf_of(MODELS["smollm2"], Path(tempfile.gettempdir()))
    windows: dict[str, Any] = {}
    for name in ["base", *args.only]:
        calibrated = looks_at_text(name)
        for seed in args.seeds if calibrated else [0]:
            result = dict(scored(name, seed, args, text))
            one = windows[name] = result.pop("windows")
            line: dict[str, Any] = {"variant": name, **({"seed": seed} if calibrated else {}), **result}
            plain = bootstrap_ratio(one["nats"], one["tokens"])
            line["perplexity"] = [round(math.exp(value), 3) for value in (plain.estimate, plain.low, plain.high)]
            rtn = "rtn" + name.removeprefix("gptq").removeprefix("awq").split("-")[0]
            for key, other in (("ratio", "base"), ("to_rtn", "w8a8-rtn" if name.startswith("w8a8-") else rtn)):
                if other in windows and other != name:
                    pair = paired_difference(one["nats"], windows[other]["nats"], one["tokens"])
                    line[key] = [round(math.exp(value), 4) for value in (pair.estimate, pair.low, pair.high)]
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
