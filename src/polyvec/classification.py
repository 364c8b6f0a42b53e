"""Classify texts: by the labels' names alone (zero-shot), or from labelled examples (few-shot).

1. Zero-shot: the logit of a label is the cosine of the text's embedding and the label's, divided by
   `TEMPERATURE`.
2. Few-shot: logistic regression on the embeddings of labelled texts.

Both give a `Classifier`, a linear layer with a softmax. The command line and the API use the same
functions, so they give the same probabilities for the same text.

Axes in this file: N texts, L labels, dim size of an embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

from polyvec.encoder import Encoder
from polyvec.tasks import CLASSIFICATION
from polyvec.texts import list_items

TEMPERATURE = 0.05
"""Cosines are divided by it before the softmax: the temperature of contrastive training."""

INVERSE_REGULARISATION = 100.0
"""The C of scikit-learn's logistic regression. With its default of 1, embeddings of this scale
would hardly be fitted, and most probabilities would be close to 1/L."""


MAX_STEPS = 200
"""Steps after which a fit ends. Real examples need fewer than a hundred."""

MAX_SLOPE = 1e-5
"""A fit ends when no number of the gradient is larger."""


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
    check: Callable[[], None] = lambda: None,
) -> Classifier:
    """A few-shot classifier; `vectors` are the embeddings of the examples, one per label given.

    The classifier's labels are sorted, and the order of the examples does not matter. `check` is
    called before every step, and ends the fit if it raises an exception. A fit takes at most
    `MAX_STEPS` steps: about 20 s on one core for 10,000 examples of width 384 with 512 labels.

    Needs SciPy. Raises ValueError unless there are at least two different labels.
    """
    from threadpoolctl import threadpool_limits

    names = sorted(set(labels))
    _check_count(names)
    # Sums of floating-point numbers depend on the order of the examples.
    order = sorted(range(len(labels)), key=lambda i: (labels[i], vectors[i].tobytes()))
    numbers = {name: number for number, name in enumerate(names)}
    classes = np.array([numbers[labels[i]] for i in order])
    wide = vectors[order].astype(np.float64)
    # Centred and scaled by the mean distance from the centre: some models' embeddings all lie in
    # a narrow cone.
    mean = wide.mean(0)
    scale = max(float(np.sqrt(np.square(wide - mean).sum(1).mean())), 1e-6)
    # More threads than free cores wait for each other: a fit beside a busy engine took 20 times
    # as long as with one thread.
    with threadpool_limits(1, user_api="blas"):
        weights, biases = _fit((wide - mean) / scale, classes, len(names), check)
    weights = weights / scale
    biases = biases - weights @ mean
    return Classifier(names, weights.astype(np.float32), biases.astype(np.float32), task)


def _fit(
    vectors: Float64[np.ndarray, "N dim"],
    classes: Int64[np.ndarray, " N"],
    num_labels: int,
    check: Callable[[], None],
) -> tuple[Float64[np.ndarray, "L dim"], Float64[np.ndarray, " L"]]:
    """The weights and biases of the logistic regression, found by L-BFGS.

    They are close to those of scikit-learn, whose fit cannot be ended by another thread. The
    function to minimise is the mean cross-entropy plus the squared weights times half of
    `penalty`. It is computed in float32, which is twice as fast, and summed in float64.
    """
    from scipy.optimize import minimize

    num_examples, dim = vectors.shape
    narrow, rows = vectors.astype(np.float32), np.arange(num_examples)
    penalty = 1 / (INVERSE_REGULARISATION * num_examples)
    if num_labels == 2:
        # Two opposite vectors share what is usually one vector with twice their length, so that
        # their squares are half of its square.
        penalty *= 2

    def split(
        flat: Float64[np.ndarray, " _"],
    ) -> tuple[Float64[np.ndarray, "L dim"], Float64[np.ndarray, " L"]]:
        return flat[: num_labels * dim].reshape(num_labels, dim), flat[num_labels * dim :]

    def evaluate(flat: Float64[np.ndarray, " _"]) -> tuple[float, Float64[np.ndarray, " _"]]:
        """The function's value and its gradient."""
        check()
        weights, biases = split(flat)
        logits = narrow @ weights.T.astype(np.float32) + biases.astype(np.float32)
        logits -= logits.max(1, keepdims=True)
        own = logits[rows, classes].astype(np.float64)
        errors = np.exp(logits, out=logits)
        sums = errors.sum(1, dtype=np.float64)
        value = np.mean(np.log(sums) - own) + penalty / 2 * np.square(weights).sum()
        # The gradient of the cross-entropy: the probabilities, less 1 for the right label.
        errors /= sums[:, None].astype(np.float32)
        errors[rows, classes] -= 1
        errors /= num_examples
        slopes = (errors.T @ narrow).astype(np.float64) + penalty * weights
        return float(value), np.append(slopes, errors.sum(0, dtype=np.float64))

    start = np.zeros(num_labels * (dim + 1))
    options = {"maxiter": MAX_STEPS, "maxfun": 2 * MAX_STEPS, "gtol": MAX_SLOPE, "ftol": 0.0}
    result = minimize(evaluate, start, jac=True, method="L-BFGS-B", options=options)
    return split(result.x)


def learn_names(
    encoder: Encoder, names: Sequence[str], *, task: str = CLASSIFICATION
) -> Classifier:
    """A zero-shot classifier for labels whose names are words or descriptions, in any language.

    Raises ValueError for fewer than two names, for an empty name, and for a repeated name.
    """
    names = [name.strip() for name in list_items(names, "names")]
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
    texts, labels = list_items(texts, "texts"), list_items(labels, "labels")
    for number, (text, label) in enumerate(zip(texts, labels, strict=True), 1):
        if not (text.strip() and label.strip()):
            raise ValueError(f"example {number} has an empty {'label' if text.strip() else 'text'}")
    _check_count(sorted(set(labels)))
    # Also sorted here, because vectors may depend on the order in the last bit.
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
