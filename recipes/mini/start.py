"""Phase 3: the student's first weights, which are the teacher's with rotary positions."""

from pathlib import Path

import numpy as np
import torch

from polyvec.network import Network
from polyvec.train.data.pairs import Pairs
from polyvec.train.data.tokens import tokenise
from polyvec.train.init.bert import Teacher, align_rotary, permute_width
from recipes.mini.config import CONFIG
from recipes.mini.vocabulary import select_pieces


def make_start(teacher: Teacher, kept: list[int], pairs: Pairs, file: Path) -> Network:
    """The teacher's blocks with rotary positions, the `kept` pieces, and a centred output.

    `file` contains the mean and the order of dimensions of `write_teacher`.
    """
    network = Network(CONFIG).requires_grad_(False)
    own = dict(network.named_parameters())
    for name, parameter in teacher.network.named_parameters():
        if "lora" not in name and "embeddings.word" not in name and "token_type" not in name:
            own[name].copy_(parameter)
    source = teacher.network.embeddings
    network.embeddings.word.weight.copy_(source.word.weight[kept])
    # The mean of the absolute positions stays, as a part of the token type.
    position = teacher.positions[1:40].mean(0)
    network.embeddings.token_type.weight.copy_(source.token_type.weight[:1] + position)
    rng = np.random.default_rng(0)
    sample = [pairs.texts[i] for i in rng.permutation(len(pairs))[:600]]
    align_rotary(network, tokenise(select_pieces(teacher.tokenizer, kept), sample, max_tokens=64))
    made = np.load(file)
    # The mean is that of unit vectors. The last norm determines the length of a pooled output.
    last = own[f"layers.{CONFIG.num_layers - 1}.ffn_norm.weight"]
    length = float(last.square().sum().sqrt())
    bias = own[f"layers.{CONFIG.num_layers - 1}.ffn_norm.bias"]
    bias.sub_(torch.from_numpy(made["mean"]) * length)
    permute_width(network, made["order"])
    return network
