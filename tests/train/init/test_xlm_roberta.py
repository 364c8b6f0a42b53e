"""XLM-RoBERTa's weights in our network, compared with transformers without positions."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM, XLMRobertaModel

from polyvec.train.init.xlm_roberta import read_xlm_roberta


@pytest.fixture(scope="module")
def theirs() -> XLMRobertaForMaskedLM:
    """A tiny random model without positions, with random norms and biases."""
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
        type_vocab_size=1,
        initializer_range=0.3,
    )
    model = XLMRobertaForMaskedLM(config).eval()
    with torch.no_grad():
        model.roberta.embeddings.position_embeddings.weight.zero_()
        model.lm_head.bias.normal_()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    network = read_xlm_roberta(folder, max_tokens=64).eval()
    with torch.no_grad():
        hidden = network(ids, torch.tensor([len(ids)]), torch.tensor([-1]))
        return network.mlm_logits(hidden)


def test_one_token_gets_their_logits(theirs: XLMRobertaForMaskedLM, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    for number in (0, 5, 59):
        ids = torch.tensor([number])
        with torch.no_grad():
            expected = theirs(ids[None]).logits[0]
        torch.testing.assert_close(logits(tmp_path, ids), expected, rtol=0, atol=1e-5)


def test_a_text_gets_their_logits_if_no_head_uses_positions(
    theirs: XLMRobertaForMaskedLM, tmp_path: Path
) -> None:
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        if ".query." in name:
            tensors[name] = torch.zeros_like(tensors[name])
    save_file(tensors, file, metadata={"format": "pt"})
    ids = torch.tensor([0, 7, 21, 33, 8, 2])
    with torch.no_grad():
        expected = XLMRobertaForMaskedLM.from_pretrained(tmp_path).eval()(ids[None]).logits[0]
    torch.testing.assert_close(logits(tmp_path, ids), expected, rtol=0, atol=1e-5)


def test_query_key_and_value_are_joined_in_this_order(
    theirs: XLMRobertaForMaskedLM, tmp_path: Path
) -> None:
    theirs.save_pretrained(tmp_path)
    found = read_xlm_roberta(tmp_path).layers[1].qkv.weight.chunk(3)
    attention = theirs.roberta.encoder.layer[1].attention.self
    for part, linear in zip(found, (attention.query, attention.key, attention.value), strict=True):
        assert torch.equal(part, linear.weight)


def test_new_adapters_have_no_effect_and_the_rotary_base_is_that_of_training(
    theirs: XLMRobertaForMaskedLM, tmp_path: Path
) -> None:
    theirs.save_pretrained(tmp_path)
    network = read_xlm_roberta(tmp_path, max_tokens=64, dropout=0.0)
    ids, lengths = torch.tensor([0, 7, 21, 2]), torch.tensor([4])
    for row in range(5):
        bare, adapted = (network(ids, lengths, torch.tensor([r])) for r in (-1, row))
        assert torch.equal(bare, adapted)
    assert network.rope_base == 10_000.0
    assert network.config.dims == (32,)


def test_a_folder_without_the_head_or_of_another_kind_is_refused(
    theirs: XLMRobertaForMaskedLM, tmp_path: Path
) -> None:
    XLMRobertaModel(theirs.config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="save the masked-LM model"):
        read_xlm_roberta(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace("xlm-roberta", "bert"))
    with pytest.raises(ValueError, match="no XLM-RoBERTa"):
        read_xlm_roberta(tmp_path)
