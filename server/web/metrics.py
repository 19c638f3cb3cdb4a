"""Prometheus metrics of one process, a server or a worker."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from refdiff.agent.service import InspectionService
from refdiff.memory.timestamps import seconds_between, utc_now

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class Metrics:
    """Request counters of this server, and the state of its inspection service."""

    def __init__(self, service: InspectionService) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "refdiff_http_requests", "Requests answered", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "refdiff_http_request_seconds", "Time until a request was answered", ["route"], registry=self._registry
        )
        self._received = Counter(
            "refdiff_http_received_bytes", "Bytes of requests that carry photos", registry=self._registry
        )
        self._registry.register(_ServiceCollector(service))

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method if method in _METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def received(self, size: int) -> None:
        self._received.inc(size)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _ServiceCollector(Collector):
    """Reads the state of the service at every scrape."""

    def __init__(self, service: InspectionService) -> None:
        self._service = service

    def collect(self) -> Iterable[Metric]:
        status = self._service.status()
        yield GaugeMetricFamily(
            "refdiff_inspections_open", "Inspections that wait or run, in all processes", value=status.waiting
        )
        yield GaugeMetricFamily(
            "refdiff_workers", "Processes that take inspections", value=len(self._service.jobs.workers())
        )
        yield GaugeMetricFamily("refdiff_inspections_limit", "Inspections that may wait", value=status.queue_limit)
        yield GaugeMetricFamily(
            "refdiff_inspection_seconds", "Duration of an inspection, moving average", value=status.seconds_each
        )
        yield GaugeMetricFamily("refdiff_up_seconds", "Time since the start", value=status.uptime_s)
        ready = self._service.readiness()
        yield GaugeMetricFamily("refdiff_ready", "1 while accepted work gets done", value=not ready.problems)
        yield GaugeMetricFamily(
            "refdiff_oldest_inspection_seconds", "Age of the oldest inspection that waits or runs", value=ready.oldest_s
        )
        yield GaugeMetricFamily(
            "refdiff_worker_silent_seconds", "Since the running inspection last showed progress", value=ready.silent_s
        )
        yield GaugeMetricFamily(
            "refdiff_disk_free_bytes", "Free on the disk of the home folder", value=ready.free_bytes
        )
        yield GaugeMetricFamily(
            "refdiff_disk_floor_bytes",
            "Free space below which no new photo is accepted",
            value=self._service.stores.settings.min_free_bytes,
        )
        expiring = GaugeMetricFamily(
            "refdiff_key_expires_seconds", "Until an API key expires, of keys that are valid and do", labels=["key"]
        )
        now = utc_now()
        for key in self._service.stores.keys.list():
            if key.expires_at is not None and key.valid(now):
                expiring.add_metric([key.key_id], seconds_between(now, key.expires_at))
        yield expiring
        ended = CounterMetricFamily(
            "refdiff_inspections", "Inspections that this process ended since its start", labels=["state"]
        )
        for state, n in self._service.finished.items():
            ended.add_metric([state], n)
        yield ended
