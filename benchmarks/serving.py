"""The cost of serving compared with the library, and the throughput of the server under load.

`python -m benchmarks.serving` takes ten minutes on two cores. With `--write` it writes its table to
docs/serving.md.

1. The library embeds texts in this process: one at a time, and all at once.
2. `polyvec serve` embeds the same texts one at a time, in turn with the library, so that both run
   under the same conditions. The difference of their medians is the cost of serving.
3. The server answers 1, 16 and 128 clients that send one short text after another, and one request
   of 2,048 texts.
4. With `--peer`, which names an infinity_emb executable, Infinity does the same with a model of the
   same size: XLM-RoBERTa with random weights, because it cannot load polyvec's model.

The client runs on the same cores and takes about 0.1 ms per request.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import tyro

from benchmarks.load import (
    PATH,
    Connection,
    free_port,
    make_request,
    make_texts,
    read_metric,
    running,
    serve_command,
)
from benchmarks.report import ROOT, describe_machine, table, write_section
from polyvec import Encoder
from polyvec.model_folder import find_model

PAGE = ROOT / "docs" / "serving.md"
CLIENTS = (1, 16, 128)
LARGE_REQUEST_TEXTS = 2_048


@dataclass(slots=True)
class Measured:
    """Measurements of one server under one load."""

    latencies: list[float] = field(default_factory=list)
    """Seconds of each request."""
    num_texts: int = 0
    seconds: float = 0.0
    busy: float | None = None
    """Fraction of the time in which the engine worked; None if it is unknown."""

    def row(self, name: str, load: str, library: float) -> list[str]:
        """Return a row of the table. `library` is the speed of the library in texts per second."""
        milliseconds = 1e3 * np.array(self.latencies)
        return [
            name,
            load,
            f"{len(self.latencies) / self.seconds:,.1f}",
            f"{np.percentile(milliseconds, 50):,.1f}",
            f"{np.percentile(milliseconds, 99):,.1f}",
            f"{self.num_texts / self.seconds:,.0f}",
            f"{self.num_texts / self.seconds / library:.0%}",
            "" if self.busy is None else f"{self.busy:.0%}",
        ]


def main(seconds: float = 20.0, peer: Path | None = None, write: bool = False) -> None:
    """Measure each load for `seconds`. `write` writes the table to docs/serving.md."""
    encoder = Encoder.load()
    short, many = make_texts(512), make_texts(LARGE_REQUEST_TEXTS)
    library = Measured()
    encoder.encode(many[:64])
    while library.seconds < seconds:
        began = time.perf_counter()
        encoder.encode(many, progress=False)
        library.latencies.append(time.perf_counter() - began)
        library.seconds += library.latencies[-1]
        library.num_texts += len(many)
    # The best run counts, because other work on the machine can only make a run slower.
    speed = len(many) / min(library.latencies)
    rows = [library.row("library", f"{len(many):,} texts at once", speed)]
    port = free_port()
    with running(serve_command(port), port):
        server, alone, cost = asyncio.run(time_idle(port, encoder, short, seconds))
        rows.append(alone.row("library", "1 text after another", speed))
        rows.append(server.row("polyvec serve", "1 text, in turn with the library", speed))
        rows += measure("polyvec serve", port, "polyvec-mini", short, many, seconds, speed)
    if peer is not None:
        rows += measure_infinity(peer, encoder, short, many, seconds, speed)
    header = ["", "load", "requests/s", "p50 ms", "p99 ms", "texts/s", "of the library", "engine"]
    body = "\n\n".join(
        [
            table(header, rows),
            f"**Without other load, the server takes {cost * 1e3:.2f} ms longer than the library** "
            "(the median difference over requests for the same text, in turn).",
            f"{describe_machine('openvino', 'uvicorn')} `python -m benchmarks.serving`",
        ]
    )
    sys.stdout.write(body + "\n")
    if write:
        write_section("load", body, PAGE)


async def time_idle(
    port: int, encoder: Encoder, texts: list[str], seconds: float
) -> tuple[Measured, Measured, float]:
    """Measure server and library in turn, and return the median difference in seconds."""
    connection, server, library = Connection(port), Measured(), Measured()
    requests = [make_request(PATH, {"model": "polyvec-mini", "input": text}) for text in texts]
    for request in requests[:20]:
        await connection.ask(request)
    while server.seconds + library.seconds < seconds:
        number = server.num_texts % len(texts)
        began = time.perf_counter()
        status, _ = await connection.ask(requests[number])
        middle = time.perf_counter()
        encoder.encode([texts[number]], progress=False)
        took = (middle - began, time.perf_counter() - middle)
        assert status == 200
        for one, latency in zip((server, library), took, strict=True):
            one.latencies.append(latency)
            one.seconds += latency
            one.num_texts += 1
    connection.close()
    pairs = zip(server.latencies, library.latencies, strict=True)
    return server, library, median(a - b for a, b in pairs)


def measure(
    name: str,
    port: int,
    model: str,
    short: list[str],
    many: list[str],
    seconds: float,
    library: float,
    path: str = PATH,
) -> list[list[str]]:
    """Return the rows of the table for a running server."""
    loads = [(f"{n} clients, 1 text each", n, [[text] for text in short]) for n in CLIENTS]
    loads[0] = ("1 client, 1 text", *loads[0][1:])
    rows = []
    for load, num_clients, inputs in [*loads, (f"1 request of {len(many):,} texts", 1, [many])]:
        requests = [make_request(path, {"model": model, "input": texts}) for texts in inputs]
        asyncio.run(send_load(port, requests[:1], 1, 0, 1))
        measured = asyncio.run(send_load(port, requests, num_clients, seconds, len(inputs[0])))
        rows.append(measured.row(name, load, library))
    return rows


async def send_load(
    port: int, requests: list[bytes], num_clients: int, seconds: float, num_texts: int
) -> Measured:
    """Send requests from `num_clients` clients, each one after another, for `seconds`."""
    measured = Measured()
    began = time.perf_counter()
    before = await asyncio.to_thread(busy_seconds, port)

    async def client(number: int) -> None:
        connection = Connection(port)
        while True:
            sent = time.perf_counter()
            status, body = await connection.ask(requests[number % len(requests)])
            if status != 200:
                raise RuntimeError(f"{status}: {body[:200]!r}")
            measured.latencies.append(time.perf_counter() - sent)
            measured.num_texts += num_texts
            number += num_clients
            if time.perf_counter() - began >= seconds:
                break
        connection.close()

    await asyncio.gather(*(client(number) for number in range(num_clients)))
    measured.seconds = time.perf_counter() - began
    after = await asyncio.to_thread(busy_seconds, port)
    if before is not None and after is not None:
        measured.busy = (after - before) / measured.seconds
    return measured


def busy_seconds(port: int) -> float | None:
    """Return the seconds in which polyvec's engine has worked, or None for another server."""
    return read_metric(port, "polyvec_engine_busy_seconds_total") or None


