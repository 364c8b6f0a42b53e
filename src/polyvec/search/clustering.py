"""What a folder is about: its passages in clusters, each with the words that set it apart.

1. Texts become vectors for separation, the task that draws topics apart.
2. These are turned to their five main axes, since density means little in hundreds, and made of
   length 1 again; HDBSCAN (Campello et al. 2013) finds where they are dense. The rest is in none.
3. A cluster's words are those of most class-based TF-IDF (Grootendorst 2022, arXiv:2203.05794,
   equation 2), with a factor for how rare the word is in the model's vocabulary: "der" sets a
   German cluster apart from the others, and still says nothing.

Texts are sorted first and clusters last, so their order in the folder does not matter.

Axes in this file: N texts, dim the vectors' size, A axes.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int

from polyvec.encoder import Encoder
from polyvec.search.files import list_files, read_file
from polyvec.search.lexical import split_words, weigh_words
from polyvec.search.passages import cut_file, titled_texts
from polyvec.tokenizer import Tokenizer

TASK = "separation"

AXES = 5

MANY = 3_000
"""So many texts take t-SNE about half a minute on one core; more are mapped by two main axes."""

FEW = 10
"""Fewer texts have no neighbourhoods for t-SNE to keep."""

Layout = Literal["tsne", "pca"]


class Item(NamedTuple):
    """A passage, or a file as a whole."""

    path: str
    """Its file, below the folder."""

    line: int | None
    """The line on which it begins, counted from 1; None in a PDF, and for a whole file."""

    page: int | None
    """The page of a PDF, counted from 1."""

    text: str
    parts: Sequence[str]
    """What is embedded; a file's vector is the mean of its passages'."""


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """Texts and the cluster of each."""

    texts: list[str]
    vectors: Float32[np.ndarray, "N dim"]
    numbers: Int[np.ndarray, " N"]
    """From 0, the largest cluster; -1 for a text in none."""

    scores: Float[np.ndarray, " N"]
    """Cosines of each text and the mean of its cluster; 0 in none."""

    words: list[list[str]]
    """Each cluster's, the most salient first."""

    def members(self, number: int) -> list[int]:
        """Positions of a cluster's texts, the most typical first."""
        inside = np.flatnonzero(self.numbers == number)
        return inside[np.argsort(-self.scores[inside], kind="stable")].tolist()


