"""The rule for texts that are longer than the model reads."""

import warnings

import numpy as np
import pytest

from polyvec import Encoder, TooLongError, TruncationWarning
from polyvec.tokenizer import Tokenizer
from polyvec.truncation import count_cut_characters

LONG = " ".join(["fox"] * 100 + ["den"] * 100)


@pytest.fixture
def fresh(encoder: Encoder) -> Encoder:
    """An encoder that has not warned yet."""
    return Encoder(encoder.config, encoder.tokenizer, encoder.engine)


CALLS = {
    "encode": lambda encoder, texts, rule: encoder.encode(texts, truncate=rule),
    "encode_stream": lambda encoder, texts, rule: np.concatenate(
        list(encoder.encode_stream(texts, truncate=rule))
    ),
    "encode_all": lambda encoder, texts, rule: (
        encoder.encode_all(texts, outputs=["dense"], truncate=rule).dense
    ),
    "encode_tokens": lambda encoder, texts, rule: np.stack(
        [
            rows.mean(0) / np.linalg.norm(rows.mean(0))
            for rows in encoder.encode_tokens(texts, truncate=rule)
        ]
    ),
}


@pytest.mark.filterwarnings("ignore::polyvec.truncation.TruncationWarning")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_long_text_is_its_beginning_or_its_end(fresh, call):
    first, last = " ".join(["fox"] * 100), " ".join(["den"] * 100)
    at_end, at_start = (call(fresh, [LONG], rule) for rule in ("end", "start"))
    np.testing.assert_allclose(at_end, call(fresh, [first], "end"), atol=1e-5)
    np.testing.assert_allclose(at_start, call(fresh, [last], "start"), atol=1e-5)
    assert np.abs(at_end - at_start).max() > 0.01


@pytest.mark.parametrize("rule", ["end", "start", "error"])
def test_a_text_that_fits_is_whole(fresh, rule):
    np.testing.assert_allclose(
        fresh.encode(["a fox", ""], truncate=rule), fresh.encode(["a fox", ""]), atol=1e-6
    )


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_error_names_the_texts(fresh, call, monkeypatch):
    monkeypatch.setattr("polyvec.texts.MAX_BLOCK_TEXTS", 2)
    with pytest.raises(TooLongError, match=r"text 2, 3 \(counted from 0\).* 64 tokens") as caught:
        call(fresh, ["fox", "den", LONG, LONG], "error")
    assert caught.value.rows == [2, 3]


@pytest.mark.parametrize("rule", ["end", "start"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_one_warning_counts_what_was_cut(fresh, call, rule):
    with pytest.warns(TruncationWarning) as caught:
        call(fresh, ["fox", LONG, LONG], rule)
    [warning] = caught
    [tokens] = (
        [fresh.tokenizer.encode_end(LONG, "")]
        if rule == "start"
        else fresh.tokenizer.encode([LONG], [""])
    )
    cut = count_cut_characters(LONG, tokens, rule)
    assert 400 < cut < len(LONG)
    assert f"2 texts have more than the 64 tokens that the model reads: {2 * cut:,}" in str(
        warning.message
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(fresh, [LONG], rule)


def test_an_unknown_rule_is_refused(fresh, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    for rule in ("right", True, None):
        with pytest.raises(ValueError, match="'end', 'start' or 'error'"):
            fresh.encode("fox", truncate=rule)


@pytest.mark.parametrize("size", [0, 1, 70, 300, 5000])
def test_offsets_of_an_end_count_from_the_start_of_the_text(tiny_model, size):
    tokenizer = Tokenizer.load(tiny_model, 16)
    text = "fox " * size + "the lazy dog"
    tokens = tokenizer.encode_end(text, "")
    spans = tokens.offsets[tokens.num_prompt : -1].tolist()
    assert "".join(text[start:end] for start, end in spans[-3:]).strip() in text[-20:]
    assert spans[-1][1] == len(text)
    assert count_cut_characters(text, tokens, "start") == spans[0][0] * tokens.truncated
