r"""jina-embeddings-v3, 572 million parameters, as its paper trains it (arXiv:2409.10173).

    torchrun --nproc-per-node 8 recipes/jina_v3.py short \
        --start xlm-roberta-large --data data --out runs/v3
    torchrun --nproc-per-node 8 recipes/jina_v3.py long --data data --out runs/v3
    ... pairs-short, pairs-long (2 processes), retrieval, text-matching, classification,
    separation (1 process each), and at last: python recipes/jina_v3.py ship --out runs/v3

Hardware: one machine with eight 80 GB GPUs. Time, from floating-point operations at 40 % of an
H100's bf16 peak and guessed mean lengths (80 tokens of 192, 400 of 1,024): `short` 10 hours, `long`
15, `pairs-short` 35, `pairs-long` 35, `retrieval` 10, the other adapters two or less. Nobody has
run it in this project, so there is no score to expect. The paper's own model reaches 65.5 on
English MTEB (its table 4), with data that is not public.

`--data` holds Parquet files, as docs/training.md describes them:

    text/*.parquet                      text, lang
    pairs/*.parquet, long/*.parquet     query, positive, query_lang [, group]
    adapters/retrieval/*.parquet        query, positive, lang, negatives
    adapters/text-matching/*.parquet    text1, text2, lang, score
    adapters/nli/*.parquet              query, positive, query_lang, negatives
    adapters/classification/*.parquet   text, label, lang
    adapters/separation/*.parquet       text, label, lang

`RUNS` is the paper's table A1. Where the paper is silent, a choice stands beside its reason.
"""

import argparse
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import tokenizers
import torch

from polyvec.checkpoint import save_checkpoint
from polyvec.config import ModelConfig
from polyvec.network import Network
from polyvec.tasks import TASKS, adapter_index
from polyvec.tokenizer import Tokenizer
from polyvec.train.checkpoints import average_checkpoints
from polyvec.train.data.batches import Draws
from polyvec.train.data.pairs import Rows, join, read_labelled, read_pairs, token_ids
from polyvec.train.data.tuples import number_tokens
from polyvec.train.distributed import Model, distribute, processes, rank
from polyvec.train.init.xlm_roberta import read_xlm_roberta
from polyvec.train.loop import Settings, Work, train
from polyvec.train.masking import plan_languages, read_vocabulary
from polyvec.train.objectives import contrast, masked_lm, ordering, separation, take_turns, tuples
from polyvec.train.plot import plot_run

CONFIG = ModelConfig(rope_base=10_000.0)
"""Table 1, with the rotary base of training; what ships has 20,000 (section 3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A row of table A1."""

    devices: int
    """Processes, one a GPU."""

    steps: int
    """Updates."""

    batch: int
    """Rows a step, over all devices."""

    longest: int
    """Tokens of a text."""

    rate: float
    """Peak learning rate."""

    temperature: float | None = None
    """Of the loss."""

    chunk: int = 65_536
    """Tokens that a device holds activations of. Silent; this fills 80 GB at width 1,024."""


RUNS = {
    "short": Run(devices=8, steps=100_000, batch=1_024, longest=512, rate=1e-4),
    "long": Run(devices=8, steps=60_000, batch=64, longest=8_192, rate=5e-5),
    "pairs-short": Run(
        devices=8, steps=60_000, batch=16_384, longest=192, rate=3e-5, temperature=0.05
    ),
    "pairs-long": Run(
        devices=2, steps=50_000, batch=1_024, longest=1_024, rate=2e-5, temperature=0.02
    ),
    "retrieval": Run(devices=1, steps=20_000, batch=128, longest=512, rate=5e-4, temperature=0.05),
    "text-matching": Run(
        devices=1, steps=15_000, batch=256, longest=192, rate=1e-4, temperature=0.05
    ),
    "classification": Run(
        devices=1, steps=11_500, batch=256, longest=192, rate=5e-4, temperature=0.02
    ),
    "separation": Run(devices=1, steps=12_500, batch=512, longest=192, rate=5e-5, temperature=0.02),
}
"""Table A1; batches are its products of devices and rows a device."""

