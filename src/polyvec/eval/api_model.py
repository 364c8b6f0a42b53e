"""A running embeddings server as a model: OpenAI's API, with the task of Jina's API.

mteb's own OpenAI wrapper cannot send a task, and counts tokens with a vocabulary that it downloads.

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

TEXTS_PER_REQUEST = 64
TIMEOUT_SECONDS = 600
"""A request of long texts takes minutes on a CPU."""

MAX_ERROR_CHARACTERS = 300


def load_server(url: str, *, choose: ChooseAdapter = paper_adapter) -> MtebEncoder:
    """Return the first model of the server at `url`, which ends in `/v1`.

    The adapter is sent as `task`. If `choose` returns None, the request is plain OpenAI. The
    API key is read from OPENAI_API_KEY, as in OpenAI's client. Raises ValueError if no server
    answers, or if it refuses a request.
    """
    url = url.rstrip("/")
    models = _request(f"{url}/models")["data"]
    if not models:
        raise ValueError(f"{url} serves no model")
    name = models[0]["id"]

    def embed(texts: list[str], adapter: str | None) -> Float32[np.ndarray, "B D"]:
        embeddings = []
        for start in range(0, len(texts), TEXTS_PER_REQUEST):
            body: dict[str, object] = {
                "model": name,
                "input": texts[start : start + TEXTS_PER_REQUEST],
            }
            if adapter is not None:
                # Jina's API rejects long texts unless `truncate` is set; `Encoder` truncates them.
                body |= {"task": adapter, "truncate": True}
            answer = _request(f"{url}/embeddings", body)
            items = sorted(answer["data"], key=lambda item: item["index"])
            embeddings += [item["embedding"] for item in items]
        vectors = np.array(embeddings, np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return MtebEncoder(embed, model_meta(f"{name.rpartition('/')[2]}-served", "1"), choose=choose)


def _request(url: str, body: dict[str, object] | None = None) -> dict:
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    try:
        with urlopen(Request(url, data, headers), timeout=TIMEOUT_SECONDS) as answer:
            return json.load(answer)
    except HTTPError as error:
        message = error.read().decode(errors="replace")[:MAX_ERROR_CHARACTERS]
        raise ValueError(f"{url} answered {error.code}: {message}") from error
    except URLError as error:
        raise ValueError(f"no server answers at {url}: {error.reason}") from error
