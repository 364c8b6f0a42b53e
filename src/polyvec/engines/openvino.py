"""The CPU engine: OpenVINO, with no PyTorch.

What happens to a batch:

1. Texts of similar length form groups (`batch.split_by_length`): that bounds the padding inside
   attention and the size of the activations.
2. numpy gathers each group's token rows and their adapters' low-rank rows, and normalises them.
   The token table, half of the model, therefore stays where the checkpoint left it: memory-mapped
   on disk, in the type it is stored in.
3. The blocks run (`openvino_graph`), and each group's hidden states go back to their places.

The blocks' weights reach the plugin in one of two ways. As *inputs*, one compiled block serves
every layer, start-up takes a fraction of a second, and memory holds one float32 copy of the
weights (none, where the file is float32 already). As *constants* ("prepacked") the plugin also
keeps its own packed copy, which it needs for bf16 and int8.

Axes in this file: T tokens in the batch, B texts, L the longest text, S spans, D width,
K head width, A adapters, R rank, V vocabulary, C columns of low-rank values.
"""

import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
from jaxtyping import Float32, Int32

from polyvec.batch import Batch, select, split_by_length
from polyvec.checkpoint import Int8Matrix, Weights, forget_pages, to_float
from polyvec.config import ModelConfig
from polyvec.engines.openvino_graph import (
    LINEARS,
    build_layers,
    count_columns,
    layer_names,
    make_input,
)
from polyvec.engines.openvino_import import ops, ov
from polyvec.pooling import pool_spans

MAX_GROUP_TOKENS = 4_096
"""Enough for the matrix products to be at full speed; more would only cost memory."""

KERNELS = 200
"""Of each prepacked graph, kept for batch shapes that come again. OpenVINO's own 5,000 fill a
gigabyte while a server meets ever new lengths; these level off, and cost no speed to speak of."""

ACTIVATION_GROUP, WIDE_GROUP, WIDE = 32, 128, 1_024
"""Numbers of a token that share a scale where they are rounded to 8 bits: fewer are more exact, but
cost wide models, from that width on, a fifth of their speed, and narrow ones nothing."""

LAYERS_PER_GRAPH = 4
"""Prepacked blocks compile in pieces, so that only two pieces at a time are held twice."""


