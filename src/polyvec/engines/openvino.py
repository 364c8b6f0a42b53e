"""The CPU engine: OpenVINO, without PyTorch.

A batch goes through three steps:

1. Texts of similar length form groups (`batch.split_by_length`). This bounds the padding inside
   attention and the size of the activations.
2. numpy gathers each group's rows of the token table and of their adapters, and normalises them.
   The token table, half of the model, therefore remains memory-mapped on disk, in the type in
   which it is stored.
3. The blocks run (`openvino_graph`), and each group's hidden states return to their places.

The blocks' weights reach the plugin in one of two ways. As *inputs*, one compiled block serves
every layer, start-up takes a fraction of a second, and memory holds one float32 copy of the
weights (none if the file is float32 already). As *constants* ("prepacked"), the plugin also keeps
its own packed copy, which it needs for bf16 and int8.

Axes in this file: T tokens in the batch, B texts, L the longest text, S spans, D width,
K head width, A adapters, R rank, V vocabulary, C columns of low-rank values.
"""

import os
import threading
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
from jaxtyping import Float32, Int32

from polyvec.batch import Batch, select, split_by_length
from polyvec.checkpoint import Int8Matrix, Weight, Weights, gather_rows, release_pages, to_float
from polyvec.config import ModelConfig
from polyvec.engines import check_adapters
from polyvec.engines.openvino_graph import (
    LINEARS,
    build_layers,
    count_columns,
    layer_names,
    make_input,
)
from polyvec.engines.openvino_import import ops, ov
from polyvec.pooling import pool_spans
from polyvec.tasks import NO_ADAPTER

MAX_GROUP_TOKENS = 4_096
"""Matrix products of this many tokens run at full speed; more would only cost memory."""

MAX_CACHED_KERNELS = 200
"""Kernels that each prepacked graph keeps for batch shapes that occur again. OpenVINO's default
of 5,000 fills a gigabyte as a server receives texts of ever new lengths. With this limit memory
levels off, and speed does not change measurably."""

ACTIVATION_GROUP_SIZE, WIDE_ACTIVATION_GROUP_SIZE, WIDE_MODEL_WIDTH = 32, 128, 1_024
"""Values of a token that share a scale when activations are rounded to 8 bits. Small groups are
more exact. They cost nothing in narrow models, but a fifth of the speed in models that are at least
`WIDE_MODEL_WIDTH` wide."""

LAYERS_PER_GRAPH = 4
"""Prepacked blocks compile in pieces, so that memory holds only two pieces twice at a time."""


ENGINES: "weakref.WeakSet[OpenVINOEngine]" = weakref.WeakSet()
"""The engines of this process."""


