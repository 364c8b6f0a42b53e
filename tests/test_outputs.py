"""Truncation, norm, encodings of vectors, similarity."""

import base64

import numpy as np
import pytest

from polyvec.outputs import (
    NotFiniteError,
    similarity,
    to_base64,
    to_binary,
    to_float16,
    to_int8,
    to_ubinary,
    truncate_and_normalise,
)


@pytest.fixture
def vectors(rng: np.random.Generator) -> np.ndarray:
    """Ten vectors of 64 numbers."""
    return rng.standard_normal((10, 64)).astype(np.float32)


@pytest.mark.parametrize("dim", [1, 7, 32, 64])
def test_every_size_has_length_one_and_the_first_numbers(vectors: np.ndarray, dim: int) -> None:
    short = truncate_and_normalise(vectors, dim)
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1, atol=1e-6)
    cosines = (short * vectors[:, :dim]).sum(1) / np.linalg.norm(vectors[:, :dim], axis=1)
    np.testing.assert_allclose(cosines, 1, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_norm_neither_under_nor_overflows(vectors: np.ndarray, scale: float) -> None:
    scaled = (vectors.astype(float) * scale).astype(np.float32)
    np.testing.assert_allclose(
        truncate_and_normalise(scaled, 64), truncate_and_normalise(vectors, 64), atol=1e-6
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_number_is_an_error_that_names_its_rows(vectors: np.ndarray, bad: float) -> None:
    vectors[3, 60] = vectors[8, 0] = bad
    with pytest.raises(NotFiniteError, match="text 3, 8 ") as caught:
        truncate_and_normalise(vectors, 32)
    assert caught.value.rows == [3, 8]


def test_a_vector_of_zeros_is_an_error_and_not_a_direction(vectors: np.ndarray) -> None:
    vectors[2, :8] = 0
    assert truncate_and_normalise(vectors, 9).shape == (10, 9)
    with pytest.raises(NotFiniteError, match="text 2 "):
        truncate_and_normalise(vectors, 8)


def test_int8_keeps_cosines(vectors: np.ndarray) -> None:
    small = to_int8(vectors).astype(np.float32)
    assert np.abs(small).max(1).tolist() == [127] * 10
    np.testing.assert_allclose(similarity(small, small), similarity(vectors, vectors), atol=0.02)


def test_ubinary_holds_the_signs(vectors: np.ndarray) -> None:
    bits = np.unpackbits(to_ubinary(vectors), axis=1)
    assert (bits == (vectors > 0)).all()


def test_binary_is_ubinary_less_128(vectors: np.ndarray) -> None:
    shifted = to_binary(vectors).astype(int) + 128
    assert (shifted == to_ubinary(vectors)).all()


def test_binary_of_an_odd_size_is_refused(vectors: np.ndarray) -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        to_ubinary(vectors[:, :12])


def test_base64_is_little_endian_float32(vectors: np.ndarray) -> None:
    for row, text in zip(vectors, to_base64(vectors), strict=True):
        assert (np.frombuffer(base64.b64decode(text), "<f4") == row).all()


def test_similarity_is_the_cosine_whatever_the_lengths(vectors: np.ndarray) -> None:
    np.testing.assert_allclose(
        similarity(vectors * 3, vectors[:4]), similarity(vectors, vectors[:4] * 7), atol=1e-6
    )
    np.testing.assert_allclose(np.diag(similarity(vectors, vectors)), 1, atol=1e-6)


ENCODE = [to_base64, to_binary, to_float16, to_int8, to_ubinary]


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Annotations are not checked, as for users. In other tests they are checked at every call."""
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)


@pytest.mark.parametrize("encode", [*ENCODE, lambda v: truncate_and_normalise(v, 8)])
@pytest.mark.parametrize("axes", [0, 1, 3])
def test_other_numbers_of_axes_are_refused(encode, axes: int, unchecked: None) -> None:
    with pytest.raises(ValueError, match="one row per vector"):
        encode(np.ones((8,) * axes, np.float32))


@pytest.mark.parametrize("encode", ENCODE)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_encodings_name_the_vectors_that_are_not_finite(
    encode, bad: float, vectors: np.ndarray
) -> None:
    vectors[2, 63] = vectors[7, 0] = bad
    with pytest.raises(ValueError, match="vector 2, 7 "):
        encode(vectors)


@pytest.mark.parametrize("encode", ENCODE)
def test_no_vectors_have_no_encodings(encode) -> None:
    assert len(encode(np.empty((0, 16), np.float32))) == 0


@pytest.mark.parametrize("dim", [0, -1, 65, True, 8.0])
def test_a_size_outside_of_the_vectors_is_refused(
    vectors: np.ndarray, dim: int, unchecked: None
) -> None:
    with pytest.raises(ValueError, match=r"in 1\.\.64"):
        truncate_and_normalise(vectors, dim)


def test_float16_keeps_cosines_in_half_of_the_bytes(vectors: np.ndarray) -> None:
    unit = truncate_and_normalise(vectors, 64)
    half = to_float16(unit)
    assert (half.dtype, half.nbytes) == (np.float16, unit.nbytes // 2)
    back = half.astype(np.float32)
    np.testing.assert_allclose(similarity(back, back), similarity(unit, unit), atol=1e-3)
    with pytest.raises(ValueError, match="65,504"):
        to_float16(vectors * np.float32(1e6))


@pytest.mark.parametrize("scale", [1e-38, 1e38])
def test_int8_does_not_overflow(vectors: np.ndarray, scale: float) -> None:
    unit = truncate_and_normalise(vectors, 64)
    scaled = (unit.astype(float) * scale).astype(np.float32)
    assert np.abs(to_int8(scaled).astype(int) - to_int8(unit)).max() <= 1


def test_vectors_of_different_sizes_have_no_cosine(vectors: np.ndarray, unchecked: None) -> None:
    with pytest.raises(ValueError, match="64 and of 32 numbers"):
        similarity(vectors, vectors[:, :32])
