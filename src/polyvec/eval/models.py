"""The models that mteb can score, by name."""

import math
from pathlib import Path

from mteb.models import ModelMeta
from mteb.models.model_meta import ScoringFunction

from polyvec import model_folder
from polyvec.checkpoint import load_checkpoint
from polyvec.encoder import Encoder
from polyvec.eval.api_model import load_server
from polyvec.eval.baselines import (
    BASELINES,
    load_sentence_transformer,
    model_meta,
    weights_fingerprint,
)
from polyvec.eval.protocol import ChooseAdapter, Embed, Model, MtebEncoder, paper_adapter

BUNDLED = "polyvec-mini"

OPENNESS = {
    "license": "apache-2.0",
    "open_weights": True,
    "public_training_code": "recipes/mini",
    "public_training_data": "docs/training.md",
    "adapted_from": "intfloat/multilingual-e5-small",
}
"""The facts on mteb's leaderboard about the bundled model's openness. Of mteb's six criteria it
meets five; the sixth is a paper about the model."""


def load_model(name: str, *, choose: ChooseAdapter = paper_adapter, device: str = "auto") -> Model:
    """Load a model by its name.

    `polyvec-mini` is the bundled model and the names in `BASELINES` are baselines. `st:FOLDER` is a
    sentence-transformers model on disk. `http://HOST/v1` is a running server with OpenAI's
    embeddings API. `Encoder.load` loads every other name.
    """
    if name in BASELINES:
        return BASELINES[name]()
    if name.startswith(("http://", "https://")):
        return load_server(name, choose=choose)
    if name.startswith("st:"):
        return load_sentence_transformer(Path(name.removeprefix("st:")))
    return MtebEncoder(encoder_embed(load_encoder(name, device)), encoder_meta(name), choose=choose)


def load_encoder(name: str, device: str = "auto") -> Encoder:
    """Load the bundled model (`polyvec-mini`), a model folder, or a model of the hub."""
    return Encoder.load(name, device=device)


def encoder_meta(name: str) -> ModelMeta:
    """Return the metadata under which mteb stores a model's results.

    The revision is a fingerprint of the weights. Openness is only stated for the bundled model,
    because it is unknown for other folders.
    """
    folder = model_folder.find_model(name)
    is_bundled = folder == model_folder.BUNDLED
    config, weights = load_checkpoint(folder)
    known = {
        "max_tokens": float(config.max_tokens),
        "embed_dim": list(config.dims),
        "use_instructions": any(task.prompt for task in config.tasks),
        "similarity_fn_name": ScoringFunction.COSINE,
        "framework": ["PyTorch", "OpenVINO", "safetensors"],
        "n_parameters": sum(math.prod(weight.shape) for weight in weights.values()),
    }
    openness = OPENNESS if is_bundled else {}
    meta = model_meta(BUNDLED if is_bundled else Path(name).name, weights_fingerprint(folder))
    return meta.model_copy(update=known | openness)


def encoder_embed(encoder: Encoder) -> Embed:
    """Return `encoder` as a function of texts and an adapter."""
    return lambda texts, adapter: encoder.encode(texts, task=adapter, progress=False)
