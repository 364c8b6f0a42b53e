"""Tokens per second of stage 2, compared with sentence-transformers' trainer.

    python -m benchmarks.training            # ten minutes on two cores
    python -m benchmarks.training --steps 4  # a trial

Both train polyvec-mini's backbone without adapters, from the same weights, on the same texts in the
same batches: InfoNCE over the batch with temperature 0.05, AdamW, and no dropout. Padding does not
count as tokens. polyvec's time includes the tokenizer's, because sentence-transformers tokenises
during training. The two alternate for two rounds, and the better round counts.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmarks.report import describe_machine, table, write_section
from polyvec.checkpoint import load_checkpoint
from polyvec.export.sentence_transformers import save_sentence_transformer
from polyvec.model_folder import find_model
from polyvec.network import Network
from polyvec.tokenizer import Tokenizer
from polyvec.train.data.tokens import tokenise
from polyvec.train.loop import Settings, train
from polyvec.train.metrics import read_records
from polyvec.train.objectives import contrast

NOTES = Path(__file__).parent.parent / "examples" / "notes"
WARMUP_STEPS = 2
"""Steps before the measurement."""

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Task:
    """The task that both perform."""

    folder: Path
    """Folder of the model, for both."""

    left: list[str]
    """First texts of the pairs, in the order of training."""

    right: list[str]
    """Second texts of the pairs."""

    batch: int
    """Pairs per step."""

    precision: Precision
    """Number format of matrix products."""


def main(steps: int = 12, batch: int = 64, threads: int = 2, write: bool = True) -> None:
    """Time both in float32, and in bf16 if the processor supports it, and write the section."""
    torch.set_num_threads(threads)
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    precisions: list[Precision] = ["float32"]
    if "avx512_bf16" in flags or "amx_bf16" in flags:
        precisions.append("bfloat16")
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = write_model(Path(place) / "model")
        for kind, lengths in make_lengths(2 * batch * (WARMUP_STEPS + steps)).items():
            texts = make_texts(folder, lengths)
            left, right = texts[: len(texts) // 2], texts[len(texts) // 2 :]
            for precision in precisions:
                task = Task(folder, left, right, batch, precision)
                speeds: dict[str, list[float]] = {name: [] for name in PEERS}
                for _ in range(2):
                    for name, run in PEERS.items():
                        speeds[name].append(run(task))
                        sys.stdout.write(f"{kind} {precision} {name} {speeds[name][-1]:,.0f}\n")
                        sys.stdout.flush()
                ours, theirs = (max(rounds) for rounds in speeds.values())
                rows.append(
                    [kind, precision, f"{ours:,.0f}", f"{theirs:,.0f}", f"{ours / theirs:.2f}"]
                )
    header = ["lengths", "precision", *PEERS, "ratio"]
    body = "\n\n".join(
        [
            table(header, rows),
            f"{describe_machine('torch', 'transformers', 'sentence-transformers')} "
            f"`python -m benchmarks.training --batch {batch} --threads {threads}`",
        ]
    )
    sys.stdout.write(body + "\n")
    if write:
        write_section("training", body)


def write_model(folder: Path) -> Path:
    """Write polyvec-mini's backbone for sentence-transformers, without dropout."""
    source = find_model(None)
    config, weights = load_checkpoint(source)
    files = Tokenizer.load(source, config.max_tokens).files()
    save_sentence_transformer(folder, config, weights, "text-matching", files=files)
    shape = json.loads((folder / "config.json").read_text())
    shape |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(shape))
    return folder


def make_lengths(count: int) -> dict[str, list[int]]:
    """Number of tokens of each text, by the name of the distribution."""
    rng = np.random.default_rng(0)
    mixed = np.clip(rng.lognormal(3.3, 0.9, count), 4, 256).astype(int).tolist()
    return {"mixed": mixed, "equal": [64] * count}


def make_texts(folder: Path, lengths: list[int]) -> list[str]:
    """Parts of the notes, with about these numbers of tokens."""
    tokenizer = Tokenizer.load(folder, 512).core
    notes = [path.read_text() for path in sorted(NOTES.iterdir()) if path.is_file()]
    stream = tokenizer.encode("\n".join(notes)).ids
    rng = np.random.default_rng(1)
    starts = rng.integers(len(stream) - max(lengths), size=len(lengths))
    return [
        tokenizer.decode(stream[start : start + length - 2])
        for start, length in zip(starts, lengths, strict=True)
    ]


def train_polyvec(task: Task) -> float:
    """Tokens per second of `polyvec.train`."""
    config, weights = load_checkpoint(task.folder)
    network = Network(replace(config, dims=(config.width,)))
    network.load_state_dict(
        {name: torch.tensor(weights[name], dtype=torch.float32) for name in network.state_dict()}
    )
    network.precision = torch.float32 if task.precision == "float32" else torch.bfloat16
    tokenizer = Tokenizer.load(task.folder, config.max_tokens).core
    began = time.perf_counter()
    left, right = (
        tokenise(tokenizer, texts, max_tokens=config.max_tokens)
        for texts in (task.left, task.right)
    )
    tokenising = time.perf_counter() - began
    plan = np.split(np.arange(len(left)), len(left) // task.batch)
    step_fn = contrast(network, left, right, np.arange(len(left)), plan)
    settings = Settings(steps=len(plan), learning_rate=1e-5, save_every=10_000)
    parameters = [(key, p) for key, p in network.named_parameters() if p.numel()]
    with tempfile.TemporaryDirectory() as folder:
        train(parameters, step_fn, settings, Path(folder))
        records = read_records(Path(folder) / "metrics.jsonl")[WARMUP_STEPS:]
    seconds = sum(record["seconds"] for record in records)
    return sum(record["tokens"] for record in records) / (
        seconds + tokenising * len(records) / len(plan)
    )


class Clock(TrainerCallback):
    """Records the time at the end of each step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Record the time."""
        self.ends.append(time.perf_counter())


def train_sentence_transformer(task: Task) -> float:
    """Tokens per second of `SentenceTransformerTrainer`."""
    model = SentenceTransformer(str(task.folder), device="cpu")
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            folder,
            per_device_train_batch_size=task.batch,
            num_train_epochs=1,
            learning_rate=1e-5,
            bf16=task.precision == "bfloat16",
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            # The pairs and batches must be the same as those of polyvec.
            train_sampling_strategy="sequential",
        )
        trainer = SentenceTransformerTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_dict({"anchor": task.left, "positive": task.right}),
            loss=MultipleNegativesRankingLoss(model, scale=20),
            callbacks=[clock],
        )
        trainer.train()
    core = Tokenizer.load(task.folder, 8192).core
    timed = slice(WARMUP_STEPS * task.batch, None)
    tokens = sum(
        len(encoding.ids)
        for side in (task.left, task.right)
        for encoding in core.encode_batch(side[timed])
    )
    return tokens / (clock.ends[-1] - clock.ends[WARMUP_STEPS - 1])


PEERS: dict[str, Callable[[Task], float]] = {
    "polyvec": train_polyvec,
    "sentence-transformers": train_sentence_transformer,
}


if __name__ == "__main__":
    tyro.cli(main)