class OpenVINOEngine:
    """Runs batches on the CPU.

    A token's hidden state does not depend, beyond float rounding, on the texts beside it.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        *,
        precision: Literal["auto", "float32"] = "auto",
        num_threads: int | None = None,
        prepack: bool | None = None,
        merge_row: int | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        """Compile the blocks.

        `precision` "auto" computes matrix products in bf16 where the CPU can, and those of int8
        weights in int8. `prepack` is the default there; elsewhere it makes texts of a few tokens up
        to a third faster for twice the memory, and keeps int8 weights in int8. `merge_row` adds
        that adapter to the weights, for an engine whose texts all use it: other rows are then a
        ValueError. `cache_dir` keeps what was compiled for the next start, weights included if
        prepacked; a folder that can't be written is left alone.
        """
        core = ov.Core()
        has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        bf16 = precision == "auto" and has_bf16
        int8 = precision == "auto" and _is_int8(weights) and (has_bf16 or _has_vnni())
        self.config = config
        self._bf16 = bf16
        self.rope_base = config.rope_base
        """May be set at any time: 10,000 while training, the config's when encoding."""
        self.merge_row = merge_row
        self.batch_tokens = 4 * MAX_GROUP_TOKENS
        self._weights = weights
        self._lock = threading.Lock()
        group = WIDE_GROUP if config.width >= WIDE else ACTIVATION_GROUP
        properties: dict[str, object] = {
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            # 0 leaves activations as they are.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": group if int8 else 0,
        }
        if num_threads is not None:
            properties["INFERENCE_NUM_THREADS"] = num_threads
        if cache_dir is not None and _is_writable(cache_dir):
            properties["CACHE_DIR"] = str(cache_dir)
        adapters = merge_row is None and len(config.tasks) > 0
        if bf16 or int8 if prepack is None else prepack:
            self._steps = self._compile_constants(core, properties, adapters)
        else:
            self._steps = self._compile_inputs(core, properties, adapters)

    def hidden(self, batch: Batch) -> Float32[np.ndarray, "T D"]:
        """Every token's hidden state, in the batch's order."""
        hidden = np.empty((len(batch.token_ids), self.config.width), np.float32)
        for texts in split_by_length(batch.lengths, self.config.width, MAX_GROUP_TOKENS):
            group, tokens = select(batch, texts)
            hidden[tokens] = self._run(group)
        return hidden

    def pool(
        self, batch: Batch, starts: Int32[np.ndarray, " S"], ends: Int32[np.ndarray, " S"]
    ) -> Float32[np.ndarray, "S D"]:
        """The mean hidden state of each span [start, end) of the batch's tokens."""
        return pool_spans(self.hidden(batch), starts, ends)

    def read(
        self, batch: Batch, starts: Int32[np.ndarray, " S"], ends: Int32[np.ndarray, " S"]
    ) -> tuple[Float32[np.ndarray, "T D"], Float32[np.ndarray, "S D"]]:
        """What `hidden` and `pool` give, in one pass."""
        hidden = self.hidden(batch)
        return hidden, pool_spans(hidden, starts, ends)

    def _run(self, batch: Batch) -> Float32[np.ndarray, "T D"]:
        if self.merge_row is not None and (batch.adapter_ids != self.merge_row).any():
            raise ValueError(f"this engine's weights are merged with adapter {self.merge_row}")
        arrays = attention_inputs(batch, self.config.head_width, self.rope_base)
        if self.merge_row is None and self.config.tasks:
            arrays["mask"] = adapter_mask(batch, self.config)
        inputs = {name: _share(array) for name, array in arrays.items()}
        embedded = embed_tokens(batch, self._weights, self.config)
        x = _share(embedded)
        # Requests own their buffers, so two batches at once must take turns.
        with self._lock:
            for request, weights in self._steps:
                for name, tensor in (inputs | weights).items():
                    request.set_tensor(name, tensor)
                request.set_tensor("x", x)
                request.infer()
                x = request.get_output_tensor(0)
            return x.data.copy()

    def _compile_inputs(
        self, core: ov.Core, properties: dict[str, object], adapters: bool
    ) -> list[tuple[ov.InferRequest, dict[str, ov.Tensor]]]:
        """One compiled block, and every layer's weights to feed it."""
        names = layer_names(adapters=adapters)
        layers = []
        for layer in range(self.config.num_layers):
            layers.append({name: to_float(self._layer_weight(layer, name)) for name in names})
            forget_pages(self._weights.values())
        parameters = {name: make_input(name, list(layers[0][name].shape)) for name in names}
        model = build_layers(
            self.config, [parameters.__getitem__], list(parameters.values()), adapters=adapters
        )
        # With inputs the plugin would keep kernels for thousands of batch shapes, megabytes each.
        # oneDNN below it keeps those of the last thousand products, which costs no speed. With 0
        # it would write out attention's scores, a square of the longest text for every head.
        compiled = core.compile_model(model, "CPU", properties | {"CPU_RUNTIME_CACHE_CAPACITY": 1})
        # Two requests take turns, since a block must not write where it reads.
        requests = [compiled.create_infer_request() for _ in range(2)]
        return [
            (requests[layer % 2], {name: _share(array) for name, array in weights.items()})
            for layer, weights in enumerate(layers)
        ]

    def _compile_constants(
        self, core: ov.Core, properties: dict[str, object], adapters: bool
    ) -> list[tuple[ov.InferRequest, dict[str, ov.Tensor]]]:
        """All blocks with their weights inside, in the type they are stored in."""
        properties = properties | {"CPU_RUNTIME_CACHE_CAPACITY": KERNELS}
        numbers = range(self.config.num_layers)
        widen = not _is_int8(self._weights)

        def compile_from(first: int) -> tuple[ov.InferRequest, dict[str, ov.Tensor]]:
            layers = [
                lambda name, layer=layer: self._constant(layer, name)
                for layer in numbers[first : first + LAYERS_PER_GRAPH]
            ]
            model = build_layers(self.config, layers, [], adapters=adapters, widen=widen)
            compiled = core.compile_model(model, "CPU", properties)
            # Read again only if the plugin packs anew; then they come back from the file.
            forget_pages(self._weights.values())
            return compiled.create_infer_request(), {}

        # Most of it runs on one core, so two pieces take little more time than one.
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(compile_from, numbers[::LAYERS_PER_GRAPH]))

    def _constant(self, layer: int, name: str) -> ov.Node:
        """A node over a block's weight in the type it is stored in."""
        weight = self._layer_weight(layer, name)
        # A constant over shared memory does not keep it alive: only what `_weights` holds may be
        # shared. That is most of a model's bulk, and it stays the file's memory map.
        shared = weight is self._weights.get(f"layers.{layer}.{name}")
        if isinstance(weight, Int8Matrix):
            values = ops.constant(_share(weight.values), shared_memory=shared)
            return ops.multiply(ops.convert(values, "f32"), ops.constant(weight.scales[:, None]))
        constant = ops.constant(_share(weight), shared_memory=shared)
        # A matrix that is made float32 here would stay in memory as that, beside its packed copy.
        linear = name.split(".")[0] in LINEARS
        as_it_is = self._bf16 and linear and weight.dtype == ml_dtypes.bfloat16
        return constant if as_it_is else ops.convert(constant, "f32")

    def _layer_weight(self, layer: int, name: str) -> np.ndarray | Int8Matrix:
        """A block's weight in the shape the graph wants, with the adapter merged if asked."""
        linear, part = name.rsplit(".", 1)
        columns = count_columns(self.config)
        if part == "wide":
            stored = self._layer_weight(layer, f"{linear}.weight")
            # 8-bit weights are float32 by the time they are inputs.
            weight = to_float(stored) if isinstance(stored, Int8Matrix) else stored
            up = self._layer_weight(layer, f"{linear}.lora_b")
            assert isinstance(up, np.ndarray)
            return np.concatenate([weight, up.astype(np.promote_types(weight.dtype, up.dtype))], 1)
        weight = self._weights[f"layers.{layer}.{name}"]
        if part in ("lora_a", "lora_b"):
            # Only matrices of a model's own width are ever stored in 8 bits.
            assert isinstance(weight, np.ndarray)
            if part == "lora_a":
                flat_CI = weight.reshape(-1, weight.shape[-1])
                return np.pad(flat_CI, ((0, columns - len(flat_CI)), (0, 0)))
            flat_OC = np.moveaxis(weight, 0, 1).reshape(weight.shape[1], -1)
            return np.pad(flat_OC, ((0, 0), (0, columns - flat_OC.shape[1])))
        if part == "weight" and linear in LINEARS and self.merge_row is not None:
            a_RI, b_OR = (
                to_float(self._weights[f"layers.{layer}.{linear}.lora_{side}"])[self.merge_row]
                for side in "ab"
            )
            merged = to_float(weight) + self.config.adapter_scale * (b_OR @ a_RI)
            # In 8 bits the adapter would be lost: it moves a weight by less than their last one.
            # Others keep their type: in float32 the model would outgrow its file.
            return merged if isinstance(weight, Int8Matrix) else merged.astype(weight.dtype)
        return weight


