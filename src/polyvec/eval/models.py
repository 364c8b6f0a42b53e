"""The models that mteb can score, by name.

Axes in this file: B texts, D width.
"""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from mteb.models import ModelMeta
from mteb.models.model_meta import ScoringFunction

from polyvec.checkpoint import load_checkpoint
from polyvec.encoder import Encoder, find_model
from polyvec.eval.api_model import load_server
from polyvec.eval.baselines import BASELINES, fingerprint, load_sentence_transformer, model_meta
from polyvec.eval.protocol import ChooseAdapter, Embed, Model, MtebEncoder, paper_adapter
from polyvec.outputs import truncate_and_normalise
from polyvec.tasks import Task

BUNDLED = "polyvec-mini"

OPENNESS = {
    "license": "apache-2.0",
    "open_weights": True,
    "public_training_code": "recipes/mini",
    "public_training_data": "docs/training.md",
    "adapted_from": "intfloat/multilingual-e5-small",
}
"""Of mteb's six points the bundled model has five; the sixth is a paper of its own."""


def load_model(name: str, *, choose: ChooseAdapter = paper_adapter, device: str = "auto") -> Model:
    """The model called `name`.

    `polyvec-mini` is the bundled model; those of `BASELINES` are baselines;
    `st:FOLDER` is any sentence-transformers model on disk, `http://HOST/v1` a running server of
    OpenAI's form; everything else goes to `Encoder.load`.
    """
    if name in BASELINES:
        return BASELINES[name]()
    if name.startswith(("http://", "https://")):
        return load_server(name, choose=choose)
    if name.startswith("st:"):
        return load_sentence_transformer(Path(name.removeprefix("st:")))
    return MtebEncoder(encoder_embed(load_encoder(name, device)), encoder_meta(name), choose=choose)


def load_encoder(name: str, device: str = "auto") -> Encoder:
    """`polyvec-mini` is the bundled model; other names are folders or hub names."""
    return Encoder.load(None if name == BUNDLED else name, device=device)


def encoder_meta(name: str) -> ModelMeta:
    """What mteb files a model's results under, and what its leaderboard says of the model.

    The revision is a fingerprint of the weights. What the bundled model's openness consists of is
    said of it alone: of other folders it is not known.
    """
    folder = find_model(None if name == BUNDLED else name)
    config, weights = load_checkpoint(folder)
    known = {
        "max_tokens": float(config.max_tokens),
        "embed_dim": list(config.dims),
        "use_instructions": any(task.prompt for task in config.tasks),
        "similarity_fn_name": ScoringFunction.COSINE,
        "framework": ["PyTorch", "OpenVINO", "safetensors"],
        "n_parameters": sum(math.prod(weight.shape) for weight in weights.values()),
    }
    openness = OPENNESS if name == BUNDLED else {}
    return model_meta(Path(name).name, fingerprint(folder)).model_copy(update=known | openness)


def encoder_embed(encoder: Encoder) -> Embed:
    """`encoder` as a function of texts and an adapter."""
    return lambda texts, adapter: encoder.encode(texts, task=adapter, progress=False)


def truncated(embed: Embed, dim: int) -> Embed:
    """The first `dim` coordinates of what `embed` gives, at length 1."""
    return lambda texts, adapter: truncate_and_normalise(embed(texts, adapter), dim)


def at_base(encoder: Encoder, base: float) -> Embed:
    """`encoder`, its rotary positions turning at another base than the model's."""
    plain = encoder_embed(encoder)

    def embed(texts: list[str], adapter: str | None) -> Float32[np.ndarray, "B D"]:
        encoder.engine.rope_base = base
        return plain(texts, adapter)

    return embed


def without_instructions(encoder: Encoder) -> Encoder:
    """`encoder` with its adapters, but no words before the text."""
    tasks = tuple(Task(task.name) for task in encoder.config.tasks)
    return Encoder(replace(encoder.config, tasks=tasks), encoder.tokenizer, encoder.engine)


def remembered(embed: Embed) -> Embed:
    """`embed`, never asked twice for the same text: for trying every dim of one model."""
    vectors: dict[tuple[str | None, str], Float32[np.ndarray, " D"]] = {}

    def recall(texts: list[str], adapter: str | None) -> Float32[np.ndarray, "B D"]:
        if new := [text for text in texts if (adapter, text) not in vectors]:
            for text, vector in zip(new, embed(new, adapter), strict=True):
                vectors[adapter, text] = vector
        return np.stack([vectors[adapter, text] for text in texts])

    return recall
