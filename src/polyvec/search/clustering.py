"""Clusters: the topics of a folder, each with its passages and its keywords.

1. Texts are embedded for separation, the task that moves topics apart.
2. The vectors are reduced to their five principal axes, since density says little in hundreds of
   dimensions, and normalised again. HDBSCAN (Campello et al. 2013) finds the dense regions. A text
   outside of them joins the nearest cluster if it is as near as most of the cluster's own texts,
   and else belongs to no cluster. If a number of topics is given, k-means finds them instead.
3. The keywords of a cluster have the highest class-based TF-IDF (Grootendorst 2022,
   arXiv:2203.05794, equation 2), multiplied by the rarity of the word in the model's vocabulary.
   Without this factor "der" would be a keyword of a German cluster among English ones. Names of
   columns and lines that a file repeats, such as the headers of pages, are no keywords.

Texts are sorted before clustering, and clusters after it, so that the result does not depend on the
order of the files.

Axes in this file: N texts, dim the vectors' size, A axes.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int

from polyvec.encoder import Encoder
from polyvec.search.files import describe_folder, list_files, read_file, root_of
from polyvec.search.lexical import split_words, weigh_words
from polyvec.search.passages import split_file, texts_with_headings
from polyvec.tokenizer import Tokenizer

TASK = "separation"

NUM_AXES = 5
"""The principal axes in which density is measured."""

MIN_REPEATS = 3
"""A line that fewer passages of a file have is not furniture."""

FURNITURE_SHARE, COLUMN_SHARE = 0.1, 0.5
"""Shares of a file's passages that have the same line, or the same name of a column."""

COLUMN = re.compile(r"([^:\n]{1,101}): ")
"""The name of a column before a value, as tables and JSON lines are read."""

JOINING_QUANTILE = 0.1
"""A text outside of the dense regions joins a cluster if it is nearer to the mean of the cluster
than this share of the texts inside."""

MAX_TSNE_TEXTS = 3_000
"""More texts are laid out by PCA by default. t-SNE takes this many half a minute on one core."""

MIN_TSNE_TEXTS = 10
"""Fewer texts have no neighbourhoods that t-SNE could keep."""

Layout = Literal["tsne", "pca"]


class Item(NamedTuple):
    """A passage, or a whole file."""

    path: str
    """The path of the file, relative to the folder."""

    line: int | None
    """The line on which the passage begins, counted from 1; None in a PDF and for a whole file."""

    page: int | None
    """The page of a PDF, counted from 1; None otherwise."""

    text: str
    parts: Sequence[str]
    """The texts that are embedded. The vector of a file is the mean of its passages' vectors."""

    topic: str
    """The text from which keywords are taken: without names of columns and without furniture."""


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """Texts and the cluster of each."""

    texts: list[str]
    vectors: Float32[np.ndarray, "N dim"]
    cluster_ids: Int[np.ndarray, " N"]
    """The cluster of each text. Cluster 0 is the largest; -1 stands for no cluster."""

    scores: Float[np.ndarray, " N"]
    """The cosine of each text with the mean of its cluster; 0 for a text in no cluster."""

    words: list[list[str]]
    """The keywords of each cluster, the most salient first."""

    def members(self, cluster_id: int) -> list[int]:
        """The positions of a cluster's texts, the most typical first."""
        inside = np.flatnonzero(self.cluster_ids == cluster_id)
        return inside[np.argsort(-self.scores[inside], kind="stable")].tolist()


def read_items(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    each: Literal["passage", "file"] = "passage",
    on_skipped: Callable[[str], object] = lambda sentence: None,
) -> list[Item]:
    """The passages or the files of a folder, or of a single file, as `polyvec search` reads them.

    `on_skipped` is called with a sentence for each file that cannot be read as a whole. Raises
    ValueError if the folder does not exist.
    """
    if not folder.exists():
        raise ValueError(f"there is no folder {folder}")
    items = []
    paths = list_files(folder, on_unreadable=lambda error: on_skipped(describe_folder(error)))
    folder = root_of(folder)
    for path in paths:
        try:
            split = split_file(folder, read_file(folder, path), tokenizer)
        except ValueError as error:
            on_skipped(str(error))
            continue
        document = split.document
        if document.cut:
            on_skipped(f"{folder / path}: {document.cut}")
        parts = [text for text, _ in texts_with_headings(split)]
        topics = remove_furniture(parts)
        if each == "file" and parts:
            items.append(Item(path, None, None, document.text.strip(), parts, "\n".join(topics)))
        elif each == "passage":
            for passage, part, topic in zip(split.passages, parts, topics, strict=True):
                location = document.locate(passage.start)
                line, page = (location, None) if document.unit == "line" else (None, location)
                text = document.text[passage.start : passage.end]
                items.append(Item(path, line, page, text, [part], topic))
    return items


