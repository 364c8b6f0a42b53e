"""A running embeddings server as a model: OpenAI's API, with the task of Jina's API.

mteb's own OpenAI wrapper cannot send a task, and counts tokens with a vocabulary that it downloads.

Axes in this file: B texts, D width.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from time import sleep
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
from jaxtyping import Float32
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.types import PromptType

from polyvec.eval.baselines import model_meta
from polyvec.eval.protocol import ChooseAdapter, MtebEncoder, paper_adapter
from polyvec.eval.task_kinds import KINDS

TEXTS_PER_REQUEST = 64
TIMEOUT_SECONDS = 600
"""A request of long texts takes minutes on a CPU."""

MAX_ERROR_CHARACTERS = 300

MAX_SHOWN_MODELS = 20

CLOCK_SECONDS = 1.1
"""Time between two looks at a server's list of models: a field that is the time of the request, in
seconds, differs between them."""

PROBES = (
    "Hello World",
    "Which of the two rivers floods in spring?",
    "Die Katze schläft auf dem Stuhl.",
    "パンは一時間冷ます必要があります。",
    "The bread has to cool for an hour before it is cut, and the tea steeps for four minutes. "
    * 20,
)
"""Texts whose embeddings help to tell two models behind one address apart. The last one is long, so
that positions matter."""

PROBE_DECIMALS = 3


@dataclass(frozen=True, slots=True)
class Server:
    """The address of a server's API, and the key that it asks for."""

    url: str
    """The address that ends in `/v1`."""

    key: str = field(default="", repr=False)
    """Sent as a bearer token, unless it is empty."""

    def request(self, path: str, body: dict[str, object] | None = None) -> Any:
        """Return the JSON that the server answers. Raises ValueError if it answers otherwise."""
        url = f"{self.url}/{path}"
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        data = None if body is None else json.dumps(body).encode()
        try:
            with urlopen(Request(url, data, headers), timeout=TIMEOUT_SECONDS) as answer:
                return json.load(answer)
        except HTTPError as error:
            message = error.read().decode(errors="replace")[:MAX_ERROR_CHARACTERS]
            raise ValueError(
                f"{url} answered {error.code}: {message}{_hint(error.code)}"
            ) from error
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise ValueError(f"no server answers at {url}: {reason}") from error
        except ValueError as error:
            raise ValueError(f"{url} did not answer with JSON: {error}") from error

    def models(self) -> dict[str, Mapping[str, Any]]:
        """Return what the server tells about each of its models, by name."""
        answer = self.request("models")
        entries = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(entries, list):
            raise ValueError(f"{self.url}/models did not answer with a list of models")
        named = [entry for entry in entries if isinstance(entry, dict) and entry.get("id")]
        return {str(entry["id"]): entry for entry in named}

    def embed(
        self, model: str, texts: list[str], adapter: str | None
    ) -> Float32[np.ndarray, "B D"]:
        """Return one embedding of length 1 for each text."""
        embeddings = []
        for start in range(0, len(texts), TEXTS_PER_REQUEST):
            part = texts[start : start + TEXTS_PER_REQUEST]
            body: dict[str, object] = {"model": model, "input": part}
            if adapter is not None:
                # Jina's API rejects long texts unless `truncate` is set; `Encoder` truncates them.
                body |= {"task": adapter, "truncate": True}
            answer = self.request("embeddings", body)
            try:
                items = sorted(answer["data"], key=lambda item: item["index"])
                vectors = np.array([item["embedding"] for item in items], np.float32)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{self.url}/embeddings did not answer with embeddings") from error
            if vectors.ndim != 2 or len(vectors) != len(part) or not np.isfinite(vectors).all():
                raise ValueError(
                    f"{self.url}/embeddings answered {len(part)} texts with {len(vectors)} "
                    "embeddings, or with numbers that are not finite"
                )
            embeddings.append(vectors)
        vectors = np.concatenate(embeddings)
        # A text of which a model knows nothing may have length 0.
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def load_server(
    url: str, *, choose: ChooseAdapter = paper_adapter, model: str = "", key: str = ""
) -> MtebEncoder:
    """Return a model of the server at `url`, which ends in `/v1`: `model`, or else its first.

    The adapter is sent as `task`. If `choose` returns None, the request is plain OpenAI. Without
    `key`, the API key is read from OPENAI_API_KEY, as in OpenAI's client. Raises ValueError if no
    server answers, if it lacks the model, or if it refuses a request.
    """
    server = Server(url.rstrip("/"), key or os.environ.get("OPENAI_API_KEY", ""))
    models = server.models()
    name = model or next(iter(models), "")
    if name not in models:
        known = ", ".join([*models][:MAX_SHOWN_MODELS]) or "none"
        raise ValueError(f"{server.url} has no model {name!r}; its models are: {known}")

    def embed(texts: list[str], adapter: str | None) -> Float32[np.ndarray, "B D"]:
        return server.embed(name, texts, adapter)

    # Looking at the list again, after a second, shows what changes by itself.
    probes = [embed(list(PROBES), adapter).round(PROBE_DECIMALS) for adapter in _adapters(choose)]
    sleep(CLOCK_SECONDS)
    again = server.models().get(name, {})
    told = {key: value for key, value in models[name].items() if again.get(key) == value}
    revision = _fingerprint(told, probes)
    return MtebEncoder(
        embed, model_meta(f"{name.rpartition('/')[2]}-served", revision), choose=choose
    )


def _fingerprint(told: Mapping[str, Any], probes: list[Float32[np.ndarray, "B D"]]) -> str:
    """Return 32 hex digits for what a server tells about a model, and for what the model does."""
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for vectors in probes:
        # -0.0 and 0.0 have different bytes.
        digest.update((vectors + np.float32(0)).tobytes())
    return digest.hexdigest()[:32]


def _adapters(choose: ChooseAdapter) -> list[str | None]:
    """Return every adapter that tasks of some kind are embedded with."""
    tasks = [
        TaskMetadata.model_construct(name="probe", type=kind.mteb_type) for kind in KINDS.values()
    ]
    sides = (None, PromptType.query, PromptType.document)
    chosen = {choose(task, side) for task in tasks for side in sides}
    return sorted(chosen, key=str)


def _hint(status: int) -> str:
    match status:
        case 401 | 403:
            return " (--api-key, or the environment variable OPENAI_API_KEY, gives the API key)"
        case 404:
            return " (the address of an API usually ends in /v1)"
        case 400 | 422:
            return " (for a server that knows no tasks, add --adapter none)"
    return ""
