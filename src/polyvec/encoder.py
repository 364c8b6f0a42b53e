"""From texts to vectors: what users hold. It composes the other rooms and does no mathematics.

Axes in this file: N texts of the caller, T tokens of one text, D the model's width, dim the size
asked for, S chunks of a document, V numbers in a token's own vector.
"""

import importlib.util
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, pairwise, repeat
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from polyvec import outputs
from polyvec.batch import Batch, make_batch, pack
from polyvec.checkpoint import load_checkpoint
from polyvec.chunking import Semantic, Sentences, group_sentences, split_sentences
from polyvec.config import ModelConfig
from polyvec.engines import Engine, make_engine
from polyvec.heads import (
    OUTPUTS,
    Outputs,
    Sparse,
    gather_weights,
    multi_vectors,
    own_states,
    read_heads,
    sparse_entries,
)
from polyvec.outputs import Chunks, truncate_and_normalise
from polyvec.pooling import pool_windows
from polyvec.tasks import adapter_index, choose_task
from polyvec.tokenizer import Tokenizer, Tokens

BUNDLED = Path(__file__).parent / "models" / "mini"
"""The model that ships with the package."""

WINDOW_TEXTS = 4_096
WINDOW_CHARACTERS = 4_000_000
"""Texts are read in windows no larger than these, and sorted by length within a window."""

TaskNames = str | None | Iterable[str | None]
"""One task for all texts, or one for each."""

ChunkChoice = int | Sentences | Semantic | Sequence[tuple[int, int]]
"""Tokens in each chunk, `Sentences`, `Semantic`, or characters [start, end) of each chunk."""

CHUNK_TOKENS = 256
"""How large chunks are, where nothing is said of them."""

OVERLAP = 256
"""Tokens that two windows of a long document share, where nothing is said of it."""


