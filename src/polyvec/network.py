"""The encoder as a PyTorch module: XLM-RoBERTa with rotary positions and a bank of adapters.

It runs on packed batches, without padding. Its `state_dict` uses the canonical weight names of
`polyvec.checkpoint`.

Axes in this file: B texts, T tokens in the batch, D width, F feed-forward width, H heads,
K head width, A adapters, R rank, V vocabulary, S spans, M size of a token's embedding,
Q queries, C candidates.
"""

from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from polyvec.config import ModelConfig

MAX_EXPLICIT_ATTENTION_TOKENS = 512
"""Longest text whose matrix of attention scores is stored when training on a CPU, in tokens."""

Mask = Float[Tensor, "T A"]
"""1 if the token's text uses the adapter, else 0. A row of zeros is the bare encoder."""


class Layout(NamedTuple):
    """Positions of the texts in a batch, computed once because reading them from a GPU waits."""

    lengths: Int[Tensor, " B"]
    """Tokens of each text."""

    bounds: Int[Tensor, " B_plus_1"]
    """Start of each text and end of the last one, in 32 bits as the attention kernel needs."""

    longest: int


def pack_layout(lengths: Int[Tensor, " B"]) -> Layout:
    """The layout of packed texts of these lengths."""
    bounds = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return Layout(lengths, bounds, int(lengths.max()))


def number_tokens(layout: Layout, num_tokens: int) -> tuple[Int[Tensor, " T"], Int[Tensor, " T"]]:
    """The text to which each token of a batch belongs, and its position in that text."""
    device = layout.lengths.device
    text = torch.arange(len(layout.lengths), device=device)
    text = text.repeat_interleave(layout.lengths, output_size=num_tokens)
    return text, torch.arange(num_tokens, device=device) - layout.bounds[text]


class Linear(nn.Module):
    """A linear layer with a bank of low-rank updates: y = W x + scale * B (m * (A x)).

    The A matrices of all adapters are applied as one product of width A*R, and the mask m keeps the
    values of each token's own adapter. One batch can therefore mix tasks without a gather (Hu et
    al. 2021; arXiv:2409.10173, section 3).
    """

    def __init__(self, inputs: int, outputs: int, config: ModelConfig) -> None:
        super().__init__()
        adapters, rank = len(config.tasks), config.adapter_rank
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.lora_a = nn.Parameter(torch.empty(adapters, rank, inputs))
        self.lora_b = nn.Parameter(torch.zeros(adapters, outputs, rank))
        self.scale = config.adapter_scale
        nn.init.normal_(self.weight, std=0.02)
        nn.init.uniform_(self.lora_a, -(inputs**-0.5), inputs**-0.5)

    def forward(self, x: Float[Tensor, "T I"], mask: Mask | None) -> Float[Tensor, "T O"]:
        """Apply the weight and each token's own adapter; without a mask, the weight alone."""
        y = F.linear(x, self.weight, self.bias)
        if mask is None:
            return y
        low_TAR = F.linear(x, self.lora_a.flatten(0, 1)).unflatten(1, self.lora_a.shape[:2])
        low_TAR = low_TAR * mask[:, :, None]
        # addmm adds within the product, which saves two passes over a wide output.
        return y.addmm(low_TAR.flatten(1), self.lora_b.mT.flatten(0, 1), alpha=self.scale)

    def update(self, adapter_id: int) -> Float[Tensor, "O I"]:
        """The matrix that an adapter adds to the weight."""
        return self.scale * (self.lora_b[adapter_id] @ self.lora_a[adapter_id])


class Embedding(nn.Module):
    """A table of rows with low-rank updates. Rows are gathered; no adapted table is ever built.

    As in the original, A is the factor with a row per token here, and it starts at zero.
    """

    def __init__(self, size: int, config: ModelConfig) -> None:
        super().__init__()
        adapters, rank = len(config.tasks), config.adapter_rank
        self.weight = nn.Parameter(torch.empty(size, config.width))
        self.lora_a = nn.Parameter(torch.zeros(adapters, size, rank))
        self.lora_b = nn.Parameter(torch.empty(adapters, rank, config.width))
        self.scale = config.adapter_scale
        self.sparse = False
        """Whether the table's gradient holds only the rows that were used, for Adagrad."""
        nn.init.normal_(self.weight, std=0.02)
        nn.init.normal_(self.lora_b)

    def forward(self, ids: Int[Tensor, " T"], mask: Mask | None) -> Float[Tensor, "T D"]:
        """The rows of the tokens, each with the update of its text's adapter."""
        rows = F.embedding(ids, self.weight, sparse=self.sparse)
        if mask is None:
            return rows
        low_TAR = self.lora_a[:, ids].transpose(0, 1) * mask[:, :, None]
        return rows + self.scale * (low_TAR.flatten(1) @ self.lora_b.flatten(0, 1))

    def update(self, adapter_id: int) -> Float[Tensor, "V D"]:
        """The matrix that an adapter adds to the table; it is as large as the table."""
        return self.scale * (self.lora_a[adapter_id] @ self.lora_b[adapter_id])


