"""Phase 6: the sparse and the multi-vector head, with the finished adapters frozen."""

from pathlib import Path

from tokenizers import Tokenizer

from polyvec.network import Network
from polyvec.train.head_objectives import self_distillation
from polyvec.train.loop import StepFn
from recipes.mini.config import (
    DEVICE,
    HEADS,
    HEADS_BUDGET,
    PASSAGE_ADAPTER,
    PASSAGE_PROMPT,
    QUERY_ADAPTER,
    QUERY_PROMPT,
    Budget,
)
from recipes.mini.retrieval import question_pairs
from recipes.mini.runs import load_adapters, train_part


def train_heads(tokenizer: Tokenizer, data: Path, out: Path) -> None:
    """Train the heads. All other parameters are frozen."""
    network = load_adapters(out).to(DEVICE)
    step_fn = heads_objective(network, tokenizer, data, HEADS_BUDGET)
    train_part(network, HEADS, step_fn, HEADS_BUDGET.settings, out / "heads", None)


def heads_objective(network: Network, tokenizer: Tokenizer, data: Path, budget: Budget) -> StepFn:
    """Questions find their passages by sparse weights and by token embeddings."""
    pairs = question_pairs(tokenizer, data, budget)
    special = {n for n, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    query_tokens, passage_tokens = (
        len(tokenizer.encode(prompt, add_special_tokens=False).ids) + 1
        for prompt in (QUERY_PROMPT, PASSAGE_PROMPT)
    )
    return self_distillation(
        network,
        pairs.texts,
        pairs.partners,
        pairs.targets,
        pairs.plan,
        ignored=special,
        adapter_ids=(QUERY_ADAPTER, PASSAGE_ADAPTER),
        num_prompts=(query_tokens, passage_tokens),
        negatives=pairs.negatives,
    )