def measure_infinity(
    executable: Path,
    encoder: Encoder,
    short: list[str],
    many: list[str],
    seconds: float,
    library: float,
) -> list[list[str]]:
    """Return the rows of the table for Infinity."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        make_peer_model(Path(folder) / "peer", encoder)
        options = (
            "--engine torch --device cpu --dtype float32 --no-bettertransformer --batch-size 32"
        )
        command = [str(executable), "v2", "--model-id", f"{folder}/peer", "--port", str(port)]
        # Otherwise it sends usage reports and looks for the model on a hub.
        os.environ |= {
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "INFINITY_ANONYMOUS_USAGE_STATS": "0",
        }
        with running([*command, *options.split()], port):
            return measure("Infinity", port, "peer", short, many, seconds, library, "/embeddings")


def make_peer_model(folder: Path, encoder: Encoder) -> None:
    """Write an XLM-RoBERTa of the bundled model's size, with random weights and its tokenizer."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    config = encoder.config
    XLMRobertaModel(
        XLMRobertaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.ffn_width,
            max_position_embeddings=514,
            type_vocab_size=1,
        )
    ).save_pretrained(folder)
    tokenizer = find_model(None) / "tokenizer.json"
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    # This is the form of transformers 4, which Infinity needs.
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


if __name__ == "__main__":
    tyro.cli(main)
