"""`polyvec serve`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from polyvec.server.limits import Limits

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
    admin_port: int | None = None,
    limits: Annotated[Limits, Parameter(name="*")] = LIMITS,
) -> None:
    """Serve models over HTTP, with the embedding APIs of Jina, OpenAI, Cohere and TEI.

    The server also reranks, classifies and splits texts, and answers batch jobs. docs/serving.md
    describes the routes, the errors and the deployment.

    polyvec serve

    polyvec serve path/to/model --alias jina-embeddings-v3 --host 0.0.0.0 --key-file keys.txt

    Parameters
    ----------
    models
        Model folders, or names on the Hugging Face hub; the default is "mini", the bundled model.
    host
        Address to listen on. The default accepts connections from this machine only.
    port
        Port to listen on.
    alias
        Another name of the first model, or ALIAS=NAME for the model NAME. It is for clients that
        have the name of a model built in. May be given several times.
    device
        "cpu", "cuda", "cuda:1", or "auto".
    precision
        "auto" uses bf16 if the device supports it, and int8 for a model that is stored in int8.
    engines
        Number of engine processes per model. Each has its own copy of the weights. If there are
        several, one is kept for requests of up to 64 tokens, which then do not wait for long texts.
    batch_tokens
        Maximum number of tokens in a batch; the default is a quarter of the engine's batch size.
    cache_mb
        Size of the cache of embeddings, in megabytes; 0 means no cache.
    classifiers
        SQLite file for trained classifiers. /v1/train needs it.
    batches
        Folder for batch jobs. /v1/batch/embeddings needs it. A folder belongs to one server.
    otlp
        URL of an OTLP collector of traces, such as http://localhost:4318. Needs polyvec[traces].
    key_file
        File of API keys. Each line has a name, the SHA-256 of the key in hexadecimal, and
        optionally limits: requests=N tokens=N per minute, and concurrency=N. The file is read
        again when it changes, and on SIGHUP. The environment variable POLYVEC_API_KEYS may hold
        more keys, separated by spaces or commas. If there are no keys, every request is accepted.
    cors
        Origin whose web pages may call the API, such as https://example.org. May be given several
        times. `*` means every page; `null` means pages without an origin, such as local files.
    tls_cert
        File of the TLS certificate, in PEM.
    tls_key
        File of the key of the TLS certificate, in PEM.
    admin_port
        Port of 127.0.0.1 for the operator's routes, which add, replace and delete models while the
        server runs. Whoever can connect to it controls the server. By default there are none.
    limits
        Limits of one request and of the server.

    """
    from polyvec.server.key_file import load_api_keys
    from polyvec.server.key_reload import reload_on_hangup
    from polyvec.server.run import make_service, run_server

    api_keys = load_api_keys(key_file)
    reload_on_hangup(api_keys)
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
        api_keys=api_keys,
        cors=cors or [],
        limits=limits,
    )
    run_server(service, host, port, tls_cert=tls_cert, tls_key=tls_key, admin_port=admin_port)