class Embeddings(nn.Module):
    """Token rows plus the type row, normalised. Attention adds positions later, by rotation."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.word = Embedding(config.vocab_size, config)
        self.token_type = Embedding(1, config)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)

    def forward(self, ids: Int[Tensor, " T"], mask: Mask | None) -> Float[Tensor, "T D"]:
        """The input of the first block."""
        return self.norm(self.word(ids, mask) + self.token_type(torch.zeros_like(ids), mask))


class Layer(nn.Module):
    """One post-norm block: attention, then the feed-forward part."""

    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        self.qkv = Linear(config.width, 3 * config.width, config)
        self.out = Linear(config.width, config.width, config)
        self.attention_norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.up = Linear(config.width, config.ffn_width, config)
        self.down = Linear(config.ffn_width, config.width, config)
        self.ffn_norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.num_heads = config.num_heads
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "T D"],
        rotation: tuple[Tensor, Tensor],
        layout: Layout,
        mask: Mask | None,
    ) -> Float[Tensor, "T D"]:
        """The hidden states after this block; `rotation` is `rotary_angles` of every token."""
        q_THK, k_THK, v_THK = self.qkv(x, mask).unflatten(1, (3, self.num_heads, -1)).unbind(1)
        mixed = attend(rotate(q_THK, rotation), rotate(k_THK, rotation), v_THK, layout)
        x = self.attention_norm(x + self.dropout(self.out(mixed.flatten(1), mask)))
        up = F.gelu(self.up(x, mask))
        return self.ffn_norm(x + self.dropout(self.down(up, mask)))


class MaskedLMHead(nn.Module):
    """Predicts masked tokens: a dense layer, then the token table as the output matrix."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(
        self, hidden: Float[Tensor, "T D"], table: Float[Tensor, "V D"]
    ) -> Float[Tensor, "T V"]:
        """The score of every piece of the vocabulary at every token; `table` is the token table."""
        return F.linear(self.norm(F.gelu(self.dense(hidden))), table, self.bias)


