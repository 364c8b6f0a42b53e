"""What two optional heads make of hidden states: a weight a token, and a vector a token.

As in BGE-M3 (Chen et al. 2024, arXiv:2402.03216, section 3.2): the sparse head is a linear layer
to one number and a ReLU, the multi-vector head a linear layer and a norm. `polyvec.network` has
the same layers as tensors; here they are numpy, since beside the network they cost nothing.

Axes in this file: N and M texts, T tokens, K tokens with a weight, D the model's width, V vectors'
numbers, Q tokens of a query, C candidates.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32, Int64

from polyvec.batch import pack
from polyvec.checkpoint import Weights, to_float
from polyvec.tokenizer import Tokenizer, Tokens

OUTPUTS = ("dense", "sparse", "multi_vector")
"""The outputs that one forward pass may return."""

MAX_SCORES = 2**22
"""Scores of token pairs that `maxsim` holds at a time: 16 MB of them."""


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """The weights of N texts' tokens: the rows of a CSR matrix, under scipy's names.

    `scipy.sparse.csr_array((s.data, s.indices, s.indptr), s.shape)` copies nothing.
    """

    indptr: Int64[np.ndarray, " _ends"]
    """Text i has the entries `indptr[i]` to `indptr[i + 1]` of the two other arrays."""

    indices: Int32[np.ndarray, " K"]
    """Token ids, ascending and different within a text."""

    data: Float32[np.ndarray, " K"]
    """Their weights, all above 0."""

    vocab_size: int
    """Token ids are below it."""

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def shape(self) -> tuple[int, int]:
        """Texts and pieces of the vocabulary."""
        return len(self), self.vocab_size

    def __getitem__(self, texts: slice) -> "Sparse":
        """Some neighbouring texts, their weights shared with this one."""
        first, stop, step = texts.indices(len(self))
        if step != 1:
            raise ValueError(
                f"a slice of sparse texts takes every text: its step is {step}, must be 1"
            )
        ends = self.indptr[first : max(first, stop) + 1]
        own = slice(ends[0], ends[-1])
        return Sparse(ends - ends[0], self.indices[own], self.data[own], self.vocab_size)

    def row(self, text: int) -> tuple[Int32[np.ndarray, " _K"], Float32[np.ndarray, " _K"]]:
        """One text's token ids and their weights."""
        own = slice(self.indptr[text], self.indptr[text + 1])
        return self.indices[own], self.data[own]

    def dot(self, other: "Sparse") -> Float32[np.ndarray, "N M"]:
        """The products of every text here with every text of `other`: lexical similarity.

        Takes the time of the smaller side's texts times the larger side's entries.
        """
        if self.vocab_size != other.vocab_size:
            raise ValueError(
                f"vocabularies of {self.vocab_size} and {other.vocab_size} pieces: "
                "weights compare only within one model"
            )
        if len(other) < len(self):
            return other.dot(self).T
        products = np.empty((len(self), len(other)), np.float32)
        texts = np.repeat(np.arange(len(other)), np.diff(other.indptr))
        weights = np.zeros(self.vocab_size, np.float32)
        for number, products_of_one in enumerate(products):
            ids, mine = self.row(number)
            weights[ids] = mine
            terms = weights[other.indices] * other.data
            products_of_one[:] = np.bincount(texts, terms, minlength=len(other))
            weights[ids] = 0
        return products

    def to_dicts(self, tokenizer: Tokenizer) -> list[dict[str, float]]:
        """Each text's pieces and their weights, the heaviest first."""
        found = []
        for number in range(len(self)):
            ids, weights = self.row(number)
            order = np.argsort(-weights, kind="stable")
            found.append(
                {str(tokenizer.core.id_to_token(int(ids[i]))): float(weights[i]) for i in order}
            )
        return found


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
    """How much each token says, 0 or more."""
    return np.maximum(hidden @ weight[0] + bias, 0)


def token_vectors(
    hidden: Float32[np.ndarray, "T D"],
    weight: Float32[np.ndarray, "V D"],
    bias: Float32[np.ndarray, " V"],
) -> Float32[np.ndarray, "T V"]:
    """Each token's own vector, of length 1."""
    vectors = hidden @ weight.T + bias
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)


def read_heads(weights: Weights) -> dict[str, Float32[np.ndarray, "..."]]:
    """The weights of the sparse and the multi-vector head, where there are any."""
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
    """Each text's tokens with the largest weight they have anywhere in it.

    Tokens of weight 0 and `ignored` ones are left out.

    >>> ids, weights = [np.int32([7, 5, 7, 2])], [np.float32([0.5, 1, 2, 3])]
    >>> found = gather_weights(ids, weights, ignored=[2], vocab_size=9)
    >>> found.indices.tolist(), found.data.tolist(), found.indptr.tolist()
    ([5, 7], [1.0, 2.0], [0, 2])
    """
    texts = np.repeat(np.arange(len(ids), dtype=np.int64), [len(text) for text in ids])
    flat = np.concatenate([np.empty(0, np.int32), *ids])
    values = np.concatenate([np.empty(0, np.float32), *weights])
    kept = (values > 0) & ~np.isin(flat, list(ignored))
    # One number for a text's token: equal ones become neighbours, texts stay in order.
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
    """How well each candidate's tokens answer the query's: late interaction, exactly.

    For every token of the query the cosine of the token that matches it best, and the mean of
    these: from -1 to 1, as in BGE-M3 (ColBERT's sum is Q times that, Khattab & Zaharia 2020,
    equation 3). Candidates are laid end to end without padding, some `MAX_SCORES` token pairs
    at a time. Raises ValueError for a query or a candidate without tokens.

    >>> maxsim(np.float32([[1, 0]]), [np.float32([[-1, 0]]), np.float32([[0, 1], [1, 0]])]).tolist()
    [-1.0, 1.0]
    """
    lengths = [len(candidate) for candidate in candidates]
    if not len(query) or not all(lengths):
        raise ValueError(
            "a text without token vectors has no MaxSim; encode_multi_vector always gives one"
        )
    scores = np.empty(len(candidates), np.float32)
    step = max(1, MAX_SCORES // max([*lengths, 1]))
    for group in pack(lengths, max(1, MAX_SCORES // min(step, len(query)))):
        rows = np.concatenate([candidates[i] for i in group])
        starts = np.cumsum([0, *(lengths[i] for i in group[:-1])])
        total = np.zeros(len(group))
        for first in range(0, len(query), step):
            pairs = query[first : first + step] @ rows.T
            total += np.maximum.reduceat(pairs, starts, axis=1).sum(0, dtype=np.float64)
        scores[group] = total / len(query)
    return scores
