"""Packing and grouping."""

import numpy as np
import pytest

from polyvec.batch import make_batch, pack, select, split_by_length


@pytest.mark.parametrize("max_tokens", [1, 50, 1_000])
def test_packing_keeps_every_text_once_within_the_budget(
    rng: np.random.Generator, max_tokens: int
) -> None:
    lengths = rng.integers(1, 100, 200).tolist()
    groups = list(pack(lengths, max_tokens))
    assert sorted(i for group in groups for i in group) == list(range(200))
    for group in groups:
        assert len(group) == 1 or sum(lengths[i] for i in group) <= max_tokens


def test_packing_goes_from_long_to_short() -> None:
    lengths = [3, 9, 1, 9, 5]
    order = [lengths[i] for group in pack(lengths, 10) for i in group]
    assert order == sorted(lengths, reverse=True)


def test_packing_nothing_gives_nothing() -> None:
    assert list(pack([], 10)) == []


def test_groups_keep_every_text_once_within_the_budget(rng: np.random.Generator) -> None:
    lengths = rng.integers(1, 100, 200).astype(np.int32)
    groups = list(split_by_length(lengths, 32, 500))
    assert sorted(np.concatenate(groups).tolist()) == list(range(200))
    for group in groups:
        assert len(group) == 1 or lengths[group].sum() <= 500


def test_texts_of_one_length_share_a_group() -> None:
    assert len(list(split_by_length(np.full(30, 60, np.int32), 32, 10**6))) == 1


def test_a_long_text_does_not_pad_short_ones() -> None:
    groups = list(split_by_length(np.int32([1000, *[8] * 100]), 64, 10**6))
    assert [len(group) for group in groups] == [1, 100]


def test_selected_texts_keep_their_tokens_and_adapters() -> None:
    batch = make_batch([[0, 5, 2], [0, 2], [0, 6, 7, 2]], [1, -1, 3])
    part, tokens = select(batch, np.int32([2, 1]))
    assert part.token_ids.tolist() == [0, 6, 7, 2, 0, 2]
    assert part.adapter_ids.tolist() == [3, -1]
    assert (batch.token_ids[tokens] == part.token_ids).all()


def test_starts_and_ends_enclose_each_text() -> None:
    batch = make_batch([[0, 5, 2], [0, 2]], [0, 0])
    assert batch.starts.tolist() == [0, 3]
    assert batch.ends.tolist() == [3, 5]


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(AssertionError, match="special tokens"):
        make_batch([[0, 2], []], [0, 0])
