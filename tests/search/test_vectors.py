import lancedb
import numpy as np
import pyarrow as pa
import pytest

from polyvec.heads import maxsim
from polyvec.search.vectors import (
    FORMS,
    SIGNS_FACTOR,
    find_nearest,
    pack_token_bits,
    pack_vectors,
    sign_vectors,
    unpack_token_bits,
    unpack_vectors,
    vector_types,
)

DIM = 128
NEAREST = 10
DEPTH = 100
"""Passages that search asks of each component."""


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def clustered():
    """4,000 vectors about 100 centres, and 40 questions about the same."""
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(100, DIM))
    points = centres[rng.integers(100, size=4040)] + 0.6 * rng.normal(size=(4040, DIM))
    return unit(points[40:]), unit(points[:40])


@pytest.fixture(scope="module", params=FORMS)
def kept(request, clustered, tmp_path_factory):
    """A form, and a table of the vectors in it."""
    vectors, _ = clustered
    columns = {"path": pa.array([f"{i % 10}.txt" for i in range(len(vectors))])}
    columns |= {"start": pa.array(range(len(vectors)))} | pack_vectors(vectors, request.param)
    rows = pa.table(columns)
    for name, kind in vector_types(request.param, DIM).items():
        assert rows.schema.field(name).type == kind
    database = lancedb.connect(tmp_path_factory.mktemp("tables"))
    table = database.create_table("rows", rows.slice(0, 1500))
    table.add(rows.slice(1500))
    return request.param, table


def test_the_nearest_ten_are_those_of_an_exact_search(kept, clustered):
    form, table = kept
    vectors, questions = clustered
    shares = []
    for question in questions:
        exact = np.argsort(-(vectors @ question))[:NEAREST].tolist()
        found = find_nearest(table, question, quantise=form, depth=DEPTH, where="")[:NEAREST]
        shares.append(len({row["start"] for row in found} & set(exact)) / NEAREST)
    assert np.mean(shares) >= {"float": 1.0, "int8": 0.95, "binary": 0.9}[form]


def test_scores_are_cosines_in_their_order_and_rows_are_whole(kept, clustered):
    form, table = kept
    vectors, questions = clustered
    found = find_nearest(table, questions[0], quantise=form, depth=30, where="")
    assert len(found) == 30
    scores = [row["score"] for row in found]
    assert scores == sorted(scores, reverse=True)
    for row in found:
        assert set(row) == {"path", "start", "score"}
        assert row["path"] == f"{row['start'] % 10}.txt"
        assert row["score"] == pytest.approx(vectors[row["start"]] @ questions[0], abs=0.01)


def test_a_condition_holds_before_rows_are_ranked(kept, clustered):
    form, table = kept
    found = find_nearest(table, clustered[1][0], quantise=form, depth=500, where="path = '3.txt'")
    assert len(found) == 400
    assert {row["path"] for row in found} == {"3.txt"}
    assert not find_nearest(table, clustered[1][0], quantise=form, depth=9, where="path = 'x'")


def test_more_candidates_by_bits_find_more(clustered, tmp_path):
    vectors, questions = clustered
    table = lancedb.connect(tmp_path).create_table(
        "rows", pa.table({"start": range(len(vectors))} | pack_vectors(vectors, "binary"))
    )

    def recall(oversampling):
        shares = []
        for question in questions:
            exact = np.argsort(-(vectors @ question))[:NEAREST].tolist()
            found = find_nearest(
                table, question, quantise="binary", depth=10, where="", oversampling=oversampling
            )
            shares.append(len({row["start"] for row in found} & set(exact)) / NEAREST)
        return np.mean(shares)

    assert recall(1) < recall(4) <= recall(16)


def test_each_form_compares_fewer_bytes_than_the_one_before(clustered):
    vectors, _ = clustered
    compared = [list(pack_vectors(vectors, form).values())[-1].nbytes for form in FORMS]
    assert compared == [len(vectors) * DIM * bits // 8 for bits in (32, 8, 1)]


def test_int8_and_binary_take_less_room_than_floats(clustered):
    vectors, _ = clustered
    room = [sum(c.nbytes for c in pack_vectors(vectors, form).values()) for form in FORMS]
    assert room[1] == room[0] / 4
    # The bits are an eighth more than the int8 vectors by which they are scored again.
    assert room[2] == room[1] * 9 / 8


def test_vectors_come_back_as_they_were_or_as_whole_numbers(clustered):
    vectors, _ = clustered
    np.testing.assert_array_equal(unpack_vectors(pack_vectors(vectors, "float")["vector"]), vectors)
    whole = unpack_vectors(pack_vectors(vectors, "int8")["vector"][5:])
    assert (unit(whole) * vectors[5:]).sum(1).min() > 0.999


def test_bits_need_whole_bytes():
    with pytest.raises(ValueError, match="multiple of 8 numbers, not 12"):
        vector_types("binary", 12)


@pytest.mark.parametrize("size", [1, 8, 13, 128])
def test_the_signs_of_token_vectors_come_back(rng, size):
    texts = [rng.normal(size=(count, size)).astype(np.float32) for count in (3, 1, 0, 7)]
    bits = pack_token_bits(texts)["token_bits"].to_pylist()
    assert [len(text) for text in bits] == [len(text) * -(-size // 8) for text in texts]
    for vectors, signs in zip(texts, unpack_token_bits(bits, size), strict=True):
        np.testing.assert_array_equal(signs, sign_vectors(vectors))


def test_maxsim_with_signs_ranks_nearly_as_with_vectors(rng):
    question = unit(rng.normal(size=(8, DIM)))
    # Passages that have more or less of the question in them.
    texts = [unit(0.1 * n * question + rng.normal(size=(8, DIM)) / 11) for n in range(20)]
    exact = maxsim(question, texts)
    estimated = maxsim(question, [sign_vectors(text) for text in texts]) * SIGNS_FACTOR
    assert np.abs(exact - estimated).max() < 0.25
    assert np.corrcoef(np.argsort(exact), np.argsort(estimated))[0, 1] > 0.9
