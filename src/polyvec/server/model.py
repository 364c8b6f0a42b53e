"""A model as the server offers it: texts in, outputs out, for any number of requests at once.

Axes in this file: N texts of a request, D the model's width, V numbers in a token's own vector.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from jaxtyping import Float32

from polyvec.config import ModelConfig
from polyvec.heads import (
    HEADS,
    Outputs,
    Sparse,
    gather_weights,
    multi_vectors,
    own_states,
    sparse_entries,
)
from polyvec.reranking import RETRIEVAL, Ranked, rank_candidates, score_candidates
from polyvec.server.api_keys import ApiKey
from polyvec.server.cache import VectorCache, cache_key
from polyvec.server.errors import ApiError, invalid_input, not_finite
from polyvec.server.fair_queue import EngineText, TrafficClass
from polyvec.server.inputs import Side, token_spans, tokenise_steps, whole_text_span
from polyvec.server.limits import Limits
from polyvec.server.metrics import Metrics
from polyvec.server.scheduler import Scheduler
from polyvec.server.serialise import truncate_means
from polyvec.server.worker_threads import FairThreads
from polyvec.tasks import TaskChoice, choose_task
from polyvec.tokenizer import Tokenizer, Tokens

SMALL_CHARACTERS = 4_096
"""Texts that have no more characters together are tokenised in one step, in threads of their own.
They never wait for longer texts."""

TOKENISE_THREADS = 4
LONG_TOKENISE_THREADS = 2
"""Threads for small requests, and for all others. The others have turns, client by client."""

MAX_WHOLE_TOKENS = 1_000_000
"""Maximum number of tokens in a request whose texts are only tokenised."""

HIDDEN = "hidden"
"""The output that is the hidden state of every token, special tokens and instruction included."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Encoded:
    """The outputs of N texts from one forward pass; None for an output that was not requested."""

    means: Float32[np.ndarray, "N D"] | None = None
    """The mean hidden state of each text ("dense"), neither truncated nor normalised."""

    sparse: Sparse | None = None
    """Token weights of each text, as `Encoder.encode_sparse` returns them."""

    multi_vector: list[Float32[np.ndarray, "_ V"]] | None = None
    """One embedding per token of each text, as `Encoder.encode_multi_vector` returns them."""

    hidden: list[Float32[np.ndarray, "_ D"]] | None = None
    """The hidden states of each text, as `Encoder.encode_tokens` returns them."""

    offsets: list[tuple[int, int]] | None = None
    """The characters [start, end) of each chunk, if the texts are the chunks of one text."""

    num_tokens: int
    """Tokens that the model has read."""

    num_truncated: int = 0
    """Number of texts of which the model has read only a part."""

    @property
    def dense(self) -> Float32[np.ndarray, "N D"]:
        """The mean hidden states of a call that has requested them."""
        assert self.means is not None
        return self.means

    def __len__(self) -> int:
        outputs = (self.means, self.sparse, self.multi_vector, self.hidden)
        return next(len(output) for output in outputs if output is not None)


