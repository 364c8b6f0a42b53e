"""The sparse and the multi-vector head: one weight and one embedding per token of a text.

Both are optional and work as in BGE-M3 (Chen et al. 2024, arXiv:2402.03216, section 3.2). The
sparse head is a linear layer to one number and a ReLU; the multi-vector head is a linear layer and
a norm. `polyvec.network` has the same layers for training. Here they are numpy, because they cost
nothing compared with the network.

Axes in this file: N and M texts, T tokens, K tokens with a weight, D the model's width, V size of
a token's embedding, Q tokens of a query, C candidates.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32, Int64

from polyvec.batch import pack
from polyvec.checkpoint import Weights, to_float
from polyvec.outputs import check_axes, check_finite
from polyvec.texts import list_items
from polyvec.tokenizer import Tokenizer, Tokens

OUTPUTS = ("dense", "sparse", "multi_vector")
"""The outputs that one forward pass may return."""

HEADS = {"sparse": "sparse", "multi_vector": "multi-vector"}
"""The outputs that need a head, and the names of the heads in messages."""

MAX_SCORE_PAIRS = 2**22
"""Number of token pairs whose scores `maxsim` holds at a time (16 MB)."""


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """The token weights of N texts: a CSR matrix with one row per text, under scipy's names.

    `scipy.sparse.csr_array((s.data, s.indices, s.indptr), s.shape)` copies nothing.
    """

    indptr: Int64[np.ndarray, " _ends"]
    """Text i has the entries [indptr[i], indptr[i + 1]) of the two other arrays."""

    indices: Int32[np.ndarray, " K"]
    """Token ids. Within a text they ascend and none occurs twice."""

    data: Float32[np.ndarray, " K"]
    """The weights of these tokens, all above 0."""

    vocab_size: int
    """Number of token ids."""

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def shape(self) -> tuple[int, int]:
        """Number of texts and of token ids."""
        return len(self), self.vocab_size

    def __getitem__(self, texts: slice) -> "Sparse":
        """Some neighbouring texts; the weights are shared with this object.

        Raises ValueError for a slice whose step is not 1.
        """
        first, stop, step = texts.indices(len(self))
        if step != 1:
            raise ValueError(
                f"the slice's step is {step}, must be 1: sparse texts have no other slices"
            )
        ends = self.indptr[first : max(first, stop) + 1]
        own = slice(ends[0], ends[-1])
        return Sparse(ends - ends[0], self.indices[own], self.data[own], self.vocab_size)

    def row(self, text: int) -> tuple[Int32[np.ndarray, " _K"], Float32[np.ndarray, " _K"]]:
        """The token ids of one text, and their weights."""
        own = slice(self.indptr[text], self.indptr[text + 1])
        return self.indices[own], self.data[own]

    def dot(self, other: "Sparse") -> Float32[np.ndarray, "N M"]:
        """The dot product of every text here with every text of `other`: lexical similarity.

        Time grows with the number of texts of the smaller side times the entries of the larger.
        Raises ValueError if the two have different vocabularies.
        """
        if self.vocab_size != other.vocab_size:
            raise ValueError(
                f"the vocabularies have {self.vocab_size} and {other.vocab_size} pieces: "
                "weights can only be compared within one model"
            )
        if len(other) < len(self):
            return other.dot(self).T
        products = np.empty((len(self), len(other)), np.float32)
        texts = np.repeat(np.arange(len(other)), np.diff(other.indptr))
        weights = np.zeros(self.vocab_size, np.float32)
        for number, products_of_one in enumerate(products):
            ids, own = self.row(number)
            weights[ids] = own
            terms = weights[other.indices] * other.data
            products_of_one[:] = np.bincount(texts, terms, minlength=len(other))
            weights[ids] = 0
        return products

    def to_dicts(self, tokenizer: Tokenizer) -> list[dict[str, float]]:
        """The pieces of each text with their weights, the largest weight first."""
        dicts = []
        for number in range(len(self)):
            ids, weights = self.row(number)
            order = np.argsort(-weights, kind="stable")
            dicts.append(
                {str(tokenizer.core.id_to_token(int(ids[i]))): float(weights[i]) for i in order}
            )
        return dicts


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """The outputs of N texts from one forward pass; None for an output that was not requested."""

    dense: Float32[np.ndarray, "N dim"] | None
    """One embedding per text, as `Encoder.encode` returns it."""

    sparse: Sparse | None
    """Token weights of each text, as `Encoder.encode_sparse` returns them."""

    multi_vector: list[Float32[np.ndarray, "_T V"]] | None
    """One embedding per token of each text, as `Encoder.encode_multi_vector` returns them."""

    def __getitem__(self, texts: slice) -> "Outputs":
        """The outputs of some neighbouring texts; arrays are shared with this object."""
        return Outputs(
            None if self.dense is None else self.dense[texts],
            None if self.sparse is None else self.sparse[texts],
            None if self.multi_vector is None else self.multi_vector[texts],
        )


def own_states(tokens: Tokens, hidden: Float32[np.ndarray, "T D"]) -> Float32[np.ndarray, "_T D"]:
    """The hidden states from which a text's token outputs are made: its own tokens and `</s>`.

    `<s>` and the instruction have no outputs, since every text would match every other by them.
    """
    return hidden[tokens.num_prompt :]


def sparse_entries(
    heads: Mapping[str, np.ndarray], tokens: Tokens, states: Float32[np.ndarray, "T D"]
) -> tuple[Int32[np.ndarray, " K"], Float32[np.ndarray, " K"]]:
    """The token ids and the weights of one text; `states` are its `own_states`.

    `</s>` has no weight. A token that occurs twice appears twice: `gather_weights` merges them.
    """
    ids = tokens.ids[tokens.num_prompt : -1]
    return ids, token_weights(states[:-1], heads["sparse.weight"], heads["sparse.bias"])


def multi_vectors(
    heads: Mapping[str, np.ndarray], states: Float32[np.ndarray, "T D"]
) -> Float32[np.ndarray, "T V"]:
    """One vector per token of one text, `</s>` included; `states` are its `own_states`."""
    return token_vectors(states, heads["multi_vector.weight"], heads["multi_vector.bias"])


def token_weights(
    hidden: Float32[np.ndarray, "T D"],
    weight: Float32[np.ndarray, "1 D"],
    bias: Float32[np.ndarray, " 1"],
) -> Float32[np.ndarray, " T"]:
    """The weight of each token, 0 or more."""
    return np.maximum(hidden @ weight[0] + bias, 0)


def token_vectors(
    hidden: Float32[np.ndarray, "T D"],
    weight: Float32[np.ndarray, "V D"],
    bias: Float32[np.ndarray, " V"],
) -> Float32[np.ndarray, "T V"]:
    """The embedding of each token, of length 1."""
    vectors = hidden @ weight.T + bias
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)


def select_heads(weights: Weights) -> dict[str, Float32[np.ndarray, "..."]]:
    """The weights of the sparse and the multi-vector head, if the model has them."""
    return {
        name: to_float(weight)
        for name, weight in weights.items()
        if name.startswith(("sparse.", "multi_vector."))
    }


def gather_weights(
    ids: Sequence[Int32[np.ndarray, " _T"]],
    weights: Sequence[Float32[np.ndarray, " _T"]],
    *,
    ignored: Collection[int],
    vocab_size: int,
) -> Sparse:
    """The tokens of each text, each with the largest weight that it has in the text.

    Tokens of weight 0 and the token ids in `ignored` are left out.

    >>> ids, weights = [np.int32([7, 5, 7, 2])], [np.float32([0.5, 1, 2, 3])]
    >>> sparse = gather_weights(ids, weights, ignored=[2], vocab_size=9)
    >>> sparse.indices.tolist(), sparse.data.tolist(), sparse.indptr.tolist()
    ([5, 7], [1.0, 2.0], [0, 2])
    """
    texts = np.repeat(np.arange(len(ids), dtype=np.int64), [len(text) for text in ids])
    flat = np.concatenate([np.empty(0, np.int32), *ids])
    values = np.concatenate([np.empty(0, np.float32), *weights])
    kept = (values > 0) & ~np.isin(flat, list(ignored))
    # One key per text and token: sorting puts equal ones side by side and keeps texts in order.
    keys = texts[kept] * vocab_size + flat[kept]
    order = np.argsort(keys, kind="stable")
    keys, values = keys[order], values[kept][order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    largest = np.maximum.reduceat(values, first) if len(first) else values
    texts, indices = np.divmod(keys[first], vocab_size)
    indptr = np.searchsorted(texts, np.arange(len(ids) + 1)).astype(np.int64)
    return Sparse(indptr, indices.astype(np.int32), largest, vocab_size)


def maxsim(
    query: Float32[np.ndarray, "Q V"], candidates: Sequence[Float32[np.ndarray, "_T V"]]
) -> Float32[np.ndarray, " C"]:
    """The MaxSim score of each candidate: exact late interaction.

    For every token of the query, take the cosine of the candidate's token that matches it best; the
    score is the mean of these cosines, from -1 to 1, as in BGE-M3. (ColBERT's sum is Q times that:
    Khattab & Zaharia 2020, equation 3.) Candidates lie end to end without padding, about
    `MAX_SCORE_PAIRS` token pairs at a time. Raises ValueError for a query or a candidate without
    tokens, for vectors of different sizes, and for NaN and infinity.

    >>> maxsim(np.float32([[1, 0]]), [np.float32([[-1, 0]]), np.float32([[0, 1], [1, 0]])]).tolist()
    [-1.0, 1.0]
    """
    candidates = list_items(candidates, "candidates")
    check_finite(query)
    for vectors in candidates:
        check_axes(vectors)
        if vectors.shape[1] != query.shape[1]:
            raise ValueError(
                f"the tokens of the query have {query.shape[1]} numbers, and those of a candidate "
                f"{vectors.shape[1]}: they are from different models"
            )
    lengths = [len(candidate) for candidate in candidates]
    if not len(query) or not all(lengths):
        raise ValueError(
            "MaxSim needs at least one token in every text; encode_multi_vector always returns one"
        )
    scores = np.empty(len(candidates), np.float32)
    step = max(1, MAX_SCORE_PAIRS // max([*lengths, 1]))
    for group in pack(lengths, max(1, MAX_SCORE_PAIRS // min(step, len(query)))):
        rows = np.concatenate([candidates[i] for i in group])
        if not np.isfinite(rows).all():
            bad = [i for i in group if not np.isfinite(candidates[i]).all()]
            raise ValueError(f"candidate {min(bad)} (counted from 0) has NaN or infinite numbers")
        starts = np.cumsum([0, *(lengths[i] for i in group[:-1])])
        total = np.zeros(len(group))
        for first in range(0, len(query), step):
            pairs = query[first : first + step] @ rows.T
            total += np.maximum.reduceat(pairs, starts, axis=1).sum(0, dtype=np.float64)
        scores[group] = total / len(query)
    return scores