# A row that is not finite is found, and named, when its vector is made.
@np.errstate(invalid="ignore", over="ignore")
def embed_tokens(batch: Batch, weights: Weights, config: ModelConfig) -> Float32[np.ndarray, "T D"]:
    """Token rows plus type row plus each text's adapter, normalised: what the first block reads."""
    x = _rows(weights["embeddings.word.weight"], batch.token_ids)
    x += _rows(weights["embeddings.token_type.weight"], np.zeros(1, np.int32))
    rows = np.repeat(batch.adapter_ids, batch.lengths)
    for row in set(batch.adapter_ids.tolist()) - {-1}:
        mine = np.flatnonzero(rows == row)
        for name, ids in (("word", batch.token_ids[mine]), ("token_type", np.zeros_like(mine))):
            a_AVR, b_ARD = (weights[f"embeddings.{name}.lora_{side}"] for side in "ab")
            assert isinstance(a_AVR, np.ndarray) and isinstance(b_ARD, np.ndarray)
            low_TR, up_RD = to_float(a_AVR[row][ids]), to_float(b_ARD[row])
            x[mine] += np.einsum("tr,rd->td", config.adapter_scale * low_TR, up_RD)
    x -= x.mean(1, keepdims=True)
    x /= np.sqrt(np.square(x).mean(1, keepdims=True) + np.float32(config.layer_norm_eps))
    x *= to_float(weights["embeddings.norm.weight"])
    x += to_float(weights["embeddings.norm.bias"])
    return x


