"""Starting a server: from the options of `polyvec serve` to a process that listens."""

import asyncio
import gc
import logging
import os
import signal
import ssl
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Literal

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from polyvec.checkpoint import load_checkpoint
from polyvec.encoder import find_model
from polyvec.heads import select_heads
from polyvec.server.api_keys import ApiKeys, hash_keys, read_key_file
from polyvec.server.app import make_app
from polyvec.server.batch_job_worker import answer_batch_jobs
from polyvec.server.engine_process import EngineFactory, load_engine
from polyvec.server.limits import Limits
from polyvec.server.metrics import Metrics
from polyvec.server.model import ServedModel
from polyvec.server.routes import ENDPOINTS
from polyvec.server.scheduler import Scheduler
from polyvec.server.service import Service
from polyvec.server.stores.batch_jobs import BatchJobs
from polyvec.server.stores.classifiers import Classifiers
from polyvec.tokenizer import Tokenizer

KEYS_VARIABLE = "POLYVEC_API_KEYS"
"""The environment variable that may hold API keys, so that no list of processes shows them."""

HEADER_SECONDS = 10.0
"""Time limit for a client to send the head of a request; then the connection is closed."""

KEEP_ALIVE_SECONDS = 75
"""Time until an idle connection is closed. Longer than the 60 s of common load balancers, which
must be the first to close it."""

DRAIN_DELAY_SECONDS = 0.2
"""Time for requests that are already on the wire to arrive before draining ends."""


def run_server(
    service: Service,
    host: str,
    port: int,
    *,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
) -> None:
    """Serve until a signal stops the process. Raises ValueError if it cannot listen."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    server = make_server(service, host, port, tls_cert=tls_cert, tls_key=tls_key)
    # What start-up has made stays; a search for garbage in all of it would stop the event loop.
    gc.collect()
    gc.freeze()
    server.run()
    if not server.started:
        raise ValueError(f"cannot listen on {host}:{port}; the log gives the reason")


def make_server(
    service: Service,
    host: str,
    port: int,
    *,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
) -> "DrainingServer":
    """The HTTP server, which does not listen yet."""
    check_certificate(tls_cert, tls_key)
    config = uvicorn.Config(
        make_app(service, [] if service.batch_jobs is None else [answer_batch_jobs]),
        host=host,
        port=port,
        http=HeaderTimeoutProtocol,
        access_log=False,
        log_config=None,
        server_header=False,
        # Headers that claim where a request comes from are not trusted.
        proxy_headers=False,
        ssl_certfile=tls_cert,
        ssl_keyfile=tls_key,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(service.limits.drain_seconds)),
    )
    return DrainingServer(config, service)


def check_certificate(cert: Path | None, key: Path | None) -> None:
    """Raise ValueError unless both files are given and match, or neither is given."""
    if cert is None and key is None:
        return
    if cert is None or key is None:
        raise ValueError("TLS needs both --tls-cert and --tls-key")
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(cert, key)
    except OSError as error:
        raise ValueError(
            f"--tls-cert {cert} and --tls-key {key} must be a certificate and its key, as PEM "
            f"files: {error}"
        ) from None


def make_service(
    models: Sequence[str],
    *,
    aliases: Sequence[str] = (),
    device: str = "auto",
    precision: Literal["auto", "float32"] = "auto",
    num_engines: int = 1,
    batch_tokens: int | None = None,
    cache_bytes: int = 0,
    classifiers: Path | None = None,
    batches: Path | None = None,
    otlp: str | None = None,
    api_keys: ApiKeys | None = None,
    cors: Sequence[str] = (),
    limits: Limits | None = None,
    make_engine: EngineFactory | None = None,
) -> Service:
    """Load models and return a service for them. Its engines start when the application starts.

    If `make_engine` is given, it creates the engines, for example engines that fail on purpose in
    tests.
    Raises ValueError if a model does not exist or is damaged, or if two models have the same name.
    """
    limits, metrics, traces = limits or Limits(), Metrics(), None
    if num_engines < 1:
        raise ValueError(f"engines is {num_engines}, must be at least 1")
    if otlp is not None:
        from polyvec.server.tracing import Traces

        traces = Traces(otlp)
        metrics.span = traces.span
    by_name: dict[str, ServedModel] = {}
    for model in models:
        folder = find_model(None if model == "mini" else model)
        # Before the server listens, so that it refuses to start with a damaged model.
        config, weights = load_checkpoint(folder)
        scheduler = Scheduler(
            make_engine or partial(load_engine, str(folder), device, precision),
            config.width,
            metrics,
            num_engines=num_engines,
            queue_tokens=limits.queue_tokens,
            batch_tokens=batch_tokens,
            engine_seconds=limits.engine_seconds,
        )
        name = "polyvec-mini" if model == "mini" else Path(model).name
        if name in by_name:
            raise ValueError(f"two models have the name {name}; rename a folder")
        tokenizer = Tokenizer.load(folder, config.max_tokens)
        by_name[name] = ServedModel(
            name,
            config,
            tokenizer,
            select_heads(weights),
            scheduler,
            limits,
            metrics,
            cache_bytes=cache_bytes,
        )
    for option in aliases:
        alias, _, name = option.partition("=")
        if name and name not in by_name:
            raise ValueError(f"--alias {option}: there is no model {name}")
        by_name.setdefault(alias, by_name[name] if name else next(iter(by_name.values())))
    return Service(
        models_by_name=by_name,
        endpoints=ENDPOINTS,
        limits=limits,
        api_keys=api_keys or ApiKeys(),
        metrics=metrics,
        classifiers=None if classifiers is None else Classifiers(classifiers),
        batch_jobs=None if batches is None else BatchJobs(batches),
        traces=traces,
        cors=cors,
    )


def load_api_keys(key_file: Path | None) -> ApiKeys:
    """The API keys of a file and of the environment. Without keys, every request is accepted."""
    from_file = [] if key_file is None else read_key_file(key_file)
    return ApiKeys([*from_file, *hash_keys(os.environ.get(KEYS_VARIABLE, "").split())])


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which on SIGTERM first finishes the requests in progress.

    Meanwhile /ready and new requests are answered with 503. The server stops when no request is
    left, or when the time limit is reached. A second signal stops it at once.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._drain_task: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGINT and SIGTERM."""
        load = self._service.load
        if load.is_draining or sig == signal.SIGINT:
            self.should_exit = True
            return
        load.is_draining = True
        asyncio.get_running_loop().call_soon_threadsafe(self._start_draining)

    def _start_draining(self) -> None:
        self._drain_task = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        await asyncio.sleep(DRAIN_DELAY_SECONDS)
        try:
            async with asyncio.timeout(self._service.limits.drain_seconds):
                await self._service.load.idle.wait()
        except TimeoutError:
            pass
        self.should_exit = True


class HeaderTimeoutProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with a time limit for the head of a request."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Start the timer of a new connection."""
        super().connection_made(transport)
        self._start_timer()

    def on_message_begin(self) -> None:
        """Start the timer of a further request."""
        super().on_message_begin()
        self._start_timer()

    def on_headers_complete(self) -> None:
        """Stop the timer: from here on, `RequestMiddleware` limits the time."""
        self._stop_timer()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
