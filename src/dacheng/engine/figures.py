"""What an engine counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dacheng.engine.engine import Engine


def stats_of(engine: Engine) -> dict[str, float]:
    """Counts and gauges by vLLM's names, and of our own: executor_fallbacks (steps that the compiled executor handed
    over) and why requests went without a draft (spec_decode_drafts_...)."""
    counts, metrics = engine.scheduler.counts, engine.metrics
    return {
        "num_requests_running": float(len(engine.scheduler.running)),
        "num_requests_waiting": float(len(engine.scheduler.waiting)),
        "kv_cache_usage": engine.cache.usage,
        "prefix_cache_queries": float(counts["prefix_cache_queries"]),
        "prefix_cache_hits": float(counts["prefix_cache_hits"]),
        "prompt_tokens": float(metrics["prompt_tokens"]),
        "generation_tokens": float(metrics["tokens_generated"]),
        "preemptions": float(counts["preemptions"]),
        "executor_fallbacks": float(getattr(engine.executor, "fallbacks", 0)),
        "spec_decode_num_draft_tokens": float(metrics["tokens_drafted"]),
        "spec_decode_num_accepted_tokens": float(metrics["tokens_accepted"]),
        **{f"spec_decode_{why}": float(n) for why, n in engine.speculation.drafter.counts.items()},
    }