class Network(nn.Module):
    """The encoder: packed tokens in, one hidden state per token out."""

    def __init__(self, config: ModelConfig, *, dropout: float = 0.0, mlm: bool = False) -> None:
        super().__init__()
        self.config = config
        self.rope_base = config.rope_base
        """Base of the rotary angles: 10,000 in training, the config's when encoding."""
        self.recompute = False
        """Whether to store the activations of one block at a time, for a third more compute."""
        self.precision = torch.float32
        """Type of the matrix products; torch.bfloat16 runs them on float32 weights (autocast). This
        concerns the network and not the whole step, because cosines and losses need float32."""
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList([Layer(config, dropout) for _ in range(config.num_layers)])
        self.mlm = MaskedLMHead(config) if mlm else None
        self.sparse = nn.Linear(config.width, 1) if config.sparse_head else None
        self.multi_vector = (
            nn.Linear(config.width, config.multi_vector_dim) if config.multi_vector_dim else None
        )

    def forward(
        self, ids: Int[Tensor, " T"], lengths: Int[Tensor, " B"], adapter_ids: Int[Tensor, " B"]
    ) -> Float[Tensor, "T D"]:
        """The hidden states of packed texts; `adapter_ids` is each text's adapter, -1 for none."""
        layout = pack_layout(lengths)
        text, positions = number_tokens(layout, len(ids))
        mask = self.adapter_mask(adapter_ids, text)
        rotation = rotary_angles(positions, self.config.head_width, self.rope_base)
        with self.autocast(ids.device):
            x = self.embeddings(ids, mask)
            for layer in self.layers:
                if self.recompute and torch.is_grad_enabled():
                    x = checkpoint(layer, x, rotation, layout, mask, use_reentrant=False)
                else:
                    x = layer(x, rotation, layout, mask)
        return x

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context in which this network computes at its `precision`."""
        low = self.precision != torch.float32
        return torch.autocast(device.type, self.precision if low else None, enabled=low)

    def adapter_mask(self, adapter_ids: Int[Tensor, " B"], text: Int[Tensor, " T"]) -> Mask | None:
        """The mask of each token's adapter; None if no text of the batch has an adapter.

        `text` is the text to which each token belongs.
        """
        if not len(self.config.tasks) or bool((adapter_ids < 0).all()):
            return None
        adapters = torch.arange(len(self.config.tasks), device=adapter_ids.device)
        mask = (adapter_ids[:, None] == adapters).to(self.embeddings.word.weight.dtype)
        return mask[text]

    def mlm_logits(self, hidden: Float[Tensor, "T D"]) -> Float[Tensor, "T V"]:
        """The score of every piece at every given token. The network must have `mlm=True`."""
        assert self.mlm is not None, "build the network with mlm=True"
        with self.autocast(hidden.device):
            return self.mlm(hidden, self.embeddings.word.weight)

    def token_weights(self, hidden: Float[Tensor, "T D"]) -> Float[Tensor, " T"]:
        """The weight of each token, 0 or more: `polyvec.heads.token_weights` for tensors."""
        assert self.sparse is not None, "build the network with sparse_head=True"
        return F.relu(self.sparse(hidden)).squeeze(-1)

    def token_vectors(self, hidden: Float[Tensor, "T D"]) -> Float[Tensor, "T M"]:
        """One unit vector per token: `polyvec.heads.token_vectors` for tensors."""
        assert self.multi_vector is not None, "build the network with multi_vector_dim"
        return F.normalize(self.multi_vector(hidden), dim=-1)

    @torch.no_grad()
    def merge(self, adapter_id: int) -> dict[str, Tensor]:
        """Add an adapter to the weights in place; return the old weights, for `unmerge`.

        Texts without an adapter (-1) then use that adapter at no extra cost.
        """
        saved = {}
        for name, module in self.named_modules():
            if isinstance(module, Linear | Embedding):
                saved[name] = module.weight.clone()
                module.weight.add_(module.update(adapter_id))
        return saved

    @torch.no_grad()
    def unmerge(self, saved: dict[str, Tensor]) -> None:
        """Restore, bit for bit, the weights that `merge` returned."""
        for name, weight in saved.items():
            self.get_parameter(f"{name}.weight").copy_(weight)


def rotary_angles(
    positions: Int[Tensor, " T"], head_width: int, base: float
) -> tuple[Float[Tensor, "T 1 half"], Float[Tensor, "T 1 half"]]:
    """Cosine and sine of position * base**(-2i / head_width) (Su et al. 2021, equation 15).

    The angles are computed for every batch, because a cached table would outlive a change of base.
    """
    half = torch.arange(0, head_width, 2, device=positions.device, dtype=torch.float32)
    angles = positions[:, None, None].float() * (1.0 / base ** (half / head_width))
    return angles.cos(), angles.sin()


def rotate(x: Float[Tensor, "T H K"], rotation: tuple[Tensor, Tensor]) -> Float[Tensor, "T H K"]:
    """Rotate the pair (x[i], x[i + K/2]) by the i-th angle (the non-interleaved convention)."""
    cos, sin = (part.to(x.dtype) for part in rotation)
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1)


def attend(
    q: Float[Tensor, "T H K"],
    k: Float[Tensor, "T H K"],
    v: Float[Tensor, "T H K"],
    layout: Layout,
) -> Float[Tensor, "T H K"]:
    """Softmax attention within every text."""
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
        from torch.nn.attention.varlen import varlen_attn

        bounds, longest = layout.bounds, layout.longest
        mixed = varlen_attn(q, k, v, bounds, bounds, longest, longest)
        assert isinstance(mixed, Tensor), "only with return_aux would it be a tuple"
        return mixed
    # Neighbouring texts of equal length form one rectangular call, without padding or mask.
    runs = [(length, len(list(group))) for length, group in groupby(layout.lengths.tolist())]
    outputs, parts = [], [x.split([length * count for length, count in runs]) for x in (q, k, v)]
    for run, *qkv in zip(runs, *parts, strict=True):
        length, count = run
        q_BHLK, k_BHLK, v_BHLK = (x.unflatten(0, (count, length)).transpose(1, 2) for x in qkv)
        if q.is_cpu and q.requires_grad and length <= MAX_EXPLICIT_ATTENTION_TOKENS:
            # Written out: the backward pass of PyTorch's kernel is 4 to 10 times slower here.
            scores = (q_BHLK * q.shape[-1] ** -0.5) @ k_BHLK.mT
            mixed = scores.softmax(-1).to(v.dtype) @ v_BHLK
        else:
            mixed = F.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK)
        outputs.append(mixed.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def pool(
    hidden: Float[Tensor, "T D"], starts: Int[Tensor, " S"], ends: Int[Tensor, " S"]
) -> Float[Tensor, "S D"]:
    """`polyvec.pooling.pool_spans` for tensors: differentiable, on any device, in float32."""
    lengths = ends - starts
    span = torch.arange(len(starts), device=starts.device).repeat_interleave(lengths)
    offset = torch.arange(len(span), device=starts.device)
    token = offset + (starts - (lengths.cumsum(0) - lengths))[span]
    sums = hidden.new_zeros(len(starts), hidden.shape[1], dtype=torch.float32)
    return sums.index_add(0, span, hidden[token].float()) / lengths[:, None]


def maxsim(
    queries: Float[Tensor, "T M"],
    query_lengths: Int[Tensor, " Q"],
    documents: Float[Tensor, "_T M"],
    document_lengths: Int[Tensor, " C"],
) -> Float[Tensor, "Q C"]:
    """`polyvec.heads.maxsim` for tensors and several queries; texts lie end to end.

    Documents are compared one at a time, so nothing is padded and the longest one bounds memory.
    """
    parts = documents.split(document_lengths.tolist())
    best = torch.stack([(queries @ part.T).amax(1) for part in parts], dim=1)
    ends = query_lengths.cumsum(0)
    return pool(best, ends - query_lengths, ends)
