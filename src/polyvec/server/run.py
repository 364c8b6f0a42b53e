"""`polyvec serve`: from the command line to a running server."""

import asyncio
import logging
import os
import signal
import ssl
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import uvicorn
from cyclopts import Parameter
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from polyvec.checkpoint import load_checkpoint
from polyvec.encoder import find_model
from polyvec.heads import select_heads
from polyvec.server.app import Service, make_app
from polyvec.server.engine_process import EngineMaker, load_engine
from polyvec.server.metrics import Metrics
from polyvec.server.model import Served
from polyvec.server.quotas import Client, Clients, Limits, plain_keys, read_keys
from polyvec.server.routes.batch import answer_batches
from polyvec.server.routes.health import ENDPOINTS
from polyvec.server.scheduler import Scheduler
from polyvec.server.stores.batch_jobs import Batches
from polyvec.server.stores.classifiers import Classifiers
from polyvec.tokenizer import Tokenizer

KEYS = "POLYVEC_API_KEYS"
"""The environment variable that may hold keys, so that they appear in no process list."""

HEADER_SECONDS = 10.0
"""Time for a client to send a request's head, after which the connection is closed."""

KEEP_ALIVE_SECONDS = 75
"""An idle connection stays longer than load balancers' 60 s: they must be first to close it."""

LIMITS = Limits()


