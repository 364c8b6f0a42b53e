"""The models that mteb can score, by name."""

import math
from pathlib import Path

import mteb
from mteb.models import ModelMeta
from mteb.models.model_meta import ScoringFunction

from polyvec.checkpoint import fingerprint, load_checkpoint
from polyvec.encoder import Encoder
from polyvec.eval.api_model import load_server
from polyvec.eval.baselines import BASELINES, load_sentence_transformer, model_meta
from polyvec.eval.protocol import ChooseAdapter, Embed, Model, MtebEncoder, paper_adapter
from polyvec.model_folder import find_model

BUNDLED = "polyvec-mini"

RELEASED = "jinaai/jina-embeddings-v3"

OPENNESS = {
    "license": "apache-2.0",
    "open_weights": True,
    "public_training_code": "recipes/mini",
    "public_training_data": "docs/training.md",
    "adapted_from": "intfloat/multilingual-e5-small",
    "release_date": "2026-11-26",
    "training_datasets": {
        "AfriSentiClassification",
        "Banking77Classification",
        "JSTS",
        "KorSTS",
        "NusaX-senti",
        "SIB200Classification",
        "STSBenchmark",
        "STSBenchmarkMultilingualSTS",
        "Tatoeba",
    },
}
"""The facts on mteb's leaderboard about the bundled model's openness. Of mteb's six criteria it
meets five; the sixth is a paper about the model. The data sets are those of which mteb has a task;
the model's card lists all of them."""


def load_model(
    name: str,
    *,
    choose: ChooseAdapter = paper_adapter,
    device: str = "auto",
    served_model: str = "",
    key: str = "",
) -> Model:
    """Load a model by its name.

    `polyvec-mini` is the bundled model and the names in `BASELINES` are baselines. `st:NAME` is a
    sentence-transformers model, a folder or a name on the hub. `http://HOST/v1` is a running server
    with OpenAI's embeddings API, of which `served_model` selects a model and `key` is the API key.
    `Encoder.load` loads every other name.
    """
    if name in BASELINES:
        return BASELINES[name]()
    if name.startswith(("http://", "https://")):
        return load_server(name, choose=choose, model=served_model, key=key)
    if name.startswith("st:"):
        return load_sentence_transformer(name.removeprefix("st:"), device)
    return MtebEncoder(encoder_embed(load_encoder(name, device)), encoder_meta(name), choose=choose)


def load_encoder(name: str, device: str = "auto") -> Encoder:
    """Load the bundled model (`polyvec-mini`), a model folder, or a model of the hub."""
    try:
        return Encoder.load(name, device=device)
    except ValueError as error:
        if (find_model(name) / "modules.json").is_file():
            raise ValueError(
                f"{error} (as a sentence-transformers model, its name is st:{name})"
            ) from error
        raise


def encoder_meta(name: str) -> ModelMeta:
    """Return the metadata under which mteb stores a model's results.

    The revision is a fingerprint of everything that decides the model's vectors: the weights, the
    config with its instructions, and the tokenizer. Openness is only stated for the bundled model
    and the released one, because it is unknown for others.
    """
    folder = find_model(name)
    config, weights = load_checkpoint(folder)
    known = {
        "revision": fingerprint(folder),
        "max_tokens": float(config.max_tokens),
        "embed_dim": list(config.dims),
        "use_instructions": any(task.prompt for task in config.tasks),
        "similarity_fn_name": ScoringFunction.COSINE,
        "framework": ["PyTorch", "OpenVINO", "safetensors"],
        "n_parameters": sum(math.prod(weight.shape) for weight in weights.values()),
    }
    card = BUNDLED if folder == find_model(None) else name.partition("@")[0]
    if card in MODEL_METAS:
        return MODEL_METAS[card].model_copy(update=known)
    shown = folder.resolve().name if Path(name).is_dir() else name.rpartition("/")[2]
    return model_meta(shown, "").model_copy(update=known)


def load_for_mteb(name: str, revision: str | None, device: str | None = None) -> MtebEncoder:
    """Load a model of `MODEL_METAS` when mteb asks for it by the name in its metadata."""
    names = {meta.name: own for own, meta in MODEL_METAS.items()}
    own = names[name]
    return MtebEncoder(encoder_embed(load_encoder(own, device or "auto")), encoder_meta(own))


MODEL_METAS = {
    BUNDLED: model_meta(BUNDLED, "").model_copy(update=OPENNESS | {"loader": load_for_mteb}),
    RELEASED: mteb.get_model_meta(RELEASED).model_copy(
        update={
            "name": "polyvec/jina-embeddings-v3",
            "loader": load_for_mteb,
            "loader_kwargs": {},
        }
    ),
}
"""mteb's metadata of the bundled model and of the released one, without what their folders tell.
`encoder_meta(name).load_model()` loads them with polyvec, for `mteb.evaluate`."""


def encoder_embed(encoder: Encoder) -> Embed:
    """Return `encoder` as a function of texts and an adapter."""
    return lambda texts, adapter: encoder.encode(texts, task=adapter, progress=False)
