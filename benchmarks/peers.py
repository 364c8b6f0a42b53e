"""The libraries that are timed: each function loads a model and returns a function of token ids.

The other libraries work as in sentence-transformers: texts are sorted by length, batches of 32 are
padded, states are averaged over the tokens, and vectors are normalised. They run without adapters.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers import JinaEmbeddingsV3Model

from polyvec.batch import make_batch, pack
from polyvec.checkpoint import load_checkpoint, save_compact
from polyvec.engines.openvino import OpenVINOEngine
from polyvec.outputs import truncate_and_normalise

Embed = Callable[[list[list[int]]], np.ndarray]
PADDED_BATCH_TEXTS = 32


def load_polyvec(folder: Path, threads: int, *, tasks: str = "none", int8: bool = False) -> Embed:
    """Load polyvec.

    `tasks` is "none", "mixed" (all five in turn) or "merged" (one, merged into the weights).
    `int8` uses the weights that `polyvec export --int8` writes.
    """
    config, weights = load_checkpoint(folder)
    if int8:
        if not (folder / "int8").exists():
            save_compact(folder / "int8", config, weights)
        config, weights = load_checkpoint(folder / "int8")
    merge_adapter = 1 if tasks == "merged" else None
    engine = OpenVINOEngine(config, weights, num_threads=threads, merge_adapter=merge_adapter)

    def embed(texts: list[list[int]]) -> np.ndarray:
        rows = {"none": [-1], "mixed": [0, 1, 2, 3, 4], "merged": [1]}[tasks]
        means = np.empty((len(texts), config.width), np.float32)
        for members in pack([len(text) for text in texts], engine.batch_tokens):
            batch = make_batch([texts[i] for i in members], [rows[i % len(rows)] for i in members])
            means[members] = engine.pool(batch, batch.starts, batch.ends)
        return truncate_and_normalise(means, config.width)

    return embed


def load_transformers(folder: Path, threads: int, *, dtype: torch.dtype) -> Embed:
    """Load the class of transformers."""
    torch.set_num_threads(threads)
    model = JinaEmbeddingsV3Model.from_pretrained(folder, dtype=dtype).eval()

    @torch.inference_mode()
    def hidden(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        return model(**inputs).last_hidden_state.float().numpy()

    return _in_padded_batches(hidden)


def load_onnx(folder: Path, threads: int, *, int8: bool) -> Embed:
    """Load ONNX Runtime with a graph that `export_onnx` wrote."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    path = folder / "onnx" / ("int8.onnx" if int8 else "model.onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def hidden(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(None, {"input_ids": ids, "attention_mask": mask})[0])

    return _in_padded_batches(hidden)


def export_onnx(folder: Path) -> None:
    """Write model.onnx and the dynamically quantised int8.onnx, unless they exist."""
    target = folder / "onnx"
    if (target / "int8.onnx").exists():
        return
    target.mkdir(exist_ok=True)
    model = JinaEmbeddingsV3Model.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(4, 1000, (2, 16))
    sizes = {"input_ids": {0: "texts", 1: "tokens"}, "attention_mask": {0: "texts", 1: "tokens"}}
    torch.onnx.export(
        _Hidden(model),
        (ids, torch.ones_like(ids)),
        str(target / "model.onnx"),
        input_names=list(sizes),
        output_names=["hidden"],
        dynamic_axes=sizes | {"hidden": {0: "texts", 1: "tokens"}},
        dynamo=False,
        opset_version=17,
    )
    # These are the settings of sentence-transformers' export for AVX2.
    quantize_dynamic(
        target / "model.onnx",
        target / "int8.onnx",
        weight_type=QuantType.QUInt8,
        per_channel=True,
        op_types_to_quantize=["MatMul"],
        use_external_data_format=True,
    )


class _Hidden(torch.nn.Module):
    """A module that returns only the hidden states, for the exporter."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def _in_padded_batches(hidden: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Embed:
    def embed(texts: list[list[int]]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        mean_of: dict[int, np.ndarray] = {}
        for first in range(0, len(order), PADDED_BATCH_TEXTS):
            members = order[first : first + PADDED_BATCH_TEXTS]
            longest = max(len(texts[i]) for i in members)
            ids = np.ones((len(members), longest), np.int64)
            mask = np.zeros_like(ids)
            for place, i in enumerate(members):
                ids[place, : len(texts[i])] = texts[i]
                mask[place, : len(texts[i])] = 1
            states = hidden(ids, mask)
            means = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
            mean_of.update(zip(members, means, strict=True))
        means = np.stack([mean_of[i] for i in range(len(texts))]).astype(np.float32)
        return truncate_and_normalise(means, means.shape[1])

    return embed


PEERS: dict[str, Callable[[Path, int], Embed]] = {
    "polyvec": load_polyvec,
    "polyvec, five tasks mixed": lambda f, t: load_polyvec(f, t, tasks="mixed"),
    "polyvec, one task merged": lambda f, t: load_polyvec(f, t, tasks="merged"),
    "polyvec, int8 weights": lambda f, t: load_polyvec(f, t, int8=True),
    "transformers float32": lambda f, t: load_transformers(f, t, dtype=torch.float32),
    "transformers bf16": lambda f, t: load_transformers(f, t, dtype=torch.bfloat16),
    "ONNX Runtime float32": lambda f, t: load_onnx(f, t, int8=False),
    "ONNX Runtime dynamic int8": lambda f, t: load_onnx(f, t, int8=True),
}
"""Functions that take a folder and a number of threads, in the order of the table."""
