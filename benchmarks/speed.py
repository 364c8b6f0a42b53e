"""Tokens a second of polyvec and its peers, at full size, on one machine in one run.

1. `python -m benchmarks.size` writes the model: build/full.
2. `python -m benchmarks.speed` times every peer, each in a process of its own, and the machine's
   matrix products beside them; about half an hour on two cores.

Results gather in FOLDER/speed.json as they come, so a run that was stopped goes on where it was;
`--fresh` starts anew. `--folder build/short` with a model of few layers is for trying things out.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import tyro

from benchmarks.corpora import count_flops, make_corpora, make_ids
from benchmarks.report import describe_machine, table, write_section
from polyvec.checkpoint import load_checkpoint
from polyvec.config import ModelConfig

POLYVEC = "polyvec"

BF16, BF16_ROOF = "transformers bf16", "bf16"
"""A processor without bf16 would emulate it, an order of magnitude slower: it is not asked."""

OURS = (POLYVEC, "polyvec, five tasks mixed", "polyvec, one task merged")
INT8 = "polyvec, int8 weights"
FLOAT32 = "transformers float32"
ONNX = ("ONNX Runtime float32", "ONNX Runtime dynamic int8")
NAMES = (*OURS, INT8, FLOAT32, BF16, *ONNX)
MIXING = "mixing"
"""The step that times a batch of five tasks and merged weights in turns, since a ratio of two runs
minutes apart is at the mercy of what else the machine did."""

ROUNDS = 15
"""Turns of it."""

ONLY_POLYVEC = "1 x 8192"
"""Minutes for one text, so only polyvec and transformers float32 are asked for it."""


def main(
    folder: Path = Path("build/full"),
    threads: int = 2,
    texts: int = 128,
    fresh: bool = False,
    peer: str | None = None,
) -> None:
    """Time everyone (or, with `peer`, one) and write the section of docs/performance.md."""
    if peer is not None:
        time_peer(folder, threads, texts, peer)
        return
    results = folder / "speed.json"
    if fresh:
        results.unlink(missing_ok=True)
    # The export comes late: it needs most memory, and what is timed before it is kept.
    for name in ("roof", *OURS, MIXING, INT8, FLOAT32, BF16, "export", *ONNX):
        if name == BF16 and BF16_ROOF not in json.loads(results.read_text())["roof"]:
            continue
        command = [sys.executable, "-m", "benchmarks.speed", "--peer", name]
        sizes = ["--folder", str(folder), "--threads", str(threads), "--texts", str(texts)]
        subprocess.run(command + sizes, check=True)
    config, _ = load_checkpoint(folder)
    body = make_report(json.loads(results.read_text()), config.num_layers, threads, texts)
    sys.stdout.write(body + "\n")
    if config.num_layers == 24:
        write_section("speed", body)


def time_peer(folder: Path, threads: int, num_texts: int, name: str) -> None:
    """Time one peer on each corpus, and add what is not there yet to FOLDER/speed.json."""
    results = folder / "speed.json"
    found = json.loads(results.read_text()) if results.exists() else {}
    mine = found.setdefault(name, {})

    def record(what: str, value: float) -> None:
        mine[what] = value
        results.write_text(json.dumps(found, indent=1))
        sys.stdout.write(f"{name} | {what} | {value:.4g}\n")
        sys.stdout.flush()

    if name == "roof":
        if not mine:
            for precision, flops in measure_roofs(threads).items():
                record(precision, flops)
        return
    from benchmarks.peers import PEERS, export_onnx

    if name == "export":
        export_onnx(folder)
        return
    config, _ = load_checkpoint(folder)
    if name == MIXING:
        if not mine:
            ids = make_ids(make_corpora(num_texts)["8 x 128"], config.vocab_size)
            for peer, share in time_mixing({p: PEERS[p](folder, threads) for p in OURS}, ids):
                record(peer, share)
        return
    embed = None
    for corpus, lengths in make_corpora(num_texts).items():
        asked = corpus != ONLY_POLYVEC or name in (POLYVEC, INT8, FLOAT32)
        if corpus in mine or not asked:
            continue
        embed = embed or PEERS[name](folder, threads)
        ids = make_ids(lengths, config.vocab_size)
        embed([ids[0][:16]])
        seconds = []
        # The best of three, or one where that takes minutes.
        while len(seconds) < 3 and sum(seconds) < 120:
            start = time.perf_counter()
            embed(ids)
            seconds.append(time.perf_counter() - start)
        record(corpus, sum(lengths) / min(seconds))


def time_mixing(
    embeds: dict[str, Callable[[list[list[int]]], np.ndarray]], ids: list[list[int]]
) -> list[tuple[str, float]]:
    """Each peer's speed as a share of the last one's: medians over turns."""
    seconds = np.empty((ROUNDS, len(embeds)))
    for embed in embeds.values():
        embed(ids)
    for turn in range(ROUNDS):
        for number, embed in enumerate(embeds.values()):
            start = time.perf_counter()
            embed(ids)
            seconds[turn, number] = time.perf_counter() - start
    return [*zip(embeds, np.median(seconds[:, -1:] / seconds, axis=0).tolist(), strict=True)]


def measure_roofs(threads: int) -> dict[str, float]:
    """FLOP/s of a large matrix product by the best library here, in each precision the CPU has."""
    import openvino as ov
    import torch
    from openvino import opset13 as ops

    torch.set_num_threads(threads)
    tokens, inputs, outputs, repeats = 2048, 1024, 4096, 8
    x = np.random.default_rng(0).standard_normal((tokens, inputs), np.float32)
    weights = np.random.default_rng(1).standard_normal((repeats, outputs, inputs), np.float32)
    core = ov.Core()
    kinds = {"float32": ("f32", torch.float32)}
    if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        kinds[BF16_ROOF] = ("bf16", torch.bfloat16)

    def best(run: Callable[[], object]) -> float:
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        return repeats * 2 * tokens * inputs * outputs / min(seconds)

    roofs = {}
    for name, (hint, dtype) in kinds.items():
        node = ops.parameter([tokens, inputs], np.float32)
        products = [ops.matmul(node, ops.constant(weight), False, True) for weight in weights]
        settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
        # The stubs describe another class of this name.
        model = ov.Model(products, [node], "roof")  # pyright: ignore[reportGeneralTypeIssues]
        compiled = core.compile_model(model, "CPU", settings)
        request = compiled.create_infer_request()
        a, b = torch.tensor(x).to(dtype), torch.tensor(weights).to(dtype)
        roofs[name] = max(
            best(lambda request=request: request.infer([x], share_inputs=True)),
            best(lambda a=a, b=b: [a @ weight.T for weight in b]),
        )
    return roofs


def make_report(
    found: dict[str, dict[str, float]], layers: int, threads: int, num_texts: int
) -> str:
    """What docs/performance.md says of speed."""
    config = replace(ModelConfig(), num_layers=layers)
    corpora = make_corpora(num_texts)
    roof = max(found["roof"].values())
    rows = []
    for name in [name for name in NAMES if name in found]:
        row = [name]
        for corpus in corpora:
            speed = found[name].get(corpus)
            ratio = found[POLYVEC][corpus] / speed if speed else 0
            row.append(f"{speed:,.0f} ({ratio:.2f})" if speed else "")
        rows.append(row)
    shares = []
    for corpus, lengths in corpora.items():
        flops = count_flops(config, lengths) / sum(lengths) * found[POLYVEC][corpus]
        shares.append(f"{corpus}: {flops / roof:.0%}")
    times = " and ".join(
        f"{found[name]['mixed'] / found[FLOAT32]['mixed']:.2f} times ({name})"
        for name in (POLYVEC, INT8)
    )
    mixing = found[MIXING]["polyvec, five tasks mixed"]
    roofs = ", ".join(f"{name} {flops / 1e9:.0f} GFLOP/s" for name, flops in found["roof"].items())
    versions = ("openvino", "torch", "transformers", "onnxruntime", "numpy")
    return "\n\n".join(
        [
            "## Speed",
            f"Tokens a second of a full-width model of {layers} layers, threads: {threads}, and "
            "in brackets how many times that polyvec reaches. Tokens are counted without padding, "
            "and tokenising is left out for all. Peers: batches of 32 sorted by length and padded, "
            f"no adapters. `mixed`: {num_texts} texts of log-normal length, median 60 tokens, up "
            "to 1,024.",
            table(["", *corpora], rows),
            f"On `mixed`, polyvec reaches {times} the speed of {FLOAT32}.",
            f"Matrix-product roof of this machine, measured in the same run: {roofs}. polyvec's "
            f"share of the highest, end to end: {', '.join(shares)}.",
            f"A batch that mixes all five tasks runs at {mixing:.0%} of the speed of one task "
            f"merged into the weights (on `8 x 128`; the median of {ROUNDS} pairs, in turns).",
            f"{describe_machine(*versions)} "
            f"`python -m benchmarks.speed --threads {threads} --texts {num_texts}`",
        ]
    )


if __name__ == "__main__":
    tyro.cli(main)
