"""A model is known by what decides its vectors; sentence-transformers models use their prompts."""

import json
import shutil
from pathlib import Path

import mteb
import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer

from polyvec.eval.baselines import load_sentence_transformer
from polyvec.eval.models import (
    BUNDLED,
    MODEL_METAS,
    OPENNESS,
    RELEASED,
    encoder_meta,
    load_encoder,
    load_model,
)


def change_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_whatever_decides_a_vector_is_part_of_a_models_revision(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    revisions = [encoder_meta(str(folder)).revision]
    assert encoder_meta(str(tiny_model)).revision == revisions[0]
    change_config(folder, rope_theta=12345.0)
    revisions.append(encoder_meta(str(folder)).revision)
    tasks = json.loads((folder / "config.json").read_text())["lora_adaptations"]
    change_config(folder, task_instructions=dict.fromkeys(tasks, "Find: "))
    revisions.append(encoder_meta(str(folder)).revision)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text() + "\n")
    revisions.append(encoder_meta(str(folder)).revision)
    assert len(set(revisions)) == 4
    (folder / "README.md").write_text("another card")
    assert encoder_meta(str(folder)).revision == revisions[-1]


def test_a_folder_is_named_after_itself_however_it_is_given(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model)
    assert encoder_meta(".").name == encoder_meta(f"{tiny_model}/").name
    assert encoder_meta("mini").name == encoder_meta(BUNDLED).name == "polyvec/polyvec-mini"


def test_mteb_loads_the_bundled_model_from_its_metadata() -> None:
    meta = encoder_meta(BUNDLED)
    model = meta.load_model(device="cpu")
    assert model.mteb_model_meta.revision == meta.revision
    assert MODEL_METAS[RELEASED].license == "cc-by-nc-4.0"


def test_the_data_sets_of_the_bundled_model_are_tasks_of_mteb() -> None:
    known = {task.metadata.name for task in mteb.get_tasks(exclude_superseded=False)}
    assert OPENNESS["training_datasets"] <= known


@pytest.fixture
def transformer(tokenizer_file: Path, tmp_path: Path) -> Path:
    """A sentence-transformers folder whose query prompt is not empty."""
    module = StaticEmbedding(Tokenizer.from_file(str(tokenizer_file)), embedding_dim=8)
    prompts = {"query": "cat cat cat ", "passage": ""}
    SentenceTransformer(modules=[module], prompts=prompts, device="cpu").save(str(tmp_path / "st"))
    return tmp_path / "st"


def test_the_prompts_of_a_sentence_transformers_folder_precede_its_texts(transformer: Path) -> None:
    model = load_sentence_transformer(transformer)
    plain = model.embed(["the cat"], "retrieval.passage")
    np.testing.assert_array_equal(model.embed(["the cat"], "text-matching"), plain)
    query = model.embed(["the cat"], "retrieval.query")
    np.testing.assert_allclose(query, model.embed(["cat cat cat the cat"], None), atol=1e-6)
    assert np.abs(query - plain).max() > 1e-3


def test_prompts_are_part_of_the_revision_of_a_sentence_transformers_folder(
    transformer: Path,
) -> None:
    before = load_sentence_transformer(transformer).mteb_model_meta.revision
    path = transformer / "config_sentence_transformers.json"
    path.write_text(path.read_text().replace("cat cat cat", "dog"))
    assert load_sentence_transformer(transformer).mteb_model_meta.revision != before


def test_a_sentence_transformers_folder_without_its_prefix_is_explained(transformer: Path) -> None:
    with pytest.raises(ValueError, match=r"its name is st:"):
        load_encoder(str(transformer), "cpu")


def test_a_sentence_transformers_model_may_be_on_the_hub(
    transformer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polyvec.hub.download", lambda name: transformer)
    model = load_model("st:org/name")
    assert model.mteb_model_meta.name == "polyvec/name"
