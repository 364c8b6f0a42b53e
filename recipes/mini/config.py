"""Constants of the recipe: the model's shape, the budget of every phase, and language shares."""

from dataclasses import dataclass

import torch

from polyvec.config import ModelConfig
from polyvec.tasks import TASKS, Task, adapter_index
from polyvec.train.loop import Settings

CONFIG = ModelConfig(
    vocab_size=104_000,
    width=384,
    num_layers=12,
    num_heads=12,
    ffn_width=1_536,
    layer_norm_eps=1e-12,
    rope_base=10_000.0,
    tasks=(Task("retrieval.query", "query: "), Task("retrieval.passage", "passage: "), *TASKS[2:]),
    dims=(32, 64, 128, 256, 384),
    sparse_head=True,
    multi_vector_dim=128,
)
"""Shape of the model in training. The instructions are those of E5."""

INFERENCE_ROPE_BASE = 20_000.0
"""Rotary base of the finished model."""

QUERY_ADAPTER = adapter_index(CONFIG.tasks, "retrieval.query")
PASSAGE_ADAPTER = adapter_index(CONFIG.tasks, "retrieval.passage")
QUERY_PROMPT = CONFIG.tasks[QUERY_ADAPTER].prompt
PASSAGE_PROMPT = CONFIG.tasks[PASSAGE_ADAPTER].prompt

HEADS = ("sparse.", "multi_vector.")
"""Prefixes of the heads' parameters."""

PRECISION = torch.bfloat16
"""Number format of matrix products in training. Weights and losses are in float32."""

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

DIM_WEIGHTS = (0.3, 0.5, 0.7, 1.0, 1.0)
"""Weight of the backbone's loss at each Matryoshka dim. A small dim cannot reproduce the teacher
exactly, so it has a small weight."""

PAPER_LANGUAGES = (
    "ar bn da de el es fi fr hi id it ka ko lv nl no pl pt ro ru sk sv th tr uk ur vi".split()
)
"""The 30 languages of the paper (section 4.2), without English, Chinese and Japanese."""

SMALLER_LANGUAGES = (
    "af am az be bg ca cs et eu fa ga gl gu he hr hu hy is kk km kn ku lt mk ml mr ms my ne pa sl "
    "sq sr sw ta te tl"
).split()
"""Languages with a smaller share, many of whose pieces the first selection drops."""

LANGUAGE_SHARES = {
    **dict.fromkeys([*PAPER_LANGUAGES, "zh", "ja"], 0.0125),
    **dict.fromkeys(SMALLER_LANGUAGES, 0.0075),
    **dict.fromkeys(["sw", "ta", "te"], 0.015),
    "en": 0.09,
}
"""Fraction of the backbone's texts in each language. The other three hundred share the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Amount of training and data in a phase."""

    settings: Settings
    """Settings of the loop."""

    batch_tokens: int
    """Tokens per step. For pairs, this includes both texts."""

    data_scale: int = 1
    """Factor for the numbers of texts per language in this recipe."""

    long_share: float = 0.0
    """Fraction of the steps with long documents."""


BACKBONE_BUDGETS = {
    "gpu": Budget(
        settings=Settings(
            steps=2_600, learning_rate=3e-4, table_rate=2e-3, warmup=0.05, save_every=1_300
        ),
        batch_tokens=65_536,
        data_scale=16,
        long_share=0.2,
    ),
    "cores": Budget(
        settings=Settings(
            steps=720, learning_rate=1e-4, table_rate=1e-3, warmup=0.05, save_every=120
        ),
        batch_tokens=4_096,
        long_share=0.1,
    ),
}
"""Budgets of the backbone: four minutes on an H100, which made the bundled model, or several hours
on two CPU cores."""


def adapter_budget(
    steps: int, rate: float, batch_tokens: int, *, data_scale: int = 1, long_share: float = 0.0
) -> Budget:
    """The budget of an adapter. It is small, so that the adapter does not forget other data."""
    settings = Settings(
        steps=steps, learning_rate=rate, table_rate=rate, warmup=0.05, save_every=steps // 3
    )
    return Budget(
        settings=settings,
        batch_tokens=batch_tokens,
        data_scale=data_scale,
        long_share=long_share,
    )


ADAPTER_BUDGETS = {
    "text-matching": adapter_budget(300, 1e-3, 24_576, data_scale=4),
    "retrieval": adapter_budget(300, 1e-3, 24_576, data_scale=8, long_share=0.15),
    "classification": adapter_budget(120, 5e-4, 3_072),
    "separation": adapter_budget(180, 1e-3, 24_576),
}
"""Budget of each adapter. The two retrieval adapters are trained together."""

HEADS_BUDGET = adapter_budget(80, 1e-3, 3_072)
"""Budget of the heads."""

ADAPTER_SCALES = {"text-matching": 0.5, "retrieval": 0.5}
"""Factor of an adapter's trained update, if it is not 1 (Wortsman et al. 2022). With factor 1 these
two find fewer translations and fewer passages in long documents (docs/log.md)."""
