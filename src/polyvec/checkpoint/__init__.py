"""Weights on disk <-> canonical names. No PyTorch, no pickle, no code from a model's folder.

`load_checkpoint` reads three layouts and tells them apart by the names of their tensors:

- original: `jinaai/jina-embeddings-v3`, with the adapters stacked beside every weight;
- native: transformers' `jina_embeddings_v3`, with one PEFT folder per adapter beside it;
- compact: canonical names, 8-bit matrices, one file. The bundled model is stored in this layout.

The sparse and the multi-vector head are unknown to transformers. In the native layout they are in a
file of their own, `heads.safetensors`.

`save_checkpoint` writes the native layout, and `save_compact` the compact one. In memory there is
one form: a dict whose keys are those of `Network.state_dict()`.
"""

from polyvec.checkpoint.fingerprint import fingerprint
from polyvec.checkpoint.load import detect_layout, load_checkpoint
from polyvec.checkpoint.names import weight_shapes
from polyvec.checkpoint.quantised import (
    Int8Matrix,
    Weight,
    Weights,
    gather_rows,
    quantise_rows,
    to_float,
)
from polyvec.checkpoint.save import save_checkpoint, save_compact
from polyvec.checkpoint.storage import release_pages

__all__ = [
    "Int8Matrix",
    "Weight",
    "Weights",
    "detect_layout",
    "fingerprint",
    "gather_rows",
    "load_checkpoint",
    "quantise_rows",
    "release_pages",
    "save_checkpoint",
    "save_compact",
    "to_float",
    "weight_shapes",
]
