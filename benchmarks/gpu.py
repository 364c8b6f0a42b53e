"""Tokens per second of encoding and training on one CUDA GPU, compared with transformers.

    python -m benchmarks.gpu --compile --write     # two minutes on an H100, half of it compilation
    python -m benchmarks.gpu --parts encode        # or train
    python -m benchmarks.gpu --small --device cpu  # a trial

The models have random weights. Texts are on the GPU, packed or padded, before the measurement, so
that it includes only the network and the mean of each text. The roof is the speed of a large matrix
product. Every number is a median, and every row is printed as soon as it is known.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.corpora import count_flops, make_corpora, make_ids
from benchmarks.report import describe_machine, table, write_section
from polyvec.batch import make_batch, pack
from polyvec.config import ModelConfig, config_to_json
from polyvec.network import Network, pool
from polyvec.train.objectives import contrast, distillation

FULL = ModelConfig()
SMALLER = {"vocab_size": 104_000, "width": 384, "num_layers": 12, "num_heads": 12}
TINIER = {"vocab_size": 500, "width": 64, "num_layers": 2, "num_heads": 4}
MINI = replace(FULL, **SMALLER, ffn_width=1536, dims=(32, 64, 128, 256, 384))
TINY = replace(FULL, **TINIER, ffn_width=128, dims=(32, 64))

MIXED = make_corpora(2048)["mixed"]
CORPORA = {"mixed": MIXED, "128 x 128": [128] * 128, "8 x 8192": [8192] * 8}
"""Name -> the lengths of its texts."""

TRAINING = {"contrast": (FULL, 32_768), "distillation": (MINI, 65_536)}
"""Stage -> the model, and the approximate number of tokens per step."""

BATCH_TOKENS = 65_536
"""Tokens of a packed batch, as in the engine on CUDA."""

PADDED = (32, 256)
"""Texts in a padded batch: the default of sentence-transformers, and more for a large GPU."""

WARMUP, REPEATS = 2, 5
PARTS = ["encode", "train"]

Corpora = dict[str, list[int]]
Texts = list[list[int]]
Run = Callable[[], object]
Row = list[str]


def main() -> None:
    """Measure the chosen parts and print them; with --write, write the section of the page."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--compile", action="store_true", help="also time compiled blocks")
    parser.add_argument("--write", action="store_true", help="write the section of the page")
    parser.add_argument("--small", action="store_true", help="tiny sizes, for a trial")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    device = torch.device(options.device)
    full, corpora, training = FULL, CORPORA, TRAINING
    if options.small:
        full, corpora = TINY, {"mixed": MIXED[:4], "2 x 64": [64] * 2}
        training = dict.fromkeys(TRAINING, (TINY, 512))
    roof = measure_roof(device, 256 if options.small else 8192)
    say(["roof", f"{roof / 1e12:.3g} TFLOP/s"])
    sections = []
    if "encode" in options.parts:
        rows = [*time_encoding(full, corpora, device, roof, options.compile)]
        sections.append(table(["tokens per second", *corpora], rows))
    if "train" in options.parts:
        rows = []
        for stage, (config, tokens) in training.items():
            rows += time_training(stage, config, tokens, device, roof, options.compile)
        header = ["stage", "blocks", "model", "tokens a step", "tokens/s", "of the roof", "memory"]
        sections.append(table(header, rows))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "No GPU"
    roofs = f"{name}: a bf16 product of 8,192 x 8,192 matrices runs at {roof / 1e12:.0f} TFLOP/s."
    machine = describe_machine("torch", "transformers", "numpy")
    command = f"`python -m benchmarks.gpu{' --compile' if options.compile else ''}`"
    body = "\n\n".join([roofs, *sections, f"{machine} {command}"])
    sys.stdout.write(f"\n{body}\n")
    if options.write:
        write_section("gpu", body)


def say(row: Row) -> Row:
    """Print a row at once, and return it."""
    sys.stdout.write(" | ".join(row) + "\n")
    sys.stdout.flush()
    return row


def time_run(run: Run, device: torch.device) -> float:
    """Seconds of one `run`, including the device's work."""
    wait = torch.cuda.synchronize if device.type == "cuda" else bool
    wait()
    began = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - began


def time_runs(run: Run, device: torch.device, repeats: int = REPEATS) -> float:
    """Median seconds of `run`, after a warm-up."""
    return median([time_run(run, device) for _ in range(WARMUP + repeats)][WARMUP:])


def measure_roof(device: torch.device, size: int) -> float:
    """FLOP/s of a large bf16 matrix product."""
    a, b = torch.randn(2, size, size, device=device).to(torch.bfloat16)
    return 2 * size**3 / time_runs(lambda: a @ b, device, repeats=20)