class Encoder:
    """Turns texts into vectors.

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
        """Put a model together; `Encoder.load` does it from a folder.

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

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        *,
        device: str = "auto",
        precision: Literal["auto", "float32"] = "auto",
        merge: str | None = None,
        prepack: bool | None = None,
    ) -> "Encoder":
        """The bundled model, a model folder, or a model of the Hugging Face hub ("org/name").

        `device` is "cpu" (OpenVINO), "cuda" or "cuda:1" (PyTorch), or "auto": CUDA where there is
        a GPU and PyTorch, else the CPU. `precision` "auto" is bf16 where the device has it, and
        int8 on a CPU that has it for a model that is stored so.
        `merge` names the one task all texts will have, and adds its adapter to the weights once.
        `prepack` False starts a CPU in a third of the time and encodes slower: for a few texts.

        Raises ValueError if there is no such model, or if its files are incomplete or unsafe.
        """
        folder = find_model(model)
        config, weights = load_checkpoint(folder)
        merge_row = None if merge is None else adapter_index(config.tasks, merge)
        # The engine compiles outside the interpreter; the tokenizer is read meanwhile.
        with ThreadPoolExecutor(1) as beside:
            engine = beside.submit(
                make_engine, config, weights, device, precision, merge_row, prepack
            )
            tokenizer = Tokenizer.load(folder, config.max_tokens)
            return cls(config, tokenizer, engine.result(), read_heads(weights))

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        task: TaskNames = None,
        dim: int | None = None,
        any_dim: bool = False,
        progress: bool | None = None,
    ) -> Float32[np.ndarray, "N dim"]:
        """One vector of length 1 a text, in the texts' order.

        A plain string is one text and gives one row. `task` is one name, None (the bare encoder),
        or one of these for every text. `dim` is a Matryoshka size of the model, by default the
        largest; with `any_dim` any size up to that. `progress` None shows a bar on terminals, if
        it takes more than a moment.

        Raises ValueError for an unknown task, an unsupported size, something that is not a text;
        and `outputs.NotFiniteError`, which names the rows, if a text has no usable vector.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        vectors = np.empty((len(texts), self._check_dim(dim, any_dim)), np.float32)
        done = 0
        with _make_bar(len(texts), progress) as bar:
            for part in self._encode_windows(texts, task, vectors.shape[1], bar):
                vectors[done : done + len(part)] = part
                done += len(part)
        return vectors

    def encode_stream(
        self,
        texts: Iterable[str],
        *,
        task: TaskNames = None,
        dim: int | None = None,
        any_dim: bool = False,
        progress: bool | None = None,
    ) -> Iterator[Float32[np.ndarray, "N dim"]]:
        """The rows of `encode`, a few thousand at a time, in bounded memory.

        `texts` may be a generator without end. It is read one window ahead of the result.
        """
        if isinstance(texts, str):
            raise ValueError("encode_stream reads many texts; put a single one in a list")
        dim = self._check_dim(dim, any_dim)
        return self._stream(texts, task, dim, progress)

    def encode_chunks(
        self,
        document: str | Sequence[str],
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
        """One vector a chunk, each of which has seen the whole document (late chunking).

        `document` is a text, cut as `chunks` says: so many tokens each (256 by default),
        `Sentences(5)`, `Semantic()`, or the caller's own spans of characters [start, end), which
        may overlap and leave gaps. Or it is a list of chunks, read as one text joined by single
        spaces. No chunk is dropped. The first keeps `<s>` and the instruction, the last `</s>`:
        a chunk that is the whole text has the vector of `encode`.

        A document longer than `window` tokens (the model's longest text by default) is read in
        windows that share `overlap` tokens (256; half a window where that is less), in linear
        time and bounded memory. With `late=False` every chunk is embedded by itself.

        Raises ValueError for spans outside the document and other choices that cannot be;
        `outputs.NotFiniteError` names chunks without a usable vector.
        """
        size = self._check_dim(dim, any_dim)
        text, given = _join_chunks(document, chunks)
        row, prompt = adapter_index(self.config.tasks, task), self._prompt(task)
        tokens = self.tokenizer.encode([text], [prompt], truncate=False)[0]
        spans = self._cut(text, tokens, CHUNK_TOKENS if given is None else given, task)
        offsets = np.array(spans, np.int32).reshape(-1, 2)
        if not late:
            parts = [text[start:end] for start, end in spans]
            vectors = self.encode(parts, task=task, dim=size, any_dim=True, progress=progress)
            return Chunks(text, offsets, vectors)
        longest = self.config.max_tokens
        window = longest if window is None else window
        if not 2 <= window <= longest:
            raise ValueError(f"window is {window}, must be in 2..{longest} tokens")
        starts, ends = tokens.find_spans(text, spans)
        with _make_bar(len(tokens.ids), progress, unit="token") as bar:
            means = pool_windows(
                self.engine.pool,
                tokens.ids,
                row,
                starts,
                ends,
                window=window,
                overlap=min(OVERLAP, window // 2) if overlap is None else overlap,
                batch_tokens=self.engine.batch_tokens,
                read=bar.update,
            )
        try:
            return Chunks(text, offsets, outputs.truncate_and_normalise(means, size))
        except outputs.NotFiniteError as error:
            raise outputs.NotFiniteError(error.rows, "chunk") from None

    def encode_tokens(
        self, texts: str | Iterable[str], *, task: TaskNames = None
    ) -> list[Float32[np.ndarray, "T D"]]:
        """The hidden state of every token of every text, not normalised.

        One row for each id of `tokenizer.encode`: `<s>`, the instruction, the text, `</s>`. The
        mean of a text's rows, normalised, is its `encode` vector.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        states = [np.empty((0, self.config.width), np.float32)] * len(texts)
        for number, _, hidden, _ in self._read(texts, task):
            states[number] = hidden
        bad = [number for number, hidden in enumerate(states) if not np.isfinite(hidden).all()]
        if bad:
            raise outputs.NotFiniteError(bad)
        return states

    def encode_sparse(
        self, texts: str | Iterable[str], *, task: TaskNames = None, progress: bool | None = None
    ) -> Sparse:
        """A weight for every token of every text, for lexical search.

        A token that comes twice has its largest weight. `<s>`, `</s>`, unknown pieces and the
        instruction weigh nothing: every text would match every other by them.
        Raises ValueError if the model has no sparse head; the rest is as for `encode`.
        """
        found = self.encode_all(texts, task=task, outputs=["sparse"], progress=progress)
        assert found.sparse is not None
        return found.sparse

    def encode_multi_vector(
        self, texts: str | Iterable[str], *, task: TaskNames = None, progress: bool | None = None
    ) -> list[Float32[np.ndarray, "_T V"]]:
        """A vector of length 1 for every token of every text, to compare with `maxsim`.

        The text's own tokens in their order, then `</s>`, so that an empty text has a vector too;
        `<s>` and the instruction have none. They are made of what `encode_tokens` gives.
        Raises ValueError if the model has no multi-vector head; the rest is as for `encode`.
        """
        found = self.encode_all(texts, task=task, outputs=["multi_vector"], progress=progress)
        assert found.multi_vector is not None
        return found.multi_vector

    def encode_all(
        self,
        texts: str | Iterable[str],
        *,
        task: TaskNames = None,
        dim: int | None = None,
        any_dim: bool = False,
        outputs: Collection[str] = ("dense", "sparse", "multi_vector"),
        progress: bool | None = None,
    ) -> Outputs:
        """The results of `encode`, `encode_sparse` and `encode_multi_vector`, from one pass."""
        self._check_outputs(outputs)
        size = self._check_dim(dim, any_dim)
        texts = [texts] if isinstance(texts, str) else list(texts)
        means = np.empty((len(texts), self.config.width), np.float32)
        ids = [np.empty(0, np.int32)] * len(texts)
        weights = [np.empty(0, np.float32)] * len(texts)
        multi = [np.empty((0, self.config.multi_vector_dim), np.float32)] * len(texts)
        with _make_bar(len(texts), progress) as bar:
            for number, tokens, hidden, means[number] in self._read(texts, task):
                states = own_states(tokens, hidden)
                if "sparse" in outputs:
                    ids[number], weights[number] = sparse_entries(self.heads, tokens, states)
                if "multi_vector" in outputs:
                    multi[number] = multi_vectors(self.heads, states)
                bar.update()
        dense = truncate_and_normalise(means, size)
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
        """The cosine of every vector of `a` with every vector of `b`."""
        return outputs.similarity(a, b)

    def _stream(
        self, texts: Iterable[str], task: TaskNames, dim: int, progress: bool | None
    ) -> Iterator[Float32[np.ndarray, "N dim"]]:
        total = len(texts) if isinstance(texts, Sequence) else None
        with _make_bar(total, progress) as bar:
            yield from self._encode_windows(texts, task, dim, bar)

    def _encode_windows(
        self, texts: Iterable[str], task: TaskNames, dim: int, bar: tqdm
    ) -> Iterator[Float32[np.ndarray, "N dim"]]:
        first = 0
        for window, tasks in _read_windows(texts, task):
            tokens = self._tokenise(window, tasks)
            means = np.empty((len(window), self.config.width), np.float32)
            for members, batch in self._batches(tokens, tasks):
                means[members] = self.engine.pool(batch, batch.starts, batch.ends)
                bar.update(len(members))
            try:
                yield outputs.truncate_and_normalise(means, dim)
            except outputs.NotFiniteError as error:
                raise outputs.NotFiniteError([first + row for row in error.rows]) from None
            first += len(window)

    def _read(
        self, texts: list[str], task: TaskNames
    ) -> Iterator[tuple[int, Tokens, Float32[np.ndarray, "_T D"], Float32[np.ndarray, " D"]]]:
        """Each text's number, tokens, hidden states and their mean, in any order."""
        first = 0
        for window, tasks in _read_windows(texts, task):
            tokens = self._tokenise(window, tasks)
            for members, batch in self._batches(tokens, tasks):
                hidden, means = self.engine.read(batch, batch.starts, batch.ends)
                parts = np.split(hidden, batch.ends[:-1])
                for i, states, mean in zip(members, parts, means, strict=True):
                    yield first + i, tokens[i], states, mean
            first += len(window)

    def _check_outputs(self, outputs: Collection[str]) -> None:
        for name in outputs:
            if name not in OUTPUTS:
                raise ValueError(
                    f"outputs has {name!r}, must be of 'dense', 'sparse' and 'multi_vector'"
                )
            if name != "dense" and f"{name}.weight" not in self.heads:
                kind = {"sparse": "sparse", "multi_vector": "multi-vector"}[name]
                raise ValueError(
                    f"this model has no {kind} head: load one that has (`polyvec info` tells), or "
                    "train it (polyvec.train.head_objectives)"
                )

    def _tokenise(self, texts: list[str], tasks: list[str | None]) -> list[Tokens]:
        prompts = {task: self._prompt(task) for task in set(tasks)}
        return self.tokenizer.encode(texts, [prompts[task] for task in tasks])

    def _prompt(self, task: str | None) -> str:
        return choose_task(self.config.tasks, task).prompt

    def _batches(
        self, tokens: list[Tokens], tasks: list[str | None]
    ) -> Iterator[tuple[list[int], Batch]]:
        """Packed batches, and the positions in `tokens` of their texts."""
        rows = [adapter_index(self.config.tasks, task) for task in tasks]
        lengths = [len(text.ids) for text in tokens]
        for members in pack(lengths, self.engine.batch_tokens):
            ids = [tokens[i].ids for i in members]
            yield members, make_batch(ids, [rows[i] for i in members])

    def _cut(
        self, text: str, tokens: Tokens, choice: ChunkChoice, task: str | None
    ) -> list[tuple[int, int]]:
        """The chunks' characters; the whole text where there is nothing to cut."""
        if isinstance(choice, bool | float):
            raise ValueError(f"chunks is {choice!r}, must be a number of tokens or spans")
        if isinstance(choice, int | np.integer):
            return tokens.split(int(choice), len(text))
        if isinstance(choice, Sentences):
            return group_sentences(text, choice) or [(0, len(text))]
        if isinstance(choice, Semantic):
            return self._cut_by_meaning(text, choice, task)
        return [_check_span(number, span, text) for number, span in enumerate(choice)]

    def _cut_by_meaning(
        self, text: str, choice: Semantic, task: str | None
    ) -> list[tuple[int, int]]:
        sentences = split_sentences(text, choice.lang)
        if choice.buffer < 0 or not 0 <= choice.percentile <= 100:
            raise ValueError(f"{choice}: buffer must be 0 or more, percentile in 0..100")
        last = len(sentences) - 1
        around = [
            text[
                sentences[max(i - choice.buffer, 0)][0] : sentences[min(i + choice.buffer, last)][1]
            ]
            for i in range(len(sentences))
        ]
        turns = outputs.find_turns(self.encode(around, task=task), choice.percentile)
        edges = [0, *(sentences[turn][0] for turn in turns), len(text)]
        return list(pairwise(edges))

    def _check_dim(self, dim: int | None, any_dim: bool) -> int:
        width, dims = self.config.width, self.config.dims
        if dim is None:
            return width
        if isinstance(dim, bool) or not isinstance(dim, int | np.integer) or not 1 <= dim <= width:
            raise ValueError(f"dim is {dim!r}, must be a whole number in 1..{width}")
        if not any_dim and dim not in dims:
            raise ValueError(
                f"this model was not trained for dim {dim} but for {', '.join(map(str, dims))}; "
                "any_dim=True takes it all the same"
            )
        return int(dim)


def find_model(model: str | Path | None) -> Path:
    """The folder of a model; a name of the hub is downloaded first, once.

    Raises ValueError if there is none.
    """
    if model is None:
        return BUNDLED
    if Path(model).is_dir():
        return Path(model)
    if isinstance(model, str) and model.count("/") == 1 and model[0] not in "/.~":
        if importlib.util.find_spec("huggingface_hub") is None:
            raise ValueError(
                f"there is no folder {model}, and to download models from the Hugging Face hub "
                "polyvec needs its extra: pip install 'polyvec[hub]'"
            )
        from polyvec.hub import download

        return download(model)
    raise ValueError(f"there is no folder {model}")


def _read_windows(
    texts: Iterable[str], task: TaskNames
) -> Iterator[tuple[list[str], list[str | None]]]:
    """Texts and their tasks, some thousands at a time. Raises ValueError naming a bad text."""
    tasks = repeat(task) if task is None or isinstance(task, str) else iter(task)
    one_each = not isinstance(tasks, repeat)
    window: list[str] = []
    chosen: list[str | None] = []
    characters = 0
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"text {number} (counted from 0) is a {type(text).__name__}, not str")
        mine = list(islice(tasks, 1))
        if not mine:
            raise ValueError(f"there are more texts than the {number} tasks")
        if window and (len(window) == WINDOW_TEXTS or characters + len(text) > WINDOW_CHARACTERS):
            yield window, chosen
            window, chosen, characters = [], [], 0
        window.append(text)
        chosen.extend(mine)
        characters += len(text)
    if one_each and list(islice(tasks, 1)):
        raise ValueError("there are more tasks than texts")
    if window:
        yield window, chosen


