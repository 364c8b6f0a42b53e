"""Quick scores during training, in percent, on small parts of the development sets."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from tokenizers import Tokenizer

from polyvec.network import Network
from polyvec.tasks import NO_ADAPTER
from polyvec.train.data.tokens import tokenise
from polyvec.train.objectives import embed
from recipes.mini.config import CONFIG

MAX_SCORED_ROWS = 250
"""Rows per language of STS-B and Tatoeba."""


def score_sts(
    network: Network, tokenizer: Tokenizer, data: Path, *, adapter_id: int = NO_ADAPTER
) -> dict[str, float]:
    """Spearman's correlation on the first rows of STS-B dev, in five languages."""
    table = pq.read_table(data / "eval/stsb-dev/pairs.parquet").to_pydict()
    scores = {}
    for lang in ("en", "de", "es", "zh", "ru"):
        rows = [i for i, name in enumerate(table["lang"]) if name == lang][:MAX_SCORED_ROWS]
        with torch.inference_mode():
            left, right = (
                F.normalize(embed(network, tokenise(tokenizer, texts, max_tokens=128), adapter_id))
                for texts in ([table[side][i] for i in rows] for side in ("text1", "text2"))
            )
        gold = [table["score"][i] for i in rows]
        scores[f"sts-{lang}"] = 100 * float(
            np.asarray(spearmanr((left * right).sum(1).cpu(), gold))[0]
        )
    return scores


def score_bitext(network: Network, tokenizer: Tokenizer, data: Path) -> dict[str, float]:
    """Accuracy of finding the English translation, in seven languages of Tatoeba."""
    table = pq.read_table(data / "eval/laser-tatoeba/pairs.parquet").to_pydict()
    scores = {}
    for lang in ("ar", "bn", "de", "fi", "ja", "sw", "ta"):
        rows = [i for i, name in enumerate(table["lang2"]) if name == lang][:MAX_SCORED_ROWS]
        with torch.inference_mode():
            one, two = (
                F.normalize(embed(network, tokenise(tokenizer, texts, max_tokens=128), NO_ADAPTER))
                for texts in ([table[side][i] for i in rows] for side in ("s1", "s2"))
            )
        right = (two @ one.T).argmax(1).cpu() == torch.arange(len(rows))
        scores[f"bitext-{lang}"] = 100 * float(right.float().mean())
    return scores


def score_tydiqa(
    network: Network, tokenizer: Tokenizer, data: Path, *, with_adapters: bool = True
) -> dict[str, float]:
    """nDCG@10 on two small sets of TyDi QA dev, in which every question has one passage.

    Queries and passages have their adapters, unless `with_adapters` is false.
    """
    roles = [
        (task.prompt, i if with_adapters else NO_ADAPTER) for i, task in enumerate(CONFIG.tasks[:2])
    ]
    scores = {}
    for lang in ("bn", "ko"):
        folder = data / f"eval/tydiqa-dev-{lang}"
        corpus, queries, qrels = (
            pq.read_table(folder / f"{name}.parquet").to_pydict()
            for name in ("corpus", "queries", "qrels")
        )
        with torch.inference_mode():
            query_vectors, passage_vectors = (
                F.normalize(
                    embed(
                        network,
                        tokenise(tokenizer, texts, max_tokens=256, prompt=prompt),
                        adapter_id,
                    )
                )
                for texts, (prompt, adapter_id) in zip(
                    (queries["text"], corpus["text"]), roles, strict=True
                )
            )
        place = {name: i for i, name in enumerate(corpus["id"])}
        answer = dict(zip(qrels["query_id"], qrels["corpus_id"], strict=True))
        right = torch.tensor([place[answer[name]] for name in queries["id"]])
        cosines = (query_vectors @ passage_vectors.T).cpu()
        rank = (cosines > cosines.gather(1, right[:, None])).sum(1)
        gain = torch.where(rank < 10, 1 / torch.log2(rank + 2.0), 0.0)
        scores[f"tydiqa-{lang}"] = 100 * float(gain.mean())
    return scores
