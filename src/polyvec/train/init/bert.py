"""BERT sentence encoders as teachers, and as the start of a model with rotary positions.

`read_teacher` reads a BERT whose blocks have our shape (post-norm, GELU) into a `Network`, and
keeps its absolute positions separately. `align_rotary` prepares its attention heads for rotary
positions. `order_dims` and `permute_width` order its dimensions for Matryoshka training.

Axes in this file: N texts, T tokens in a batch, P positions, D width, H heads, K head width,
E width with a constant 1 appended.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from polyvec.batch import make_batch, pack
from polyvec.config import ModelConfig
from polyvec.network import Layer, Network, number_tokens, pack_layout, pool
from polyvec.tasks import NO_ADAPTER
from polyvec.train.data.tokens import tokenise

BERT_NAMES = {
    "embeddings.word.weight": "embeddings.word_embeddings.weight",
    "embeddings.token_type.weight": "embeddings.token_type_embeddings.weight",
    "embeddings.norm": "embeddings.LayerNorm",
    "layers.{}.out": "encoder.layer.{}.attention.output.dense",
    "layers.{}.attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "layers.{}.up": "encoder.layer.{}.intermediate.dense",
    "layers.{}.down": "encoder.layer.{}.output.dense",
    "layers.{}.ffn_norm": "encoder.layer.{}.output.LayerNorm",
}
"""Our names of parameters and BERT's. `bert_tensor` joins BERT's three attention inputs."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """A sentence encoder with absolute positions and mean pooling."""

    network: Network
    """BERT's blocks and tables, without adapters."""

    positions: Float[Tensor, "P D"]
    """BERT's position table."""

    tokenizer: Tokenizer
    """The encoder's own tokenizer."""

    def encode(
        self,
        texts: Sequence[str],
        *,
        max_tokens: int = 128,
        bf16: bool = False,
        progress: bool | None = None,
    ) -> Float32[np.ndarray, "N D"]:
        """Embeddings of `texts` as unit vectors, equal to those of sentence-transformers.

        `bf16` computes matrix products in bfloat16, which is three times as fast if the processor
        supports it.
        """
        device = self.network.embeddings.word.weight.device
        batch_tokens = 65_536 if device.type == "cuda" else 8_192
        ids = tokenise(self.tokenizer, texts, max_tokens=max_tokens)
        out = np.empty((len(texts), self.network.config.width), np.float32)
        hide = None if progress is None else not progress
        with tqdm(total=len(texts), desc="teacher", unit="text", disable=hide) as bar:
            for group in pack([len(i) for i in ids], max_tokens=batch_tokens):
                batch = make_batch([ids[i] for i in group], [NO_ADAPTER] * len(group))
                tokens, starts, ends = (
                    torch.from_numpy(part).to(device)
                    for part in (batch.token_ids, batch.starts, batch.ends)
                )
                low = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
                with torch.inference_mode(), low:
                    hidden = self._hidden(tokens, ends - starts)
                    out[group] = F.normalize(pool(hidden, starts, ends), dim=-1).cpu()
                bar.update(len(group))
        return out

    def _hidden(self, ids: Int[Tensor, " T"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "T D"]:
        net, layout = self.network, pack_layout(lengths)
        _, positions = number_tokens(layout, len(ids))
        token_type = net.embeddings.token_type.weight[0]
        words = net.embeddings.word(ids, None) + token_type
        x = net.embeddings.norm(words + self.positions.to(ids.device)[positions])
        for layer in net.layers:
            x = layer(x, _no_rotation(x, net.config), layout, None)
        return x


def read_teacher(folder: Path) -> Teacher:
    """Read a BERT sentence encoder (config.json, model.safetensors, tokenizer.json).

    Raises ValueError for another architecture.
    """
    shape = json.loads((folder / "config.json").read_text())
    if shape["model_type"] != "bert" or shape["hidden_act"] != "gelu":
        raise ValueError(f"{folder} contains a {shape['model_type']}, not a BERT with GELU")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return make_teacher(shape, load_file(folder / "model.safetensors"), tokenizer)


def make_teacher(
    shape: dict[str, Any], tensors: dict[str, Tensor], tokenizer: Tokenizer
) -> Teacher:
    """A teacher from the contents of its config.json, and its `tensors` by BERT's names."""
    config = ModelConfig(
        vocab_size=shape["vocab_size"],
        width=shape["hidden_size"],
        num_layers=shape["num_hidden_layers"],
        num_heads=shape["num_attention_heads"],
        ffn_width=shape["intermediate_size"],
        layer_norm_eps=shape["layer_norm_eps"],
        max_tokens=shape["max_position_embeddings"],
        dims=(shape["hidden_size"],),
        tasks=(),
    )
    network = Network(config).requires_grad_(False).eval()
    for name, parameter in network.named_parameters():
        if ".lora_" not in name:
            parameter.copy_(bert_tensor(tensors, name)[: len(parameter)])
    return Teacher(network, tensors["embeddings.position_embeddings.weight"], tokenizer)


def bert_tensor(tensors: dict[str, Tensor], name: str) -> Tensor:
    """The tensor of a BERT or RoBERTa for our parameter `name`, of a block or a table.

    Raises KeyError, with BERT's name, if it is missing.
    """
    for ours, theirs in BERT_NAMES.items():
        layer = name.split(".")[1] if name.startswith("layers") else ""
        prefix = ours.format(layer)
        if name.startswith(prefix):
            return tensors[theirs.format(layer) + name.removeprefix(prefix)]
    _, layer, _, kind = name.split(".")
    heads = f"encoder.layer.{layer}.attention.self"
    return torch.cat([tensors[f"{heads}.{part}.{kind}"] for part in ("query", "key", "value")])


@torch.no_grad()
def align_rotary(network: Network, ids: Sequence[Sequence[int] | np.ndarray]) -> None:
    """Change the basis of every head, in place, so that rotary positions disturb it least.

    A head only uses x' W_q' W_k x, which is equal in every basis of its K dimensions. Rotation is
    not: it turns fast planes within a few tokens, and slow planes hardly at all.

    1. Without rotation, compute the second moments C of the input of each block on sample texts.
    2. Compute the singular values of C^1/2 W_q' W_k C^1/2, which are the parts of the score.
    3. Put the two largest parts into the slowest plane, the next two into the next plane, etc.
    """
    all_moments = _moments(network, ids)
    width, heads = network.config.width, network.config.num_heads
    rank = network.config.head_width
    # Part r goes to one side of plane K/2 - 1 - r // 2. Planes with higher numbers are slower.
    place = [rank // 2 - 1 - part // 2 + (rank // 2) * (part % 2) for part in range(rank)]
    for layer, moments in zip(network.layers, all_moments, strict=True):
        assert isinstance(layer, Layer)
        values, vectors = torch.linalg.eigh(moments)
        values = values.clamp_min(1e-9).sqrt()
        root = (vectors * values) @ vectors.T
        inverse = (vectors / values) @ vectors.T
        joined = torch.cat([layer.qkv.weight, layer.qkv.bias[:, None]], 1).double()
        queries, keys = (part.unflatten(0, (heads, -1)) for part in joined.split(width)[:2])
        left, parts, right = torch.linalg.svd(root @ queries.mT @ keys @ root)
        size = parts[:, :rank].sqrt()[:, None, :]
        queries[:, place] = (inverse @ left[..., :rank] * size).mT
        keys[:, place] = (inverse @ right.mT[..., :rank] * size).mT
        joined = torch.cat([queries.flatten(0, 1), keys.flatten(0, 1)]).float()
        layer.qkv.weight[: 2 * width] = joined[:, :width]
        layer.qkv.bias[: 2 * width] = joined[:, width]


def _moments(
    network: Network, ids: Sequence[Sequence[int] | np.ndarray]
) -> list[Float[Tensor, "E E"]]:
    """The mean of x x' over tokens for every block, where x is its input with a 1 appended."""
    batch = make_batch(ids, [NO_ADAPTER] * len(ids))
    layout = pack_layout(torch.from_numpy(batch.lengths))
    x = network.embeddings(torch.from_numpy(batch.token_ids), None)
    moments = []
    for layer in network.layers:
        ones = torch.cat([x, torch.ones(len(x), 1)], 1).double()
        moments.append(ones.T @ ones / len(x))
        x = layer(x, _no_rotation(x, network.config), layout, None)
    return moments


def _no_rotation(x: Float[Tensor, "T D"], config: ModelConfig) -> tuple[Tensor, Tensor]:
    half = config.head_width // 2
    return x.new_ones(1, 1, half), x.new_zeros(1, 1, half)


def order_dims(vectors: Float32[np.ndarray, "N D"], *, seed: int = 0) -> Int[np.ndarray, " D"]:
    """Dimensions in the order in which the first d best approximate all of them.

    The order is greedy: the next dimension is the one with which the partial dot products of many
    pairs of `vectors` correlate best with the full dot products. It is a good start for a
    Matryoshka model, and costs no training.
    """
    rng = np.random.default_rng(seed)
    sample = vectors[rng.permutation(len(vectors))[:1500]]
    # Half of the pairs are random and half are nearest neighbours: both must be approximated.
    near = (sample @ sample.T - 2 * np.eye(len(sample))).argmax(1)
    far = rng.permutation(len(sample))
    products = np.concatenate([sample * sample[near], sample * sample[far]])
    products -= products.mean(0)
    whole = products.sum(1)
    partial, left, order = np.zeros_like(whole), list(range(vectors.shape[1])), []
    while left:
        tried = partial[:, None] + products[:, left]
        # A constant dimension has no information, so it comes last.
        score = whole @ tried / np.maximum(np.linalg.norm(tried, axis=0), 1e-6)
        best = left.pop(int(score.argmax()))
        partial = partial + products[:, best]
        order.append(best)
    return np.array(order)


@torch.no_grad()
def permute_width(network: Network, order: Int[np.ndarray, " D"]) -> None:
    """Reorder the dimensions of the hidden states, in place. The outputs have the new order."""
    take = torch.from_numpy(order)
    for name, parameter in network.named_parameters():
        if "lora" in name:
            continue
        reads = name.endswith(("word.weight", "token_type.weight", "qkv.weight", "up.weight"))
        writes = name.startswith("embeddings.norm") or "_norm." in name
        writes |= name.split(".")[-2] in ("out", "down")
        if reads:
            parameter.copy_(parameter[:, take])
        elif writes:
            parameter.copy_(parameter[take])
