"""Shared by all tests: a tiny seeded model with a tiny tokenizer, and each engine for it."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from polyvec import Encoder, ModelConfig, cli
from polyvec.checkpoint import Weights, save_checkpoint
from polyvec.engines import Engine
from polyvec.engines.openvino import OpenVINOEngine
from polyvec.engines.torch import TorchEngine
from polyvec.network import Network
from polyvec.tokenizer import Tokenizer

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "Represent the query for retrieving evidence documents: where do foxes sleep?",
    "Represent the document for retrieval: a fox sleeps in its den, or under the snow.",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "敏捷的棕色狐狸跳过懒狗。",
    "Шустрая бурая лиса прыгает через ленивого пса.",
)

MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Short texts in several languages, all different."""
    return list(SENTENCES)


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json like XLM-RoBERTa's, with about two hundred pieces."""
    core = tokenizers.Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    core.train_from_iterator(SENTENCES, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    core.save(str(path))
    return path


@pytest.fixture(scope="session")
def tiny_config(tokenizer_file: Path) -> ModelConfig:
    """Two layers, width 32, the five tasks, 64 tokens."""
    core = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    return ModelConfig(
        vocab_size=core.get_vocab_size(),
        width=32,
        num_layers=2,
        num_heads=4,
        ffn_width=64,
        max_tokens=64,
        dims=(8, 16, 32),
    )


@pytest.fixture(scope="session")
def tiny_weights(tiny_config: ModelConfig) -> Weights:
    """Random weights that are large enough for every part of the network to affect results."""
    generator = torch.Generator().manual_seed(7)
    state = Network(tiny_config).state_dict()
    return {
        name: (torch.randn(tensor.shape, generator=generator) * 0.3).numpy()
        for name, tensor in state.items()
    }


@pytest.fixture(scope="session")
def headed_config(tiny_config: ModelConfig) -> ModelConfig:
    """The tiny model's config, with a sparse and a multi-vector head."""
    return replace(tiny_config, sparse_head=True, multi_vector_dim=12)


@pytest.fixture(scope="session")
def headed_weights(headed_config: ModelConfig) -> Weights:
    """Random weights with which the tokens of a text differ; in the tiny model all are alike."""
    generator = torch.Generator().manual_seed(8)
    weights = {}
    for name, tensor in Network(headed_config).state_dict().items():
        drawn = torch.randn(tensor.shape, generator=generator)
        if name.startswith(("sparse.", "multi_vector.")) or name == "embeddings.word.weight":
            weights[name] = drawn.numpy()
        elif "norm" in name or name.endswith("bias"):
            weights[name] = tensor.numpy()
        else:
            weights[name] = 0.1 * drawn.numpy()
    return weights


@pytest.fixture(scope="session")
def tiny_model(
    tiny_config: ModelConfig,
    tiny_weights: Weights,
    tokenizer_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The tiny model's folder as polyvec saves it. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_checkpoint(folder, tiny_config, tiny_weights)
    (folder / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    return folder


@pytest.fixture(scope="session", params=["openvino", "openvino-prepacked", "torch"])
def make_engine(request: pytest.FixtureRequest) -> MakeEngine:
    """Each engine in turn: call it as `make_engine(config, weights, ...)`."""

    def make(config: ModelConfig, weights: Weights, *, merge_adapter: int | None = None) -> Engine:
        if request.param == "torch":
            return TorchEngine(config, weights, merge_adapter=merge_adapter)
        return OpenVINOEngine(
            config,
            weights,
            precision="float32",
            num_threads=1,
            prepack=request.param == "openvino-prepacked",
            merge_adapter=merge_adapter,
        )

    return make


@pytest.fixture(scope="session")
def engine(make_engine: MakeEngine, tiny_config: ModelConfig, tiny_weights: Weights) -> Engine:
    """The tiny model on each engine in turn, in float32."""
    return make_engine(tiny_config, tiny_weights)


@pytest.fixture(scope="session")
def encoder(tiny_config: ModelConfig, tiny_model: Path, engine: Engine) -> Encoder:
    """The tiny model's encoder on each engine in turn."""
    return Encoder(tiny_config, Tokenizer.load(tiny_model, tiny_config.max_tokens), engine)


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded random numbers."""
    return np.random.default_rng(0)


@pytest.fixture
def polyvec(monkeypatch, capfd):
    """Run a command line in this process: exit status, standard output, standard error."""

    def run(*words: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["polyvec", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capfd.readouterr()
        return end.value.code, said.out, said.err

    return run


@pytest.fixture
def run_verb(tiny_model, polyvec):
    """Run a verb with the tiny model."""
    return lambda verb, *words: polyvec(verb, *words, "--model", tiny_model)
