"""Metrics for Prometheus, under vLLM's names where they mean the same."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dacheng.engine.engine import StepOutput
    from dacheng.serve.served_model import Models

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_LONG = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

# stats() of the engine -> (name, help); vLLM's names without their prefix.
_GAUGES = {
    "num_requests_running": ("vllm:num_requests_running", "Requests in the batch."),
    "num_requests_waiting": ("vllm:num_requests_waiting", "Requests in the queue."),
    "kv_cache_usage": ("vllm:kv_cache_usage_perc", "Share of the KV cache in use; 1 is all."),
}
_COUNTERS = {
    "prefix_cache_queries": ("vllm:prefix_cache_queries", "Prompt tokens looked for in the prefix cache."),
    "prefix_cache_hits": ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache."),
    "prompt_tokens": ("vllm:prompt_tokens", "Prompt tokens computed or found."),
    "generation_tokens": ("vllm:generation_tokens", "Tokens generated."),
    "preemptions": ("vllm:num_preemptions", "Requests set back for want of room."),
}


class Metrics:
    """One registry for a server; a scrape reads the engines' own counts."""

    def __init__(self, models: Models) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self._models, self.registry = models, CollectorRegistry()
        label = ["model_name"]

        def histogram(name: str, says: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, says, label, registry=self.registry, buckets=buckets)

        self.first_token = histogram("vllm:time_to_first_token_seconds", "From the request to its first token.", _LONG)
        self.between = histogram("vllm:inter_token_latency_seconds", "Between two tokens of one answer.", _SHORT)
        self.whole = histogram("vllm:e2e_request_latency_seconds", "From the request to its last token.", _LONG)
        self.finished = Counter(
            "vllm:request_success", "Answers by how they ended.", [*label, "finished_reason"], registry=self.registry
        )
        self.requests = Counter(
            "http_requests", "Requests by route and status.", ["handler", "method", "status"], registry=self.registry
        )
        self.registry.register(_EngineStats(models))

    def text(self) -> bytes:
        """What a scrape gets."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)


class _EngineStats:
    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        stats = [(model.name, model.engine.stats()) for model in self._models.served if model.is_own]
        for names, family in ((_GAUGES, GaugeMetricFamily), (_COUNTERS, CounterMetricFamily)):
            for key, (name, says) in names.items():
                metric = family(name, says, labels=["model_name"])
                for model_name, values in stats:
                    if key in values:
                        metric.add_metric([model_name], values[key])
                yield metric


class Meter:
    """Of one HTTP request: what goes into the metrics, and the sums for its line in the log."""

    def __init__(self, metrics: Metrics, began: float) -> None:
        self._metrics, self._began = metrics, began
        self.model_name = ""
        self.prompt_tokens = self.completion_tokens = self.cached_tokens = 0
        self.reasons: list[str] = []
        self.first_token_s: float | None = None
        self._last: dict[int, float] = {}

    def begin(self, prompt_tokens: int) -> None:
        self.prompt_tokens += prompt_tokens

    def count(self, handler: str, method: str, status: int) -> None:
        self._metrics.requests.labels(handler, method, str(status)).inc()

    def step(self, index: int, output: StepOutput) -> None:
        now, name = time.perf_counter(), self.model_name
        self.cached_tokens += int(getattr(output, "cached_tokens", 0) or 0)
        if output.token_ids:
            self.completion_tokens += len(output.token_ids)
            if index in self._last:
                gap = (now - self._last[index]) / len(output.token_ids)
                for _ in output.token_ids:
                    self._metrics.between.labels(name).observe(gap)
            else:
                self._metrics.first_token.labels(name).observe(now - self._began)
                if self.first_token_s is None:
                    self.first_token_s = now - self._began
            self._last[index] = now
        if output.finish_reason is not None:
            self.reasons.append(output.finish_reason)
            self._metrics.finished.labels(name, output.finish_reason).inc()
            self._metrics.whole.labels(name).observe(now - self._began)