class ServedModel:
    """One model: its tokenizer in this process, its engines in processes of their own."""

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
        fingerprint: Future[str] | None = None,
    ) -> None:
        """`cache_bytes` is the size of the cache of vectors; 0 means no cache.

        `fingerprint` is that of the model's folder, which classifiers need.
        """
        self.name = name
        self.config = config
        self.tokenizer = tokenizer
        self.scheduler = scheduler
        self.fingerprint = fingerprint
        self.created = int(time.time())
        first, last = tokenizer.encode([""], [""])[0].ids.tolist()
        self._special_ids = (first, last)
        """The tokens before and after every text, for example `<s>` and `</s>`."""
        self._heads = heads
        self.limits = limits
        self._metrics = metrics
        self._cache = VectorCache(cache_bytes) if cache_bytes else None
        # The tokenizer releases Python's lock, so a long text does not block short ones.
        self._threads = ThreadPoolExecutor(TOKENISE_THREADS, thread_name_prefix="tokenise")
        self._long_threads = FairThreads(LONG_TOKENISE_THREADS, "tokenise-long")

    async def stop(self) -> None:
        """Stop the engines and the threads."""
        await self.scheduler.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._long_threads.stop()

    def choose_task(self, name: str | None) -> TaskChoice:
        """The adapter and the instruction of a task. Raises ApiError 400 for an unknown task."""
        try:
            return choose_task(self.config.tasks, name)
        except ValueError as error:
            raise invalid_input(str(error), "task") from None

    def choose_task_or_none(self, name: str) -> TaskChoice:
        """The choice for a task, or for no task if the model does not have it."""
        has_task = any(task.name == name for task in self.config.tasks)
        return self.choose_task(name if has_task else None)

    async def encode(
        self,
        texts: Sequence[str] | Sequence[list[int]],
        choice: TaskChoice,
        outputs: Collection[str],
        api_key: ApiKey,
        *,
        truncate: bool = False,
        truncation_side: Side = "right",
        param: str = "input",
        traffic: TrafficClass = TrafficClass.INTERACTIVE,
    ) -> Encoded:
        """The requested outputs of each text, all from one forward pass.

        `outputs` holds "dense", "sparse", "multi_vector" and `HIDDEN`. With `truncate`, a text that
        is too long loses its end, or its start if `truncation_side` is "left". `param` is the
        request's field, which errors name, and `traffic` is for the queue. Raises ApiError: 400
        that names a text that is empty or too long, or a head that the model does not have; 429,
        500, 503.
        """
        self._check_heads(outputs)
        tokens = await self.tokenise(
            texts, choice, truncate=truncate, truncation_side=truncation_side, param=param
        )
        num_tokens = sum(len(text.ids) for text in tokens)
        num_truncated = sum(text.truncated for text in tokens)
        self._check_size(outputs, len(tokens), num_tokens)
        api_key.charge(num_tokens)
        if set(outputs) == {"dense"}:
            means = await self._run_dense(tokens, choice, traffic)
            return Encoded(means=means, num_tokens=num_tokens, num_truncated=num_truncated)
        has_dense = "dense" in outputs
        requests = []
        for text in tokens:
            # Token outputs need one span per token; a span over the whole text gives its mean.
            first = 0 if HIDDEN in outputs else text.num_prompt
            starts, ends = token_spans(first, len(text.ids))
            if has_dense:
                whole = whole_text_span(len(text.ids))
                starts, ends = np.append(whole[0], starts), np.append(whole[1], ends)
            requests.append(EngineText(text.ids, choice.adapter_id, starts, ends))
        vectors = await self.scheduler.run(requests, traffic)
        means = np.stack([rows[0] for rows in vectors]) if has_dense else None
        states = [rows[1:] for rows in vectors] if has_dense else vectors
        encoded = await asyncio.to_thread(
            self._apply_heads, tokens, means, states, outputs, num_tokens
        )
        return replace(encoded, num_truncated=num_truncated)

    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        api_key: ApiKey,
        *,
        truncate: bool,
        truncation_side: Side = "right",
        param: str,
    ) -> tuple[list[Ranked], int]:
        """Documents sorted by their cosine with the query, as `polyvec.rerank` sorts them.

        Also returns the number of tokens read. A model without the retrieval tasks uses no task.
        """
        query_task, passage_task = map(self.choose_task_or_none, RETRIEVAL)

        encode = partial(
            self.encode,
            outputs=["dense"],
            api_key=api_key,
            truncate=truncate,
            truncation_side=truncation_side,
        )
        # The scheduler puts both into one batch.
        query_output, candidates = await asyncio.gather(
            encode([query], query_task, param="query"),
            encode(documents, passage_task, param=param),
        )

        def normalise(encoded: Encoded) -> Outputs:
            return Outputs(truncate_means(encoded.dense, self.config.width), None, None)

        def rank() -> list[Ranked]:
            scores = score_candidates(normalise(query_output), normalise(candidates), ["dense"])
            return rank_candidates(scores, {"dense": 1.0})

        ranked = await asyncio.to_thread(rank)
        return ranked, query_output.num_tokens + candidates.num_tokens

    async def tokenise(
        self,
        texts: Sequence[str] | Sequence[list[int]],
        choice: TaskChoice,
        *,
        truncate: bool = False,
        truncation_side: Side = "right",
        param: str = "input",
    ) -> list[Tokens]:
        """The tokens of each text as the model reads them. Raises ApiError 400."""
        self.check_texts(texts, param)
        tokens: dict[int, Tokens] = {}
        total = 0
        with self._metrics.timed("tokenise", self._metrics.tokenise):
            async for step in self._tokenise_steps(
                texts, choice.prompt, truncation_side=truncation_side
            ):
                tokens.update(step)
                for number, text in step:
                    if text.truncated and not truncate:
                        raise self._too_long(f"{param}[{number}]")
                    total += len(text.ids)
                if total > self.limits.request_tokens:
                    raise invalid_input(
                        f"the request has more than {self.limits.request_tokens:,} tokens; "
                        "send fewer texts at once",
                        param,
                    )
        return [tokens[number] for number in range(len(texts))]

    async def tokenise_whole(
        self,
        texts: Sequence[str],
        param: str,
        *,
        prompt: str = "",
        max_tokens: int = MAX_WHOLE_TOKENS,
    ) -> list[Tokens]:
        """The tokens of texts that may be longer than what the model reads.

        Raises ApiError 400 if they have more than `max_tokens` together.
        """
        tokenizer = replace(self.tokenizer, max_tokens=max_tokens)
        tokens: dict[int, Tokens] = {}
        total = 0
        async for step in self._tokenise_steps(texts, prompt, tokenizer):
            tokens.update(step)
            total += sum(len(text.ids) for _, text in step)
            if total > max_tokens or any(text.truncated for _, text in step):
                raise invalid_input(
                    f"{param} has more than {max_tokens:,} tokens; send less text at once", param
                )
        return [tokens[number] for number in range(len(texts))]

    def check_dim(self, dim: int | None, *, packs_bits: bool, param: str = "dimensions") -> int:
        """The size of the vectors to return. Raises ApiError 400 for an unsupported size."""
        width = self.config.width
        if dim is None:
            return width
        if dim > width:
            raise invalid_input(f"{param} is {dim}, must be in 1..{width} for {self.name}", param)
        if dim % 8 and packs_bits:
            raise invalid_input(
                f"{param} is {dim}, must be a multiple of 8 for binary vectors", param
            )
        return dim

    def check_texts(self, texts: Sequence[str] | Sequence[list[int]], param: str) -> None:
        """Raise ApiError 400 for too many texts, an empty text, or ids of another tokenizer."""
        if len(texts) > self.limits.items:
            raise invalid_input(
                f"{len(texts):,} texts are too many for one request; the limit is "
                f"{self.limits.items:,}",
                param,
            )
        for number, text in enumerate(texts):
            if isinstance(text, str):
                if not text or text.isspace():
                    raise invalid_input(f"{param}[{number}] is empty", f"{param}[{number}]")
            else:
                self._check_ids(text, f"{param}[{number}]")

    def _check_ids(self, ids: list[int], param: str) -> None:
        """Raise ApiError 400 for token ids that this model's tokenizer cannot have written.

        The ids of other tokenizers are in the range of the vocabulary too, but do not begin and end
        with this model's special tokens.
        """
        if len(ids) < 2 or (ids[0], ids[-1]) != self._special_ids:
            first, last = self._special_ids
            names = [self.tokenizer.core.id_to_token(number) for number in self._special_ids]
            raise invalid_input(
                f"{param} is not a text in this model's token ids, which begins with {names[0]} "
                f"({first}) and ends with {names[1]} ({last}). The ids of other tokenizers have no "
                "meaning here: send the text itself, as a string. In LangChain, set "
                "check_embedding_ctx_length=False",
                param,
            )
        if len(ids) == 2:
            raise invalid_input(f"{param} is empty", param)
        if min(ids) < 0 or max(ids) >= self.tokenizer.vocab_size:
            raise invalid_input(
                f"{param} holds a token id outside 0..{self.tokenizer.vocab_size - 1}, the ids of "
                "this model's tokenizer",
                param,
            )

    async def _run_dense(
        self, tokens: Sequence[Tokens], choice: TaskChoice, traffic: TrafficClass
    ) -> Float32[np.ndarray, "N D"]:
        """The mean hidden state of each text, from the cache or from the engine."""
        texts = [
            EngineText(text.ids, choice.adapter_id, *whole_text_span(len(text.ids)))
            for text in tokens
        ]
        if self._cache is None:
            return np.concatenate(await self.scheduler.run(texts, traffic))
        keys = [cache_key(text.ids, text.adapter_id) for text in texts]
        means = [self._cache.find(key) for key in keys]
        missing = [number for number, mean in enumerate(means) if mean is None]
        self._metrics.cached.inc(len(means) - len(missing))
        if missing:
            vectors = await self.scheduler.run([texts[number] for number in missing], traffic)
            for number, vector in zip(missing, vectors, strict=True):
                means[number] = vector[0]
                self._cache.add(keys[number], vector[0])
        return np.stack([mean for mean in means if mean is not None])

    def _apply_heads(
        self,
        tokens: Sequence[Tokens],
        means: Float32[np.ndarray, "N D"] | None,
        states: list[Float32[np.ndarray, "_ D"]],
        outputs: Collection[str],
        num_tokens: int,
    ) -> Encoded:
        """The token outputs that the heads make of hidden states."""
        hidden = states if HIDDEN in outputs else None
        if hidden is not None:
            states = [own_states(text, rows) for text, rows in zip(tokens, states, strict=True)]
        sparse = multi = None
        if "sparse" in outputs:
            entries = [
                sparse_entries(self._heads, text, rows)
                for text, rows in zip(tokens, states, strict=True)
            ]
            weights = [weights for _, weights in entries]
            _check_finite(weights)
            sparse = gather_weights(
                [ids for ids, _ in entries],
                weights,
                ignored=self.tokenizer.special_ids,
                vocab_size=self.config.vocab_size,
            )
        if "multi_vector" in outputs:
            multi = [multi_vectors(self._heads, rows) for rows in states]
            _check_finite(multi)
        return Encoded(
            means=means, sparse=sparse, multi_vector=multi, hidden=hidden, num_tokens=num_tokens
        )

    def _check_heads(self, outputs: Collection[str]) -> None:
        for output in outputs:
            if output in HEADS and f"{output}.weight" not in self._heads:
                raise invalid_input(
                    f"{self.name} has no {HEADS[output]} head; request dense vectors", "output"
                )

    def _check_size(self, outputs: Collection[str], num_texts: int, num_tokens: int) -> None:
        """Raise ApiError 400 if the vectors would have too many numbers for one answer."""
        width, limit = self.config.width, self.limits.answer_numbers
        sizes = {"dense": num_texts * width, HIDDEN: num_tokens * width}
        sizes |= {"multi_vector": num_tokens * self.config.multi_vector_dim}
        size = sum(sizes.get(output, 0) for output in outputs)
        if size > limit:
            raise invalid_input(
                f"the vectors of {num_tokens:,} tokens would have {size:,} numbers, and an answer "
                f"may have {limit:,}; send fewer or shorter texts at once"
            )

    def _too_long(self, param: str) -> ApiError:
        return invalid_input(
            f"{param} has more than {self.config.max_tokens:,} tokens; shorten it, or send "
            "truncate: true",
            param,
        )

    async def _tokenise_steps(
        self,
        texts: Sequence[str] | Sequence[list[int]],
        prompt: str,
        tokenizer: Tokenizer | None = None,
        truncation_side: Side = "right",
    ) -> AsyncIterator[list[tuple[int, Tokens]]]:
        """Yield tokens and their positions, as threads complete them.

        The default `tokenizer` is the model's, which truncates to what the model reads.
        """
        steps = tokenise_steps(tokenizer or self.tokenizer, texts, prompt, truncation_side)
        if sum(map(len, texts)) <= SMALL_CHARACTERS:
            loop = asyncio.get_running_loop()
            for step in await loop.run_in_executor(self._threads, list, steps):
                yield step
            return
        while (step := await self._long_threads.run(partial(next, steps, None))) is not None:
            yield step


def _check_finite(texts: Sequence[np.ndarray]) -> None:
    for number, values in enumerate(texts):
        if not np.isfinite(values).all():
            raise not_finite(number)