def read_items(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    each: Literal["passage", "file"] = "passage",
    skipped: Callable[[str], object] = lambda sentence: None,
) -> list[Item]:
    """The folder's passages, or its files, as `polyvec search` reads them.

    `skipped` is told a sentence for each file that cannot be read. Raises ValueError if there is
    no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    items = []
    for path in list_files(folder):
        try:
            cut = cut_file(folder, read_file(folder, path), tokenizer)
        except ValueError as error:
            skipped(str(error))
            continue
        document = cut.document
        parts = [text for text, _ in titled_texts(cut)]
        if each == "file" and parts:
            items.append(Item(path, None, None, document.text.strip(), parts))
        elif each == "passage":
            for chunk, part in zip(cut.chunks, parts, strict=True):
                place = document.find(chunk.start)
                line, page = (place, None) if document.unit == "line" else (None, place)
                text = document.text[chunk.start : chunk.end]
                items.append(Item(path, line, page, text, [part]))
    return items


def cluster_items(
    items: Sequence[Item], encoder: Encoder, *, min_size: int | None = None, task: str = TASK
) -> Clusters:
    """Clusters of passages or files; `min_size` as in `find_clusters`."""
    order = sorted(range(len(items)), key=lambda place: (items[place].parts, items[place].path))
    parts = [part for place in order for part in items[place].parts]
    vectors = encoder.encode(parts, task=task)
    if items:
        starts = np.cumsum([0, *(len(items[place].parts) for place in order[:-1])])
        vectors = np.add.reduceat(vectors, starts, axis=0)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
    numbers = find_clusters(vectors, min_size=min_size)
    # From the order of the texts to that of the caller.
    back = np.argsort(order, kind="stable").astype(np.int64)
    texts = ["\n".join(item.parts) for item in items]
    return _describe(texts, vectors[back], numbers[back], encoder.tokenizer)


def cluster_texts(
    texts: Sequence[str], encoder: Encoder, *, min_size: int | None = None, task: str = TASK
) -> Clusters:
    """Clusters of any texts; `min_size` as in `find_clusters`."""
    items = [Item("", None, None, text, [text]) for text in texts]
    return cluster_items(items, encoder, min_size=min_size, task=task)


def find_clusters(
    vectors: Float32[np.ndarray, "N dim"], *, min_size: int | None = None
) -> Int[np.ndarray, " N"]:
    """Each vector's cluster: 0 is the largest, equally large ones by their first; -1 is none.

    No cluster has fewer than `min_size` texts, by default half the square root of their number
    and at least 3. Raises ValueError if that is below 2.
    """
    from sklearn.cluster import HDBSCAN

    count = len(vectors)
    size = default_size(count) if min_size is None else min_size
    if size < 2:
        raise ValueError(f"the smallest size of a cluster is {size}, must be at least 2")
    if count < size:
        return np.full(count, -1)
    points = main_axes(vectors, AXES)
    points /= np.linalg.norm(points, axis=1, keepdims=True).clip(1e-12)
    # Pyright reads scikit-learn's defaults as types, here and below.
    model = HDBSCAN(min_cluster_size=size, min_samples=2, copy=True)  # pyright: ignore
    found = model.fit_predict(points)
    kinds, firsts, counts = np.unique(found[found >= 0], return_index=True, return_counts=True)
    renamed = np.full(count, -1)
    for number, kind in enumerate(kinds[np.lexsort([firsts, -counts])]):
        renamed[found == kind] = number
    return renamed


def default_size(count: int) -> int:
    """The smallest cluster worth a name among so many texts.

    >>> default_size(14), default_size(400)
    (3, 10)
    """
    return max(3, round(math.sqrt(count) / 2))


def main_axes(vectors: Float32[np.ndarray, "N dim"], count: int) -> Float[np.ndarray, "N A"]:
    """The vectors along the axes on which they differ most: PCA, in float64."""
    centred = vectors.astype(np.float64)
    centred -= centred.mean(0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    return centred @ axes[:, ::-1][:, :count]


def salient_words(
    texts: Sequence[str],
    numbers: Int[np.ndarray, " N"],
    tokenizer: Tokenizer,
    *,
    count: int = 5,
) -> list[list[str]]:
    """The words that set each cluster apart from the other texts, the most salient first.

    Words are counted once a text. A cluster may have fewer than `count` of them, or none.
    """
    inside = [Counter[str]() for _ in range(max(numbers, default=-1) + 1)]
    whole = Counter[str]()
    for text, number in zip(texts, numbers.tolist(), strict=True):
        words = set(split_words(text))
        whole.update(words)
        if number >= 0:
            inside[number].update(words)
    average = whole.total() / max(len(set(numbers.tolist())), 1)
    words = list(set().union(*inside))
    rarity = weigh_words(words, tokenizer)
    salient = []
    for counts in inside:
        weights = {
            word: times * math.log(1 + average / whole[word]) * rarity[word]
            for word, times in counts.items()
        }
        salient.append(sorted(weights, key=lambda word: (-weights[word], word))[:count])
    return salient


def lay_out(
    vectors: Float32[np.ndarray, "N dim"], layout: Layout | None = None
) -> Float[np.ndarray, "N 2"]:
    """A point in the plane for each vector, like ones near each other; both axes span 0 to 1.

    `pca` shows the two main axes, `tsne` keeps neighbours together (van der Maaten and Hinton
    2008; seeded, in the order of the vectors). By default t-SNE, unless there are too few texts
    or too many.
    """
    from sklearn.manifold import TSNE

    count = len(vectors)
    points = np.zeros((count, 2))
    if count:
        points[:, : min(2, vectors.shape[1])] = main_axes(vectors, 2)
    spread = points[:, 0].std() if count else 0.0
    wanted = layout or ("tsne" if FEW <= count <= MANY else "pca")
    if wanted == "tsne" and count >= FEW and spread > 1e-6:
        # Sorted, so that the map does not depend on the order of the texts.
        order = np.lexsort(vectors.T)
        start = (points / spread * 1e-4)[order].astype(np.float32)
        perplexity = min(30.0, (count - 1) / 3)
        model = TSNE(init=start, perplexity=perplexity, random_state=0)  # pyright: ignore
        points[order] = model.fit_transform(vectors[order])
    low, high = points.min(0, initial=np.inf), points.max(0, initial=-np.inf)
    return (points - low) / np.where(high > low, high - low, 1) if count else points


def _describe(
    texts: list[str],
    vectors: Float32[np.ndarray, "N dim"],
    numbers: Int[np.ndarray, " N"],
    tokenizer: Tokenizer,
) -> Clusters:
    scores = np.zeros(len(texts))
    for number in range(max(numbers, default=-1) + 1):
        inside = numbers == number
        mean = vectors[inside].mean(0)
        scores[inside] = vectors[inside] @ (mean / np.linalg.norm(mean).clip(1e-12))
    words = salient_words(texts, numbers, tokenizer)
    return Clusters(texts, vectors, numbers, scores, words)
