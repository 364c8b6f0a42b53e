r"""jina-embeddings-v3, 572 million parameters, as its paper trains it (arXiv:2409.10173).

    torchrun --nproc-per-node 8 recipes/jina_v3.py short \
        --start xlm-roberta-large --data DATA --out runs/v3
    torchrun --nproc-per-node 8 recipes/jina_v3.py long --data DATA --out runs/v3
    torchrun --nproc-per-node 8 recipes/jina_v3.py pairs-short --data DATA --out runs/v3
    torchrun --nproc-per-node 2 recipes/jina_v3.py pairs-long --data DATA --out runs/v3
    python recipes/jina_v3.py retrieval --data DATA --out runs/v3
    python recipes/jina_v3.py text-matching --data DATA --out runs/v3
    python recipes/jina_v3.py classification --data DATA --out runs/v3
    python recipes/jina_v3.py separation --data DATA --out runs/v3
    python recipes/jina_v3.py model --out runs/v3

Hardware: one machine with eight 80 GB GPUs. The time is estimated from floating-point operations,
at 40 % of an H100's bf16 peak, with assumed mean lengths (80 tokens of 192, 400 of 1,024): `short`
10 hours, `long` 15, `pairs-short` 35, `pairs-long` 35, `retrieval` 10, and the other adapters at
most 2 each. The recipe has only been tested on a small model, so no score is known. The paper's
model reaches 65.5 on English MTEB (its table 4), with data that is not public.

`--data` contains Parquet files, which docs/training.md describes:

    text/*.parquet                      text, lang
    pairs/*.parquet, long/*.parquet     query, positive, query_lang [, group]
    adapters/retrieval/*.parquet        query, positive, lang, negatives
    adapters/text-matching/*.parquet    text1, text2, lang, score
    adapters/nli/*.parquet              query, positive, query_lang, negatives
    adapters/classification/*.parquet   text, label, lang
    adapters/separation/*.parquet       text, label, lang

`RUNS` is the paper's table A1. Each choice that the paper does not specify has its reason.
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
from polyvec.data_folder import data_folder
from polyvec.network import Network
from polyvec.tasks import TASKS, adapter_index, choose_task
from polyvec.tokenizer import Tokenizer
from polyvec.train.checkpoints import average_checkpoints
from polyvec.train.data.batches import LazyPlan, plan_by_language
from polyvec.train.data.pairs import Pairs, join_pairs, read_labelled_texts, read_pairs
from polyvec.train.data.tokens import tokenise
from polyvec.train.data.tuples import tuple_id_tokens
from polyvec.train.distributed import Model, distribute, process_group, rank
from polyvec.train.init.xlm_roberta import read_xlm_roberta
from polyvec.train.loop import Settings, StepFn, train
from polyvec.train.masking import read_vocabulary
from polyvec.train.objectives import alternate, contrast, masked_lm, ordering, separation, tuples
from polyvec.train.plot import plot_run

CONFIG = ModelConfig(rope_base=10_000.0)
"""Table 1, with the rotary base of training. The finished model has 20,000 (section 3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A row of table A1."""

    devices: int
    """Number of processes, one per GPU."""

    steps: int
    """Number of updates."""

    batch_size: int
    """Rows per step, over all devices."""

    max_tokens: int
    """Maximum tokens of a text."""

    rate: float
    """Peak learning rate."""

    temperature: float | None = None
    """Temperature of the loss."""

    chunk_tokens: int = 65_536
    """Tokens whose activations a device holds at a time. The paper does not specify it; this value
    fills 80 GB at width 1,024."""


RUNS = {
    "short": Run(devices=8, steps=100_000, batch_size=1_024, max_tokens=512, rate=1e-4),
    "long": Run(devices=8, steps=60_000, batch_size=64, max_tokens=8_192, rate=5e-5),
    "pairs-short": Run(
        devices=8, steps=60_000, batch_size=16_384, max_tokens=192, rate=3e-5, temperature=0.05
    ),
    "pairs-long": Run(
        devices=2, steps=50_000, batch_size=1_024, max_tokens=1_024, rate=2e-5, temperature=0.02
    ),
    "retrieval": Run(
        devices=1, steps=20_000, batch_size=128, max_tokens=512, rate=5e-4, temperature=0.05
    ),
    "text-matching": Run(
        devices=1, steps=15_000, batch_size=256, max_tokens=192, rate=1e-4, temperature=0.05
    ),
    "classification": Run(
        devices=1, steps=11_500, batch_size=256, max_tokens=192, rate=5e-4, temperature=0.02
    ),
    "separation": Run(
        devices=1, steps=12_500, batch_size=512, max_tokens=192, rate=5e-5, temperature=0.02
    ),
}
"""Table A1. The batch size is the product of its devices and its rows per device."""

PREVIOUS_RUN = {"long": "short", "pairs-short": "long", "pairs-long": "pairs-short"}
"""The run whose weights each run starts from. The adapters start from `pairs-long`."""

WARMUP = 0.05
"""Fraction of a run. The paper has a linear schedule with a warm-up of unspecified length."""

WEIGHT_DECAY = 0.01
"""Not specified; XLM-RoBERTa's value (Conneau et al. 2020). Adapters have no decay, because it
would reduce the adapters of other tasks, whose gradient is 0."""

MASKING_RATIO = 0.15
"""Not specified; the value of XLM-RoBERTa, whose masked-LM head the first run uses."""

LANGUAGE_EXPONENT = 0.3
"""Not specified; XLM-RoBERTa's alpha, with which its vocabulary was trained."""

ENGLISH_SHARE = 0.2
"""Fraction of English in stage 1 (section 4.1)."""

DIM_WEIGHTS = None
"""The paper does not specify where Matryoshka losses are used, or their weights. This recipe uses
them everywhere with equal weights, like their authors (Kusupati et al. 2022)."""

NUM_NEGATIVES = 7
"""Hard negatives per row. The paper specifies them for classification and for synthetic rows
(sections 4.3.1, 4.3.4); this recipe uses the same number for mined negatives."""

AVERAGED_CHECKPOINTS = 1
"""Checkpoints that are averaged at the end of a run. The paper does not mention averages."""


def settings(name: str) -> Settings:
    """Settings of the loop for one run."""
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
    """Whether a run trains the backbone. All other runs train adapters."""
    return name == "short" or name in PREVIOUS_RUN


def load_network(name: str, start: Path | None, out: Path) -> Network:
    """The network with which a run starts."""
    torch.manual_seed(0)
    if name == "short":
        if start is None:
            raise ValueError("the run `short` needs --start, a folder of xlm-roberta-large")
        return read_xlm_roberta(start)
    network = Network(CONFIG, dropout=0.1, mlm=name == "long")
    last = average_checkpoints(
        out / PREVIOUS_RUN.get(name, "pairs-long"), last=AVERAGED_CHECKPOINTS
    )
    if name != "long":
        last = {key: tensor for key, tensor in last.items() if not key.startswith("mlm")}
    network.load_state_dict({**network.state_dict(), **last})
    return network


def predict_masked(model: Model, tokenizer: tokenizers.Tokenizer, data: Path, name: str) -> StepFn:
    """Stage 1: whole-word masking, one language per step."""
    run, texts, langs = RUNS[name], [], []
    for file in sorted((data / "text").glob("*.parquet")):
        table = pq.read_table(file, columns=["text", "lang"]).to_pydict()
        texts += tokenise(tokenizer, table["text"], max_tokens=run.max_tokens)
        langs += table["lang"]
    plan = plan_by_language(
        langs,
        steps=run.steps,
        batch_size=run.batch_size,
        exponent=LANGUAGE_EXPONENT,
        seed=0,
        shares={"en": ENGLISH_SHARE},
    )
    vocabulary = read_vocabulary(tokenizer)
    return masked_lm(
        model, texts, plan, vocabulary, ratio=MASKING_RATIO, chunk_tokens=run.chunk_tokens
    )


def match_pairs(model: Model, tokenizer: tokenizers.Tokenizer, data: Path, name: str) -> StepFn:
    """Stage 2: InfoNCE, one source and language per step."""
    folder = data / ("pairs" if name == "pairs-short" else "long")
    return contrast_pairs(model, tokenizer, read_folder(folder), name, tasks=(None, None))


def retrieve(model: Model, tokenizer: tokenizers.Tokenizer, data: Path, name: str) -> StepFn:
    """InfoNCE with hard negatives, with both retrieval adapters and their instructions."""
    sources = read_folder(data / "adapters/retrieval", lang="lang")
    tasks = ("retrieval.query", "retrieval.passage")
    return contrast_pairs(model, tokenizer, sources, name, tasks=tasks)


def match_texts(model: Model, tokenizer: tokenizers.Tokenizer, data: Path, name: str) -> StepFn:
    """CoSENT on scored pairs, InfoNCE on NLI with contradictions; one data set per step."""
    run, step_fns, sizes = RUNS[name], [], []
    adapter_id = adapter_index(TASKS, "text-matching")
    for file in sorted((data / "adapters/text-matching").glob("*.parquet")):
        table = pq.read_table(file).to_pydict()
        one, two = (
            tokenise(tokenizer, table[column], max_tokens=run.max_tokens)
            for column in ("text1", "text2")
        )
        scores = np.array(table["score"], np.float32)
        plan = plan_languages(table["lang"], run)
        assert run.temperature is not None
        step_fns.append(
            ordering(
                model,
                one,
                two,
                scores,
                plan,
                adapter_id=adapter_id,
                temperature=run.temperature,
            )
        )
        sizes.append(len(one))
    for pairs in read_folder(data / "adapters/nli"):
        tasks = ("text-matching", "text-matching")
        step_fns.append(contrast_pairs(model, tokenizer, [pairs], name, tasks=tasks))
        sizes.append(len(pairs))
    # Not specified; in proportion to the square root of the size, so that small data sets count.
    return alternate(step_fns, np.sqrt(sizes).tolist(), steps=run.steps, seed=0)


def classify(model: Model, tokenizer: tokenizers.Tokenizer, data: Path, name: str) -> StepFn:
    """Tuples of nine, one data set per step."""
    run, step_fns, sizes = RUNS[name], [], []
    assert run.temperature is not None
    for number, file in enumerate(sorted((data / "adapters/classification").glob("*.parquet"))):
        labelled = read_labelled_texts(file)
        step_fns.append(
            tuples(
                model,
                tokenise(tokenizer, labelled.texts, max_tokens=run.max_tokens),
                labelled.labels,
                lambda number: tuple_id_tokens(tokenizer, number),
                adapter_id=adapter_index(TASKS, "classification"),
                batch_size=run.batch_size,
                max_tokens=run.max_tokens,
                num_negatives=NUM_NEGATIVES,
                temperature=run.temperature,
                chunk_tokens=run.chunk_tokens,
                seed=number,
            )
        )
        sizes.append(len(labelled))
    return alternate(step_fns, np.sqrt(sizes).tolist(), steps=run.steps, seed=0)


def separate(model: Model, tokenizer: tokenizers.Tokenizer, data: Path, name: str) -> StepFn:
    """CoSENT on labelled texts, InfoNCE on the pairs of stage 2; one data set per step."""
    run, step_fns, sizes = RUNS[name], [], []
    assert run.temperature is not None
    adapter_id = adapter_index(TASKS, "separation")
    for file in sorted((data / "adapters/separation").glob("*.parquet")):
        labelled = read_labelled_texts(file)
        ids = tokenise(tokenizer, labelled.texts, max_tokens=run.max_tokens)
        plan = plan_languages(labelled.langs, run)
        step_fns.append(
            separation(
                model,
                ids,
                labelled.labels,
                plan,
                adapter_id=adapter_id,
                temperature=run.temperature,
            )
        )
        sizes.append(len(labelled))
    sources = read_folder(data / "pairs")
    tasks = ("separation", "separation")
    step_fns.append(contrast_pairs(model, tokenizer, sources, name, tasks=tasks))
    # Not specified; a quarter of the steps for pairs, so that texts of a label stay distinct.
    shares = np.sqrt(sizes) / np.sqrt(sizes).sum()
    return alternate(step_fns, [*(0.75 * shares), 0.25], steps=run.steps, seed=0)


def read_folder(folder: Path, *, lang: str = "query_lang") -> list[Pairs]:
    """Read the pairs of every file. Each file is a source. Raises ValueError without files."""
    sources = [read_pairs(file, lang=lang) for file in sorted(folder.glob("*.parquet"))]
    if not sources:
        raise ValueError(f"there are no Parquet files in {folder}")
    return sources


def contrast_pairs(
    model: Model,
    tokenizer: tokenizers.Tokenizer,
    sources: list[Pairs],
    name: str,
    *,
    tasks: tuple[str | None, str | None],
) -> StepFn:
    """InfoNCE on sources of pairs, each drawn in proportion to the square root of its size."""
    run, pairs = RUNS[name], join_pairs(sources)
    assert run.temperature is not None
    query, document = choose_task(TASKS, tasks[0]), choose_task(TASKS, tasks[1])
    one, two = (
        tokenise(tokenizer, texts, max_tokens=run.max_tokens, prompt=choice.prompt)
        for texts, choice in ((pairs.texts, query), (pairs.partners, document))
    )
    flat = [text for texts in pairs.negatives for text in texts]
    ids = iter(tokenise(tokenizer, flat, max_tokens=run.max_tokens, prompt=document.prompt))
    negatives = [[next(ids) for _ in texts] for texts in pairs.negatives]
    source = np.repeat(np.arange(len(sources)), [len(part) for part in sources])
    langs = [f"{number} {lang}" for number, lang in zip(source, pairs.langs, strict=True)]
    return contrast(
        model,
        one,
        two,
        pairs.groups,
        plan_languages(langs, run),
        adapter_ids=(query.adapter_id, document.adapter_id),
        negatives=negatives,
        num_negatives=NUM_NEGATIVES,
        temperature=run.temperature,
        dim_weights=DIM_WEIGHTS,
        chunk_tokens=run.chunk_tokens,
    )


def plan_languages(langs: list[str], run: Run) -> LazyPlan:
    """Plan steps of one language each.

    The weights are not specified; here they are the square roots of the languages' sizes.
    """
    _, index, counts = np.unique(langs, return_inverse=True, return_counts=True)
    parts = np.split(np.argsort(index, kind="stable"), np.cumsum(counts)[:-1])
    weights = np.sqrt(counts).tolist()
    return LazyPlan(parts=parts, weights=weights, steps=run.steps, batch_size=run.batch_size)


STAGES: dict[str, Callable[[Model, tokenizers.Tokenizer, Path, str], StepFn]] = {
    "short": predict_masked,
    "long": predict_masked,
    "pairs-short": match_pairs,
    "pairs-long": match_pairs,
    "retrieval": retrieve,
    "text-matching": match_texts,
    "classification": classify,
    "separation": separate,
}


def run(name: str, start: Path | None, data: Path, out: Path, device: torch.device) -> None:
    """Train one run, in the processes that `torchrun` started."""
    network = load_network(name, start, out).to(device)
    # Not specified; these GPUs are fastest with products in bf16.
    network.precision = torch.bfloat16
    network.recompute = RUNS[name].max_tokens > 1_024
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


def write_model(out: Path) -> None:
    """Write the model's folder, with each adapter from its own run."""
    network = load_network("retrieval", None, out).requires_grad_(False)
    bank = dict(network.named_parameters())
    for name in ("retrieval", "text-matching", "classification", "separation"):
        for key, tensor in average_checkpoints(out / name, last=AVERAGED_CHECKPOINTS).items():
            for adapter_id, task in enumerate(TASKS):
                if task.name.startswith(name):
                    bank[key][adapter_id] = tensor[adapter_id]
    config = replace(CONFIG, rope_base=20_000.0)
    files = Tokenizer.load(out, config.max_tokens).files()
    weights = {key: parameter.numpy() for key, parameter in bank.items()}
    save_checkpoint(out / "model", config, weights, dtype="bfloat16", files=files)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", choices=[*RUNS, "model"], help="the run, or `model`")
    parser.add_argument("--start", type=Path, help="a folder of xlm-roberta-large, for `short`")
    parser.add_argument("--data", type=Path, help="the data folder; default: POLYVEC_DATA")
    parser.add_argument("--out", type=Path, default=Path("runs/v3"), help="results folder")
    options = parser.parse_args()
    if options.run == "model":
        write_model(options.out)
    else:
        try:
            folder = data_folder(options.data)
        except ValueError as error:
            parser.error(str(error))
        with process_group() as own_device:
            run(options.run, options.start, folder, options.out, own_device)
