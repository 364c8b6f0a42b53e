"""Tuples of nine, their ids, and triplets of NLI."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from polyvec.train.data.tuples import append_tokens, draw_tuples, nli_triplets
from polyvec.train.losses import info_nce
from polyvec.train.objectives import embed, tuples
from tests.train.test_objectives import TEXTS, make_network

LABELS = np.array([3, 1, 3, 3, 1, 8, 8, 3, 1, 8, 8, 3, 5])


def draw(labels: np.ndarray, count: int = 500, *, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return draw_tuples(labels, count=count, num_negatives=7, rng=rng)


def test_a_tuple_is_a_text_one_of_its_class_and_seven_of_others() -> None:
    drawn = draw(LABELS)
    assert drawn.shape == (500, 9)
    own = LABELS[drawn]
    assert (own[:, 0] == own[:, 1]).all()
    assert (own[:, 2:] != own[:, :1]).all()
    alone = drawn[:, 0] == 12
    assert (drawn[alone, 1] == 12).all()
    assert (drawn[~alone, 0] != drawn[~alone, 1]).all()
    assert all(len({*row[2:]}) == 7 for row in drawn)


def test_all_texts_and_all_positives_are_equally_likely() -> None:
    drawn = draw(LABELS, 20_000)
    counts = np.bincount(drawn[:, 0], minlength=13)
    np.testing.assert_allclose(counts / 20_000, 1 / 13, atol=0.01)
    of_first = drawn[drawn[:, 0] == 0, 1]
    np.testing.assert_allclose(
        np.bincount(of_first, minlength=12)[[2, 3, 7, 11]] / len(of_first), 0.25, atol=0.04
    )
    negatives = np.bincount(drawn[drawn[:, 0] == 0, 2:].ravel(), minlength=13)
    assert (negatives[LABELS == 3] == 0).all()
    assert (negatives[LABELS != 3] > 0).all()


def test_few_other_texts_are_repeated_and_a_single_class_is_refused() -> None:
    drawn = draw(np.array([0, 0, 1]))
    assert (drawn[drawn[:, 0] < 2, 2:] == 2).all()
    with pytest.raises(ValueError, match="two classes"):
        draw(np.array([4, 4]))


def test_the_id_stays_if_the_text_is_cut() -> None:
    text, end = np.arange(10, dtype=np.int32), np.int32([77, 78])
    assert append_tokens(text, end, max_tokens=20).tolist() == [*range(9), 77, 78, 9]
    cut = append_tokens(text, end, max_tokens=6).tolist()
    assert cut == [0, 1, 2, 77, 78, 9]


def test_the_step_is_equation_3_over_tuples_with_ids() -> None:
    network = make_network()
    labels = np.arange(24) % 4
    seen = []

    def tag(number: int) -> np.ndarray:
        seen.append(number)
        return np.int32([4 + number])

    step_fn = tuples(
        network, TEXTS, labels, tag, adapter_id=3, batch_size=3, max_tokens=30, num_negatives=2
    )
    loss, _ = step_fn(5)
    assert seen == [15, 16, 17]
    drawn = draw_tuples(labels, count=3, num_negatives=2, rng=np.random.default_rng([0, 5]))
    with torch.no_grad():
        vectors = [
            [
                embed(network, [append_tokens(TEXTS[i], tag(15 + k), max_tokens=30)], 3)[0]
                for i in row
            ]
            for k, row in enumerate(drawn)
        ]
    total = 0.0
    for dim in network.config.dims:
        unit = [[F.normalize(v[:dim], dim=0) for v in row] for row in vectors]
        for query, positive, *_ in unit:
            answer = math.exp(query @ positive / 0.02)
            # Forward: every row's positive and negatives. Backward: every row's query alone.
            ahead = sum(math.exp(query @ v / 0.02) for row in unit for v in row[1:])
            back = sum(math.exp(positive @ row[0] / 0.02) for row in unit)
            total -= math.log(answer / ahead) + math.log(answer / back)
    # The paper adds two means; `info_nce` halves their sum.
    expected = total / 3 / 2 / len(network.config.dims)
    assert float(loss) == pytest.approx(expected, rel=1e-3)


def test_nli_contradictions_are_negatives_of_all_rows() -> None:
    rows = nli_triplets(
        ["p", "p", "p", "p", "q", "q", "r"],
        ["e1", "c1", "n", "e2", "e3", "c2", "c3"],
        [0, 2, 1, 0, 0, 2, 2],
    )
    assert rows == [("p", "e1", ["c1"]), ("p", "e2", ["c1"]), ("q", "e3", ["c2"])]
    # Their loss as loops: premises of one group do not repel each other's hypotheses.
    generator = torch.Generator().manual_seed(0)
    premises, entailed, against = (
        F.normalize(torch.randn(3, 6, generator=generator), dim=-1) for _ in range(3)
    )
    groups, total = [0, 0, 1], 0.0
    for i in range(3):
        answer = math.exp(premises[i] @ entailed[i] / 0.05)
        allowed = [j for j in range(3) if j == i or groups[j] != groups[i]]
        ahead = sum(math.exp(premises[i] @ entailed[j] / 0.05) for j in allowed)
        ahead += sum(math.exp(premises[i] @ against[j] / 0.05) for j in range(3))
        back = sum(math.exp(premises[j] @ entailed[i] / 0.05) for j in allowed)
        total -= math.log(answer / ahead) + math.log(answer / back)
    found = info_nce(
        premises,
        torch.cat([entailed, against]),
        groups=torch.tensor(groups),
        document_groups=torch.tensor([*groups, -1, -1, -1]),
    )
    assert found.item() == pytest.approx(total / 6, rel=1e-5)
