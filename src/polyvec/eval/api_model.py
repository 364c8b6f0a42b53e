"""A running embeddings server as a model: OpenAI's request, with the task as Jina's API has it.

mteb's own OpenAI wrapper can name no task, and counts tokens with a vocabulary that it downloads.

Axes in this file: B texts, D width.
"""

import json
import os
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
from jaxtyping import Float32

from polyvec.eval.baselines import model_meta
from polyvec.eval.protocol import ChooseAdapter, MtebEncoder, paper_adapter

BATCH_TEXTS = 64
TIMEOUT = 600
"""Seconds: a batch of long texts takes minutes on a processor."""


def load_server(url: str, *, choose: ChooseAdapter = paper_adapter) -> MtebEncoder:
    """The first model of the server at `url`, which ends in `/v1`.

    Adapters are asked for as `task`; where `choose` gives None the request is OpenAI's own. A key
    is taken from OPENAI_API_KEY, where OpenAI's client looks for it. Raises ValueError if there
    is no such server, or it refuses.
    """
    url = url.rstrip("/")
    models = _ask(f"{url}/models")["data"]
    if not models:
        raise ValueError(f"{url} serves no model")
    name = models[0]["id"]

    def embed(texts: list[str], adapter: str | None) -> Float32[np.ndarray, "B D"]:
        rows = []
        for start in range(0, len(texts), BATCH_TEXTS):
            body: dict[str, object] = {"model": name, "input": texts[start : start + BATCH_TEXTS]}
            if adapter is not None:
                # Jina's API refuses long texts unless told to cut them, as `Encoder` does.
                body |= {"task": adapter, "truncate": True}
            items = sorted(_ask(f"{url}/embeddings", body)["data"], key=lambda item: item["index"])
            rows += [item["embedding"] for item in items]
        vectors = np.array(rows, np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return MtebEncoder(embed, model_meta(f"{name.rpartition('/')[2]}-served", "1"), choose=choose)


def _ask(url: str, body: dict[str, object] | None = None) -> dict:
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    try:
        with urlopen(Request(url, data, headers), timeout=TIMEOUT) as answer:
            return json.load(answer)
    except HTTPError as error:
        words = error.read().decode(errors="replace")[:300]
        raise ValueError(f"{url} answered {error.code}: {words}") from error
    except URLError as error:
        raise ValueError(f"no server answers at {url}: {error.reason}") from error
