"""The encoder side of mteb's protocol: which adapter reads a text, and how vectors are compared.

Axes in this file: B texts, C texts on the other side, D width.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatch

import numpy as np
import torch
from jaxtyping import Float
from mteb.abstasks import AbsTask
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta, SearchProtocol
from mteb.types import PromptType

Embed = Callable[[list[str], str | None], Float[np.ndarray, "B D"]]
"""Texts and one adapter's name (None for none) to vectors of length 1, or 0 if a text says nothing
that the model knows."""

Compare = Callable[[Float[np.ndarray, "B D"], Float[np.ndarray, "C D"]], Float[np.ndarray, "B C"]]

ChooseAdapter = Callable[[TaskMetadata, PromptType | None], str | None]

CHUNK_CHARACTERS = 200_000
"""Texts go to the model in chunks of about this size, so that a progress bar moves."""

SYMMETRIC = ("ArguAna*", "CQADupstack*", "Quora*", "LEMB*", "needle-*", "passkey-*", "qmsum-*")
"""Retrieval whose two sides the paper reads alike: both are arguments or questions, or the
task is of LongEmbed's (sections 6.2 and A.6)."""

ADAPTERS = {
    "Classification": "classification",
    "MultilabelClassification": "classification",
    "PairClassification": "classification",
    "STS": "text-matching",
    "BitextMining": "text-matching",
    "Summarization": "text-matching",
    "Clustering": "separation",
    "Reranking": "separation",
    "InstructionReranking": "separation",
}
"""mteb's task types and the paper's adapters; the other types are asymmetric retrieval."""


def paper_adapter(task: TaskMetadata, side: PromptType | None) -> str | None:
    """The adapter with which the paper evaluates `task` (arXiv:2409.10173, section 6)."""
    if task.type in ADAPTERS:
        return ADAPTERS[task.type]
    if any(fnmatch(task.name, pattern) for pattern in SYMMETRIC):
        return "text-matching"
    return retrieval_adapter(task, side)


def retrieval_adapter(task: TaskMetadata, side: PromptType | None) -> str | None:
    """The query adapter for queries, the passage adapter for anything else."""
    return "retrieval.query" if side is PromptType.query else "retrieval.passage"


def always(adapter: str | None) -> ChooseAdapter:
    """The same adapter for every text."""
    return lambda task, side: adapter


def cosines(a: Float[np.ndarray, "B D"], b: Float[np.ndarray, "C D"]) -> Float[np.ndarray, "B C"]:
    """Cosines of every row of `a` with every row of `b`."""
    return a @ b.T


class MtebEncoder:
    """An embedding function as mteb's `EncoderProtocol` wants it."""

    def __init__(
        self,
        embed: Embed,
        meta: ModelMeta,
        *,
        choose: ChooseAdapter = paper_adapter,
        prepare: Callable[[AbsTask], None] | None = None,
        compare: Compare | None = None,
    ) -> None:
        """Give `embed` to mteb under the name in `meta`.

        `choose` says which adapter reads a text. `prepare` is shown each task, its data loaded,
        before mteb runs it. `compare` scores every document for every query, where cosines would
        not do.
        """
        self.embed = embed
        self.mteb_model_meta = meta
        self.choose = choose
        self.prepare = prepare
        self.compare = compare or cosines
        self.encoded: Callable[[int], object] = lambda characters: None
        """Told how many characters were just encoded."""

    def encode(
        self,
        inputs: Iterable[Mapping[str, list[str]]],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> Float[np.ndarray, "B D"]:
        """One vector a text. Equal texts are encoded once; `batch_size` is the model's affair."""
        texts = [text for batch in inputs for text in batch["text"]]
        adapter = self.choose(task_metadata, prompt_type)
        unique = sorted(set(texts), key=len, reverse=True)
        row = {text: i for i, text in enumerate(unique)}
        parts = []
        for chunk in _chunks(unique):
            parts.append(self.embed(chunk, adapter))
            self.encoded(sum(map(len, chunk)))
        self.encoded(sum(map(len, texts)) - sum(map(len, unique)))
        return np.concatenate(parts)[[row[text] for text in texts]]

    def similarity(
        self,
        a: Float[np.ndarray | torch.Tensor, "*B D"],
        b: Float[np.ndarray | torch.Tensor, "*C D"],
    ) -> Float[np.ndarray, "..."]:
        """Every row of `a` with every row of `b`.

        mteb's reranking makes tensors of what it got; its summarisation asks for two single rows,
        and wants a single number.
        """
        one, two = np.asarray(a), np.asarray(b)
        scores = self.compare(np.atleast_2d(one), np.atleast_2d(two))
        return scores.reshape(one.shape[:-1] + two.shape[:-1])

    def similarity_pairwise(
        self,
        a: Float[np.ndarray | torch.Tensor, "*B D"],
        b: Float[np.ndarray | torch.Tensor, "*B D"],
    ) -> Float[np.ndarray, "*B"]:
        """Cosines of row i of `a` with row i of `b`."""
        return (np.asarray(a) * np.asarray(b)).sum(-1)


Model = MtebEncoder | SearchProtocol
"""What `evaluate` takes: an encoder, or something that can only search."""


def _chunks(texts: list[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for text in texts:
        if chunk and size + len(text) > CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
        chunk.append(text)
        size += len(text)
    if chunk:
        yield chunk