class OpenVINOEngine:
    """Runs batches on the CPU.

    The hidden states of a text do not depend on the other texts of the batch, except for floating
    point rounding.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        *,
        precision: Literal["auto", "float32"] = "auto",
        num_threads: int | None = None,
        prepack: bool | None = None,
        merge_adapter: int | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        """Compile the blocks.

        `precision` "auto" computes matrix products in bf16 if the CPU supports it, and those of
        int8 weights in int8. In both cases `prepack` is the default. In other cases it makes texts
        of a few tokens up to a third faster for twice the memory, and keeps int8 weights in int8.
        `merge_adapter` is an index: that adapter is added to the weights, for an engine whose texts
        all use it. Texts with other adapters then raise ValueError. `cache_dir` keeps the compiled
        graphs for the next start, including the weights if they are prepacked; a folder that cannot
        be written is ignored.
        """
        core = ov.Core()
        has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        bf16 = precision == "auto" and has_bf16
        int8 = precision == "auto" and _is_int8(weights) and (has_bf16 or _has_vnni())
        self.config = config
        self._bf16 = bf16
        self.rope_base = config.rope_base
        """Base of the rotary angles: 10,000 in training, the config's when encoding."""
        self.merge_adapter = merge_adapter
        self.batch_tokens = 4 * MAX_GROUP_TOKENS
        self._weights = weights
        self._lock = threading.Lock()
        is_wide = config.width >= WIDE_MODEL_WIDTH
        group_size = WIDE_ACTIVATION_GROUP_SIZE if is_wide else ACTIVATION_GROUP_SIZE
        properties: dict[str, object] = {
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            # 0 means that activations are not quantised.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": group_size if int8 else 0,
        }
        if num_threads is not None:
            properties["INFERENCE_NUM_THREADS"] = num_threads
        if cache_dir is not None and _is_writable(cache_dir):
            properties["CACHE_DIR"] = str(cache_dir)
        adapters = merge_adapter is None and len(config.tasks) > 0
        if bf16 or int8 if prepack is None else prepack:
            self._steps = self._compile_constants(core, properties, adapters)
        else:
            self._steps = self._compile_inputs(core, properties, adapters)
        ENGINES.add(self)

    def hidden(self, batch: Batch) -> Float32[np.ndarray, "T D"]:
        """The hidden state of every token, in the order of the batch."""
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

    def hidden_and_pool(
        self, batch: Batch, starts: Int32[np.ndarray, " S"], ends: Int32[np.ndarray, " S"]
    ) -> tuple[Float32[np.ndarray, "T D"], Float32[np.ndarray, "S D"]]:
        """The results of `hidden` and `pool`, from one forward pass."""
        hidden = self.hidden(batch)
        return hidden, pool_spans(hidden, starts, ends)

    def _run(self, batch: Batch) -> Float32[np.ndarray, "T D"]:
        if self.merge_adapter is not None:
            check_adapters(batch, self.merge_adapter)
        arrays = attention_inputs(batch, self.config.head_width, self.rope_base)
        if self.merge_adapter is None and self.config.tasks:
            arrays["mask"] = adapter_mask(batch, self.config)
        inputs = {name: _share(array) for name, array in arrays.items()}
        embedded = embed_tokens(batch, self._weights, self.config)
        x = _share(embedded)
        # Requests own their buffers, so two concurrent batches must take turns.
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
        """The requests of one compiled block, with the weights of every layer in turn."""
        names = layer_names(adapters=adapters)
        layers = []
        for layer in range(self.config.num_layers):
            layers.append({name: to_float(self._layer_weight(layer, name)) for name in names})
            release_pages(self._weights.values())
        parameters = {name: make_input(name, list(layers[0][name].shape)) for name in names}
        model = build_layers(
            self.config, [parameters.__getitem__], list(parameters.values()), adapters=adapters
        )
        # With inputs the plugin would keep kernels for thousands of batch shapes, megabytes each.
        # oneDNN below it keeps those of the last thousand products, so a capacity of 1 costs no
        # speed. With 0, the plugin would store the scores of attention: per head, the square of
        # the length of the longest text.
        compiled = core.compile_model(model, "CPU", properties | {"CPU_RUNTIME_CACHE_CAPACITY": 1})
        # Two requests take turns, because a block must not write where it reads.
        requests = [compiled.create_infer_request() for _ in range(2)]
        return [
            (requests[layer % 2], {name: _share(array) for name, array in weights.items()})
            for layer, weights in enumerate(layers)
        ]

    def _compile_constants(
        self, core: ov.Core, properties: dict[str, object], adapters: bool
    ) -> list[tuple[ov.InferRequest, dict[str, ov.Tensor]]]:
        """The requests of all blocks, which contain their weights in the type of the file."""
        properties = properties | {"CPU_RUNTIME_CACHE_CAPACITY": MAX_CACHED_KERNELS}
        numbers = range(self.config.num_layers)
        widen = not _is_int8(self._weights)

        def compile_from(first: int) -> tuple[ov.InferRequest, dict[str, ov.Tensor]]:
            layers = [
                lambda name, layer=layer: self._constant(layer, name)
                for layer in numbers[first : first + LAYERS_PER_GRAPH]
            ]
            model = build_layers(self.config, layers, [], adapters=adapters, widen=widen)
            compiled = core.compile_model(model, "CPU", properties)
            # The plugin has packed the weights. If it needs them again, it reads the file again.
            release_pages(self._weights.values())
            return compiled.create_infer_request(), {}

        # Most of compiling runs on one core, so two pieces take little more time than one.
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(compile_from, numbers[::LAYERS_PER_GRAPH]))

    def _constant(self, layer: int, name: str) -> ov.Node:
        """A graph node of a block's weight, in the type in which it is stored."""
        weight = self._layer_weight(layer, name)
        # A constant does not keep shared memory alive, so only arrays that `_weights` holds may be
        # shared. They are most of the model, and they remain the file's memory map.
        shared = weight is self._weights.get(f"layers.{layer}.{name}")
        if isinstance(weight, Int8Matrix):
            values = ops.constant(_share(weight.values), shared_memory=shared)
            return ops.multiply(ops.convert(values, "f32"), ops.constant(weight.scales[:, None]))
        constant = ops.constant(_share(weight), shared_memory=shared)
        # A matrix that is converted here would remain in memory as float32 beside its packed copy.
        linear = name.split(".")[0] in LINEARS
        as_it_is = self._bf16 and linear and weight.dtype == ml_dtypes.bfloat16
        return constant if as_it_is else ops.convert(constant, "f32")

    def _layer_weight(self, layer: int, name: str) -> Weight:
        """A block's weight in the shape that the graph needs; `merge_adapter` is added to it."""
        linear, part = name.rsplit(".", 1)
        columns = count_columns(self.config)
        if part == "wide":
            stored = self._layer_weight(layer, f"{linear}.weight")
            weight = stored if isinstance(stored, np.ndarray) else to_float(stored)
            up = self._layer_weight(layer, f"{linear}.lora_b")
            assert isinstance(up, np.ndarray)
            return np.concatenate([weight, up.astype(np.promote_types(weight.dtype, up.dtype))], 1)
        weight = self._weights[f"layers.{layer}.{name}"]
        if part in ("lora_a", "lora_b"):
            # Adapters are never quantised.
            assert isinstance(weight, np.ndarray)
            if part == "lora_a":
                flat_CI = weight.reshape(-1, weight.shape[-1])
                return np.pad(flat_CI, ((0, columns - len(flat_CI)), (0, 0)))
            flat_OC = np.moveaxis(weight, 0, 1).reshape(weight.shape[1], -1)
            return np.pad(flat_OC, ((0, 0), (0, columns - flat_OC.shape[1])))
        if part == "weight" and linear in LINEARS and self.merge_adapter is not None:
            a_RI, b_OR = (
                to_float(self._weights[f"layers.{layer}.{linear}.lora_{side}"])[self.merge_adapter]
                for side in "ab"
            )
            merged = to_float(weight) + self.config.adapter_scale * (b_OR @ a_RI)
            # A quantised weight becomes float32: in 8 bits the adapter would be lost, because it
            # changes a weight by less than one step. Other weights keep their type: in float32 the
            # model would take more memory than its file.
            return merged.astype(weight.dtype) if isinstance(weight, np.ndarray) else merged
        return weight


