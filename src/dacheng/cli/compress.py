"""dacheng compress: fewer bits, fewer weights, a smaller student."""

from __future__ import annotations

from dacheng.cli.lazy_verbs import lazy_verbs

app = lazy_verbs(
    "compress",
    "Make a model smaller or faster, and see what that costs.",
    {
        "quantize": (
            "dacheng.cli.compress_quantize:quantize",
            "fewer bits a weight: rounding, GPTQ, AWQ, SmoothQuant…",
        ),
        "sweep": ("dacheng.cli.compress_quantize:sweep", "many settings, and which of them nothing else beats"),
        "judge": ("dacheng.cli.compress_quantize:judge", "two models by bytes, memory, quality and speed"),
        "prune": ("dacheng.cli.compress_prune:prune", "zeros, or fewer layers, heads, neurons, words"),
        "distil": ("dacheng.cli.compress_distil:distil", "a student learns from a larger teacher"),
        "merge": ("dacheng.cli.compress_prune:merge", "one model of several; experts of a dense one"),
        "experts": ("dacheng.cli.compress_prune:experts", "which experts a mixture uses on a text"),
    },
)
