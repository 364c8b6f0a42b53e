"""Prometheus metrics of a server, and its log, which has one JSON object per line."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

BUCKET_SECONDS = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1, 2, 5, 10, 30, 60),
)
BUCKET_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)

LOGGER = logging.getLogger("polyvec.server")


class Metrics:
    """The metrics of one server. They are not global, so one process may run several servers."""

    span: Callable[[str], AbstractContextManager[object]] = nullcontext
    """Makes a stage a span of the request's trace; does nothing without tracing."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter(
            "polyvec_requests", "Requests answered", ["route", "status"], registry=registry
        )
        self.running = Gauge("polyvec_requests_running", "Requests in progress", registry=registry)
        self.ready = Gauge(
            "polyvec_ready", "1 if every model has a running engine, else 0", registry=registry
        )
        self.queue = Gauge("polyvec_queue_tokens", "Tokens queued", registry=registry)
        self.tokens = Counter("polyvec_tokens", "Tokens embedded", registry=registry)
        self.texts = Counter("polyvec_texts", "Texts embedded", registry=registry)
        self.busy = Counter(
            "polyvec_engine_busy_seconds", "Time that engines spent on batches", registry=registry
        )
        self.restarts = Counter("polyvec_engine_restarts", "Engine restarts", registry=registry)
        self.failures = Counter(
            "polyvec_engine_failures",
            "Batches that an engine failed to run",
            ["why"],
            registry=registry,
        )
        self.cached = Counter("polyvec_cache_hits", "Texts found in the cache", registry=registry)
        stages = {
            "request": "Time from the first byte of a request to its answer",
            "tokenise": "Time to tokenise the texts of a request",
            "queue": "Time that a text waited for an engine",
            "inference": "Time to run a batch in an engine",
            "serialise": "Time to serialise the answer to a request",
        }
        self.request, self.tokenise, self.queued, self.inference, self.serialise = (
            Histogram(f"polyvec_{name}_seconds", about, buckets=BUCKET_SECONDS, registry=registry)
            for name, about in stages.items()
        )
        self.batch_texts = Histogram(
            "polyvec_batch_texts", "Texts per batch", buckets=BUCKET_COUNTS, registry=registry
        )
        self.batch_tokens = Histogram(
            "polyvec_batch_tokens", "Tokens per batch", buckets=BUCKET_COUNTS, registry=registry
        )

    @contextmanager
    def timed(self, stage: str, histogram: Histogram) -> Iterator[None]:
        """Time a stage of a request."""
        started = time.perf_counter()
        with self.span(stage):
            yield
        histogram.observe(time.perf_counter() - started)

    def record_batch(
        self, num_texts: int, num_tokens: int, seconds: float, queued_tokens: int
    ) -> None:
        """Record one batch that an engine has run."""
        self.texts.inc(num_texts)
        self.tokens.inc(num_tokens)
        self.busy.inc(seconds)
        self.inference.observe(seconds)
        self.batch_texts.observe(num_texts)
        self.batch_tokens.observe(num_tokens)
        self.queue.set(queued_tokens)

    def render(self, usage: Iterable[tuple[str, int, int]]) -> bytes:
        """All metrics in Prometheus's text format.

        `usage` has the name, the requests and the tokens of each API key that the reader may see.
        """
        return generate_latest(self.registry) + generate_latest(UsageCollector(usage))


class UsageCollector(Collector):
    """The counters of API keys. Their labels are the names of configured keys, and no others."""

    def __init__(self, usage: Iterable[tuple[str, int, int]]) -> None:
        self._usage = usage

    def collect(self) -> Iterator[CounterMetricFamily]:
        """The counters at this moment."""
        requests = CounterMetricFamily(
            "polyvec_key_requests", "Requests admitted, by API key", labels=["key"]
        )
        tokens = CounterMetricFamily(
            "polyvec_key_tokens", "Tokens charged, by API key, with batch jobs", labels=["key"]
        )
        for name, num_requests, num_tokens in self._usage:
            requests.add_metric([name], num_requests)
            tokens.add_metric([name], num_tokens)
        yield requests
        yield tokens


def log_event(event: str, fields: Mapping[str, Any], *, level: int = logging.WARNING) -> None:
    """Write one line of JSON to the log. The texts of requests are never logged."""
    LOGGER.log(level, json.dumps({"event": event, **fields}))
