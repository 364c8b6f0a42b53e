"""Starting a server: from the options of `polyvec serve` to a process that listens."""

import asyncio
import gc
import logging
import signal
import socket
import ssl
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import uvicorn
from starlette.types import ASGIApp

from polyvec.checkpoint import fingerprint, load_checkpoint
from polyvec.encoder import find_model
from polyvec.heads import select_heads
from polyvec.server.admin import ADMIN_HOST, make_admin_app
from polyvec.server.api_keys import ApiKeys
from polyvec.server.app import BackgroundTask, make_app
from polyvec.server.batch_job_worker import answer_batch_jobs
from polyvec.server.cors import check_origin
from polyvec.server.engine_process import EngineFactory, load_engine
from polyvec.server.key_reload import reload_api_keys
from polyvec.server.limits import Limits
from polyvec.server.metrics import Metrics, log_event
from polyvec.server.model import ServedModel
from polyvec.server.model_changes import stop_retired_models
from polyvec.server.protocol import BoundedHttpProtocol
from polyvec.server.routes import ENDPOINTS
from polyvec.server.scheduler import Scheduler
from polyvec.server.service import Service
from polyvec.server.stores.batch_jobs import BatchJobs
from polyvec.server.stores.classifiers import Classifiers
from polyvec.tokenizer import Tokenizer

KEEP_ALIVE_SECONDS = 75
"""Time until an idle connection is closed. Longer than the 60 s of common load balancers, which
must be the first to close it."""

DRAIN_DELAY_SECONDS = 0.2
"""Time for requests that are already on the wire to arrive before draining ends."""

CLOSE_SECONDS = 1
"""Time for connections to close when the server ends at once, or draining takes too long."""

MAX_PORT = 65_535


def run_server(
    service: Service,
    host: str,
    port: int,
    *,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    admin_port: int | None = None,
) -> None:
    """Serve until a signal stops the process. Raises ValueError if it cannot listen."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    with nullcontext() if admin_port is None else listen_for_admin(admin_port) as admin:
        server = make_server(service, host, port, tls_cert=tls_cert, tls_key=tls_key, admin=admin)
        # What start-up has made stays; a search for garbage in all of it would stop the event loop.
        gc.collect()
        gc.freeze()
        server.run()
    if not server.started:
        raise ValueError(f"cannot listen on {host}:{port}; the log gives the reason")


def listen_for_admin(port: int) -> socket.socket:
    """The socket for the operator's routes. Raises ValueError if the port is in use."""
    if not 0 <= port <= MAX_PORT:
        raise ValueError(f"--admin-port {port} must be in 0..{MAX_PORT}")
    try:
        return socket.create_server((ADMIN_HOST, port))
    except OSError as error:
        raise ValueError(
            f"--admin-port {port}: cannot listen on {ADMIN_HOST}:{port} ({error.strerror})"
        ) from None


def make_server(
    service: Service,
    host: str,
    port: int,
    *,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    admin: socket.socket | None = None,
    background: Sequence[BackgroundTask] = (),
) -> "DrainingServer":
    """The HTTP server, which does not listen yet.

    The operator's routes are served on the socket `admin`, which stays the caller's. `background`
    holds further background tasks.
    """
    check_certificate(tls_cert, tls_key)
    tasks = [reload_api_keys, *background]
    if service.batch_jobs is not None:
        tasks.append(answer_batch_jobs)
    if admin is not None:
        tasks += [stop_retired_models, make_admin_task(service, admin)]
    config = _make_config(
        make_app(service, tasks),
        service.limits,
        service.metrics,
        host=host,
        port=port,
        ssl_certfile=tls_cert,
        ssl_keyfile=tls_key,
    )
    return DrainingServer(config, service)


def _make_config(app: ASGIApp, limits: Limits, metrics: Metrics, **options: Any) -> uvicorn.Config:
    """The configuration of an HTTP server, with further options of uvicorn."""
    return uvicorn.Config(
        app,
        # uvicorn calls it like the class.
        http=partial(  # pyright: ignore[reportArgumentType]
            BoundedHttpProtocol, limits=limits, metrics=metrics
        ),
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        # Headers that claim where a request comes from are not trusted.
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=CLOSE_SECONDS,
        **options,
    )


