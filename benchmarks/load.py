"""Loading a model: seconds and peak memory, from GGUF and from safetensors, beside transformers.

    python benchmarks/load.py --peer-python /path/to/python         # one with transformers and gguf; SmolLM2 by default
    python benchmarks/load.py --gguf smollm2.gguf --model models/smollm2 --rounds 7

Each load happens in a fresh process, with the tokenizer, and ends with the logits of sixteen tokens, so that what is
only mapped has been read too. "load" is the clock around the two calls that load, "ready" goes on to the logits, both
after the imports; "process" is everything from the start of the interpreter. Without --model the directory is made from
the GGUF file, in bfloat16. The peer's GGUF loading takes up to minutes, so it gets --peer-gguf-rounds of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import Run, emit, interleave

TEXT = "The capital of France is Paris, and the capital of Germany is Berlin, and so on"


# --- workers ----------------------------------------------------------------------------------------------------------
def work_ours(path: Path, dtype: str | None, packed: bool) -> dict[str, Any]:
    import torch

    from dacheng.formats.model_directory import load_model
    from dacheng.nn.contexts import DenseCausal

    started = time.perf_counter()
    loaded = load_model(path, dtype=dtype, packed=packed)
    assert loaded.tokenizer is not None
    done = time.perf_counter()
    ids = torch.tensor([loaded.tokenizer.encode(TEXT)[:16]])
    with torch.inference_mode():
        hidden = loaded.model(ids, torch.arange(ids.shape[1])[None], DenseCausal())
        top = loaded.model.head(hidden[:, -1]).argmax().item()
    return {"load": done - started, "ready": time.perf_counter() - started, "top": top}


def work_peer(path: Path, dtype: str | None) -> dict[str, Any]:
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    kwargs: dict[str, Any] = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    folder = str(path.parent if kwargs else path)
    started = time.perf_counter()
    chosen = "auto" if dtype is None else getattr(torch, dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=chosen, **kwargs)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **kwargs)
    done = time.perf_counter()
    ids = torch.tensor([tokenizer.encode(TEXT, add_special_tokens=False)[:16]])
    with torch.inference_mode():
        top = model(ids).logits[0, -1].argmax().item()
    return {"load": done - started, "ready": time.perf_counter() - started, "top": top}


# --- the measurement --------------------------------------------------------------------------------------------------
def report(name: str, ours: list[Run], peer: list[Run] | None, **extra: Any) -> None:
    def values(runs: list[Run], key: str) -> list[float]:
        return [run.wall_s if key == "process" else run.result[key] for run in runs]

    for key in ("load", "ready", "process"):
        theirs = None if peer is None else values(peer, key)
        emit(f"{key} {name}", values(ours, key), theirs, unit="s", threads=2, higher_is_better=False, **extra)
    ours_mb = [(run.peak_bytes or 0) / 1e6 for run in ours]
    peer_mb = None if peer is None else [(run.peak_bytes or 0) / 1e6 for run in peer]
    emit(f"peak memory {name}", ours_mb, peer_mb, unit="MB", threads=2, higher_is_better=False, **extra)
    if peer is not None and {run.result["top"] for run in ours} != {run.result["top"] for run in peer}:
        print(f"{name}: the two models continue differently", file=sys.stderr)


def compare(args: argparse.Namespace, name: str, path: Path, peer_rounds: int, ours_options: list[str]) -> None:
    size = sum(f.stat().st_size for f in ([path] if path.is_file() else path.glob("*.safetensors")))
    command = [str(Path(__file__).resolve()), "--path", str(path)]
    workers = {"ours": [sys.executable, *command, "--worker", "ours", *ours_options]}
    if args.peer_python and peer_rounds:
        workers["peer"] = [args.peer_python, *command, "--worker", "peer", *ours_options[:2]]
    both = interleave(workers, peer_rounds or args.rounds)
    report(name, both["ours"], both.get("peer"), file_mb=round(size / 1e6, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peer-gguf-rounds", type=int, default=1)
    parser.add_argument("--peer-python")
    parser.add_argument("--worker", choices=("ours", "peer"))
    parser.add_argument("--path", type=Path)
    parser.add_argument("--dtype")
    parser.add_argument("--packed", action="store_true")
    args = parser.parse_args()
    if args.worker:
        work = work_ours(args.path, args.dtype, args.packed) if args.worker == "ours" else None
        print(json.dumps(work or work_peer(args.path, args.dtype)))
        return
    if args.gguf is None and args.model is None:
        from dacheng.formats.packages import MODELS, gguf_of

        args.gguf = gguf_of(MODELS["smollm2"], Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory() as folder:
        directory = args.model
        if directory is None:
            from dacheng.formats.model_directory import load_model, save_model

            loaded = load_model(args.gguf)
            directory = save_model(Path(folder) / "model", loaded.model, loaded.tokenizer, dtype="bfloat16")
            del loaded
        compare(args, "safetensors, as stored", directory, args.rounds if args.peer_python else 0, [])
        compare(
            args, "safetensors to float32", directory, args.rounds if args.peer_python else 0, ["--dtype", "float32"]
        )
        if args.gguf is not None:
            compare(args, "gguf to float32", args.gguf, args.peer_gguf_rounds, ["--dtype", "float32"])
            compare(args, "gguf packed", args.gguf, 0, ["--packed"])


if __name__ == "__main__":
    main()
