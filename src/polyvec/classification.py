"""Classify texts: by the labels' names alone (zero-shot), or from labelled examples (few-shot).

1. Zero-shot: the logit of a label is the cosine of the text's embedding and the label's, divided by
   `TEMPERATURE`.
2. Few-shot: logistic regression on the embeddings of labelled texts.

Both give a `Classifier`, a linear layer with a softmax. The command line and the API use the same
functions, so they give the same probabilities for the same text.

Axes in this file: N texts, L labels, dim size of an embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from polyvec.encoder import Encoder
from polyvec.tasks import CLASSIFICATION

TEMPERATURE = 0.05
"""Cosines are divided by it before the softmax: the temperature of contrastive training."""

INVERSE_REGULARISATION = 100.0
"""scikit-learn's C. With its default of 1, embeddings of this scale would hardly be fitted, and
most probabilities would be close to 1/L."""


@dataclass(frozen=True, slots=True)
class Classifier:
    """A linear layer from embeddings to labels."""

    labels: list[str]
    weights: Float32[np.ndarray, "L dim"]
    biases: Float32[np.ndarray, " L"]
    task: str | None
    """The task with which texts must be encoded."""

    def probabilities(self, vectors: Float32[np.ndarray, "N dim"]) -> Float32[np.ndarray, "N L"]:
        """The probability of every label for every text; each row sums to 1."""
        logits = vectors @ self.weights.T + self.biases
        exponents = np.exp(logits - logits.max(1, keepdims=True))
        return exponents / exponents.sum(1, keepdims=True)


def from_names(
    names: Sequence[str],
    vectors: Float32[np.ndarray, "L dim"],
    *,
    task: str | None = CLASSIFICATION,
) -> Classifier:
    """A zero-shot classifier; `vectors` are the embeddings of the labels' names.

    The probabilities say which label fits best, and by how much, but not whether any label fits.
    """
    return Classifier(list(names), vectors / TEMPERATURE, np.zeros(len(names), np.float32), task)


def from_examples(
    labels: Sequence[str],
    vectors: Float32[np.ndarray, "N dim"],
    *,
    task: str | None = CLASSIFICATION,
) -> Classifier:
    """A few-shot classifier; `vectors` are the embeddings of the examples, one per label given.

    The classifier's labels are sorted. Needs scikit-learn. Raises ValueError unless there are at
    least two different labels.
    """
    from sklearn.linear_model import LogisticRegression

    names = sorted(set(labels))
    _check_count(names)
    wide = vectors.astype(np.float64)
    # Centred and scaled by the mean distance from the centre: some models' embeddings all lie in
    # a narrow cone.
    mean = wide.mean(0)
    scale = max(float(np.sqrt(np.square(wide - mean).sum(1).mean())), 1e-6)
    model = LogisticRegression(C=INVERSE_REGULARISATION, max_iter=5_000)
    model.fit((wide - mean) / scale, [names.index(label) for label in labels])
    weights, biases = model.coef_ / scale, np.atleast_1d(model.intercept_)
    biases = biases - weights @ mean
    if len(names) == 2:
        # For two labels scikit-learn keeps only the log-odds of the second.
        weights, biases = np.concatenate([0 * weights, weights]), np.append(0, biases)
    return Classifier(names, weights.astype(np.float32), biases.astype(np.float32), task)


def learn_names(
    encoder: Encoder, names: Sequence[str], *, task: str = CLASSIFICATION
) -> Classifier:
    """A zero-shot classifier for labels whose names are words or descriptions, in any language.

    Raises ValueError for fewer than two names, for an empty name, and for a repeated name.
    """
    names = [name.strip() for name in names]
    if not all(names):
        raise ValueError("a label is empty: give each a name")
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"the label {twice[0]!r} is given twice: name each once")
    _check_count(names)
    return from_names(names, encoder.encode(names, task=task, progress=False), task=task)


def learn_examples(
    encoder: Encoder, texts: Sequence[str], labels: Sequence[str], *, task: str = CLASSIFICATION
) -> Classifier:
    """A few-shot classifier learned from texts and the label of each.

    The order of the examples does not matter. Raises ValueError for fewer than two different
    labels, and for an empty text or label.
    """
    for number, (text, label) in enumerate(zip(texts, labels, strict=True), 1):
        if not (text.strip() and label.strip()):
            raise ValueError(f"example {number} has an empty {'label' if text.strip() else 'text'}")
    _check_count(sorted(set(labels)))
    pairs = sorted(zip(texts, labels, strict=True))
    vectors = encoder.encode([text for text, _ in pairs], task=task)
    return from_examples([label for _, label in pairs], vectors, task=task)


def classify(
    encoder: Encoder, classifier: Classifier, texts: Sequence[str]
) -> Float32[np.ndarray, "N L"]:
    """The probability of each of `classifier.labels` for each text."""
    return classifier.probabilities(encoder.encode(texts, task=classifier.task))


def _check_count(names: Sequence[str]) -> None:
    if len(names) < 2:
        known = f"only {names[0]!r}" if names else "none"
        raise ValueError(f"there must be at least two labels to choose between; there is {known}")