def serve(
    *models: str,
    host: str = "127.0.0.1",
    port: int = 8080,
    alias: Annotated[list[str] | None, Parameter(negative=())] = None,
    device: str = "auto",
    precision: Literal["auto", "float32"] = "auto",
    engines: int = 1,
    batch_tokens: int | None = None,
    cache_mb: int = 0,
    classifiers: Path | None = None,
    batches: Path | None = None,
    otlp: str | None = None,
    key_file: Path | None = None,
    cors: Annotated[list[str] | None, Parameter(negative=())] = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    limits: Annotated[Limits, Parameter(name="*")] = LIMITS,
) -> None:
    """Serve models over HTTP: the embeddings API of Jina and of OpenAI, and more.

    polyvec serve

    polyvec serve path/to/model --alias jina-embeddings-v3 --host 0.0.0.0 --key-file keys.txt

    Parameters
    ----------
    models
        Model folders or names on the Hugging Face hub; "mini", the default, is the bundled model.
    host
        The address to listen on; by default this machine only.
    port
        The port to listen on.
    alias
        Another name of the first model, or ALIAS=NAME; for clients with a name built in. May be
        given again.
    device
        "cpu", "cuda", "cuda:1", or "auto".
    precision
        "auto" is bf16 where the device has it, and int8 for a model that is stored so.
    engines
        Engine processes for each model, with a copy of the weights each.
    batch_tokens
        The most tokens of one batch; by default a quarter of what the engine asks for.
    cache_mb
        Megabytes of vectors to keep for texts that come again.
    classifiers
        A SQLite file for trained classifiers; without it /v1/train is closed.
    batches
        A folder for batch jobs; without it /v1/batch/embeddings is closed.
    otlp
        A collector of traces, for instance http://localhost:4318; needs polyvec[traces].
    key_file
        Who may ask: a line for each key with its name, its SHA-256 in hexadecimal, and perhaps
        requests=N tokens=N concurrency=N a minute. Keys may also stand, separated by spaces, in
        the environment variable POLYVEC_API_KEYS. Without keys anybody may ask.
    cors
        An origin whose pages may call the API from a browser. May be given again.
    tls_cert, tls_key
        Files of a certificate and its key, to listen with TLS.
    limits
        Bounds of one request and of the server.

    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    service = make_service(
        models or ("mini",),
        aliases=alias or [],
        device=device,
        precision=precision,
        num_engines=engines,
        batch_tokens=batch_tokens,
        cache_bytes=cache_mb * 1_000_000,
        classifiers=classifiers,
        batches=batches,
        otlp=otlp,
        clients=find_keys(key_file),
        cors=cors or [],
        limits=limits,
    )
    server = make_server(service, host, port, tls_cert=tls_cert, tls_key=tls_key)
    server.run()
    if not server.started:
        raise ValueError(f"cannot listen on {host}:{port}; the log says why")


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
        make_app(service, ENDPOINTS, [] if service.batches is None else [answer_batches]),
        host=host,
        port=port,
        http=PatientProtocol,
        access_log=False,
        log_config=None,
        server_header=False,
        # Nobody's word is taken for where a request comes from.
        proxy_headers=False,
        ssl_certfile=tls_cert,
        ssl_keyfile=tls_key,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(service.limits.drain_seconds)),
    )
    return DrainingServer(config, service)


def check_certificate(cert: Path | None, key: Path | None) -> None:
    """Raise ValueError unless both files are given and fit each other, or neither is given."""
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
    clients: Clients | None = None,
    cors: Sequence[str] = (),
    limits: Limits | None = None,
    make_engine: EngineMaker | None = None,
) -> Service:
    """Models ready to be served; their engines start with the application.

    `make_engine` stands in for the models' own engines, for instance to make faults. Raises
    ValueError if a model does not exist or is damaged, or two have one name.
    """
    limits, metrics, traces = limits or Limits(), Metrics(), None
    if num_engines < 1:
        raise ValueError(f"engines is {num_engines}, must be at least 1")
    if otlp is not None:
        from polyvec.server.tracing import Traces

        traces = Traces(otlp)
        metrics.span = traces.span
    by_name: dict[str, Served] = {}
    for model in models:
        folder = find_model(None if model == "mini" else model)
        # Before anything listens, so that a damaged model is refused.
        config, weights = load_checkpoint(folder)
        maker = make_engine or partial(load_engine, str(folder), device, precision)
        scheduler = Scheduler(
            maker,
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
        by_name[name] = Served(
            name,
            config,
            tokenizer,
            select_heads(weights),
            scheduler,
            limits,
            metrics,
            cache_bytes=cache_bytes,
        )
    for alias in aliases:
        short, _, name = alias.partition("=")
        if name and name not in by_name:
            raise ValueError(f"--alias {alias}: there is no model {name}")
        by_name.setdefault(short, by_name[name] if name else next(iter(by_name.values())))
    return Service(
        models=by_name,
        limits=limits,
        clients=clients or Clients(),
        metrics=metrics,
        classifiers=None if classifiers is None else Classifiers(classifiers),
        batches=None if batches is None else Batches(batches),
        traces=traces,
        cors=cors,
    )


def find_keys(key_file: Path | None) -> Clients:
    """The keys of the file and of the environment; none means that anybody may ask."""
    known: list[Client] = [] if key_file is None else read_keys(key_file)
    return Clients([*known, *plain_keys(os.environ.get(KEYS, "").split())])


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which on SIGTERM first finishes what is in work.

    From then on new requests are 503 (a balancer sees it on /ready too), until none is left or
    the time is up; then the sockets close. A second signal ends it at once.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._drain: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """What SIGINT and SIGTERM do."""
        traffic = self._service.traffic
        if traffic.is_draining or sig == signal.SIGINT:
            self.should_exit = True
            return
        traffic.is_draining = True
        asyncio.get_running_loop().call_soon_threadsafe(self._start_draining)

    def _start_draining(self) -> None:
        self._drain = asyncio.create_task(self._finish())

    async def _finish(self) -> None:
        # A moment for requests that are already on the wire to learn of it.
        await asyncio.sleep(0.2)
        try:
            async with asyncio.timeout(self._service.limits.drain_seconds):
                await self._service.traffic.idle.wait()
        except TimeoutError:
            pass
        self.should_exit = True


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which does not wait for ever for a request's head."""

    _clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Start the clock of a new connection."""
        super().connection_made(transport)
        self._start_clock()

    def on_message_begin(self) -> None:
        """Start the clock of a further request."""
        super().on_message_begin()
        self._start_clock()

    def on_headers_complete(self) -> None:
        """Stop the clock: from here the gate watches."""
        self._stop_clock()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def _start_clock(self) -> None:
        if self._clock is None:
            self._clock = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