def remove_furniture(passages: Sequence[str]) -> list[str]:
    r"""The passages of a file without names of columns, and without lines that the file repeats.

    Lines that differ only in their digits are the same line, as the footers of pages are.

    >>> remove_furniture([f"name: {word}\npage {n}" for n, word in enumerate(["ox", "fox", "owl"])])
    ['ox', 'fox', 'owl']
    """
    lines, columns = Counter[str](), Counter[str]()
    for passage in passages:
        lines.update({_line_key(line) for line in passage.splitlines()})
        columns.update({name[1] for name in map(COLUMN.match, passage.splitlines()) if name})
    is_column = {
        name
        for name, times in columns.items()
        if times >= max(MIN_REPEATS, COLUMN_SHARE * len(passages))
    }
    is_furniture = {
        line
        for line, times in lines.items()
        if times >= max(MIN_REPEATS, FURNITURE_SHARE * len(passages))
    }
    return ["\n".join(_topic_lines(passage, is_column, is_furniture)) for passage in passages]


def _topic_lines(
    passage: str, is_column: Collection[str], is_furniture: Collection[str]
) -> Iterator[str]:
    for line in passage.splitlines():
        column = COLUMN.match(line)
        if column and column[1] in is_column:
            # The same value in many rows may be their topic.
            yield line[column.end() :]
        elif _line_key(line) not in is_furniture:
            yield line


def _line_key(line: str) -> str:
    return re.sub(r"\d+", "0", " ".join(line.split()))


def cluster_items(
    items: Sequence[Item],
    encoder: Encoder,
    *,
    min_size: int | None = None,
    topics: int | None = None,
    task: str = TASK,
) -> Clusters:
    """The clusters of passages or files; `min_size` and `topics` as in `find_clusters`."""
    order = sorted(range(len(items)), key=lambda i: (items[i].parts, items[i].path))
    parts = [part for i in order for part in items[i].parts]
    vectors = encoder.encode(parts, task=task)
    if items:
        starts = np.cumsum([0, *(len(items[i].parts) for i in order[:-1])])
        vectors = np.add.reduceat(vectors, starts, axis=0)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
    cluster_ids = find_clusters(vectors, min_size=min_size, topics=topics)
    # From the sorted order back to that of the caller.
    back = np.argsort(order, kind="stable").astype(np.int64)
    texts = ["\n".join(item.parts) for item in items]
    named_by = [item.topic for item in items]
    return _describe(texts, named_by, vectors[back], cluster_ids[back], encoder.tokenizer)


def cluster_texts(
    texts: Sequence[str],
    encoder: Encoder,
    *,
    min_size: int | None = None,
    topics: int | None = None,
    task: str = TASK,
) -> Clusters:
    """The clusters of any texts; `min_size` and `topics` as in `find_clusters`."""
    items = [Item("", None, None, text, [text], text) for text in texts]
    return cluster_items(items, encoder, min_size=min_size, topics=topics, task=task)


def find_clusters(
    vectors: Float32[np.ndarray, "N dim"],
    *,
    min_size: int | None = None,
    topics: int | None = None,
) -> Int[np.ndarray, " N"]:
    """The cluster of each vector: 0 is the largest cluster, and -1 stands for no cluster.

    Clusters of the same size are sorted by their first vector. No cluster has fewer than `min_size`
    vectors; `default_size` gives the default. With `topics`, there are so many clusters, and every
    vector is in one; there are fewer if there are fewer different vectors. Raises ValueError if
    `min_size` is below 2 or `topics` below 1, and if both are given.
    """
    from sklearn.cluster import HDBSCAN, KMeans

    count = len(vectors)
    if topics is not None:
        if min_size is not None:
            raise ValueError("give the number of topics or the size of the smallest one, not both")
        if topics < 1:
            raise ValueError(f"the number of topics is {topics}, must be at least 1")
        if not count:
            return np.full(0, -1)
        # Vectors of equal texts differ by rounding.
        topics = min(topics, len(np.unique(vectors.round(4), axis=0)))
        means = KMeans(topics, n_init=10, random_state=0)  # pyright: ignore
        return _sort_clusters(means.fit_predict(vectors.astype(np.float64)))
    size = default_size(count) if min_size is None else min_size
    if size < 2:
        raise ValueError(f"the smallest cluster has size {size}, must be at least 2")
    if count < size:
        return np.full(count, -1)
    points = principal_axes(vectors, NUM_AXES)
    points /= np.linalg.norm(points, axis=1, keepdims=True).clip(1e-12)
    # Pyright takes scikit-learn's defaults for types, here and below.
    model = HDBSCAN(min_cluster_size=size, min_samples=2, copy=True)  # pyright: ignore
    return _sort_clusters(_join_near(points, model.fit_predict(points)))


