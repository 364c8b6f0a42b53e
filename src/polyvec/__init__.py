"""Multilingual, multi-task text embeddings."""

from polyvec.config import ModelConfig
from polyvec.encoder import Encoder
from polyvec.heads import Outputs, Sparse, maxsim
from polyvec.late_chunking import Semantic, Sentences
from polyvec.outputs import (
    Chunks,
    NotFiniteError,
    similarity,
    to_base64,
    to_binary,
    to_float16,
    to_int8,
    to_ubinary,
    truncate_and_normalise,
)
from polyvec.reranking import Ranked, rerank
from polyvec.tasks import TASKS, Task
from polyvec.truncation import TooLongError, TruncationWarning

__all__ = [
    "TASKS",
    "Chunks",
    "Encoder",
    "ModelConfig",
    "NotFiniteError",
    "Outputs",
    "Ranked",
    "Semantic",
    "Sentences",
    "Sparse",
    "Task",
    "TooLongError",
    "TruncationWarning",
    "maxsim",
    "rerank",
    "similarity",
    "to_base64",
    "to_binary",
    "to_float16",
    "to_int8",
    "to_ubinary",
    "truncate_and_normalise",
]
