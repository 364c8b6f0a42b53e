"""Everyone who is timed: a function that loads a model and returns how to embed token ids.

The peers do what sentence-transformers does with them: sort by length, pad batches of 32, mean
over the tokens, scale to length 1. They run the bare encoder, without adapters.
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
BATCH = 32


def load_polyvec(folder: Path, threads: int, *, tasks: str = "none", int8: bool = False) -> Embed:
    """polyvec; `tasks` is "none", "mixed" (all five in turn), or "merged" (one, in the weights).

    `int8` is what `polyvec export --int8` makes of the model.
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
    """transformers' native class."""
    torch.set_num_threads(threads)
    model = JinaEmbeddingsV3Model.from_pretrained(folder, dtype=dtype).eval()

    @torch.inference_mode()
    def hidden(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        return model(**inputs).last_hidden_state.float().numpy()

    return _in_padded_batches(hidden)


def load_onnx(folder: Path, threads: int, *, int8: bool) -> Embed:
    """ONNX Runtime over the graph that `export_onnx` wrote."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    path = folder / "onnx" / ("int8.onnx" if int8 else "model.onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def hidden(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(None, {"input_ids": ids, "attention_mask": mask})[0])

    return _in_padded_batches(hidden)


def export_onnx(folder: Path) -> None:
    """Write model.onnx and its dynamically quantised int8.onnx, unless they are there."""
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
    # The settings of sentence-transformers' export for AVX2.
    quantize_dynamic(
        target / "model.onnx",
        target / "int8.onnx",
        weight_type=QuantType.QUInt8,
        per_channel=True,
        op_types_to_quantize=["MatMul"],
        use_external_data_format=True,
    )


class _Hidden(torch.nn.Module):
    """Only the hidden states, for the exporter."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def _in_padded_batches(hidden: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Embed:
    def embed(texts: list[list[int]]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        found: dict[int, np.ndarray] = {}
        for first in range(0, len(order), BATCH):
            members = order[first : first + BATCH]
            longest = max(len(texts[i]) for i in members)
            ids = np.ones((len(members), longest), np.int64)
            mask = np.zeros_like(ids)
            for place, i in enumerate(members):
                ids[place, : len(texts[i])] = texts[i]
                mask[place, : len(texts[i])] = 1
            states = hidden(ids, mask)
            means = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
            found.update(zip(members, means, strict=True))
        means = np.stack([found[i] for i in range(len(texts))]).astype(np.float32)
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
"""In the order of the report."""
