"""Token ids of texts, and passages embedded in documents."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from polyvec.train.data.tokens import embed_in_documents, tokenise

RNG = np.random.default_rng(0)
TEXTS = [
    np.concatenate([[0], RNG.integers(4, 89, size=RNG.integers(3, 20)), [2]]).astype(np.int32)
    for _ in range(24)
]


def test_long_texts_are_cut_and_keep_their_last_token(tokenizer_file: Path) -> None:
    core = Tokenizer.from_file(str(tokenizer_file))
    whole, cut = (
        tokenise(core, ["the lazy dog " * 9], max_tokens=size, prompt="fox ")[0]
        for size in (500, 12)
    )
    assert len(cut) == 12 < len(whole)
    assert cut[-1] == whole[-1] == 2
    assert (cut[:11] == whole[:11]).all()


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_the_span_of_a_passage_contains_the_whole_passage(parts: int) -> None:
    documents, spans = embed_in_documents(TEXTS, head=3, parts=[parts] * len(TEXTS), seed=parts)
    places = set()
    for text, document, (start, end) in zip(TEXTS, documents, spans, strict=True):
        found = document[start:end].tolist()
        assert document[:3].tolist() == text[:3].tolist()
        assert document[-1] == 2 and (document == 2).sum() == 1
        first, last = start == 0, end == len(document)
        assert found == text[0 if first else 3 : None if last else -1].tolist()
        places.add((first, last))
    assert len(places) == {1: 1, 2: 2, 5: 3}[parts]


def test_a_document_has_the_given_number_of_passages_from_the_given_pool() -> None:
    others = [np.array([0, piece, 2], np.int32) for piece in (200, 201)]
    parts = [1 + number % 4 for number in range(len(TEXTS))]
    for count, document in zip(
        parts, embed_in_documents(TEXTS, head=1, parts=parts, seed=0, among=others)[0], strict=True
    ):
        assert (document >= 200).sum() == count - 1
