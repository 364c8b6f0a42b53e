"""From texts to vectors: what users hold. It composes the other rooms and does no mathematics.

Axes in this file: N texts of the caller, T tokens of one text, D the model's width, dim the size
asked for.
"""

import ctypes
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, repeat
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from polyvec import outputs
from polyvec.batch import Batch, make_batch, pack
from polyvec.checkpoint import Weights, load_checkpoint
from polyvec.config import ModelConfig
from polyvec.engines import Engine
from polyvec.tasks import BARE, task_row
from polyvec.tokenizer import Tokenizer, Tokens

BUNDLED = Path(__file__).parent / "models" / "mini"
"""The model that ships with the package."""

WINDOW_TEXTS = 4_096
WINDOW_CHARACTERS = 4_000_000
"""Texts are read in windows no larger than these, and sorted by length within a window."""

TaskChoice = str | None | Iterable[str | None]
"""One task for all texts, or one for each."""


class Encoder:
    """Turns texts into vectors.

    >>> encoder = Encoder.load()  # doctest: +SKIP
    >>> encoder.encode(["Hello", "Bonjour"], task="text-matching").shape  # doctest: +SKIP
    (2, 384)
    """

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, engine: Engine) -> None:
        """Put a model together; `Encoder.load` does it from a folder."""
        if tokenizer.vocab_size > config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} pieces and the model only "
                f"{config.vocab_size}: they do not belong together"
            )
        self.config = config
        self.tokenizer = tokenizer
        self.engine = engine

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        *,
        device: str = "auto",
        precision: Literal["auto", "float32"] = "auto",
        merge: str | None = None,
    ) -> "Encoder":
        """The bundled model, a model folder, or a model of the Hugging Face hub ("org/name").

        `device` is "cpu" (OpenVINO), "cuda" or "cuda:1" (PyTorch), or "auto": CUDA where there is
        a GPU and PyTorch, else the CPU. `precision` "auto" is bf16 where the device has it.
        `merge` names the one task all texts will have, and adds its adapter to the weights once.

        Raises ValueError if there is no such model, or if its files are incomplete or unsafe.
        """
        folder = find_model(model)
        config, weights = load_checkpoint(folder)
        tokenizer = Tokenizer.load(folder, config.max_tokens)
        merge_row = None if merge is None else task_row(config.tasks, merge)
        engine = _make_engine(config, weights, device, precision, merge_row)
        return cls(config, tokenizer, engine)

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        task: TaskChoice = None,
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
        task: TaskChoice = None,
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

    def encode_tokens(
        self, texts: str | Iterable[str], *, task: TaskChoice = None
    ) -> list[Float32[np.ndarray, "T D"]]:
        """The hidden state of every token of every text, not normalised.

        One row for each id of `tokenizer.encode`: `<s>`, the instruction, the text, `</s>`. The
        mean of a text's rows, normalised, is its `encode` vector.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        states: list[Float32[np.ndarray, "T D"]] = []
        for window, tasks in _read_windows(texts, task):
            tokens = self._tokenise(window, tasks)
            found = dict[int, np.ndarray]()
            for members, batch in self._batches(tokens, tasks):
                parts = np.split(self.engine.hidden(batch), batch.ends[:-1])
                found.update(zip(members, parts, strict=True))
            bad = [i for i, rows in found.items() if not np.isfinite(rows).all()]
            if bad:
                raise outputs.NotFiniteError(sorted(len(states) + i for i in bad))
            states.extend(found[i] for i in range(len(window)))
        return states

    def similarity(
        self, a: Float32[np.ndarray, "N dim"], b: Float32[np.ndarray, "M dim"]
    ) -> Float32[np.ndarray, "N M"]:
        """The cosine of every vector of `a` with every vector of `b`."""
        return outputs.similarity(a, b)

    def _stream(
        self, texts: Iterable[str], task: TaskChoice, dim: int, progress: bool | None
    ) -> Iterator[Float32[np.ndarray, "N dim"]]:
        total = len(texts) if isinstance(texts, Sequence) else None
        with _make_bar(total, progress) as bar:
            yield from self._encode_windows(texts, task, dim, bar)

    def _encode_windows(
        self, texts: Iterable[str], task: TaskChoice, dim: int, bar: tqdm
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

    def _tokenise(self, texts: list[str], tasks: list[str | None]) -> list[Tokens]:
        prompts = {task: self._prompt(task) for task in set(tasks)}
        return self.tokenizer.encode(texts, [prompts[task] for task in tasks])

    def _prompt(self, task: str | None) -> str:
        row = task_row(self.config.tasks, task)
        return "" if row == BARE else self.config.tasks[row].prompt

    def _batches(
        self, tokens: list[Tokens], tasks: list[str | None]
    ) -> Iterator[tuple[list[int], Batch]]:
        """Packed batches, and the positions in `tokens` of their texts."""
        rows = [task_row(self.config.tasks, task) for task in tasks]
        lengths = [len(text.ids) for text in tokens]
        for members in pack(lengths, self.engine.batch_tokens):
            ids = [tokens[i].ids for i in members]
            yield members, make_batch(ids, [rows[i] for i in members])

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


def _make_engine(
    config: ModelConfig,
    weights: Weights,
    device: str,
    precision: Literal["auto", "float32"],
    merge_row: int | None,
) -> Engine:
    if device == "auto":
        device = "cuda" if _can_use_cuda() else "cpu"
    if device == "cpu":
        from polyvec.engines.openvino import OpenVINOEngine

        return OpenVINOEngine(config, weights, precision=precision, merge_row=merge_row)
    if device.split(":")[0] != "cuda":
        raise ValueError(f"device is {device!r}, must be 'auto', 'cpu', 'cuda' or 'cuda:N'")
    if importlib.util.find_spec("torch") is None:
        raise ValueError("device 'cuda' needs PyTorch: pip install 'polyvec[torch]'")
    from polyvec.engines.torch import TorchEngine

    return TorchEngine(config, weights, device=device, precision=precision, merge_row=merge_row)


def _can_use_cuda() -> bool:
    # Importing PyTorch takes seconds, so first look for what it would need.
    if importlib.util.find_spec("torch") is None:
        return False
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    import torch

    return torch.cuda.is_available()


def _read_windows(
    texts: Iterable[str], task: TaskChoice
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


def _make_bar(total: int | None, progress: bool | None) -> tqdm:
    # tqdm's own None means: not unless standard error is a terminal.
    hidden = None if progress is None else not progress
    return tqdm(total=total, unit="text", disable=hidden, delay=1)
