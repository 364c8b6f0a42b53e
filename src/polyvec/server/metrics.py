"""What the server counts and times, for Prometheus, and its log: one JSON object a line."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)

LOG = logging.getLogger("polyvec.server")


class Metrics:
    """The counters of one server; no globals, so that two servers may share a process."""

    span: Callable[[str], AbstractContextManager[object]] = nullcontext
    """Makes a stage a part of the request's trace, where there are traces."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter(
            "polyvec_requests", "Requests answered", ["route", "status"], registry=registry
        )
        self.running = Gauge("polyvec_requests_running", "Requests in work", registry=registry)
        self.ready = Gauge("polyvec_ready", "1 if an engine can run", registry=registry)
        self.queue = Gauge("polyvec_queue_tokens", "Tokens that wait", registry=registry)
        self.tokens = Counter("polyvec_tokens", "Tokens embedded", registry=registry)
        self.texts = Counter("polyvec_texts", "Texts embedded", registry=registry)
        self.busy = Counter(
            "polyvec_engine_busy_seconds", "Time that engines worked", registry=registry
        )
        self.restarts = Counter("polyvec_engine_restarts", "Engines lost", registry=registry)
        self.failures = Counter(
            "polyvec_engine_failures", "Batches refused", ["why"], registry=registry
        )
        self.cached = Counter("polyvec_cache_hits", "Texts found in the cache", registry=registry)
        times = {
            "request": "From a request's first byte to its answer",
            "tokenise": "Making tokens of a request's texts",
            "queue": "A text's wait for an engine",
            "inference": "A batch in the engine",
            "serialise": "Making bytes of a request's vectors",
        }
        self.request, self.tokenise, self.queued, self.inference, self.serialise = (
            Histogram(f"polyvec_{name}_seconds", about, buckets=SECONDS, registry=registry)
            for name, about in times.items()
        )
        self.batch_texts = Histogram(
            "polyvec_batch_texts", "Texts in a batch", buckets=SIZES, registry=registry
        )
        self.batch_tokens = Histogram(
            "polyvec_batch_tokens", "Tokens in a batch", buckets=SIZES, registry=registry
        )

    @contextmanager
    def timed(self, name: str, times: Histogram) -> Iterator[None]:
        """Time a stage of a request."""
        began = time.perf_counter()
        with self.span(name):
            yield
        times.observe(time.perf_counter() - began)

    def batch(self, num_texts: int, num_tokens: int, seconds: float, waiting: int) -> None:
        """Count one batch."""
        self.texts.inc(num_texts)
        self.tokens.inc(num_tokens)
        self.busy.inc(seconds)
        self.inference.observe(seconds)
        self.batch_texts.observe(num_texts)
        self.batch_tokens.observe(num_tokens)
        self.queue.set(waiting)

    def text(self) -> bytes:
        """Everything, in Prometheus's text format."""
        return generate_latest(self.registry)


def log(event: str, fields: Mapping[str, Any], *, level: int = logging.WARNING) -> None:
    """Write one line of JSON to the log. Never a text: those are the users'."""
    LOG.log(level, json.dumps({"event": event, **fields}))