def _pause_engines() -> None:
    """Wait until no engine runs. In a forked child, the requests of a running one stay busy."""
    FORKING.acquire()
    PAUSED.extend(ENGINES)
    for engine in PAUSED:
        engine._lock.acquire()


def _resume_engines() -> None:
    """Let the engines go on, in the parent and in the child of a fork."""
    while PAUSED:
        PAUSED.pop()._lock.release()
    FORKING.release()


FORKING = threading.Lock()
PAUSED: list[OpenVINOEngine] = []
"""The engines that wait for the fork of the thread that holds the lock."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_pause_engines, after_in_parent=_resume_engines, after_in_child=_resume_engines
    )


# A text that is not finite is found and named when its embedding is made.
@np.errstate(invalid="ignore", over="ignore")
def embed_tokens(batch: Batch, weights: Weights, config: ModelConfig) -> Float32[np.ndarray, "T D"]:
    """The input of the first block: token rows, type row and each text's adapter, normalised."""
    x = gather_rows(weights["embeddings.word.weight"], batch.token_ids)
    x += gather_rows(weights["embeddings.token_type.weight"], np.zeros(1, np.int32))
    token_adapters = np.repeat(batch.adapter_ids, batch.lengths)
    for adapter_id in set(batch.adapter_ids.tolist()) - {NO_ADAPTER}:
        own = np.flatnonzero(token_adapters == adapter_id)
        for name, ids in (("word", batch.token_ids[own]), ("token_type", np.zeros_like(own))):
            a_AVR, b_ARD = (weights[f"embeddings.{name}.lora_{side}"] for side in "ab")
            assert isinstance(a_AVR, np.ndarray) and isinstance(b_ARD, np.ndarray)
            low_TR, up_RD = to_float(a_AVR[adapter_id][ids]), to_float(b_ARD[adapter_id])
            x[own] += np.einsum("tr,rd->td", config.adapter_scale * low_TR, up_RD)
    x -= x.mean(1, keepdims=True)
    x /= np.sqrt(np.square(x).mean(1, keepdims=True) + np.float32(config.layer_norm_eps))
    x *= to_float(weights["embeddings.norm.weight"])
    x += to_float(weights["embeddings.norm.bias"])
    return x


def attention_inputs(batch: Batch, head_width: int, rope_base: float) -> dict[str, np.ndarray]:
    """The graph's inputs that depend only on the lengths, by name (see `build_layers`)."""
    starts, longest = batch.starts, int(batch.lengths.max())
    positions = np.arange(len(batch.token_ids)) - np.repeat(starts, batch.lengths)
    turns = np.tile(rope_base ** (-np.arange(0, head_width, 2) / head_width), 2)
    angles = (positions[:, None, None, None] * turns).astype(np.float32)
    places = np.arange(longest)
    inside = places < batch.lengths[:, None]
    # Beyond its end a text repeats its own last token, so that a NaN cannot reach another text.
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


def _is_int8(weights: Weights) -> bool:
    """Whether the blocks' matrices are stored in 8 bits."""
    return isinstance(weights["layers.0.up.weight"], Int8Matrix)


def _has_vnni() -> bool:
    """Whether the CPU has instructions for 8-bit products (AVX-512 VNNI or AVX-VNNI)."""
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
    """The array as an OpenVINO tensor that shares its memory, which may be read-only."""
    contiguous = np.ascontiguousarray(array)
    kind = DTYPES[array.dtype]
    # OpenVINO does not know numpy's bfloat16, only its bits.
    bits = contiguous.view(np.uint16) if kind == ov.Type.bf16 else contiguous
    return ov.Tensor(bits, list(array.shape), kind)