def _join_chunks(
    document: str | Sequence[str], choice: ChunkChoice | None
) -> tuple[str, ChunkChoice | None]:
    """The document as one text, and its chunks if it came as a list of them."""
    if isinstance(document, str):
        return document, choice
    if choice is not None:
        raise ValueError("a list of chunks is cut already; give one text, or leave out chunks")
    spans, start = [], 0
    for number, chunk in enumerate(document):
        if not isinstance(chunk, str):
            raise ValueError(
                f"chunk {number} (counted from 0) is a {type(chunk).__name__}, not str"
            )
        spans.append((start, start + len(chunk)))
        start += len(chunk) + 1
    return " ".join(document), spans


def _check_span(number: int, span: tuple[int, int], text: str) -> tuple[int, int]:
    start, end = (int(edge) for edge in span)
    if not 0 <= start <= end <= len(text):
        raise ValueError(
            f"chunk {number} (counted from 0) is the characters {start} to {end}, "
            f"outside the document's {len(text)}"
        )
    return start, end


def _make_bar(total: int | None, progress: bool | None, unit: str = "text") -> tqdm:
    # tqdm's own None means: not unless standard error is a terminal.
    hidden = None if progress is None else not progress
    return tqdm(total=total, unit=unit, disable=hidden, delay=1)
