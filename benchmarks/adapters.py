"""What an adapter costs where many share one base: prefill and decode of a packed model in our engine.

    python benchmarks/adapters.py --model models/smollm2-q4_0.gguf [--rank 16] [--batches 1 8] [--rounds 7]

Contestants, interleaved in one process over one model: the base (compiled step); every text with an adapter of all
linear maps, in the compiled step; the same through the model itself ("eager", as an adapter that the step does not
take); and a batch in which each text has another adapter. Figures: tok/s of a prompt of 512 and of decoding from there.
Ratios are beside the base.
"""

from __future__ import annotations

import argparse
import time

import torch
from common import emit

from dacheng.adapt import AdapterBank
from dacheng.adapt.attach import targeted
from dacheng.engine import Engine, Request
from dacheng.engine.executor import Eager, Executor
from dacheng.engine.fused import FusedCPU
from dacheng.formats.model_directory import load_model
from dacheng.formats.peft.names import PeftNames
from dacheng.models.decoder import Decoder
from dacheng.nn.lora import LoRA, LoRAWeights
from dacheng.nn.lora_config import Adapter, LoRAConfig
from dacheng.protocols import SamplingParams

PROMPT, NEW = 512, 32


def drawn(model: Decoder, seed: int, rank: int) -> Adapter:
    """Small random numbers in A and B: speed does not depend on them."""
    config = LoRAConfig(rank=rank, targets=("all-linear",))
    generator = torch.Generator().manual_seed(seed)
    parts = {}
    for name in targeted(model, config, PeftNames.of(model)):
        module = model.get_submodule(name)
        base = module.base if isinstance(module, LoRA) else module
        parts[name] = LoRAWeights.fresh(base, rank, 1.0, generator=generator)
        torch.nn.init.normal_(parts[name].b, std=1e-3, generator=generator)
    return Adapter(config, parts)


def timed(model: Decoder, bank: AdapterBank, executor: Executor, names: list[str]) -> tuple[float, float]:
    """tok/s of prefill (of the first text alone) and of decoding all."""
    engine = Engine(model, executor=executor, adapters=bank, max_batch=len(names), max_tokens_per_step=PROMPT,
                    prefix_cache=False)  # fmt: skip
    prompts = torch.randint(10, 1000, (len(names), PROMPT), generator=torch.Generator().manual_seed(1)).tolist()
    params = SamplingParams(max_tokens=NEW, temperature=0, ignore_eos=True)
    requests = [Request(ids, params, adapter=name) for ids, name in zip(prompts, names)]
    engine.add(requests[0])
    started = time.perf_counter()
    while not requests[0].token_ids:
        engine.step()
    prefill = PROMPT / (time.perf_counter() - started)
    for request in requests[1:]:
        engine.add(request)
    while not all(request.token_ids for request in requests):
        engine.step()
    before, started = sum(len(request.token_ids) for request in requests), time.perf_counter()
    while engine.has_work and all(request.finish_reason is None for request in requests):
        engine.step()
    return prefill, (sum(len(r.token_ids) for r in requests) - before) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_model(args.model, packed=True, dtype=None).model
    bank = AdapterBank(model)
    for seed in range(max(args.batches)):
        bank.install(f"a{seed}", drawn(model, seed, args.rank))
    fused, eager = FusedCPU(model), Eager(model)
    for batch in args.batches:
        run: dict[str, tuple[Executor, list[str]]] = {
            "base": (fused, [""] * batch),
            "adapter": (fused, ["a0"] * batch),
            "adapter, eager": (eager, ["a0"] * batch),
            "an adapter each": (fused, [f"a{i}" for i in range(batch)]),
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in run}
        for number in range(args.rounds):
            names = list(run)[number % len(run) :] + list(run)[: number % len(run)]
            for name in names:
                found[name].append(timed(model, bank, *run[name]))
        for name in found:
            for place, figure in enumerate(("prefill", "decode")):
                columns = [[value[place] for value in found[who]] for who in (name, "base")]
                emit(f"{figure}, {name}, batch {batch}", *columns, unit="tok/s", threads=args.threads)


if __name__ == "__main__":
    main()
