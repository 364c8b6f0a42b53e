"""The encoder side of mteb's protocol: which adapter embeds a text, and how embeddings compare.

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

from polyvec.eval.task_kinds import find_kind, is_long_context

Embed = Callable[[list[str], str | None], Float[np.ndarray, "B D"]]
"""Embeds texts with one adapter, by its name or None. The vectors have length 1, or length 0 for a
text of which the model knows nothing."""

Compare = Callable[[Float[np.ndarray, "B D"], Float[np.ndarray, "C D"]], Float[np.ndarray, "B C"]]
"""Scores every text of one side with every text of the other side."""

ChooseAdapter = Callable[[TaskMetadata, PromptType | None], str | None]
"""Returns the adapter for one side of a task, by its name or None."""

PROGRESS_CHARACTERS = 200_000
"""About how many characters are embedded between two updates of the progress bar."""

SYMMETRIC = ("ArguAna*", "CQADupstack*", "Quora*")
"""Retrieval tasks whose queries and documents are of the same form: arguments, or questions
(arXiv:2409.10173, section 6.2)."""


def paper_adapter(task: TaskMetadata, side: PromptType | None) -> str | None:
    """Return the adapter with which the paper evaluates `task` (arXiv:2409.10173, section 6).

    Symmetric retrieval and the tasks of LongEmbed (section A.6) use the text-matching adapter.
    """
    kind = find_kind(task.type)
    if kind is not None and kind.adapter is not None:
        return kind.adapter
    if is_long_context(task.name) or any(fnmatch(task.name, pattern) for pattern in SYMMETRIC):
        return "text-matching"
    return retrieval_adapter(task, side)


def retrieval_adapter(task: TaskMetadata, side: PromptType | None) -> str | None:
    """Return the query adapter for queries and the passage adapter for all other texts."""
    return "retrieval.query" if side is PromptType.query else "retrieval.passage"


def sided_adapter(task: TaskMetadata, side: PromptType | None) -> str | None:
    """Return the retrieval adapter of a side, and the paper's adapter for tasks without sides.

    Models with prompts for queries and documents, but without adapters, are evaluated in this way.
    """
    return paper_adapter(task, side) if side is None else retrieval_adapter(task, side)


def always(adapter: str | None) -> ChooseAdapter:
    """Return a function that chooses the same adapter for every text."""
    return lambda task, side: adapter


def cosines(a: Float[np.ndarray, "B D"], b: Float[np.ndarray, "C D"]) -> Float[np.ndarray, "B C"]:
    """Return the cosine of every row of `a` with every row of `b`."""
    return a @ b.T


class MtebEncoder:
    """An embedding function that implements mteb's `EncoderProtocol`."""

    def __init__(
        self,
        embed: Embed,
        meta: ModelMeta,
        *,
        choose: ChooseAdapter = paper_adapter,
        prepare: Callable[[AbsTask], None] | None = None,
        compare: Compare | None = None,
    ) -> None:
        """Wrap `embed` for mteb, under the name in `meta`.

        `choose` returns the adapter for each text. `prepare` is called with each task after its
        data is loaded and before mteb runs it. `compare` replaces the cosine in retrieval.
        """
        self.embed = embed
        self.mteb_model_meta = meta
        self.choose = choose
        self.prepare = prepare
        self.compare = compare or cosines
        self.report_progress: Callable[[int], object] = lambda characters: None
        """Called with the number of characters that were embedded since the last call."""

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
        """Return one vector per text.

        Equal texts are embedded once. `batch_size` is ignored, because models choose their own.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        adapter = self.choose(task_metadata, prompt_type)
        unique = sorted(set(texts), key=len, reverse=True)
        position = {text: i for i, text in enumerate(unique)}
        parts = []
        for part in _progress_parts(unique):
            parts.append(self.embed(part, adapter))
            self.report_progress(sum(map(len, part)))
        self.report_progress(sum(map(len, texts)) - sum(map(len, unique)))
        return np.concatenate(parts)[[position[text] for text in texts]]

    def similarity(
        self,
        a: Float[np.ndarray | torch.Tensor, "*B D"],
        b: Float[np.ndarray | torch.Tensor, "*C D"],
    ) -> Float[np.ndarray, "..."]:
        """Compare every row of `a` with every row of `b`.

        mteb's reranking passes tensors. Its summarisation passes two single vectors and expects a
        single number.
        """
        one, two = np.asarray(a), np.asarray(b)
        scores = self.compare(np.atleast_2d(one), np.atleast_2d(two))
        return scores.reshape(one.shape[:-1] + two.shape[:-1])

    def similarity_pairwise(
        self,
        a: Float[np.ndarray | torch.Tensor, "*B D"],
        b: Float[np.ndarray | torch.Tensor, "*B D"],
    ) -> Float[np.ndarray, "*B"]:
        """Return the cosine of row i of `a` with row i of `b`."""
        return (np.asarray(a) * np.asarray(b)).sum(-1)


Model = MtebEncoder | SearchProtocol
"""A model that `evaluate` accepts: an encoder, or a model that can only search."""


def _progress_parts(texts: list[str]) -> Iterator[list[str]]:
    part: list[str] = []
    size = 0
    for text in texts:
        if part and size + len(text) > PROGRESS_CHARACTERS:
            yield part
            part, size = [], 0
        part.append(text)
        size += len(text)
    if part:
        yield part
