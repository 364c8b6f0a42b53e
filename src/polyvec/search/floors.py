"""Floors: the scores below which a passage is not likely to answer a question.

Cosines of one model say nothing about those of another. Each model is therefore measured with fixed
questions and answers in several languages, once, when an index is created. The floor of a component
lies between its mean score of pairs that belong together and that of pairs that do not.

Axes in this file: N pairs.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from polyvec.encoder import Encoder
from polyvec.heads import Outputs, maxsim
from polyvec.reranking import RETRIEVAL
from polyvec.search.fusion import Part
from polyvec.search.vectors import SIGNS_FACTOR, sign_vectors

PAIRS = {
    "When does the ferry to the island leave?": "The boat to the island departs at nine o'clock "
    "from the old pier, and takes forty minutes.",
    "Wie lange muss der Teig ruhen?": "Den Teig zugedeckt zwei Stunden gehen lassen, dann Brötchen "
    "formen und backen.",
    "¿Quién cuida a los gatos en verano?": "En agosto, la vecina del tercero da de comer a los "
    "gatos dos veces al día.",
    "Почему стиральная машина не сливает воду?": "Если вода остаётся в барабане, проверьте фильтр "
    "насоса и сливной шланг.",
    "how much is the rent of the flat?": "Le loyer de l'appartement est de 850 euros par mois, "
    "charges comprises.",
    "几点可以参观博物馆？": "博物馆每天上午十点开门，下午六点关门，星期一休息。",
    "庭の木はいつ剪定しますか": "Prune the fruit trees in the garden in late winter, before the "
    "buds open.",
    "كيف أصل إلى المطار؟": "يصل القطار إلى المطار كل نصف ساعة من المحطة الرئيسية.",
}
"""Questions, and a passage that answers each; two of them are in another language."""

FLOOR_SHARE = 0.73
"""The position of a floor between the means of wrong pairs (0) and of right pairs (1), chosen with
benchmarks/questions.py."""


def measure_floors(encoder: Encoder, dim: int) -> dict[str, float]:
    """The floors of dense and, if the model has the head, of maxsim."""
    heads = ["multi_vector"] if encoder.config.multi_vector_dim else []
    query, passage = RETRIEVAL
    tasks = [query] * len(PAIRS) + [passage] * len(PAIRS)
    encoded = encoder.encode_all(
        [*PAIRS, *PAIRS.values()], task=tasks, dim=dim, outputs=["dense", *heads], progress=False
    )
    return {
        name: place_floor(scores)
        for name, scores in _scores(encoded[: len(PAIRS)], encoded[len(PAIRS) :]).items()
    }


def _scores(questions: Outputs, passages: Outputs) -> dict[str, Float[np.ndarray, "N N"]]:
    """The scores of every question with every passage."""
    assert questions.dense is not None and passages.dense is not None
    scores = {"dense": questions.dense @ passages.dense.T}
    if questions.multi_vector is not None and passages.multi_vector is not None:
        signs = [sign_vectors(vectors) for vectors in passages.multi_vector]
        rows = [maxsim(question, signs) for question in questions.multi_vector]
        scores["maxsim"] = np.stack(rows) * SIGNS_FACTOR
    return scores


def place_floor(scores: Float[np.ndarray, "N N"]) -> float:
    """The floor from the scores of N questions with N passages, of which the diagonal are pairs.

    >>> place_floor(np.array([[0.9, 0.1], [0.3, 0.7]]))
    0.638
    """
    right = np.eye(len(scores), dtype=bool)
    high, low = float(scores[right].mean()), float(scores[~right].mean())
    return round(low + FLOOR_SHARE * (high - low), 6)


def is_near(parts: Mapping[str, Part], floors: Mapping[str, float]) -> bool:
    """Whether a passage is near enough to a question to be likely to answer it.

    A passage that was found by words alone is not judged by its meaning.
    """
    over = [parts[name].score - floor for name, floor in floors.items() if name in parts]
    return not over or sum(over) >= 0
