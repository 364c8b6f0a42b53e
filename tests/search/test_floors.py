import numpy as np
import pytest

from polyvec import Encoder
from polyvec.search import Index
from polyvec.search.floors import FLOOR_SHARE, PAIRS, is_near, place_floor
from polyvec.search.fusion import Part


@pytest.mark.parametrize(("high", "low"), [(0.9, 0.2), (0.3, 0.1)])
def test_a_floor_lies_between_wrong_and_right_pairs_at_any_scale(high, low):
    scores = np.full((4, 4), low) + (high - low) * np.eye(4)
    assert place_floor(scores) == pytest.approx(low + FLOOR_SHARE * (high - low), abs=1e-5)


def test_a_passage_is_near_if_its_scores_exceed_the_floors_on_the_whole():
    floors = {"dense": 0.4, "maxsim": 0.6}

    def near(**scores):
        return is_near({name: Part(1, score, 0.0) for name, score in scores.items()}, floors)

    assert near(dense=0.41, maxsim=0.6) and near(dense=0.3, maxsim=0.8) and near(dense=0.4)
    assert not near(dense=0.3, maxsim=0.65) and not near(dense=0.39)
    # Without a component that compares meaning, nothing is known.
    assert near(bm25=0.1)


def test_floors_are_measured_once_for_an_index(notes, searcher, monkeypatch):
    Index(notes, searcher).update()
    monkeypatch.setattr("polyvec.search.index_table.measure_floors", None)
    assert Index(notes, searcher).search("fox")


def test_the_bundled_model_doubts_what_is_about_something_else(tmp_path):
    (tmp_path / "ferry.txt").write_text("\n\n".join(PAIRS.values()))
    index = Index(tmp_path, Encoder.load())
    index.update()
    assert sum(index.search(question).is_likely for question in PAIRS) > len(PAIRS) / 2
    for question in ("CPU cache coherence protocol", "Wer gewann die Wahl 1998?"):
        assert not index.search(question).is_likely
