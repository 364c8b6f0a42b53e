"""A tokenizer.json from a stranger: what would fail at an unlucky text is refused when loaded."""

import base64
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import pre_tokenizers

from polyvec.tokenizer import Tokenizer
from polyvec.tokenizer_check import KNOWN_PATTERNS, check_charsmap, check_tokenizer

ODD = [None, True, -1, 0, 2**31, 2**63, 0.5, "", "x" * 2_000, [], {}, [[]], {"type": "Sequence"}]
"""Values that replace each value of a tokenizer.json in turn."""

TEXT = "a fine \u017eebra\u0301 \u732b!"

WORDS = {"<s>": 0, "</s>": 1, "fox": 2}


def load(data: Any, folder: Path) -> Tokenizer:
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return Tokenizer.load(folder, 100)


def paths(value: Any, depth: int = 0) -> list[tuple[Any, ...]]:
    """The path of every value; of a long list, only those of its first and last members."""
    keys: list[Any] = []
    if isinstance(value, dict):
        keys = list(value)[:12]
    elif isinstance(value, list):
        keys = sorted({0, len(value) - 1}) if value else []
    return [(key, *rest) for key in keys for rest in [(), *paths(value[key], depth + 1)]]


def test_any_odd_value_gives_a_working_tokenizer_or_one_sentence(
    tokenizer_file: Path, tmp_path: Path
):
    data = json.loads(tokenizer_file.read_text())
    refused = 0
    for path in paths(data):
        for odd in ODD:
            changed = copy.deepcopy(data)
            parent = changed
            for key in path[:-1]:
                parent = parent[key]
            parent[path[-1]] = odd
            try:
                tokenizer = load(changed, tmp_path)
            except ValueError as error:
                assert "tokenizer.json" in str(error) and len(str(error)) < 1_000
                refused += 1
            else:
                (tokens,) = tokenizer.encode([TEXT], [""])
                assert tokens.ids.max() < tokenizer.vocab_size
    assert refused > 100


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalizer": replace({"Regex": "(b|b)*c"}, "")}, "normalizer 'Replace': the regular"),
        ({"normalizer": replace({"Regex": r"\s+$"}, "")}, "the regular expression"),
        ({"normalizer": replace({"String": "e"}, "e" * 900)}, "times as long"),
        ({"normalizer": {"type": "Prepend", "prepend": "e" * 99}}, "prepend must be a string"),
        (
            {
                "normalizer": {
                    "type": "Sequence",
                    "normalizers": [replace({"String": "e"}, "ee")] * 9,
                }
            },
            r"1\.02e\+03 times as long, of which 256 are allowed",
        ),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 33}}, "most 32"),
        ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "length is 0"),
        (
            {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(.*)*x"}}},
            "pre_tokenizer 'Split'",
        ),
        ({"model": {"type": "WordLevel", "unk_token": "?", "vocab": WORDS}}, r"unk_token '\?'"),
        ({"model": {"type": "WordLevel", "unk_token": "?", "vocab": {}}}, "unk_token"),
        (
            {"model": {"type": "BPE", "vocab": WORDS, "merges": ["f ox"]}},
            r"merges\[0\] names a piece",
        ),
        ({"model": {"type": "Unigram", "unk_id": 9, "vocab": [["a", 0]]}}, "unk_id 9"),
        ({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0], ["a", 0]]}}, "'a' twice"),
        ({"added_tokens": [{"id": 7, "content": "<s>"}]}, "has another id"),
    ],
)
def test_the_part_that_is_refused_is_named(
    changes: dict[str, Any], message: str, tokenizer_file: Path
):
    data = json.loads(tokenizer_file.read_text()) | changes
    with pytest.raises(ValueError, match=message):
        check_tokenizer(data)


@pytest.mark.parametrize("pattern", [r" {2,}", r"\s+", r"\s", "[\r\n]+", r"\p{L}+|\d", "``"])
def test_plain_patterns_are_read(pattern: str, tokenizer_file: Path):
    data = json.loads(tokenizer_file.read_text())
    check_tokenizer(data | {"normalizer": replace({"Regex": pattern}, " ")})


@pytest.mark.parametrize("pattern", sorted(KNOWN_PATTERNS))
def test_a_known_pattern_splits_any_text_without_losing_a_character(pattern: str):
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    text = "It's 12345 m\u00b2, \u4e2d\u6587\u3002 \u00c9TAT \u0928\u092e \u00a1x_y!!\r\n \n\t  z "
    pieces = split.pre_tokenize_str(text)
    assert "".join(piece for piece, _ in pieces) == text
    assert len(pieces) > 2


def charsmap(value: int = 0) -> bytes:
    """A table that replaces "a" with "xyz": unit 97 follows the root for "a", 256 is its value."""
    units = np.zeros(512, "<u4")
    units[97] = (97 ^ 256) << 10 | 256 | 97
    units[256] = 2**31 | value
    return (4 * len(units)).to_bytes(4, "little") + units.tobytes() + "xyz\0é\0".encode()


def test_a_sound_table_is_read_and_its_growth_known(tokenizer_file: Path, tmp_path: Path):
    table = base64.b64encode(charsmap()).decode()
    assert check_charsmap(table, "normalizer") == 3
    data = json.loads(tokenizer_file.read_text())
    normalizer = {"type": "Precompiled", "precompiled_charsmap": table}
    core = load(data | {"normalizer": normalizer}, tmp_path).core
    assert core.normalizer.normalize_str("bad") == "bxyzd"


@pytest.mark.parametrize("value", [5, 7, 2**30])
def test_a_table_that_points_outside_its_replacements_is_refused(value: int):
    with pytest.raises(ValueError, match="points outside"):
        check_charsmap(base64.b64encode(charsmap(value)).decode(), "normalizer")


def test_a_table_with_any_bit_flipped_never_fails_at_a_text(tokenizer_file: Path, tmp_path: Path):
    data = json.loads(tokenizer_file.read_text())
    random = np.random.default_rng(3)
    whole = charsmap()
    places = [0, 1, 3, *range(4, 8), *range(392, 396), *range(1028, 1032), len(whole) - 2]
    for place in places:
        raw = bytearray(whole)
        raw[place] ^= 1 << int(random.integers(8))
        table = base64.b64encode(raw).decode()
        try:
            tokenizer = load(
                data | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": table}},
                tmp_path,
            )
        except ValueError as error:
            assert "precompiled_charsmap" in str(error)
        else:
            tokenizer.encode(["bad " + "".join(map(chr, range(1, 256)))], [""])