def attention_inputs(batch: Batch, head_width: int, rope_base: float) -> dict[str, np.ndarray]:
    """The graph's inputs that depend on lengths alone, by name (see `build_layers`)."""
    starts, longest = batch.starts, int(batch.lengths.max())
    positions = np.arange(len(batch.token_ids)) - np.repeat(starts, batch.lengths)
    turns = np.tile(rope_base ** (-np.arange(0, head_width, 2) / head_width), 2)
    angles = (positions[:, None, None, None] * turns).astype(np.float32)
    places = np.arange(longest)
    inside = places < batch.lengths[:, None]
    # Past its end a text repeats its own last token: a NaN must not reach another text.
    last = np.minimum(places, batch.lengths[:, None] - 1)
    back = np.repeat(np.arange(len(starts)) * longest, batch.lengths) + positions
    return {
        "cos": np.cos(angles),
        "sin": np.sin(angles),
        "rectangle": (starts[:, None] + last).astype(np.int32),
        "bias": np.where(inside, np.float32(0), np.float32(-np.inf))[:, None, None, :],
        "back": back.astype(np.int32),
    }


def adapter_mask(batch: Batch, config: ModelConfig) -> Float32[np.ndarray, "T C"]:
    """The adapter scale in the columns of each token's own adapter, zeros elsewhere."""
    mask = np.zeros((len(batch.adapter_ids), count_columns(config)), np.float32)
    owners = np.repeat(np.arange(len(config.tasks)), config.adapter_rank)
    mask[:, : len(owners)] = np.where(batch.adapter_ids[:, None] == owners, config.adapter_scale, 0)
    return np.repeat(mask, batch.lengths, axis=0)


def _rows(matrix: np.ndarray | Int8Matrix, ids: Int32[np.ndarray, " T"]) -> np.ndarray:
    """Some rows of a stored matrix as a new float32 array; the rest is never read."""
    if isinstance(matrix, Int8Matrix):
        return matrix.values[ids] * matrix.scales[ids, None]
    return matrix[ids].astype(np.float32)


def _is_int8(weights: Weights) -> bool:
    """Whether the matrices that texts are multiplied with are stored in 8 bits."""
    return isinstance(weights["layers.0.up.weight"], Int8Matrix)


def _has_vnni() -> bool:
    """Whether the CPU is known to multiply 8-bit integers (AVX-512 VNNI or AVX-VNNI)."""
    info = Path("/proc/cpuinfo")
    return info.exists() and not {"avx512_vnni", "avx_vnni"}.isdisjoint(info.read_text().split())


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


DTYPES: Mapping[np.dtype, ov.Type] = {
    np.dtype(np.float32): ov.Type.f32,
    np.dtype(np.float16): ov.Type.f16,
    np.dtype(ml_dtypes.bfloat16): ov.Type.bf16,
    np.dtype(np.int32): ov.Type.i32,
    np.dtype(np.int8): ov.Type.i8,
}


def _share(array: np.ndarray) -> ov.Tensor:
    """The array as a tensor over the same memory, which may be read-only."""
    contiguous = np.ascontiguousarray(array)
    kind = DTYPES[array.dtype]
    # OpenVINO does not know numpy's bfloat16, only its bits.
    bits = contiguous.view(np.uint16) if kind == ov.Type.bf16 else contiguous
    return ov.Tensor(bits, list(array.shape), kind)