def make_admin_task(service: Service, listener: socket.socket) -> BackgroundTask:
    """The background task that serves the operator's routes beside the API."""
    app = make_admin_app(service)

    async def serve_admin(service: Service) -> None:
        # The application of the API starts and stops what both need.
        config = _make_config(app, service.limits, Metrics(), lifespan="off")
        server = SecondServer(config)
        port = listener.getsockname()[1]
        log_event("admin address", {"url": f"http://{ADMIN_HOST}:{port}"}, level=logging.INFO)
        # uvicorn closes the socket that it is given.
        serving = asyncio.create_task(server.serve(sockets=[listener.dup()]))
        try:
            await asyncio.wait({serving})
        except asyncio.CancelledError:
            # A change that is in progress ends now.
            service.load.is_stopping = True
            raise
        finally:
            server.should_exit = True
            await serving

    return serve_admin


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
    Raises ValueError if a model does not exist or is damaged, if two models have the same name, or
    if `cors` has a value that is no origin.
    """
    for origin in cors:
        check_origin(origin)
    limits, metrics, traces = limits or Limits(), Metrics(), None
    if num_engines < 1:
        raise ValueError(f"engines is {num_engines}, must be at least 1")
    if otlp is not None:
        from polyvec.server.tracing import Traces

        traces = Traces(otlp)
        metrics.span = traces.span
    load = partial(
        load_model,
        device=device,
        precision=precision,
        num_engines=num_engines,
        batch_tokens=batch_tokens,
        cache_bytes=cache_bytes,
        with_fingerprint=classifiers is not None,
        limits=limits,
        metrics=metrics,
        make_engine=make_engine,
    )
    by_name: dict[str, ServedModel] = {}
    for model in models:
        name = "polyvec-mini" if model == "mini" else Path(model).name
        if name in by_name:
            raise ValueError(f"two models have the name {name}; rename a folder")
        # Before the server listens, so that it refuses to start with a damaged model.
        by_name[name] = load(model, name)
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
        batch_jobs=None if batches is None else BatchJobs(batches, limits),
        traces=traces,
        cors=cors,
        load_model=load,
    )


def load_model(
    model: str,
    name: str,
    *,
    device: str,
    precision: Literal["auto", "float32"],
    num_engines: int,
    batch_tokens: int | None,
    cache_bytes: int,
    with_fingerprint: bool,
    limits: Limits,
    metrics: Metrics,
    make_engine: EngineFactory | None,
) -> ServedModel:
    """Load a model, which is then served under a name. Its engines are started by its scheduler.

    Raises ValueError if it does not exist or is damaged.
    """
    # Not a folder of this name.
    folder = find_model(None if model == "mini" else model)
    config, weights = load_checkpoint(folder)
    scheduler = Scheduler(
        make_engine or partial(load_engine, str(folder), device, precision),
        config.width,
        metrics,
        num_engines=num_engines,
        queue_tokens=limits.queue_tokens,
        batch_tokens=batch_tokens,
        engine_seconds=limits.engine_seconds,
        restart_seconds=limits.restart_seconds,
    )
    return ServedModel(
        name,
        config,
        Tokenizer.load(folder, config.max_tokens),
        select_heads(weights),
        scheduler,
        limits,
        metrics,
        cache_bytes=cache_bytes,
        fingerprint=_start_fingerprint(folder) if with_fingerprint else None,
        folder=folder,
    )


def _start_fingerprint(folder: Path) -> Future[str]:
    """Compute the fingerprint of a model folder in a thread, while the engines start."""
    return ThreadPoolExecutor(1, thread_name_prefix="fingerprint").submit(fingerprint, folder)


class SecondServer(uvicorn.Server):
    """A server beside another one of the same process, which handles the signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which on SIGTERM leaves without losing a request.

    1. /ready turns false, so that load balancers send new requests elsewhere. For
       `shutdown_delay_seconds` everything else goes on as before, except that connections are
       closed after their answers.
    2. New requests are answered with 503. The server ends when no request is left, or after
       `drain_seconds`.

    A second signal, and Ctrl-C (SIGINT), end the server at once.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._drain_task: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGINT and SIGTERM."""
        load = self._service.load
        if load.is_stopping or sig == signal.SIGINT:
            self.force_exit = self.should_exit or load.is_stopping
            self.should_exit = True
            return
        load.is_stopping = True
        asyncio.get_running_loop().call_soon_threadsafe(self._start_draining)

    def _start_draining(self) -> None:
        self._drain_task = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        load, limits = self._service.load, self._service.limits
        await asyncio.sleep(limits.shutdown_delay_seconds)
        load.is_draining = True
        loop = asyncio.get_running_loop()
        end = loop.time() + limits.drain_seconds
        await asyncio.sleep(DRAIN_DELAY_SECONDS)
        try:
            async with asyncio.timeout_at(end):
                await load.idle.wait()
        except TimeoutError:
            pass
        # Slow clients are still receiving the last answers.
        self.config.timeout_graceful_shutdown = max(CLOSE_SECONDS, round(end - loop.time()))
        self.should_exit = True