def _join_near(
    points: Float[np.ndarray, "N A"], labels: Int[np.ndarray, " N"]
) -> Int[np.ndarray, " N"]:
    """The labels, in which points of no cluster have joined the nearest one if they are near."""
    outside = np.flatnonzero(labels < 0)
    if not len(outside) or labels.max() < 0:
        return labels
    means = np.stack([points[labels == label].mean(0) for label in range(labels.max() + 1)])
    means /= np.linalg.norm(means, axis=1, keepdims=True).clip(1e-12)
    cosines = points @ means.T
    lowest = np.array(
        [
            np.quantile(cosines[labels == label, label], JOINING_QUANTILE)
            for label in range(len(means))
        ]
    )
    nearest = cosines[outside].argmax(1)
    is_near = cosines[outside, nearest] >= lowest[nearest]
    joined = labels.copy()
    joined[outside[is_near]] = nearest[is_near]
    return joined


def _sort_clusters(labels: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """The clusters by size, the largest first, and then by their first vector."""
    count = len(labels)
    known, firsts, counts = np.unique(labels[labels >= 0], return_index=True, return_counts=True)
    cluster_ids = np.full(count, -1)
    for cluster_id, label in enumerate(known[np.lexsort([firsts, -counts])]):
        cluster_ids[labels == label] = cluster_id
    return cluster_ids


def default_size(count: int) -> int:
    """The default size of the smallest cluster among `count` texts.

    It is half the square root of their number, and at least 3.

    >>> default_size(14), default_size(400)
    (3, 10)
    """
    return max(3, round(math.sqrt(count) / 2))


def principal_axes(vectors: Float32[np.ndarray, "N dim"], count: int) -> Float[np.ndarray, "N A"]:
    """The coordinates of the vectors on their first `count` principal axes: PCA, in float64."""
    centred = vectors.astype(np.float64)
    centred -= centred.mean(0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    return centred @ axes[:, ::-1][:, :count]


def salient_words(
    texts: Sequence[str],
    cluster_ids: Int[np.ndarray, " N"],
    tokenizer: Tokenizer,
    *,
    count: int = 5,
) -> list[list[str]]:
    """The `count` words that distinguish each cluster most from the other texts, the best first.

    A word counts once per text. A cluster may have fewer words, or none.
    """
    in_cluster = [Counter[str]() for _ in range(max(cluster_ids, default=-1) + 1)]
    in_all = Counter[str]()
    for text, cluster_id in zip(texts, cluster_ids.tolist(), strict=True):
        words = set(split_words(text))
        in_all.update(words)
        if cluster_id >= 0:
            in_cluster[cluster_id].update(words)
    average = in_all.total() / max(len(set(cluster_ids.tolist())), 1)
    rarity = weigh_words(list(set().union(*in_cluster)), tokenizer)
    salient = []
    for counts in in_cluster:
        weights = {
            word: times * math.log(1 + average / in_all[word]) * rarity[word]
            for word, times in counts.items()
        }
        salient.append(sorted(weights, key=lambda word: (-weights[word], word))[:count])
    return salient


def plot_points(
    vectors: Float32[np.ndarray, "N dim"], layout: Layout | None = None
) -> Float[np.ndarray, "N 2"]:
    """The point of each vector in a plot, in which similar texts are close. Axes span 0 to 1.

    `pca` gives the two principal axes. `tsne` (van der Maaten and Hinton 2008) keeps neighbours
    together; its seed is fixed. The default is `tsne` for `MIN_TSNE_TEXTS` to `MAX_TSNE_TEXTS`
    texts, and `pca` for fewer or more.
    """
    from sklearn.manifold import TSNE

    count = len(vectors)
    points = np.zeros((count, 2))
    if count:
        points[:, : min(2, vectors.shape[1])] = principal_axes(vectors, 2)
    spread = points[:, 0].std() if count else 0.0
    if layout is None:
        layout = "tsne" if count <= MAX_TSNE_TEXTS else "pca"
    if layout == "tsne" and count >= MIN_TSNE_TEXTS and spread > 1e-6:
        # Sorted, so that the plot does not depend on the order of the texts.
        order = np.lexsort(vectors.T)
        start = (points / spread * 1e-4)[order].astype(np.float32)
        perplexity = min(30.0, (count - 1) / 3)
        model = TSNE(init=start, perplexity=perplexity, random_state=0)  # pyright: ignore
        points[order] = model.fit_transform(vectors[order])
    low, high = points.min(0, initial=np.inf), points.max(0, initial=-np.inf)
    return (points - low) / np.where(high > low, high - low, 1) if count else points


def _describe(
    texts: list[str],
    named_by: list[str],
    vectors: Float32[np.ndarray, "N dim"],
    cluster_ids: Int[np.ndarray, " N"],
    tokenizer: Tokenizer,
) -> Clusters:
    scores = np.zeros(len(texts))
    for cluster_id in range(max(cluster_ids, default=-1) + 1):
        inside = cluster_ids == cluster_id
        mean = vectors[inside].mean(0)
        scores[inside] = vectors[inside] @ (mean / np.linalg.norm(mean).clip(1e-12))
    words = salient_words(named_by, cluster_ids, tokenizer)
    return Clusters(texts, vectors, cluster_ids, scores, words)
