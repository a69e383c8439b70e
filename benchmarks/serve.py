"""Serving many at once: `dacheng serve` beside llama.cpp's own server, over HTTP with streaming, on one GGUF file.

    python benchmarks/serve.py --peer-python /path/to/python              # one that has xllamacpp and llama-cpp-python
    python benchmarks/serve.py --llama-server /path/to/llama-server --gguf smollm2-q4_0.gguf
    python benchmarks/serve.py --peer-python … --ablate                   # what each of our own means pays, too
    python benchmarks/serve.py --peer-python … --requests 20 --rounds 1   # a short one

200 requests (serve_traffic.py) with shared system prompts and mixed lengths arrive as a Poisson process, at each of
--rates (0: all at once). Each round gives every contestant a fresh server with an empty cache, in an order that turns
about, two short requests to warm up, and the same traffic from the same client (serve_client.py). Every answer has the
length that is asked for (ignore_eos), so that both do the same work. llama.cpp runs with --peer-slots requests at once:
its default of 4, and as many as ours. Without --gguf it is SmolLM2, requantised by llama.cpp to Q4_0, its best format.

Figures, a JSON line each: throughput (generated tokens from the first arrival to the last token), time to the first
piece of text since the request was due, time between two pieces, and time per token of an answer after its first (as
vLLM's `bench serve` has TTFT, ITL and TPOT). Ratios are over 1 where ours is better. Then texts: ours among others
beside ours alone by the contract's rule (serve_texts.py), and beside the peer's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import emit
from decode import requantize
from serve_servers import ours, peer, server, version_of_peer
from serve_texts import compare_with_alone, compare_with_peer
from serve_traffic import Traffic, make_traffic

FOLDER = Path(__file__).resolve().parent
Q4_0 = 2  # llama.cpp's number
CONTEXT = 2048  # tokens of one request, at most
PEER = "llama.cpp"
# What is switched, and whether that is on in "ours".
SWITCHES = {
    "prefix reuse": (["--no-prefix-cache"], True),
    "chunked prompts": (["--max-tokens-per-step", str(CONTEXT)], True),
    "speculation": (["--speculate", "8"], False),
}
FIGURES = {  # name: (unit, whether higher is better)
    "throughput": ("tok/s", True),
    "first text p50": ("ms", False),
    "first text p95": ("ms", False),
    "between pieces p50": ("ms", False),
    "between pieces p95": ("ms", False),
    "per token p50": ("ms", False),
    "per token p95": ("ms", False),
}


# --- one run ----------------------------------------------------------------------------------------------------------
def bodies(traffic: Traffic, **more: Any) -> list[dict[str, Any]]:
    return [
        {
            "model": "bench", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
            "stream": True, "stream_options": {"include_usage": True}, **more,
        }
        for prompt, tokens in zip(traffic.prompts, traffic.answers)
    ]  # fmt: skip


def drive(url: str, arrivals: Sequence[float], asked: list[dict[str, Any]], at_once: int) -> list[dict[str, Any]]:
    """The answers, by the client in its own process."""
    work = json.dumps({"arrivals": arrivals, "bodies": asked, "at_once": at_once})
    command = [sys.executable, str(FOLDER / "serve_client.py"), "--url", url]
    done = subprocess.run(command, input=work, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the client failed:\n{done.stderr[-3000:]}")
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    if wrong := [answer["error"] for answer in answers if "error" in answer]:
        raise RuntimeError(f"{len(wrong)} of {len(answers)} requests failed; the first: {wrong[0]}")
    return answers


def run(command: list[str], traffic: Traffic, rate: float, threads: int, **more: Any) -> list[dict[str, Any]]:
    """One traffic against a fresh server. rate < 0: one after another."""
    asked = bodies(traffic, **more)
    with server(command, threads) as url:
        for seed in (1, 2):  # short, and like no prompt of the traffic
            warm = asked[0] | {"prompt": [1000 * seed + i for i in range(40)], "max_tokens": 8}
            drive(url, [0.0], [warm], 1)
        return drive(url, traffic.arrivals(max(rate, 0)), asked, 1 if rate < 0 else len(asked))


def percentile(values: Sequence[float], share: float) -> float:
    """Linear between the two nearest ranks."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def figures(answers: Sequence[dict[str, Any]]) -> dict[str, float]:
    tokens = [answer["usage"]["completion_tokens"] for answer in answers]
    spoke = [(answer, count) for answer, count in zip(answers, tokens) if answer["times"]]
    first = [1000 * (answer["times"][0] - answer["due"]) for answer, _ in spoke]
    between = [1000 * (b - a) for answer, _ in spoke for a, b in zip(answer["times"], answer["times"][1:])]
    each = [1000 * (a["times"][-1] - a["times"][0]) / (count - 1) for a, count in spoke if count > 1]
    found = {"throughput": sum(tokens) / max(answer["times"][-1] for answer, _ in spoke)}
    for name, values in (("first text", first), ("between pieces", between), ("per token", each)):
        found |= {f"{name} p50": percentile(values, 0.5), f"{name} p95": percentile(values, 0.95)}
    return found


def cached_share(answers: Sequence[dict[str, Any]]) -> float:
    """Of the prompts' tokens, as the server says it."""
    details = [(answer["usage"].get("prompt_tokens_details") or {}).get("cached_tokens", 0) for answer in answers]
    return sum(details) / sum(answer["usage"]["prompt_tokens"] for answer in answers)


# --- the measurement --------------------------------------------------------------------------------------------------
def variant(name: str, is_on: bool) -> str:
    return f"ours {'without' if is_on else 'with'} {name}"


