"""A model as the server offers it: texts in, vectors out, for any number of requests at once.

Axes in this file: N texts of a request, S spans of one text, D the model's width, V numbers in a
token's own vector.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float32

from polyvec.config import ModelConfig
from polyvec.heads import Sparse, gather_weights, token_vectors, token_weights
from polyvec.late_chunking import find_token_spans, join_chunks
from polyvec.server.cache import Cache, cache_key
from polyvec.server.errors import ApiError, bad_input
from polyvec.server.inputs import read, token_spans
from polyvec.server.metrics import Metrics
from polyvec.server.quotas import Client, Limits
from polyvec.server.scheduler import Scheduler, Text, not_finite, whole
from polyvec.tasks import NO_ADAPTER, adapter_index
from polyvec.tokenizer import Tokenizer, Tokens

SLICE = 64
"""Texts that are tokenised before another request has its turn."""


class Served:
    """One model: its tokenizer here, its engines in their processes."""

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        tokenizer: Tokenizer,
        heads: Mapping[str, np.ndarray],
        scheduler: Scheduler,
        limits: Limits,
        metrics: Metrics,
        *,
        cache_bytes: int = 0,
    ) -> None:
        """`cache_bytes` of vectors are kept for texts that come again."""
        self.name = name
        self.config = config
        self.tokenizer = tokenizer
        self._heads = heads
        self.scheduler = scheduler
        self.created = int(time.time())
        self._limits = limits
        self._metrics = metrics
        self._cache = Cache(cache_bytes) if cache_bytes else None
        # The tokenizer lets go of Python's lock, so a long text does not stop the short ones.
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="tokenise")

    async def stop(self) -> None:
        """End the engines and the threads."""
        await self.scheduler.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def embed(
        self,
        texts: Sequence[str] | Sequence[list[int]],
        task: str | None,
        client: Client,
        *,
        truncate: bool = False,
        param: str = "input",
    ) -> tuple[Float32[np.ndarray, "N D"], int]:
        """Each text's mean hidden state, neither cut nor normalised, and the tokens read.

        Raises ApiError: 400 naming the text that is empty or too long, 429, 500, 503.
        """
        tokens = await self.tokenise(texts, task, truncate=truncate, param=param)
        row = adapter_index(self.config.tasks, task)
        ids = [text.ids for text in tokens]
        num_tokens = self._charge(client, tokens)
        if self._cache is None:
            vectors = await self.scheduler.run([whole(text, row) for text in ids])
            return np.concatenate(vectors), num_tokens
        keys = [cache_key(text, row) for text in ids]
        found = [self._cache.find(key) for key in keys]
        missing = [number for number, vector in enumerate(found) if vector is None]
        self._metrics.cached.inc(len(found) - len(missing))
        if missing:
            vectors = await self.scheduler.run([whole(ids[i], row) for i in missing])
            for number, vector in zip(missing, vectors, strict=True):
                found[number] = vector[0]
                self._cache.keep(keys[number], vector[0])
        return np.stack([vector for vector in found if vector is not None]), num_tokens

    async def embed_tokens(
        self,
        texts: Sequence[str],
        task: str | None,
        client: Client,
        *,
        truncate: bool = False,
        param: str = "input",
    ) -> tuple[list[Float32[np.ndarray, "_ D"]], int]:
        """Each text's hidden states, one a token, special tokens and instruction included."""
        tokens = await self.tokenise(texts, task, truncate=truncate, param=param)
        return await self._states(tokens, [0] * len(tokens), task, client)

    async def embed_sparse(
        self,
        texts: Sequence[str],
        task: str | None,
        client: Client,
        *,
        truncate: bool = False,
        param: str = "input",
    ) -> tuple[Sparse, int]:
        """A weight for each of a text's own tokens, as `Encoder.encode_sparse` gives it.

        Raises ApiError 400 if the model has no sparse head; the rest is as for `embed`.
        """
        head = self._head("sparse", "sparse")
        tokens = await self.tokenise(texts, task, truncate=truncate, param=param)
        states, num_tokens = await self._states(
            tokens, [text.num_prompt for text in tokens], task, client
        )

        def weigh() -> Sparse:
            # The last state is that of `</s>`.
            weights = [token_weights(rows[:-1], *head) for rows in states]
            _check_finite(weights)
            return gather_weights(
                [text.ids[text.num_prompt : -1] for text in tokens],
                weights,
                ignored=self.tokenizer.special_ids,
                vocab_size=self.config.vocab_size,
            )

        return await asyncio.to_thread(weigh), num_tokens

    async def embed_multi_vector(
        self, texts: Sequence[str], task: str | None, client: Client, *, truncate: bool = False
    ) -> tuple[list[Float32[np.ndarray, "_ V"]], int]:
        """One vector for each of a text's own tokens and `</s>`: `Encoder.encode_multi_vector`.

        Raises ApiError 400 if the model has no multi-vector head; the rest is as for `embed`.
        """
        head = self._head("multi_vector", "multi-vector")
        tokens = await self.tokenise(texts, task, truncate=truncate)
        states, num_tokens = await self._states(
            tokens, [text.num_prompt for text in tokens], task, client
        )

        def turn() -> list[Float32[np.ndarray, "_ V"]]:
            vectors = [token_vectors(rows, *head) for rows in states]
            _check_finite(vectors)
            return vectors

        return await asyncio.to_thread(turn), num_tokens

    async def embed_chunks(
        self, chunks: Sequence[str], task: str | None, client: Client, *, truncate: bool = False
    ) -> tuple[Float32[np.ndarray, "N D"], int]:
        """Late chunking: the mean hidden state of each chunk, in the context of all of them.

        The document is the chunks joined by single spaces (docs/serving.md). With `truncate`,
        chunks beyond the model's longest text are a 400 all the same: they have no vector.
        """
        self.check_texts(chunks, "input")
        text, offsets = join_chunks(chunks)
        [document] = await self._read([text], task)
        if document.truncated and not truncate:
            raise bad_input(
                f"the chunks have more than {self.config.max_tokens:,} tokens together; send "
                "fewer, or without late_chunking"
            )
        starts, ends = find_token_spans(document, text, offsets)
        lost = np.flatnonzero(ends <= starts)
        if len(lost):
            raise bad_input(
                f"input[{lost[0]}] lies beyond the {self.config.max_tokens:,} tokens that the "
                "model reads, or holds nothing that it can read; send fewer chunks"
            )
        row = adapter_index(self.config.tasks, task)
        client.charge(len(document.ids))
        [vectors] = await self.scheduler.run([Text(document.ids, row, starts, ends)])
        return vectors, len(document.ids)

    async def tokenise(
        self,
        texts: Sequence[str] | Sequence[list[int]],
        task: str | None,
        *,
        truncate: bool = False,
        param: str = "input",
    ) -> list[Tokens]:
        """Each text's tokens as the model reads them."""
        self.check_texts(texts, param)
        found: list[Tokens] = []
        total = 0
        with self._metrics.timed("tokenise", self._metrics.tokenise):
            for first in range(0, len(texts), SLICE):
                part = await self._read(texts[first : first + SLICE], task)
                found.extend(part)
                for number, tokens in enumerate(part, first):
                    if tokens.truncated and not truncate:
                        raise self._too_long(f"{param}[{number}]")
                    total += len(tokens.ids)
                if total > self._limits.request_tokens:
                    raise bad_input(
                        f"the request has more than {self._limits.request_tokens:,} tokens; "
                        "send fewer texts at once",
                        param,
                    )
        return found

    def check_dim(self, dim: int | None, *, binary: bool, param: str = "dimensions") -> int:
        """The size asked for. Raises ApiError 400 if the model or the encoding does not have it."""
        width = self.config.width
        if dim is None:
            return width
        if dim > width:
            raise bad_input(f"{param} is {dim}, must be in 1..{width} for {self.name}", param)
        if dim % 8 and binary:
            raise bad_input(f"{param} is {dim}, must be a multiple of 8 for binary vectors", param)
        return dim

    def check_task(self, task: str | None) -> None:
        """Raise ApiError 400 unless the model has the task."""
        try:
            adapter_index(self.config.tasks, task)
        except ValueError as error:
            raise bad_input(str(error), "task") from None

    def check_texts(self, texts: Sequence[str] | Sequence[list[int]], param: str) -> None:
        """Raise ApiError 400 if there are too many texts, or one that is empty or no text."""
        if len(texts) > self._limits.items:
            raise bad_input(
                f"{len(texts):,} texts are too many for one request; the limit is "
                f"{self._limits.items:,}",
                param,
            )
        for number, text in enumerate(texts):
            if isinstance(text, str):
                if not text or text.isspace():
                    raise bad_input(f"{param}[{number}] is empty", f"{param}[{number}]")
            elif min(text) < 0 or max(text) >= self.tokenizer.vocab_size:
                raise bad_input(
                    f"{param}[{number}] holds a token id outside 0..{self.tokenizer.vocab_size - 1}"
                    ", the ids of this model's tokenizer",
                    f"{param}[{number}]",
                )

    def _charge(self, client: Client, tokens: Sequence[Tokens]) -> int:
        num_tokens = sum(len(text.ids) for text in tokens)
        client.charge(num_tokens)
        return num_tokens

    async def _states(
        self, tokens: Sequence[Tokens], firsts: Sequence[int], task: str | None, client: Client
    ) -> tuple[list[Float32[np.ndarray, "_ D"]], int]:
        """The hidden states of each text's tokens from one on, and how many tokens were read."""
        num_tokens = self._charge(client, tokens)
        row = adapter_index(self.config.tasks, task)
        texts = [
            Text(text.ids, row, *token_spans(first, len(text.ids)))
            for text, first in zip(tokens, firsts, strict=True)
        ]
        return await self.scheduler.run(texts), num_tokens

    def _head(self, name: str, kind: str) -> tuple[np.ndarray, np.ndarray]:
        if f"{name}.weight" not in self._heads:
            raise bad_input(f"{self.name} has no {kind} head; ask for dense vectors", "output")
        return self._heads[f"{name}.weight"], self._heads[f"{name}.bias"]

    def _too_long(self, param: str) -> ApiError:
        return bad_input(
            f"{param} has more than {self.config.max_tokens:,} tokens; shorten it, or send "
            "truncate: true",
            param,
        )

    async def _read(
        self, texts: Sequence[str] | Sequence[list[int]], task: str | None
    ) -> list[Tokens]:
        row = adapter_index(self.config.tasks, task)
        prompt = "" if row == NO_ADAPTER else self.config.tasks[row].prompt
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, read, self.tokenizer, texts, prompt)


def _check_finite(texts: Sequence[np.ndarray]) -> None:
    for number, values in enumerate(texts):
        if not np.isfinite(values).all():
            raise not_finite(number)
