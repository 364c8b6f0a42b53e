"""Tokens per second of polyvec and other libraries, at full size, on one machine in one run.

1. `python -m benchmarks.size` writes the model: build/full.
2. `python -m benchmarks.speed` times every library in its own process, and the matrix products of
   the machine as well. It takes about half an hour on two cores.

Results are added to FOLDER/speed.json one by one, so a run that was stopped can be resumed.
`--fresh` starts again. `--folder build/short` with a model of few layers is for trials.
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
"""bf16 is not timed on a processor without it, where emulation is ten times as slow."""

OURS = (POLYVEC, "polyvec, five tasks mixed", "polyvec, one task merged")
INT8 = "polyvec, int8 weights"
FLOAT32 = "transformers float32"
ONNX = ("ONNX Runtime float32", "ONNX Runtime dynamic int8")
NAMES = (*OURS, INT8, FLOAT32, BF16, *ONNX)
MIXING = "mixing"
"""The step that times a batch of five tasks and merged weights in turn. The ratio of two separate
runs would depend on the other load of the machine."""

MIXING_ROUNDS = 15

LONG_CORPUS = "1 x 8192"
"""One text takes minutes, so only polyvec and transformers float32 are timed on it."""

MAX_REPEATS, MAX_SECONDS = 3, 120
"""Repetitions of each measurement, of which the best counts, and when to stop repeating."""


def main(
    folder: Path = Path("build/full"),
    threads: int = 2,
    texts: int = 128,
    fresh: bool = False,
    peer: str | None = None,
) -> None:
    """Time all libraries (or, with `peer`, one) and write the tables of docs/performance.md."""
    if peer is not None:
        time_peer(folder, threads, texts, peer)
        return
    results = folder / "speed.json"
    if fresh:
        results.unlink(missing_ok=True)
    # The export needs most memory. It runs late, so that earlier results are kept if it fails.
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
    """Time one library on each corpus that is not in FOLDER/speed.json, and add the results."""
    results = folder / "speed.json"
    speeds = json.loads(results.read_text()) if results.exists() else {}
    own = speeds.setdefault(name, {})

    def record(what: str, value: float) -> None:
        own[what] = value
        results.write_text(json.dumps(speeds, indent=1))
        sys.stdout.write(f"{name} | {what} | {value:.4g}\n")
        sys.stdout.flush()

    if name == "roof":
        if not own:
            for precision, flops in measure_roofs(threads).items():
                record(precision, flops)
        return
    from benchmarks.peers import PEERS, export_onnx

    if name == "export":
        export_onnx(folder)
        return
    config, _ = load_checkpoint(folder)
    if name == MIXING:
        if not own:
            ids = make_ids(make_corpora(num_texts)["8 x 128"], config.vocab_size)
            for peer, share in time_mixing({p: PEERS[p](folder, threads) for p in OURS}, ids):
                record(peer, share)
        return
    embed = None
    for corpus, lengths in make_corpora(num_texts).items():
        selected = corpus != LONG_CORPUS or name in (POLYVEC, INT8, FLOAT32)
        if corpus in own or not selected:
            continue
        embed = embed or PEERS[name](folder, threads)
        ids = make_ids(lengths, config.vocab_size)
        embed([ids[0][:16]])
        seconds = []
        while len(seconds) < MAX_REPEATS and sum(seconds) < MAX_SECONDS:
            start = time.perf_counter()
            embed(ids)
            seconds.append(time.perf_counter() - start)
        record(corpus, sum(lengths) / min(seconds))


def time_mixing(
    embeds: dict[str, Callable[[list[list[int]]], np.ndarray]], ids: list[list[int]]
) -> list[tuple[str, float]]:
    """Return the speed of each function relative to the last one's, the median over rounds."""
    seconds = np.empty((MIXING_ROUNDS, len(embeds)))
    for embed in embeds.values():
        embed(ids)
    for turn in range(MIXING_ROUNDS):
        for number, embed in enumerate(embeds.values()):
            start = time.perf_counter()
            embed(ids)
            seconds[turn, number] = time.perf_counter() - start
    return [*zip(embeds, np.median(seconds[:, -1:] / seconds, axis=0).tolist(), strict=True)]


def measure_roofs(threads: int) -> dict[str, float]:
    """Return FLOP/s of a large matrix product in each precision that the CPU has.

    The faster of OpenVINO and PyTorch counts.
    """
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
        # The type stubs describe another class of this name.
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
    speeds: dict[str, dict[str, float]], layers: int, threads: int, num_texts: int
) -> str:
    """Return the tables of docs/performance.md, from the tokens per second of each peer."""
    config = replace(ModelConfig(), num_layers=layers)
    corpora = make_corpora(num_texts)
    rows = []
    for name in [name for name in NAMES if name in speeds]:
        row = [name]
        for corpus in corpora:
            speed = speeds[name].get(corpus)
            ratio = speeds[POLYVEC][corpus] / speed if speed else 0
            row.append(f"{speed:,.0f} ({ratio:.2f})" if speed else "")
        rows.append(row)
    ratios = [
        [f"{name}, relative to {FLOAT32}, on `mixed`", f"{speeds[name]['mixed'] / slowest:.2f}"]
        for name in (POLYVEC, INT8)
        if (slowest := speeds[FLOAT32]["mixed"])
    ]
    roofs = [
        [f"matrix products of this machine in {name}", f"{flops / 1e9:.0f} GFLOP/s"]
        for name, flops in speeds["roof"].items()
    ]
    shares = []
    for corpus, lengths in corpora.items():
        flops = count_flops(config, lengths) / sum(lengths) * speeds[POLYVEC][corpus]
        share = flops / max(speeds["roof"].values())
        shares.append([f"{POLYVEC}, share of the fastest of these, on `{corpus}`", f"{share:.0%}"])
    mixing = f"{speeds[MIXING]['polyvec, five tasks mixed']:.0%}"
    versions = ("openvino", "torch", "transformers", "onnxruntime", "numpy")
    return "\n\n".join(
        [
            table(["tokens per second", *corpora], rows),
            table(
                ["measured in the same run", ""],
                [
                    *ratios,
                    *roofs,
                    *shares,
                    ["five tasks mixed, relative to one task merged, on `8 x 128`", mixing],
                ],
            ),
            f"{describe_machine(*versions)} "
            f"`python -m benchmarks.speed --threads {threads} --texts {num_texts}`",
        ]
    )


if __name__ == "__main__":
    tyro.cli(main)
