"""Effect of training on spans on late chunking (Günther et al. 2024, arXiv:2409.04701).

    python -m recipes.experiments.spans --data DATA --out runs/spans
    polyvec eval late-chunking runs/spans/spans --adapter retrieval --results runs/spans/results
    polyvec eval late-chunking runs/spans/whole --adapter retrieval --results runs/spans/results

Late chunking uses the mean of a chunk's tokens, encoded with the whole document as context, but
contrastive training only uses means of whole texts. Span pooling trains the former: each passage is
embedded in a document, and the mean of its own tokens there must find its question. This experiment
trains the retrieval adapters of the bundled model for a few more steps, once with spans (`spans`)
and once on the same questions and passages alone (`whole`). It writes one model for each. The two
runs take half an hour on two CPU cores.
"""

import argparse
import logging
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from polyvec.checkpoint import Weights, load_checkpoint, save_compact, to_float
from polyvec.data_folder import data_folder
from polyvec.model_folder import find_model
from polyvec.network import Network
from polyvec.tasks import choose_task
from polyvec.train.data.batches import Mixture, mix, plan_pairs
from polyvec.train.data.pairs import read_pairs
from polyvec.train.data.tokens import embed_in_documents, tokenise
from polyvec.train.loop import Settings, StepFn
from polyvec.train.objectives import contrast
from recipes.mini.runs import newest, train_part

SOURCES = [("squad", 0.5), ("jsquad", 0.2), ("cmrc2018", 0.2), ("medquad", 0.1)]
"""Files of `adapters/retrieval/`, one language each, and their fractions of the steps."""

PASSAGES_PER_DOCUMENT = 4

SETTINGS = Settings(steps=60, learning_rate=5e-4, table_rate=5e-4, warmup=0.05, save_every=20)

BATCH_TOKENS = 2_560
"""Tokens per step of questions and passages, before the passages are embedded in documents."""


def make_network(weights: Weights, *, start: Path | None = None) -> Network:
    """The bundled model with the rotary base of training, and the weights of a finished run."""
    config, _ = load_checkpoint(find_model(None))
    network = Network(config)
    network.rope_base = 10_000.0
    network.load_state_dict({name: torch.tensor(to_float(w)) for name, w in weights.items()})
    if start is not None:
        network.load_state_dict(load_file(newest(start)), strict=False)
    return network


def find_passages(network: Network, tokenizer: Tokenizer, data: Path, spans: bool) -> StepFn:
    """InfoNCE on questions and passages; with `spans`, on passages embedded in documents."""
    query, passage = (
        choose_task(network.config.tasks, f"retrieval.{side}") for side in ("query", "passage")
    )
    head = len(tokenizer.encode(passage.prompt).ids) - 1
    sources = []
    for name, share in SOURCES:
        pairs = read_pairs(
            data / f"adapters/retrieval/{name}.parquet", lang="lang", max_per_language=4_000
        )
        questions = tokenise(tokenizer, pairs.texts, max_tokens=64, prompt=query.prompt)
        passages = tokenise(tokenizer, pairs.partners, max_tokens=192, prompt=passage.prompt)
        plan = plan_pairs(
            questions,
            passages,
            np.ones(len(pairs)),
            steps=round(share * SETTINGS.steps),
            batch_tokens=BATCH_TOKENS,
            seed=0,
        )
        parts = [PASSAGES_PER_DOCUMENT if spans else 1] * len(passages)
        documents, places = embed_in_documents(passages, head=head, parts=parts, seed=0)
        sources.append(
            Mixture(
                texts=questions, partners=documents, targets=pairs.groups, spans=places, plan=plan
            )
        )
    mixture = mix(sources)
    return contrast(
        network,
        mixture.texts,
        mixture.partners,
        mixture.targets,
        mixture.plan,
        adapter_ids=(query.adapter_id, passage.adapter_id),
        spans=mixture.spans,
        chunk_tokens=4_096,
    )


def run(name: str, data: Path, out: Path) -> None:
    """Train one of the two models, and write it."""
    folder = find_model(None)
    config, weights = load_checkpoint(folder)
    network = make_network(weights)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    step_fn = find_passages(network, tokenizer, data, name == "spans")
    train_part(network, ["lora"], step_fn, SETTINGS, out / f"{name}.run", None)
    trained = make_network(weights, start=out / f"{name}.run").requires_grad_(False)
    files = {"tokenizer.json": (folder / "tokenizer.json").read_bytes()}
    made: Weights = {key: parameter.numpy() for key, parameter in trained.named_parameters()}
    save_compact(out / name, config, made, files=files)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="the data folder; default: POLYVEC_DATA")
    parser.add_argument("--out", type=Path, default=Path("runs/spans"), help="results folder")
    options = parser.parse_args()
    try:
        source = data_folder(options.data)
    except ValueError as error:
        parser.error(str(error))
    for name in ("spans", "whole"):
        run(name, source, options.out)