def time_encoding(
    config: ModelConfig, corpora: Corpora, device: torch.device, roof: float, compiled: bool
) -> Iterator[Row]:
    """One row for every way to encode."""
    ids = {name: make_ids(lengths, config.vocab_size) for name, lengths in corpora.items()}
    first: dict[str, float] = {}

    @torch.inference_mode()
    def row_of(name: str, prepare: Callable[[Texts], Run]) -> Row:
        row = [name]
        for corpus, texts in ids.items():
            tokens = sum(corpora[corpus])
            speed = tokens / time_runs(prepare(texts), device)
            ratio = first.setdefault(corpus, speed) / speed
            share = count_flops(config, corpora[corpus]) / tokens * speed / roof
            row.append(f"{speed:,.0f} ({ratio:.2f}; {share:.0%})")
        return say(row)

    with device:
        network = Network(config)
    network.to(torch.bfloat16).eval().requires_grad_(False)
    for blocks in ("plain", "compiled") if compiled else ("plain",):
        for layer in network.layers if blocks == "compiled" else ():
            layer.compile(dynamic=True)
        for tasks, ids_of in {"no task": [-1], "five tasks mixed": [0, 1, 2, 3, 4]}.items():
            name = f"polyvec, {tasks}, {blocks} blocks"
            yield row_of(name, lambda texts, ids_of=ids_of: encode_packed(network, texts, ids_of))
    peer = load_peer(config, device)
    for size in PADDED:
        name = f"transformers, batches of {size}"
        yield row_of(name, lambda texts, size=size: encode_padded(peer, texts, size))


def encode_packed(network: Network, texts: Texts, adapter_ids: list[int]) -> Run:
    """Encode packed batches. The texts have the adapters in turn."""
    device, batches = network.embeddings.word.weight.device, []
    for members in pack([len(text) for text in texts], BATCH_TOKENS):
        adapters = [adapter_ids[i % len(adapter_ids)] for i in members]
        batch = make_batch([texts[i] for i in members], adapters)
        arrays = (batch.token_ids, batch.lengths, batch.adapter_ids, batch.starts, batch.ends)
        batches.append([torch.from_numpy(array).long().to(device) for array in arrays])
    return lambda: [pool(network(*batch[:3]), *batch[3:]) for batch in batches]


def load_peer(config: ModelConfig, device: torch.device) -> nn.Module:
    """The class of transformers with the same shape, in bf16."""
    # The import takes seconds, and training does not need it.
    from transformers import AutoModel, JinaEmbeddingsV3Config

    shape = JinaEmbeddingsV3Config.from_dict(config_to_json(config))
    with device:
        model = AutoModel.from_config(shape, dtype=torch.bfloat16, attn_implementation="sdpa")
    return model.to(device).eval().requires_grad_(False)


def encode_padded(model: nn.Module, texts: Texts, size: int) -> Run:
    """Encode batches of `size` texts, sorted by length and padded, as in sentence-transformers."""
    device, batches = next(model.parameters()).device, []
    order = sorted(map(torch.tensor, texts), key=len, reverse=True)
    for first in range(0, len(order), size):
        members = order[first : first + size]
        ids = nn.utils.rnn.pad_sequence(members, batch_first=True, padding_value=1).to(device)
        batches.append((ids, (ids != 1).long()))

    def mean(ids: Tensor, mask: Tensor) -> Tensor:
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        return (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)

    return lambda: [mean(*batch) for batch in batches]


def time_training(
    stage: str, config: ModelConfig, tokens: int, device: torch.device, roof: float, compiled: bool
) -> Iterator[Row]:
    """One row for plain blocks, and one for compiled blocks."""
    steps = WARMUP + REPEATS
    pairs = tokens // int(np.mean(MIXED)) // 2
    lengths = np.resize(MIXED, (steps, 2, pairs))
    ids = make_ids(lengths.swapaxes(0, 1).ravel().tolist(), config.vocab_size)
    texts = [np.array(text, np.int32) for text in ids]
    left, right = texts[: len(texts) // 2], texts[len(texts) // 2 :]
    number = np.arange(len(left))
    plan = np.split(number, steps)
    with device:
        network = Network(config)
    network.precision = torch.bfloat16
    if stage == "contrast":
        step_fn = contrast(network, left, right, number, plan)
    else:
        teachers = F.normalize(torch.randn(len(left), config.width), dim=-1).numpy()
        both = [np.append(rows, rows + len(left)) for rows in plan]
        step_fn = distillation(network, texts, np.tile(number, 2), teachers, both)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)

    def update(step: int) -> None:
        step_fn(step)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for blocks in ("plain", "compiled") if compiled else ("plain",):
        for layer in network.layers if blocks == "compiled" else ():
            layer.compile(dynamic=True)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = [time_run(lambda step=step: update(step), device) for step in range(steps)]
        timed = [*zip(lengths.reshape(steps, -1).tolist(), seconds, strict=True)][WARMUP:]
        speed = median(sum(own) / spent for own, spent in timed)
        share = median(3 * count_flops(config, own) / spent / roof for own, spent in timed)
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        shape = f"{config.num_layers} layers, width {config.width}"
        numbers = [f"{lengths.sum() // steps:,}", f"{speed:,.0f}", f"{share:.0%}"]
        yield say([stage, blocks, shape, *numbers, f"{peak / 1e9:.0f} GB"])


if __name__ == "__main__":
    main()
