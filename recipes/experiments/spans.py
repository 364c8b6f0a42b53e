"""Whether training on spans makes late chunking better (Günther et al. 2024, arXiv:2409.04701).

    python recipes/experiments/spans.py --data ../shared/data --out runs/spans
    polyvec eval late-chunking runs/spans/spans --adapter retrieval --results runs/spans/results
    polyvec eval late-chunking runs/spans/whole --adapter retrieval --results runs/spans/results

Late chunking asks for the mean of a chunk's tokens in a document that was read whole; contrastive
training only ever made means of whole texts. Span pooling trains what is asked for: each passage is
buried among others, and the mean of its own tokens there must find its question. The retrieval
adapters of the bundled model learn for a few steps more, once so (`spans`) and once on the same
questions and passages alone (`whole`): what differs between the two is the spans' doing.
"""

import argparse
import logging
from pathlib import Path

import numpy as np
import torch
from mini import newest, train_part
from safetensors.torch import load_file
from tokenizers import Tokenizer

from polyvec.checkpoint import Weights, load_checkpoint, save_compact, to_float
from polyvec.encoder import find_model
from polyvec.network import Network
from polyvec.tasks import adapter_index
from polyvec.train.data.pairs import bury, interleave, plan_pairs, read_pairs, token_ids
from polyvec.train.loop import Settings, Work
from polyvec.train.objectives import contrast

SOURCES = [("squad", 0.5), ("jsquad", 0.2), ("cmrc2018", 0.2), ("medquad", 0.1)]
"""Files of `adapters/retrieval/`, one language each, and their parts of the steps."""

PARTS = 4
"""Passages in a document."""

SETTINGS = Settings(steps=60, learning_rate=5e-4, table_rate=5e-4, warmup=0.05, save_every=20)

PAIRS_TOKENS = 2_560
"""A step's tokens of questions and passages, before these are buried."""


def make_network(weights: Weights, *, start: Path | None = None) -> Network:
    """The bundled model in training, under what a finished run left."""
    config, _ = load_checkpoint(find_model(None))
    network = Network(config)
    network.rope_base = 10_000.0
    network.load_state_dict({name: torch.tensor(to_float(w)) for name, w in weights.items()})
    if start is not None:
        network.load_state_dict(load_file(newest(start)), strict=False)
    return network


def read(network: Network, tokenizer: Tokenizer, data: Path, spans: bool) -> Work:
    """Questions and passages: buried, or by themselves."""
    tasks = network.config.tasks
    rows = adapter_index(tasks, "retrieval.query"), adapter_index(tasks, "retrieval.passage")
    prompts = [tasks[row].prompt for row in rows]
    head = len(tokenizer.encode(prompts[1]).ids) - 1
    queries, documents, places, groups, plans, sizes = [], [], [], [], [], []
    for name, share in SOURCES:
        pairs = read_pairs(data / f"adapters/retrieval/{name}.parquet", lang="lang", most=4_000)
        asked = token_ids(tokenizer, pairs.texts, max_tokens=64, prompt=prompts[0])
        read = token_ids(tokenizer, pairs.partners, max_tokens=192, prompt=prompts[1])
        plans.append(
            plan_pairs(
                asked,
                read,
                np.ones(len(pairs)),
                steps=round(share * SETTINGS.steps),
                batch_tokens=PAIRS_TOKENS,
                seed=0,
            )
        )
        sizes.append(len(pairs))
        parts = [PARTS if spans else 1] * len(read)
        buried, where = bury(read, head=head, parts=parts, seed=0)
        queries, documents, places = queries + asked, documents + buried, places + where
        groups.append(pairs.groups)
    return contrast(
        network,
        queries,
        documents,
        np.concatenate(groups),
        interleave(plans, sizes, seed=0),
        rows=rows,
        spans=places,
        max_tokens=4_096,
    )


def run(name: str, data: Path, out: Path) -> None:
    """Train one of the two, and write its model."""
    folder = find_model(None)
    config, weights = load_checkpoint(folder)
    network = make_network(weights)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    work = read(network, tokenizer, data, name == "spans")
    train_part(network, ["lora"], work, SETTINGS, out / f"{name}.run", None)
    trained = make_network(weights, start=out / f"{name}.run").requires_grad_(False)
    files = {"tokenizer.json": (folder / "tokenizer.json").read_bytes()}
    made: Weights = {key: parameter.numpy() for key, parameter in trained.named_parameters()}
    save_compact(out / name, config, made, files=files)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/spans"))
    options = parser.parse_args()
    for name in ("spans", "whole"):
        run(name, options.data, options.out)
