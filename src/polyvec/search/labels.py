"""Which label a text has: by the labels' names alone, or learned from a few examples.

1. By names: a text has the label whose name's vector is most like its own (zero-shot).
2. By examples: logistic regression on the vectors of labelled texts (few-shot).

Either way a classifier is a matrix, a row a label, and its scores are shares of 1.

Axes in this file: N texts, L labels, dim the vectors' size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from polyvec.encoder import Encoder

TASK = "classification"

TEMPERATURE = 0.05
"""By which cosines are divided before they become shares: that of contrastive training."""

STRENGTH = 100.0
"""scikit-learn's C. Its default of 1 would learn next to nothing of vectors this short: most shares
would be about 1/L."""


@dataclass(frozen=True, slots=True)
class Classifier:
    """What tells labels apart."""

    labels: list[str]
    weights: Float32[np.ndarray, "L dim"]
    biases: Float32[np.ndarray, " L"]
    task: str
    """Of the vectors that it compares."""

    def shares(self, vectors: Float32[np.ndarray, "N dim"]) -> Float32[np.ndarray, "N L"]:
        """How likely each label is for each text, 0 to 1; a text's shares sum to 1."""
        logits = vectors @ self.weights.T + self.biases
        exponents = np.exp(logits - logits.max(1, keepdims=True))
        return exponents / exponents.sum(1, keepdims=True)


def learn_names(encoder: Encoder, names: Sequence[str], *, task: str = TASK) -> Classifier:
    """A classifier that has seen nothing but its labels' names.

    A name is a word or a description, in any of the model's languages. The shares say which label
    fits best and by how much, not whether any fits well.

    Raises ValueError for fewer than two names, an empty one, and one that comes twice.
    """
    names = [name.strip() for name in names]
    if not all(names):
        raise ValueError("a label is empty: give each a name")
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"the label {twice[0]!r} is given twice: name each once")
    _check_count(names)
    vectors = encoder.encode(names, task=task, progress=False)
    return Classifier(names, vectors / TEMPERATURE, np.zeros(len(names), np.float32), task)


def learn_examples(
    encoder: Encoder, texts: Sequence[str], labels: Sequence[str], *, task: str = TASK
) -> Classifier:
    """A classifier learned from texts and the label of each; its labels are sorted.

    The order of the examples does not matter. Raises ValueError for fewer than two different
    labels, and for empty texts or labels.
    """
    from sklearn.linear_model import LogisticRegression

    for number, (text, label) in enumerate(zip(texts, labels, strict=True), 1):
        if not (text.strip() and label.strip()):
            raise ValueError(f"example {number} has an empty {'label' if text.strip() else 'text'}")
    names = sorted(set(labels))
    _check_count(names)
    pairs = sorted(zip(texts, labels, strict=True))
    vectors = encoder.encode([text for text, _ in pairs], task=task).astype(np.float64)
    # From their mean, and a step from it on average: some models' vectors are all much alike.
    mean = vectors.mean(0)
    scale = max(float(np.sqrt(np.square(vectors - mean).sum(1).mean())), 1e-6)
    model = LogisticRegression(C=STRENGTH, max_iter=5_000)
    model.fit((vectors - mean) / scale, [names.index(label) for _, label in pairs])
    weights, biases = model.coef_ / scale, np.atleast_1d(model.intercept_)
    biases = biases - weights @ mean
    if len(names) == 2:
        # Of two labels scikit-learn keeps the second one's odds.
        weights, biases = np.concatenate([0 * weights, weights]), np.append(0, biases)
    return Classifier(names, weights.astype(np.float32), biases.astype(np.float32), task)


def classify(
    encoder: Encoder, classifier: Classifier, texts: Sequence[str]
) -> Float32[np.ndarray, "N L"]:
    """Each text's share of each of `classifier.labels`."""
    return classifier.shares(encoder.encode(texts, task=classifier.task))


def _check_count(names: Sequence[str]) -> None:
    if len(names) < 2:
        known = f"only {names[0]!r}" if names else "none"
        raise ValueError(f"there must be at least two labels to choose between; there is {known}")