BEFORE = {"long": "short", "pairs-short": "long", "pairs-long": "pairs-short"}
"""The run whose weights each run starts from; the adapters start from the last of these."""

WARMUP = 0.05
"""Part of a run; the paper has a linear schedule with warm-up of unstated length."""

WEIGHT_DECAY = 0.01
"""Silent. XLM-RoBERTa's own (Conneau et al. 2020). None for adapters: it would wear down those of
other tasks, whose gradient is 0."""

MASKED = 0.15
"""Silent. XLM-RoBERTa's, whose head the first step uses."""

LANGUAGE_EXPONENT = 0.3
"""Silent. XLM-RoBERTa's alpha, with which its table of pieces was trained."""

ENGLISH = 0.2
"""Part of stage 1 (section 4.1)."""

DIM_WEIGHTS = None
"""Where and how Matryoshka was weighted is not said. Everywhere, and equally, as by its authors
(Kusupati et al. 2022)."""

NEGATIVES = 7
"""Hard negatives a row: given for classification and the synthetic rows (sections 4.3.1, 4.3.4);
mined rows follow."""

AVERAGE = 1
"""Checkpoints averaged at the end of a run. The paper mentions none."""


def settings(name: str) -> Settings:
    """The loop's settings for one run."""
    run = RUNS[name]
    return Settings(
        steps=run.steps,
        learning_rate=run.rate,
        warmup=WARMUP,
        weight_decay=WEIGHT_DECAY if is_backbone(name) else 0.0,
        save_every=1_000,
        tensorboard=True,
    )


def is_backbone(name: str) -> bool:
    """Whether a run trains the backbone; the others train adapters."""
    return name == "short" or name in BEFORE


def load_network(name: str, start: Path | None, out: Path) -> Network:
    """What a run starts from."""
    torch.manual_seed(0)
    if name == "short":
        if start is None:
            raise ValueError("the first run needs --start, a folder of xlm-roberta-large")
        return read_xlm_roberta(start)
    network = Network(CONFIG, dropout=0.1, mlm=name == "long")
    last = average_checkpoints(out / BEFORE.get(name, "pairs-long"), last=AVERAGE)
    if name != "long":
        last = {key: tensor for key, tensor in last.items() if not key.startswith("mlm")}
    network.load_state_dict({**network.state_dict(), **last})
    return network


def guess(model: Model, tokenizer: tokenizers.Tokenizer, data: Path, name: str) -> Work:
    """Stage 1: whole words, one language a batch."""
    run, texts, langs = RUNS[name], [], []
    for file in sorted((data / "text").glob("*.parquet")):
        table = pq.read_table(file, columns=["text", "lang"]).to_pydict()
        texts += token_ids(tokenizer, table["text"], max_tokens=run.longest)
        langs += table["lang"]
    plan = plan_languages(
        langs,
        steps=run.steps,
        batch_size=run.batch,
        exponent=LANGUAGE_EXPONENT,
        seed=0,
        shares={"en": ENGLISH},
    )
    vocabulary = read_vocabulary(tokenizer)
    return masked_lm(model, texts, plan, vocabulary, ratio=MASKED, max_tokens=run.chunk)


def pair(model: Model, tokenizer: tokenizers.Tokenizer, data: Path, name: str) -> Work:
    """Stage 2: one source and language a batch; every other pair's document is a negative."""
    folder = data / ("pairs" if name == "pairs-short" else "long")
    return answers(model, tokenizer, read_folder(folder), name, tasks=(None, None))


def retrieve(model: Model, tokenizer: tokenizers.Tokenizer, data: Path, name: str) -> Work:
    """Both retrieval adapters, behind their instructions."""
    parts = read_folder(data / "adapters/retrieval", lang="lang")
    return answers(model, tokenizer, parts, name, tasks=("retrieval.query", "retrieval.passage"))


