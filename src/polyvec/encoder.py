"""The encoder, which users hold: it turns texts into embeddings.

It composes the other rooms and computes nothing itself.

Axes in this file: N texts of the caller, T tokens of one text, D the model's width, dim the size
of an embedding, S chunks of a document, V size of a token's embedding.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32

from polyvec import outputs
from polyvec.batch import Batch, make_batch, pack
from polyvec.checkpoint import load_checkpoint
from polyvec.config import ModelConfig
from polyvec.engines import Engine, make_engine
from polyvec.heads import (
    HEADS,
    OUTPUTS,
    Outputs,
    Sparse,
    gather_weights,
    multi_vectors,
    own_states,
    select_heads,
    sparse_entries,
)
from polyvec.late_chunking import (
    DEFAULT_CHUNK_TOKENS,
    DEFAULT_OVERLAP_TOKENS,
    ChunkChoice,
    cut_document,
    fill_empty_spans,
    find_token_spans,
    join_chunks,
)
from polyvec.model_folder import find_model
from polyvec.outputs import Chunks, truncate_and_normalise
from polyvec.pooling import pool_windows
from polyvec.progress import Bar, make_bar
from polyvec.tasks import adapter_index, choose_task
from polyvec.texts import TaskNames, check_items, list_items, split_into_blocks
from polyvec.threads import choose_num_threads
from polyvec.tokenizer import Tokenizer, Tokens
from polyvec.truncation import Truncate, Truncation, TruncationWarning


class Encoder:
    """Turns texts into embeddings.

    One encoder may be used from several threads at once, and in a process that was forked. It is
    pickled as the arguments of `Encoder.load`, without its weights, which are loaded again. A copy
    shares them.

    >>> encoder = Encoder.load()  # doctest: +SKIP
    >>> encoder.encode(["Hello", "Bonjour"], task="text-matching").shape  # doctest: +SKIP
    (2, 384)
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        engine: Engine,
        heads: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Compose a model from its parts; `Encoder.load` does this from a folder.

        `heads` are the weights of the sparse and the multi-vector head, under canonical names.
        """
        if tokenizer.vocab_size > config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} pieces and the model only "
                f"{config.vocab_size}: they do not belong together"
            )
        self.config = config
        self.tokenizer = tokenizer
        self.engine = engine
        self.heads = dict(heads or {})
        self._settings: dict[str, Any] | None = None
        """The arguments of `Encoder.load`."""
        self._warned = False

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        *,
        device: str = "auto",
        precision: Literal["auto", "float32"] = "auto",
        merge: str | None = None,
        prepack: bool | None = None,
        threads: int | None = None,
    ) -> "Encoder":
        """Load the bundled model, a model folder, or a model of the Hugging Face hub ("org/name").

        `device` is "cpu" (OpenVINO), "cuda" or "cuda:1" (PyTorch), or "auto", which means CUDA if
        there are a GPU and PyTorch, and the CPU otherwise. `precision` "auto" means bf16 if the
        device supports it, and int8 on a CPU that supports it if the model is stored in 8 bits.
        `merge` names the one task that all texts will have; its adapter is added to the weights
        once. `prepack=False` makes the CPU engine start in a third of the time and encode slower,
        which pays for a few texts. `threads` is the number of threads that encode on the CPU; None
        means `OMP_NUM_THREADS` if that is set, and else one per core, or fewer if the container or
        the process may use fewer.

        Raises ValueError if there is no such model, or if its files are incomplete or unsafe.
        """
        num_threads = choose_num_threads(threads)
        folder = find_model(model)
        config, weights = load_checkpoint(folder)
        merge_adapter = None if merge is None else adapter_index(config.tasks, merge)
        # The engine compiles outside the interpreter, so the tokenizer is read meanwhile.
        with ThreadPoolExecutor(1) as thread:
            engine = thread.submit(
                make_engine, config, weights, device, precision, merge_adapter, prepack, num_threads
            )
            tokenizer = Tokenizer.load(folder, config.max_tokens, num_threads=num_threads)
            encoder = cls(config, tokenizer, engine.result(), select_heads(weights))
        # The process that loads it again may have another current folder.
        is_folder = model is not None and Path(model).is_dir()
        encoder._settings = {
            "model": str(folder.resolve()) if is_folder else model,
            "device": device,
            "precision": precision,
            "merge": merge,
            "prepack": prepack,
            "threads": threads,
        }
        return encoder

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the settings. Raises TypeError for an encoder that was composed from parts."""
        if self._settings is None:
            raise TypeError(
                "only an encoder of Encoder.load can be pickled: this one was composed from parts, "
                "which have no folder to be loaded from"
            )
        return _load_again, (type(self), self._settings, self.engine.rope_base)

    def __copy__(self) -> "Encoder":
        """An encoder that shares the weights and the engine."""
        copied = type(self)(self.config, self.tokenizer, self.engine, self.heads)
        copied._settings = self._settings
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> "Encoder":
        """As a copy: nothing that is shared changes."""
        return self.__copy__()

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        task: TaskNames = None,
        dim: int | None = None,
        any_dim: bool = False,
        truncate: Truncate | Truncation = "end",
        progress: bool | None = None,
    ) -> Float32[np.ndarray, "N dim"]:
        """Return one embedding of length 1 per text, in the order of the texts.

        A plain string is one text and gives one row. `task` is one name or None (the bare encoder),
        or a list with one of these per text. `dim` is a Matryoshka size of the model, by default
        the largest; with `any_dim`, any size up to that is allowed. `progress` None shows a
        progress bar on terminals if the call takes more than a second.

        `truncate` is the rule for a text that has more tokens than the model reads
        (`config.max_tokens`): by default it loses its "end", otherwise its "start", or it is an
        "error". An encoder warns once that texts were truncated (`TruncationWarning`), with the
        number of texts and of the characters that were cut. `encode_chunks` reads long texts whole.

        Raises ValueError for an unknown task, an unsupported size, a text that is not a string, and
        a table or a mapping in place of texts; raises `outputs.NotFiniteError`, which names the
        texts, if a text has no usable embedding, and `TooLongError` as `truncate` says.
        """
        texts = list_items(texts, "texts")
        vectors = np.empty((len(texts), self._check_dim(dim, any_dim)), np.float32)
        done = 0
        is_rule = isinstance(truncate, Truncation)
        rule = truncate if is_rule else Truncation(truncate, self.config.max_tokens)
        with make_bar("text", len(texts), progress) as bar:
            for part in self._encode_blocks(texts, task, vectors.shape[1], rule, bar):
                vectors[done : done + len(part)] = part
                done += len(part)
        self._warn(rule)
        return vectors

    def encode_stream(
        self,
        texts: Iterable[str],
        *,
        task: TaskNames = None,
        dim: int | None = None,
        any_dim: bool = False,
        truncate: Truncate = "end",
        progress: bool | None = None,
    ) -> Iterator[Float32[np.ndarray, "N dim"]]:
        """Yield the rows of `encode`, a few thousand at a time, in bounded memory.

        `texts` may be an endless generator. It is read one block ahead of the result. The arguments
        and errors are those of `encode`.
        """
        if isinstance(texts, str):
            raise ValueError("encode_stream takes many texts; put a single one in a list")
        texts = check_items(texts, "texts")
        rule = Truncation(truncate, self.config.max_tokens)
        return self._stream(texts, task, self._check_dim(dim, any_dim), rule, progress)

    def encode_chunks(
        self,
        document: str | Iterable[str],
        *,
        task: str | None = None,
        dim: int | None = None,
        any_dim: bool = False,
        chunks: ChunkChoice | None = None,
        late: bool = True,
        window: int | None = None,
        overlap: int | None = None,
        progress: bool | None = None,
    ) -> Chunks:
        """Return one embedding per chunk, computed with the whole document in view (late chunking).

        `document` is a text, cut as `chunks` says: into chunks of a number of tokens (256 by
        default), `Sentences(5)`, `Semantic()`, or your own spans of characters [start, end), which
        may overlap and leave gaps. Alternatively, `document` is a list of chunks, which are joined
        by single spaces. No chunk is dropped. The first chunk includes `<s>` and the instruction,
        and the last one includes `</s>`; a chunk that is the whole text therefore has the embedding
        of `encode`.

        A document longer than `window` tokens (by default the model's longest text) is encoded in
        windows that share `overlap` tokens (by default 256, or half a window if that is less), in
        linear time and bounded memory. With `late=False` every chunk is embedded on its own.

        Raises ValueError for spans outside the document and for other impossible choices;
        raises `outputs.NotFiniteError`, which names the chunks that have no usable embedding.
        """
        size = self._check_dim(dim, any_dim)
        text, choice = document, DEFAULT_CHUNK_TOKENS if chunks is None else chunks
        if not isinstance(text, str):
            if chunks is not None:
                raise ValueError("a list of chunks is cut already; give one text, or omit chunks")
            text, choice = join_chunks(list_items(text, "document"))
        adapter = choose_task(self.config.tasks, task)
        [tokens] = self.tokenizer.encode([text], [adapter.prompt], truncate=False)
        spans = cut_document(text, tokens, choice, lambda texts: self.encode(texts, task=task))
        offsets = np.array(spans, np.int32).reshape(-1, 2)
        if not late:
            parts = [text[start:end] for start, end in spans]
            vectors = self.encode(parts, task=task, dim=size, any_dim=True, progress=progress)
            return Chunks(text, offsets, vectors)
        longest = self.config.max_tokens
        window = longest if window is None else window
        if not 2 <= window <= longest:
            raise ValueError(f"window is {window}, must be in 2..{longest} tokens")
        starts, ends = fill_empty_spans(tokens, find_token_spans(tokens, text, spans))
        with make_bar("token", len(tokens.ids), progress) as bar:
            means = pool_windows(
                self.engine.pool,
                tokens.ids,
                adapter.adapter_id,
                starts,
                ends,
                window=window,
                overlap=min(DEFAULT_OVERLAP_TOKENS, window // 2) if overlap is None else overlap,
                batch_tokens=self.engine.batch_tokens,
                report=bar.update,
            )
        try:
            return Chunks(text, offsets, outputs.truncate_and_normalise(means, size))
        except outputs.NotFiniteError as error:
            raise outputs.NotFiniteError(error.rows, "chunk") from None

    def encode_tokens(
        self, texts: str | Iterable[str], *, task: TaskNames = None, truncate: Truncate = "end"
    ) -> list[Float32[np.ndarray, "T D"]]:
        """Return the hidden state of every token of every text, not normalised.

        A text has one row per id of `tokenizer.encode`: `<s>`, the instruction, the text, `</s>`.
        The mean of a text's rows, normalised, is its embedding.
        """
        texts = list_items(texts, "texts")
        states = [np.empty((0, self.config.width), np.float32)] * len(texts)
        rule = Truncation(truncate, self.config.max_tokens)
        for number, _, hidden, _ in self._run(texts, task, rule):
            states[number] = hidden
        bad = [number for number, hidden in enumerate(states) if not np.isfinite(hidden).all()]
        if bad:
            raise outputs.NotFiniteError(bad)
        self._warn(rule)
        return states

    def encode_sparse(
        self,
        texts: str | Iterable[str],
        *,
        task: TaskNames = None,
        truncate: Truncate = "end",
        progress: bool | None = None,
    ) -> Sparse:
        """Return a weight for every token of every text, for lexical search.

        A token that occurs twice has the larger of its weights. `<s>`, `</s>`, unknown pieces and
        the instruction have no weight, because every text would match every other through them.
        Raises ValueError if the model has no sparse head; other arguments and errors are those of
        `encode`.
        """
        result = self.encode_all(
            texts, task=task, outputs=["sparse"], truncate=truncate, progress=progress
        )
        assert result.sparse is not None
        return result.sparse

    def encode_multi_vector(
        self,
        texts: str | Iterable[str],
        *,
        task: TaskNames = None,
        truncate: Truncate = "end",
        progress: bool | None = None,
    ) -> list[Float32[np.ndarray, "_T V"]]:
        """Return an embedding of length 1 for every token of every text, to compare with `maxsim`.

        The rows are those of the text's own tokens in their order, then that of `</s>`, so that an
        empty text has one row. `<s>` and the instruction have none. The embeddings are computed
        from the hidden states that `encode_tokens` returns.
        Raises ValueError if the model has no multi-vector head; other arguments and errors are
        those of `encode`.
        """
        result = self.encode_all(
            texts, task=task, outputs=["multi_vector"], truncate=truncate, progress=progress
        )
        assert result.multi_vector is not None
        return result.multi_vector

    def encode_all(
        self,
        texts: str | Iterable[str],
        *,
        task: TaskNames = None,
        dim: int | None = None,
        any_dim: bool = False,
        outputs: Iterable[str] = ("dense", "sparse", "multi_vector"),
        truncate: Truncate = "end",
        progress: bool | None = None,
    ) -> Outputs:
        """Return the results of `encode`, `encode_sparse` and `encode_multi_vector` from one pass.

        `outputs` names the outputs to compute. Arguments and errors are those of `encode`.
        """
        outputs = list_items(outputs, "outputs")
        self._check_outputs(outputs)
        size = self._check_dim(dim, any_dim)
        texts = list_items(texts, "texts")
        means = np.empty((len(texts), self.config.width), np.float32)
        ids = [np.empty(0, np.int32)] * len(texts)
        weights = [np.empty(0, np.float32)] * len(texts)
        multi = [np.empty((0, self.config.multi_vector_dim), np.float32)] * len(texts)
        rule = Truncation(truncate, self.config.max_tokens)
        with make_bar("text", len(texts), progress) as bar:
            for number, tokens, hidden, means[number] in self._run(texts, task, rule):
                states = own_states(tokens, hidden)
                if "sparse" in outputs:
                    ids[number], weights[number] = sparse_entries(self.heads, tokens, states)
                if "multi_vector" in outputs:
                    multi[number] = multi_vectors(self.heads, states)
                bar.update()
        dense = truncate_and_normalise(means, size)
        self._warn(rule)
        special = self.tokenizer.special_ids
        sparse = gather_weights(ids, weights, ignored=special, vocab_size=self.config.vocab_size)
        return Outputs(
            dense if "dense" in outputs else None,
            sparse if "sparse" in outputs else None,
            multi if "multi_vector" in outputs else None,
        )

    def similarity(
        self, a: Float32[np.ndarray, "N dim"], b: Float32[np.ndarray, "M dim"]
    ) -> Float32[np.ndarray, "N M"]:
        """Return the cosine of every vector of `a` with every vector of `b`."""
        return outputs.similarity(a, b)

    def _stream(
        self,
        texts: Iterable[str],
        task: TaskNames,
        dim: int,
        rule: Truncation,
        progress: bool | None,
    ) -> Iterator[Float32[np.ndarray, "N dim"]]:
        total = len(texts) if isinstance(texts, Sequence) else None
        with make_bar("text", total, progress) as bar:
            yield from self._encode_blocks(texts, task, dim, rule, bar)
        self._warn(rule)

    def _encode_blocks(
        self, texts: Iterable[str], task: TaskNames, dim: int, rule: Truncation, bar: Bar
    ) -> Iterator[Float32[np.ndarray, "N dim"]]:
        first = 0
        for block, tasks in split_into_blocks(texts, task):
            tokens, adapter_ids = self._tokenise(block, tasks, first, rule)
            means = np.empty((len(block), self.config.width), np.float32)
            for members, batch in self._pack(tokens, adapter_ids):
                means[members] = self.engine.pool(batch, batch.starts, batch.ends)
                bar.update(len(members))
            try:
                yield outputs.truncate_and_normalise(means, dim)
            except outputs.NotFiniteError as error:
                raise outputs.NotFiniteError([first + row for row in error.rows]) from None
            first += len(block)

    def _run(
        self, texts: list[str], task: TaskNames, rule: Truncation
    ) -> Iterator[tuple[int, Tokens, Float32[np.ndarray, "_T D"], Float32[np.ndarray, " D"]]]:
        """Yield each text's position, tokens, hidden states and their mean, in any order."""
        first = 0
        for block, tasks in split_into_blocks(texts, task):
            tokens, adapter_ids = self._tokenise(block, tasks, first, rule)
            for members, batch in self._pack(tokens, adapter_ids):
                hidden, means = self.engine.hidden_and_pool(batch, batch.starts, batch.ends)
                parts = np.split(hidden, batch.ends[:-1])
                for i, states, mean in zip(members, parts, means, strict=True):
                    yield first + i, tokens[i], states, mean
            first += len(block)

    def _check_outputs(self, outputs: list[str]) -> None:
        for name in outputs:
            if name not in OUTPUTS:
                raise ValueError(
                    f"outputs has {name!r}; each must be 'dense', 'sparse' or 'multi_vector'"
                )
            if name in HEADS and f"{name}.weight" not in self.heads:
                raise ValueError(
                    f"this model has no {HEADS[name]} head; load a model that has one (see "
                    "`polyvec info`), or train one (polyvec.train.head_objectives)"
                )

    def _tokenise(
        self, texts: list[str], tasks: list[str | None], first: int, rule: Truncation
    ) -> tuple[list[Tokens], list[int]]:
        """The tokens and the adapter index of each text; `first` is the position of the first."""
        choices = {task: choose_task(self.config.tasks, task) for task in set(tasks)}
        prompts = [choices[task].prompt for task in tasks]
        if rule.truncate == "start":
            pairs = zip(texts, prompts, strict=True)
            tokens = [self.tokenizer.encode_end(text, prompt) for text, prompt in pairs]
        else:
            tokens = self.tokenizer.encode(texts, prompts)
        rule.record(first, texts, tokens)
        return tokens, [choices[task].adapter_id for task in tasks]

    def _warn(self, rule: Truncation) -> None:
        """Warn that texts were truncated, for the first time that this encoder does so."""
        if rule.num_texts and not rule.is_shared and not self._warned:
            self._warned = True
            warnings.warn(str(rule), TruncationWarning, stacklevel=3)

    def _pack(
        self, tokens: list[Tokens], adapter_ids: list[int]
    ) -> Iterator[tuple[list[int], Batch]]:
        """Packed batches, and the positions in `tokens` of their texts."""
        lengths = [len(text.ids) for text in tokens]
        for members in pack(lengths, self.engine.batch_tokens):
            ids = [tokens[i].ids for i in members]
            yield members, make_batch(ids, [adapter_ids[i] for i in members])

    def _check_dim(self, dim: int | None, any_dim: bool) -> int:
        width, dims = self.config.width, self.config.dims
        if dim is None:
            return width
        if isinstance(dim, bool) or not isinstance(dim, int | np.integer) or not 1 <= dim <= width:
            raise ValueError(f"dim is {dim!r}, must be a whole number in 1..{width}")
        if not any_dim and dim not in dims:
            raise ValueError(
                f"this model was not trained for dim {dim}, only for {', '.join(map(str, dims))}; "
                "any_dim=True allows any size"
            )
        return int(dim)


def _load_again(kind: type[Encoder], settings: dict[str, Any], rope_base: int | float) -> Encoder:
    """The encoder that was pickled."""
    encoder = kind.load(**settings)
    encoder.engine.rope_base = rope_base
    return encoder
