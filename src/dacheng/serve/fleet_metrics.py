"""Metrics of several engine processes as one text: counts are sums, gauges say whose they are."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

from starlette.responses import Response

from dacheng.serve.upstream import Lost
from dacheng.serve.workers import Worker, Workers

SCRAPE_S = 5.0
_SUFFIX = re.compile("_(total|bucket|count|sum)$")
_Key = tuple[str, tuple[tuple[str, str], ...]]


class FleetMetrics:
    """What a process had counted when it was last asked stays in the sums when it ends."""

    def __init__(self, workers: Workers) -> None:
        self._workers, self.retries = workers, 0
        self._last: dict[int, list[Any]] = {}  # by worker: what it said last
        self._gone: dict[_Key, float] = {}

    async def response(self) -> Response:
        from prometheus_client import CollectorRegistry, generate_latest

        ready = self._workers.ready
        await asyncio.gather(*[self._scrape(worker) for worker in ready])
        alive = {worker.id: worker for worker in self._workers.slots if worker is not None}
        for worker_id in [worker_id for worker_id in self._last if worker_id not in alive]:
            for family in self._last.pop(worker_id):
                if _is_count(family):
                    for sample in family.samples:
                        self._gone[_key(sample)] = self._gone.get(_key(sample), 0.0) + sample.value
        families = {
            worker_id: (str(worker.slot), self._last[worker_id])
            for worker_id, worker in alive.items() if worker_id in self._last
        }  # fmt: skip
        registry = CollectorRegistry()
        registry.register(_Families([*merged(list(families.values()), self._gone), *self._own(ready)]))
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _scrape(self, worker: Worker) -> None:
        from prometheus_client.parser import text_string_to_metric_families

        try:
            async with asyncio.timeout(SCRAPE_S):
                status, text = await worker.get(b"/metrics")
        except (Lost, TimeoutError):
            return
        if status == 200:
            self._last[worker.id] = list(text_string_to_metric_families(text.decode()))

    def _own(self, ready: list[Worker]) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        yield GaugeMetricFamily("dacheng_router_workers", "Engine processes that take requests.", value=len(ready))
        loads = GaugeMetricFamily("dacheng_router_requests", "Requests that were passed on.", labels=["worker"])
        for worker in ready:
            loads.add_metric([str(worker.slot)], worker.load)
        yield loads
        said = "Engine processes that were started again."
        yield CounterMetricFamily("dacheng_router_restarts", said, value=self._workers.restarts)
        said = "Requests whose engine process went before it answered."
        yield CounterMetricFamily("dacheng_router_retries", said, value=self.retries)


def merged(families: list[tuple[str, list[Any]]], gone: dict[_Key, float]) -> list[Any]:
    """families: (worker, what it said). gone: counts of those that are no more, by name and labels."""
    from prometheus_client.core import Metric

    found: dict[str, Any] = {}
    sums: dict[str, dict[_Key, float]] = {}
    for worker, said in families:
        for family in said:
            if family.name.endswith("_created"):
                continue
            if family.name not in found:
                found[family.name] = Metric(family.name, family.documentation, family.type)
            for sample in family.samples:
                if _is_count(family):
                    counts = sums.setdefault(family.name, {})
                    counts[_key(sample)] = counts.get(_key(sample), gone.get(_key(sample), 0.0)) + sample.value
                else:
                    found[family.name].add_sample(sample.name, sample.labels | {"worker": worker}, sample.value)
    for key, value in gone.items():  # what those that are there have not met yet
        family_name = _SUFFIX.sub("", key[0])
        if family_name in found:
            sums.setdefault(family_name, {}).setdefault(key, value)
    for name, counts in sums.items():
        for (sample_name, labels), value in counts.items():
            found[name].add_sample(sample_name, dict(labels), value)
    return list(found.values())


def _is_count(family: Any) -> bool:
    return family.type in ("counter", "histogram", "summary") and not family.name.endswith("_created")


def _key(sample: Any) -> _Key:
    return sample.name, tuple(sample.labels.items())


class _Families:
    def __init__(self, families: list[Any]) -> None:
        self._families = families

    def collect(self) -> list[Any]:
        return self._families