def match(model: Model, tokenizer: tokenizers.Tokenizer, data: Path, name: str) -> Work:
    """Scored pairs by CoSENT, NLI by InfoNCE with contradictions; one set a step."""
    run, works, sizes = RUNS[name], [], []
    row = adapter_index(TASKS, "text-matching")
    for file in sorted((data / "adapters/text-matching").glob("*.parquet")):
        table = pq.read_table(file).to_pydict()
        one, two = (
            token_ids(tokenizer, table[column], max_tokens=run.longest)
            for column in ("text1", "text2")
        )
        scores = np.array(table["score"], np.float32)
        plan = by_language(table["lang"], run)
        assert run.temperature is not None
        works.append(ordering(model, one, two, scores, plan, row=row, temperature=run.temperature))
        sizes.append(len(one))
    for rows in read_folder(data / "adapters/nli"):
        works.append(
            answers(model, tokenizer, [rows], name, tasks=("text-matching", "text-matching"))
        )
        sizes.append(len(rows))
    # Silent: by the square root of their sizes, so that small sets are seen.
    return take_turns(works, np.sqrt(sizes).tolist(), steps=run.steps, seed=0)


def classify(model: Model, tokenizer: tokenizers.Tokenizer, data: Path, name: str) -> Work:
    """Tuples of nine, one set a step."""
    run, works, sizes = RUNS[name], [], []
    assert run.temperature is not None
    for number, file in enumerate(sorted((data / "adapters/classification").glob("*.parquet"))):
        rows = read_labelled(file)
        works.append(
            tuples(
                model,
                token_ids(tokenizer, rows.texts, max_tokens=run.longest),
                rows.labels,
                lambda number: number_tokens(tokenizer, number),
                row=adapter_index(TASKS, "classification"),
                batch_size=run.batch,
                longest=run.longest,
                num_negatives=NEGATIVES,
                temperature=run.temperature,
                max_tokens=run.chunk,
                seed=number,
            )
        )
        sizes.append(len(rows))
    return take_turns(works, np.sqrt(sizes).tolist(), steps=run.steps, seed=0)


def separate(model: Model, tokenizer: tokenizers.Tokenizer, data: Path, name: str) -> Work:
    """Texts of one label against those of others, and pairs of stage 2; one set a step."""
    run, works, sizes = RUNS[name], [], []
    assert run.temperature is not None
    row = adapter_index(TASKS, "separation")
    for file in sorted((data / "adapters/separation").glob("*.parquet")):
        rows = read_labelled(file)
        ids = token_ids(tokenizer, rows.texts, max_tokens=run.longest)
        plan = by_language(rows.langs, run)
        works.append(
            separation(model, ids, rows.labels, plan, row=row, temperature=run.temperature)
        )
        sizes.append(len(rows))
    works.append(
        answers(
            model, tokenizer, read_folder(data / "pairs"), name, tasks=("separation", "separation")
        )
    )
    # Silent: a quarter of the steps for pairs, which keep the space from collapsing into labels.
    shares = np.sqrt(sizes) / np.sqrt(sizes).sum()
    return take_turns(works, [*(0.75 * shares), 0.25], steps=run.steps, seed=0)


def read_folder(folder: Path, *, lang: str = "query_lang") -> list[Rows]:
    """The pairs of every file, a source each."""
    found = [read_pairs(file, lang=lang) for file in sorted(folder.glob("*.parquet"))]
    if not found:
        raise ValueError(f"there are no Parquet files in {folder}")
    return found


