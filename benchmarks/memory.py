"""Where the memory of a packed model goes: resident megabytes of a fresh process, stage by stage.

    python benchmarks/memory.py [--gguf model.gguf] [--threads 2]

"anonymous" is what only this process has; the rest are pages of files (libraries, the mapped weights), which the system
may take back and several processes share. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

PROMPT = 128


def resident() -> tuple[float, float]:
    """(all, anonymous) MB."""
    found = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "RssAnon"):
            found[name] = int(value.split()[0]) / 1e3
    return found["VmRSS"], found["RssAnon"]


def stages(path: Path, how: str, threads: int) -> dict[str, tuple[float, float]]:
    found = {"interpreter": resident()}
    import torch

    torch.set_num_threads(threads)
    found["torch"] = resident()
    from dacheng.formats.loading import load_model
    from dacheng.models.fused import FusedDecoder
    from dacheng.ops import native
    from dacheng.ops.decoder_step import CacheView

    native.library()
    found["dacheng"] = resident()
    loaded = load_model(path, packed=True, weights_memory=how)
    found["loaded"] = resident()
    step, t = FusedDecoder(loaded.model), loaded.model.traits
    found["kernels' order"] = resident()
    shape = (1, t.n_kv_heads, PROMPT, t.head_size)
    keys, values = ([torch.zeros(shape) for _ in range(t.layers)] for _ in range(2))
    one = torch.zeros(1, 1, dtype=torch.int64)
    view = CacheView(keys, values, one, PROMPT, t.n_kv_heads * PROMPT * t.head_size, PROMPT * t.head_size, t.head_size)
    positions = torch.arange(PROMPT)
    step.run(positions + 100, positions, torch.zeros_like(positions), view, positions[-1:])
    found[f"{PROMPT} tokens"] = resident()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", choices=("fast", "small"))
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(stages(args.gguf, args.worker, args.threads)))
        return
    if args.gguf is None:
        from dacheng.formats.packages import MODELS, gguf_of

        args.gguf = gguf_of(MODELS["smollm2"], Path(tempfile.gettempdir()))
    for how in ("fast", "small"):
        command = [sys.executable, __file__, "--worker", how, "--gguf", str(args.gguf), "--threads", str(args.threads)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        for stage, (everything, own) in json.loads(done.stdout.splitlines()[-1]).items():
            line = {"weights_memory": how, "stage": stage, "resident_mb": round(everything), "anonymous_mb": round(own)}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