def contestants(args: argparse.Namespace, threads: int) -> dict[str, list[str]]:
    size = {"batch": args.batch, "context": CONTEXT}
    found = {"ours": ours(args.gguf, **size, flags=args.flag)}
    kinds = list(itertools.product(args.peer_slots, args.peer_cache))
    for slots, cache in kinds if args.peer_python or args.llama_server else ():
        found[f"{PEER}, {slots} slots, {cache} cache"] = peer(
            args.gguf, batch=slots, context=CONTEXT, threads=threads, python=args.peer_python,
            program=args.llama_server, shared=cache == "shared",
        )  # fmt: skip
    if args.ablate:
        for name, (flags, is_on) in SWITCHES.items():
            found[variant(name, is_on)] = ours(args.gguf, **size, flags=[*args.flag, *flags])
    return found


def measure(args: argparse.Namespace, traffic: Traffic, rate: float, threads: int) -> list[list[dict[str, Any]]]:
    """Prints the figures at one rate; returns the answers of ours and a peer in the last round."""
    sides = contestants(args, threads)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    last: dict[str, list[dict[str, Any]]] = {}
    for number in range(args.rounds):
        for name in list(sides) if number % 2 == 0 else list(sides)[::-1]:
            last[name] = run(sides[name], traffic, rate, threads)
            found[name].append(figures(last[name]))
            late = max(answer["sent"] - answer["due"] for answer in last[name])
            said = ", ".join(f"{figure} {value:.1f}" for figure, value in found[name][-1].items())
            print(f"round {number + 1} {name} at {rate}/s: {said}; sent at most {late:.3f} s late", file=sys.stderr)
    extra = {"rate": rate, "requests": len(traffic.prompts)}

    def line(figure: str, better: str, worse: str | None, title: str, **more: Any) -> None:
        unit, higher = FIGURES[figure]
        other = None if worse is None else [values[figure] for values in found[worse]]
        emit(f"{figure}{title}", [values[figure] for values in found[better]], other, unit=unit, threads=threads,
             higher_is_better=higher, **extra, **more)  # fmt: skip

    peers = [name for name in sides if name.startswith(PEER)]
    for figure in FIGURES:
        for one in peers:
            line(figure, "ours", one, "", peer_is=one)
        if not peers:
            line(figure, "ours", None, "")
    for name, (_, is_on) in SWITCHES.items() if args.ablate else ():
        better, worse = ("ours", variant(name, is_on)) if is_on else (variant(name, is_on), "ours")
        for figure in FIGURES:
            line(figure, better, worse, f" with {name}", peer_is=f"ours without {name}")
    shares = {name: round(cached_share(answers), 3) for name, answers in last.items()}
    print(json.dumps({"share_of_prompt_tokens_found_computed": shares, "threads": threads, **extra}), flush=True)
    return [last["ours"], last[peers[0]] if peers else []]


def report_texts(args: argparse.Namespace, traffic: Traffic, among: list[list[dict[str, Any]]], threads: int) -> None:
    alone = run(contestants(args, threads)["ours"], traffic, -1, threads, logprobs=5)
    print(json.dumps({"figure": "texts, among others beside alone", **compare_with_alone(alone, among[0])}), flush=True)
    if among[1]:
        print(json.dumps({"figure": "texts, beside llama.cpp's", **compare_with_peer(alone, among[1])}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--peer-python", default=os.environ.get("DACHENG_PEER_PYTHON"))
    parser.add_argument("--llama-server", help="llama.cpp's program, in place of the one in xllamacpp")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--systems", type=int, default=4, help="system prompts that the requests share")
    parser.add_argument("--rates", type=float, nargs="+", default=[1, 0], help="requests a second; 0: all at once")
    parser.add_argument("--batch", type=int, default=16, help="requests that run together")
    parser.add_argument(
        "--peer-slots", type=int, nargs="+", default=[4, 16], help="that many at once; 4 is its default"
    )
    parser.add_argument(
        "--peer-cache", choices=["separate", "shared"], nargs="+", default=["separate", "shared"],
        help="llama.cpp's cache: a part for each slot (what it does where the slots are told), or one for all",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--text", type=Path, nargs="+", help="where words come from; the guide by default")
    parser.add_argument("--flag", action="append", default=[], help="a further word for dacheng serve, as --flag=--x")
    parser.add_argument("--ablate", action="store_true")
    parser.add_argument("--no-texts", action="store_true", help="do not compare texts")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.gguf is None:
            args.gguf = _smollm2(args, Path(folder))
        from dacheng.formats.loading import load_model

        tokenizer = load_model(args.gguf).tokenizer
        texts = args.text or sorted((FOLDER.parent / "docs" / "guide").glob("*.md"))
        text = "\n".join(path.read_text(encoding="utf-8") for path in texts)
        traffic = make_traffic(tokenizer, text, requests=args.requests, systems=args.systems, seed=args.seed)
        about: dict[str, Any] = {"traffic": traffic.described(), "batch": args.batch, "context": CONTEXT}
        if args.peer_python or args.llama_server:
            about["peer"] = version_of_peer(args.peer_python, args.llama_server)
        print(json.dumps(about), flush=True)
        for rate in args.rates:
            among = measure(args, traffic, rate, args.threads)
        if not args.no_texts:
            report_texts(args, traffic, among, args.threads)


def _smollm2(args: argparse.Namespace, folder: Path) -> Path:
    from dacheng.formats.packages import MODELS, gguf_of

    if args.peer_python is None:
        raise SystemExit("name the .gguf file, or an interpreter that has llama-cpp-python to make one: --peer-python")
    target = folder / "Q4_0.gguf"
    requantize(args.peer_python, gguf_of(MODELS["smollm2"], folder), target, Q4_0)
    return target


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ended half way, it still ends its servers
    main()