def answers(
    model: Model,
    tokenizer: tokenizers.Tokenizer,
    sources: list[Rows],
    name: str,
    *,
    tasks: tuple[str | None, str | None],
) -> Work:
    """Bidirectional InfoNCE over sources of pairs, each drawn by the square root of its size."""
    run, rows = RUNS[name], join(sources)
    assert run.temperature is not None
    adapters = adapter_index(TASKS, tasks[0]), adapter_index(TASKS, tasks[1])
    prompts = ["" if row < 0 else TASKS[row].prompt for row in adapters]
    one, two = (
        token_ids(tokenizer, texts, max_tokens=run.longest, prompt=prompt)
        for texts, prompt in zip((rows.texts, rows.partners), prompts, strict=True)
    )
    flat = [text for texts in rows.negatives for text in texts]
    ids = iter(token_ids(tokenizer, flat, max_tokens=run.longest, prompt=prompts[1]))
    negatives = [[next(ids) for _ in texts] for texts in rows.negatives]
    source = np.repeat(np.arange(len(sources)), [len(part) for part in sources])
    langs = [f"{number} {lang}" for number, lang in zip(source, rows.langs, strict=True)]
    return contrast(
        model,
        one,
        two,
        rows.groups,
        by_language(langs, run),
        rows=adapters,
        negatives=negatives,
        num_negatives=NEGATIVES,
        temperature=run.temperature,
        dim_weights=DIM_WEIGHTS,
        max_tokens=run.chunk,
    )


def by_language(langs: list[str], run: Run) -> Draws:
    """A plan of one language a step. Silent: languages by the square root of their sizes."""
    _, index, counts = np.unique(langs, return_inverse=True, return_counts=True)
    parts = np.split(np.argsort(index, kind="stable"), np.cumsum(counts)[:-1])
    weights = np.sqrt(counts).tolist()
    return Draws(parts=parts, weights=weights, steps=run.steps, batch_size=run.batch)


STAGES: dict[str, Callable[[Model, tokenizers.Tokenizer, Path, str], Work]] = {
    "short": guess,
    "long": guess,
    "pairs-short": pair,
    "pairs-long": pair,
    "retrieval": retrieve,
    "text-matching": match,
    "classification": classify,
    "separation": separate,
}


def run(name: str, start: Path | None, data: Path, out: Path, device: torch.device) -> None:
    """One run, in as many processes as `torchrun` started."""
    network = load_network(name, start, out).to(device)
    # Silent on precision; bf16 products on float32 weights are what such GPUs are made for.
    network.precision = torch.bfloat16
    network.recompute = RUNS[name].longest > 1_024
    for key, parameter in network.named_parameters():
        parameter.requires_grad_(is_backbone(name) != ("lora" in key))
    if start is not None and rank() == 0:
        out.mkdir(parents=True, exist_ok=True)
        shutil.copy(start / "tokenizer.json", out)
    tokenizer = tokenizers.Tokenizer.from_file(str((start or out) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    model = distribute(network, "ddp")
    trained = [(key, p) for key, p in network.named_parameters() if p.requires_grad]
    train(trained, STAGES[name](model, tokenizer, data, name), settings(name), out / name)
    if rank() == 0:
        plot_run(out / name)


def ship(out: Path) -> None:
    """The model's folder; each adapter's rows come from its own run."""
    network = load_network("retrieval", None, out).requires_grad_(False)
    bank = dict(network.named_parameters())
    for name in ("retrieval", "text-matching", "classification", "separation"):
        for key, tensor in average_checkpoints(out / name, last=AVERAGE).items():
            for row, task in enumerate(TASKS):
                if task.name.startswith(name):
                    bank[key][row] = tensor[row]
    config = replace(CONFIG, rope_base=20_000.0)
    files = Tokenizer.load(out, config.max_tokens).files()
    weights = {key: parameter.numpy() for key, parameter in bank.items()}
    save_checkpoint(out / "model", config, weights, dtype="bfloat16", files=files)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", choices=[*RUNS, "ship"])
    parser.add_argument("--start", type=Path, help="a folder of xlm-roberta-large, for `short`")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/v3"))
    options = parser.parse_args()
    if options.run == "ship":
        ship(options.out)
    else:
        with processes() as here:
            run(options.run, options.start, options.data, options.out, here)
